"""One thread per target reads it at its own pace, so that a hanging target delays nobody."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from vllm_opsctl.exporter.config import Exporter, Target
from vllm_opsctl.exporter.observation import Observation, error
from vllm_opsctl.exporter.sources.probe import Prober
from vllm_opsctl.exporter.sources.reader import FACTS_EVERY_S, Reading, TargetReader
from vllm_opsctl.exporter.sources.scrape import Scraper
from vllm_opsctl.exporter.sources.tap import TapFolder
from vllm_opsctl.exporter.target_state import TargetState

log = logging.getLogger(__name__)

JITTER = 0.05
"""Share of the interval by which reads are spread, so that sidecars do not march in step."""

PATIENT_FAILURES = 5
"""Failed reads at the usual pace before backing off, so that a short outage is located exactly."""


def delay_after(failures: int, exporter: Exporter) -> float:
    """
    Seconds until the next read.

    Args:
        failures: Failed reads in a row.
        exporter: Interval and the longest pause.
    """
    if failures <= PATIENT_FAILURES:
        return exporter.poll_interval
    doubled = exporter.poll_interval * 2.0 ** min(failures - PATIENT_FAILURES, 16)
    return max(exporter.poll_interval, min(exporter.max_backoff, doubled))


class Poller(threading.Thread):
    """
    Reads one target until stopped.

    Args:
        state: Where observations go.
        exporter: Pace and timeout.
        api_key: The target's, if it wants one.
        folder: Of tap pages; None without any.
        targets: All configured ones: they share the folder.
        stop: Set to end.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        state: TargetState,
        exporter: Exporter,
        *,
        api_key: str | None,
        folder: TapFolder | None = None,
        targets: Sequence[Target] = (),
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name=f"poll {state.target.name}", daemon=True)
        self.state = state
        self._exporter = exporter
        self._stop_event = stop
        self._clock = clock
        target = state.target
        has_address = not target.is_tap_only
        self.reader = TargetReader(
            target,
            scraper=Scraper(target, timeout_s=exporter.timeout, api_key=api_key)
            if has_address
            else None,
            folder=folder,
            targets=targets,
        )
        self._prober = Prober(target, api_key=api_key) if has_address else None
        self._random = random.Random()  # noqa: S311 - spreads reads, no secret

    def run(self) -> None:
        """Poll; errors of a target are observations, never the end of the thread."""
        failures = 0
        facts_due = 0.0
        self._wait(self._random.random() * min(0.5, self._exporter.poll_interval))
        while not self._stop_event.is_set():
            started = self._clock()
            good, observation = self._read_once()
            if self._prober is not None:
                if good and self._clock() >= facts_due:
                    self.state.record(self._prober.facts())
                    facts_due = self._clock() + FACTS_EVERY_S
                if not good or failures:
                    # after an outage once more, so that an old "503" is not the last word
                    self.state.record(self._prober.health())
            if not good:
                facts_due = 0.0
            self._tell(good, failures, observation)
            failures = 0 if good else failures + 1
            delay = delay_after(failures, self._exporter)
            spread = 1 + JITTER * (2 * self._random.random() - 1)
            self._wait(delay * spread - (self._clock() - started))
        self.reader.close()
        if self._prober is not None:
            self._prober.close()

    def _read_once(self) -> tuple[bool, Observation]:
        """
        One read; a fault of ours is an error of this read, not the end of all reading.

        Returns:
            Whether it gave a page, and what it gave.
        """
        started = self._clock()
        try:
            reading = self.reader.read()
            seconds = self._clock() - started
            return self._take(reading, seconds), reading.now[-1]
        except Exception as problem:
            log.exception("%s: a fault of the sidecar itself", self.state.target.name)
            failed = error(time.time(), self.state.target.name, "internal", repr(problem))
            return self.state.record(failed), failed

    def read_the_dead(self) -> None:
        """Once more, at the end: an engine that has ended just now left its last second on its page."""
        try:
            self._take(self.reader.read_the_dead(), 0.0)
        except Exception:
            log.exception("%s: a fault of the sidecar itself", self.state.target.name)

    def _take(self, reading: Reading, seconds: float) -> bool:
        """Give the state what was read; whether the last of it was a page."""
        good = False
        for observation in reading.past:
            self.state.remember(observation)
        for observation in reading.now:
            good = self.state.record(observation, seconds=seconds)
        return good

    def _tell(self, good: bool, failures: int, observation: Observation) -> None:
        """Log when a target comes and goes, not every read of a dead one."""
        if good and failures:
            log.warning("%s answers again after %d failed reads", observation.target, failures)
        elif not good and failures == 0:
            detail = observation.data.get("detail") or "its page is not readable"
            log.warning("%s: %s", observation.target, detail)

    def _wait(self, seconds: float) -> None:
        if seconds > 0:
            self._stop_event.wait(seconds)
