"""The sidecar: pollers, flight recorders and the HTTP server, from a configuration to a clean stop."""

from __future__ import annotations

import heapq
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from prometheus_client import CollectorRegistry
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.aws import has_classic_metrics
from vllm_opsctl.exporter.config import TAP_ONLY, Config, Target, split_listen
from vllm_opsctl.exporter.config_load import api_key
from vllm_opsctl.exporter.descriptors import allow_open_files
from vllm_opsctl.exporter.door import Door, listener_on
from vllm_opsctl.exporter.engine import PageSample
from vllm_opsctl.exporter.identity import identity_of
from vllm_opsctl.exporter.limits import MAX_CONNECTIONS, MAX_TAP_PAGES
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.poller import Poller
from vllm_opsctl.exporter.recording import save_recording
from vllm_opsctl.exporter.server import Application, Overview
from vllm_opsctl.exporter.sinks.cloudwatch.publisher import Publisher, publisher
from vllm_opsctl.exporter.sinks.losses import LossCollector
from vllm_opsctl.exporter.sinks.otlp import OtlpPublisher, otlp_publisher
from vllm_opsctl.exporter.sinks.prometheus import EngineCollector, LabelledCollector
from vllm_opsctl.exporter.sources.tap import (
    TapFolder,
    TapServer,
    assigned,
    owner_id,
    pages_now,
)
from vllm_opsctl.exporter.sources.tap_text import Bounds, EveryBound
from vllm_opsctl.exporter.target_state import Snapshot, TargetState
from vllm_opsctl.exporter.workers import Life, Workers

JOIN_POLLERS_S = 0.3
"""Pollers that hang in a read longer than this at the end are left to die with the process."""

JOIN_PUBLISHER_S = 1.0
"""What CloudWatch has not taken by then waits in the spool, or is lost without one."""

DISCOVER_EVERY = 3
"""Polls between two looks for new servers: each reads every page."""

LOOK_EVERY_S = 1.0
"""Time between two looks at the workers."""

FILES_PER_TARGET = 4
"""One connection for pages, one for facts, and each one's twin with its deadline."""

OTHER_FILES = 128

log = logging.getLogger(__name__)


class Sidecar:
    """
    One sidecar.

    Args:
        config: Validated, with at least one target or a folder of tap pages.
        environment: For the API keys that the configuration names.
        overview: What stands first on the page for people.

    Raises:
        ConfigError: An API key is not where the configuration says, CloudWatch has no region, or
            there is no user as exporter.tap.owner names.
        ServeError: The address cannot be listened on.
    """

    def __init__(
        self, config: Config, environment: Mapping[str, str], overview: Overview | None = None
    ) -> None:
        self.config = config
        self._stop = threading.Event()
        tap = config.exporter.tap
        folder = (
            TapFolder(Path(tap.dir), Bounds(config.objectives), owner_id(tap.owner))
            if tap.dir
            else None
        )
        self._folder = folder
        self._workers = Workers(self._stop)
        self._watched: dict[str, Poller] = {}
        self._is_full = False
        for target in config.targets:
            self._watch(target, partial(api_key, target, environment))
        registry = CollectorRegistry()
        registry.register(EngineCollector(self.snapshots, config.objectives))
        ProcessCollector(namespace="opsctl", registry=registry)
        PlatformCollector(registry=registry)
        self._publishers = list(self._new_publishers(environment, registry))
        registry.register(LossCollector(self._publishers))
        registry.register(self._workers)
        # what is sent elsewhere says whose it is in its own way: dimensions, or the resource
        page = CollectorRegistry()
        page.register(LabelledCollector(registry.collect, identity_of(config)))
        host, port = split_listen(config.exporter.listen)
        wanted = len(config.targets) * FILES_PER_TARGET + MAX_CONNECTIONS + OTHER_FILES
        allowed = allow_open_files(wanted)
        if allowed < wanted:
            log.warning(
                "at most %d open files are allowed, and %d may be needed; raise ulimit -n",
                allowed,
                wanted,
            )
        self._server = Door(Application(self, page, overview, host=host), listener_on(host, port))

    @property
    def url(self) -> str:
        """Where it answers."""
        return self._server.url

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    def snapshots(self) -> list[Snapshot]:
        """All targets, in the configuration's order."""
        now = self.now()
        return [poller.state.snapshot(now) for poller in self._pollers()]

    def observations(
        self, target: str | None, start: float | None, end: float | None
    ) -> Iterator[Observation]:
        """The flight recorders' observations in the order of their times."""
        streams = [
            poller.state.recorder.read(start, end)
            for poller in self._pollers()
            if target in (None, poller.state.target.name)
        ]
        return heapq.merge(*streams, key=lambda observation: observation.t)

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP, then save the recording and stop within 2 s."""
        for poller in self._pollers():
            self._start(poller)
        if self._folder is not None:
            self._workers.start("tap", self._discover)
        for sends in self._publishers:
            self._workers.start(sends.sink, sends.run)
        self._workers.start("http", self._serve)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            # of a terminal that closes; under nohup it is ignored, and stays so
            signal.signal(signal.SIGHUP, self._on_signal)
        # whoever minds the others must not die in silence: it is the process itself
        while not self._stop.wait(LOOK_EVERY_S):
            self._workers.look()
        self._server.close()
        self._workers.join([poller.name for poller in self._pollers()], JOIN_POLLERS_S)
        for poller in self._pollers():
            if not self._workers.is_alive(poller.name):
                poller.read_the_dead()
        for sends in self._publishers:
            if not self._workers.join([sends.sink], JOIN_PUBLISHER_S):
                log.error("%s", sends.unfinished)
        self._save()

    def _new_publishers(
        self, environment: Mapping[str, str], registry: CollectorRegistry
    ) -> Iterator[Publisher | OtlpPublisher]:
        """What sends metrics to CloudWatch; nothing where nothing does."""
        settings = self.config.exporter.cloudwatch
        if settings.sink == "otlp":
            yield otlp_publisher(self.config, environment, registry.collect, self._starts)
        if has_classic_metrics(settings):
            yield publisher(
                self.config, environment, self._take_pages, self._fine_pages, self._stop
            )

    def _starts(self) -> dict[str, float]:
        """When the process of every target that tells it began."""
        return {
            snapshot.target.name: snapshot.page.engines[0].gauges["process_start_time_seconds"]
            for snapshot in self.snapshots()
            if snapshot.page is not None
            and snapshot.page.engines
            and "process_start_time_seconds" in snapshot.page.engines[0].gauges
        }

    def _take_pages(self) -> dict[str, list[PageSample]]:
        """Of every target, for the publisher."""
        return {poller.state.target.name: poller.state.take_pages() for poller in self._pollers()}

    def _fine_pages(self) -> dict[str, PageSample]:
        """Of every target with the tap, with all of its bounds, for the publisher."""
        if self._folder is None:
            return {}
        return pages_now(self._folder.bounded(EveryBound()), self.config.targets)

    def _watch(self, target: Target, read_key: Callable[[], str | None]) -> Poller:
        exporter, objectives = self.config.exporter, self.config.objectives
        poller = Poller(
            TargetState(target, exporter, objectives),
            exporter,
            api_key=read_key(),
            read_key=read_key,
            folder=self._folder,
            targets=self.config.targets,
        )
        self._watched[target.name] = poller
        return poller

    def _start(self, poller: Poller) -> None:
        self._workers.start(poller.name, poller.run, hangs_after_s=poller.hangs_after_s)

    def _pollers(self) -> list[Poller]:
        """Of all targets, in the configuration's order; discovered ones follow."""
        return list(self._watched.values())

    def _discover(self, life: Life) -> None:
        """Watch servers that appear in the folder of tap pages, and clear away dead ones."""
        assert self._folder is not None
        while not life.wait(DISCOVER_EVERY * self.config.exporter.poll_interval):
            try:
                servers = self._folder.servers()
                for name in assigned(servers, self.config.targets):
                    if name not in self._watched and self._has_room(name):
                        log.warning("%s: found by its tap page", name)
                        self._start(self._watch(Target(name=name, url=TAP_ONLY), lambda: None))
                self._clear(servers)
            except Exception:
                log.exception("%s: a fault of the sidecar itself", self._folder.path)

    def _has_room(self, name: str) -> bool:
        """Whether one more server may be watched, which takes a thread and memory of its own."""
        found = len(self._watched) - len(self.config.targets)
        if found >= MAX_TAP_PAGES and not self._is_full:
            self._is_full = True
            log.warning("%s: left out; %d servers were found by their tap pages", name, found)
        return found < MAX_TAP_PAGES

    def _clear(self, servers: Sequence[TapServer]) -> None:
        """Delete pages of dead servers that were read long enough ago."""
        assert self._folder is not None
        horizon = self.now() - self.config.exporter.tap.keep_dead
        self._folder.remove_unfinished(horizon)
        for poller in self._pollers():
            self._folder.remove_read(servers, poller.reader.finished, horizon)

    def _serve(self, life: Life) -> None:
        try:
            self._server.run()
        except OSError:
            # waitress' select loop meets its closed socket when the sidecar stops
            if not self._stop.is_set():
                raise

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def _save(self) -> None:
        path = self.config.exporter.flight_recorder.save_to
        if path is None:
            return
        try:
            save_recording(Path(path), self.observations(None, None, None))
        except InputFileError as problem:
            log.error("flight recorder not saved: %s", problem)
