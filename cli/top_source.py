"""Where `opsctl top` gets its numbers and verdicts: live targets, or a sidecar's flight recorder."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vllm_opsctl.cli.doctor import Doctor
from vllm_opsctl.cli.observing import Sidecar
from vllm_opsctl.cli.top_model import KEPT_POINTS, Fleet
from vllm_opsctl.errors import SourceError
from vllm_opsctl.exporter.bundle import Asked
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.config_load import LoadedConfig
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS
from vllm_opsctl.exporter.observation import Observation, error
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.runbooks.load import shipped_library
from vllm_opsctl.runbooks.watch import Watch

INTERVAL_S = 0.5
WINDOW_S = 60.0
JUDGE_EVERY_S = 5.0
PROBE_EVERY_S = 30.0
"""Half a window: an idle engine always has a canary in it."""

_REST = 3.0
"""Verdicts take at most a quarter of one core: so many times their duration is rested."""

_SIDECAR_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Source:
    """
    Fills a fleet.

    Args:
        fleet: What is drawn.
        begin: Starts to observe; told the event that ends it.
        judge_all: Computes the verdict of every target once.
    """

    fleet: Fleet
    begin: Callable[[threading.Event], None]
    judge_all: Callable[[], None]

    def start(self, stop: threading.Event) -> None:
        """Observe, and judge now and then, until stopped."""
        self.begin(stop)
        threading.Thread(target=self._judge, args=(stop,), name="verdicts", daemon=True).start()

    def _judge(self, stop: threading.Event) -> None:
        stop.wait(JUDGE_EVERY_S)
        while not stop.is_set():
            started = time.monotonic()
            try:
                self.judge_all()
            except Exception as problem:
                # a verdict that nobody renews must not be shown as the newest
                self.fleet.judge_failed(f"{type(problem).__name__}: {problem}")
            stop.wait(max(JUDGE_EVERY_S, _REST * (time.monotonic() - started)))


def live_source(targets: Sequence[Target], loaded: LoadedConfig, *, probe: bool) -> Source:
    """
    Live targets.

    Raises:
        ConfigError: An API key is not where the configuration says.
    """
    names = tuple(target.name for target in targets)
    fleet = Fleet(names)
    watch = Watch(
        targets,
        interval_s=INTERVAL_S,
        probe_every_s=PROBE_EVERY_S if probe else None,
        environment=os.environ,
        keep_s=KEPT_POINTS * INTERVAL_S,
        on_observation=fleet.see,
    )
    doctor = Doctor(shipped_library(), loaded, WINDOW_S)
    asked = Asked(source="scrape", at=None, window_s=WINDOW_S, targets=names)

    def judge_all() -> None:
        _judge(fleet, doctor, watch.observations(), replace(asked, now=time.time()))

    return Source(fleet, lambda stop: watch.start(), judge_all)


def sidecar_source(url: str, names: Sequence[str], loaded: LoadedConfig, *, probe: bool) -> Source:
    """
    What a sidecar records; its past fills the courses at once.

    Raises:
        UsageError: No URL, or a target that it does not watch.
        SourceError: It does not answer, or is no sidecar.
    """
    sidecar = Sidecar(url, names, loaded)
    chosen = tuple(target.name for target in sidecar.targets)
    fleet = Fleet(chosen, sidecar.now)
    doctor = Doctor(shipped_library(), loaded, WINDOW_S)
    asked = Asked(source="sidecar", at=None, window_s=WINDOW_S, targets=chosen)
    probed_at = -PROBE_EVERY_S

    def judge_all() -> None:
        nonlocal probed_at
        is_due = probe and time.monotonic() - probed_at >= PROBE_EVERY_S
        if is_due:
            probed_at = time.monotonic()
        try:
            found = sidecar.observations(end=None, window_s=WINDOW_S, probe=is_due, quiet=True)
        except SourceError:
            # the thread that reads pages says so
            return
        _judge(fleet, doctor, found, replace(asked, now=sidecar.now()))

    def begin(stop: threading.Event) -> None:
        threading.Thread(
            target=_poll, args=(sidecar, fleet, chosen, stop), name="sidecar", daemon=True
        ).start()

    return Source(fleet, begin, judge_all)


def _judge(fleet: Fleet, doctor: Doctor, observations: Sequence[Observation], asked: Asked) -> None:
    for name in asked.targets:
        fleet.judge(doctor.target(name, observations, asked))


def _poll(sidecar: Sidecar, fleet: Fleet, names: Sequence[str], stop: threading.Event) -> None:
    """Take over what is new, target by target."""
    newest = {name: sidecar.now() - KEPT_POINTS for name in names}
    while not stop.is_set():
        for name in names:
            try:
                # the sidecar writes milliseconds; the newest page is not asked for again
                for observation in sidecar.since(name, newest[name] + 1e-3):
                    newest[name] = max(newest[name], observation.t)
                    fleet.see(observation)
            except SourceError as problem:
                fleet.see(error(time.time(), name, problem.reason, problem.detail))
            except Exception as problem:
                # seen as an error of the target, and no end of looking
                why = plain(f"{type(problem).__name__}: {problem}", MAX_NAME_CHARS)
                fleet.see(error(time.time(), name, "internal", why))
        stop.wait(_SIDECAR_EVERY_S)
