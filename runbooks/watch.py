"""Observes live targets without gaps until stopped: what re-diagnosis and live views read from."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from vllm_opsctl.exporter.config import FlightRecorder as RecorderSettings
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.config_load import api_key
from vllm_opsctl.exporter.flight_recorder import FlightRecorder
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS
from vllm_opsctl.exporter.observation import Observation, error
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.sources.scrape import Scraper
from vllm_opsctl.runbooks.evidence import HISTORY_S
from vllm_opsctl.runbooks.observe import READ_TIMEOUT_S, OnObservation, probe_once

log = logging.getLogger(__name__)


def _ignore(observation: Observation) -> None:
    pass


class Watch:
    """
    Live targets, each read at a steady pace by a thread of its own into a flight recorder.

    Unlike :func:`.observe.observe` it gives no target up: one that is down now may come back.

    Args:
        targets: What to look at.
        interval_s: Time between two reads of a target.
        probe_every_s: Time between two canary completions of a target; None for none.
        environment: For API keys.
        keep_s: How far back observations are kept.
        on_observation: Also told each observation, by the threads that make them.

    Raises:
        ConfigError: An API key is not where the configuration says.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        interval_s: float,
        probe_every_s: float | None,
        environment: Mapping[str, str],
        keep_s: float = HISTORY_S,
        on_observation: OnObservation = _ignore,
    ) -> None:
        self._stop = threading.Event()
        self._on_observation = on_observation
        self._recorders = {
            target.name: FlightRecorder(
                target.name, keep_s=keep_s, max_bytes=RecorderSettings().max_memory
            )
            for target in targets
        }
        self._threads: list[threading.Thread] = []
        for target in targets:
            key = api_key(target, environment)
            self._add(target.name, "watch", self._reads(target, key), interval_s)
            if probe_every_s is not None:
                self._add(target.name, "probe", self._probes(target, key), probe_every_s)

    def start(self) -> None:
        """Begin to observe."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Observe no more; what is under way is not waited for."""
        self._stop.set()

    def observations(self) -> list[Observation]:
        """Everything that is kept, one target after the other, oldest first."""
        return [o for recorder in self._recorders.values() for o in recorder.read()]

    def _keep(self, observation: Observation) -> None:
        log.info("%s: %s", observation.target, observation.kind)
        self._recorders[observation.target].append(observation)
        self._on_observation(observation)

    def _reads(self, target: Target, key: str | None) -> Callable[[], None]:
        scraper = Scraper(target, timeout_s=READ_TIMEOUT_S, api_key=key)
        return lambda: self._keep(scraper.read())

    def _probes(self, target: Target, key: str | None) -> Callable[[], None]:
        return lambda: probe_once(target, key, self._keep)

    def _add(self, target: str, what: str, job: Callable[[], None], every_s: float) -> None:
        name = f"{what} {target}"

        def repeat() -> None:
            while not self._stop.is_set():
                started = time.monotonic()
                try:
                    job()
                except Exception as problem:
                    # seen as an error of the target, and no end of watching it
                    why = plain(f"{type(problem).__name__}: {problem}", MAX_NAME_CHARS)
                    log.info("%s: %s", name, why, exc_info=True)
                    self._keep(error(time.time(), target, "internal", why))
                self._stop.wait(max(0.0, started + every_s - time.monotonic()))

        self._threads.append(threading.Thread(target=repeat, name=name, daemon=True))
