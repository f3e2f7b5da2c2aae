"""One worker per target reads it at its own pace, so that a hanging target delays nobody."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence

from vllm_opsctl.errors import OpsError
from vllm_opsctl.exporter.config import Exporter, Target
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS
from vllm_opsctl.exporter.observation import Observation, error
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.sources.probe import FACTS_TIMEOUT_S, Prober
from vllm_opsctl.exporter.sources.reader import FACTS_EVERY_S, Reading, TargetReader
from vllm_opsctl.exporter.sources.scrape import Scraper
from vllm_opsctl.exporter.sources.tap import TapFolder
from vllm_opsctl.exporter.target_state import TargetState
from vllm_opsctl.exporter.workers import Life

log = logging.getLogger(__name__)

JITTER = 0.05
"""Share of the interval by which reads are spread, so that sidecars do not march in step."""

PATIENT_FAILURES = 5
"""Failed reads at the usual pace before backing off, so that a short outage is located exactly."""

HANGS_AFTER_S = 30.0
"""Beyond what a read may take: a machine that stands still for a moment replaces nobody."""


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


class Poller:
    """
    Reads one target until it is over.

    Args:
        state: Where observations go.
        exporter: Pace and timeout.
        api_key: The target's, if it wants one.
        read_key: Reads it again, for it may be rotated while the sidecar runs.
        folder: Of tap pages; None without any.
        targets: All configured ones: they share the folder.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        state: TargetState,
        exporter: Exporter,
        *,
        api_key: str | None,
        read_key: Callable[[], str | None] = lambda: None,
        folder: TapFolder | None = None,
        targets: Sequence[Target] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = state
        self.name = f"poll {state.target.name}"
        self._exporter = exporter
        self._api_key = api_key
        self._read_key = read_key
        self._folder = folder
        self._targets = targets
        self._clock = clock
        self._random = random.Random()  # noqa: S311 - spreads reads, no secret
        self._told: set[str] = set()
        self.reader = self._new_reader()

    @property
    def hangs_after_s(self) -> float:
        """Longest time that a read and all that belongs to it can take, and then some."""
        return self._exporter.timeout + FACTS_TIMEOUT_S + HANGS_AFTER_S

    def run(self, life: Life) -> None:
        """Poll; errors of a target are observations, never the end of the thread."""
        # of this life alone: one that hung may hold the connections of the life before
        reader = self.reader = self._new_reader()
        prober = None
        if not self.state.target.is_tap_only:
            prober = Prober(self.state.target, api_key=self._api_key)
        sent_key = self._api_key
        failures = 0
        facts_due = 0.0
        life.wait(self._random.random() * min(0.5, self._exporter.poll_interval))
        while not life.is_over:
            started = self._clock()
            good, observation = self._read_once(reader, life)
            if prober is not None:
                if self._api_key != sent_key:
                    prober.close()
                    prober = Prober(self.state.target, api_key=self._api_key)
                    sent_key = self._api_key
                if good and self._clock() >= facts_due:
                    self._record(life, prober.facts)
                    facts_due = self._clock() + FACTS_EVERY_S
                if not good or failures:
                    # after an outage once more, so that an old "503" is not the last word
                    self._record(life, prober.health)
            if not good:
                facts_due = 0.0
            self._tell(good, failures, observation)
            failures = 0 if good else failures + 1
            delay = delay_after(failures, self._exporter)
            spread = 1 + JITTER * (2 * self._random.random() - 1)
            life.wait(delay * spread - (self._clock() - started))
        reader.close()
        if prober is not None:
            prober.close()

    def _new_reader(self) -> TargetReader:
        target = self.state.target
        scraper = None
        if not target.is_tap_only:
            scraper = Scraper(
                target,
                timeout_s=self._exporter.timeout,
                api_key=self._api_key,
                renewed_key=self._renewed_key,
            )
        return TargetReader(target, scraper=scraper, folder=self._folder, targets=self._targets)

    def _renewed_key(self) -> str | None:
        """The key as its file has it now; the old one goes on while there is none to be read."""
        with contextlib.suppress(OpsError):
            self._api_key = self._read_key() or self._api_key
        return self._api_key

    def _read_once(self, reader: TargetReader, life: Life) -> tuple[bool, Observation]:
        """
        One read; a fault of ours is an error of this read, not the end of all reading.

        Returns:
            Whether it gave a page, and what it gave.
        """
        started = self._clock()
        try:
            reading = reader.read()
            if life.is_retired:
                # somebody else reads this target now
                return False, reading.now[-1]
            return self._take(reading, self._clock() - started), reading.now[-1]
        except Exception as problem:
            failed = self._failed(problem)
            return False, failed

    def _record(self, life: Life, ask: Callable[[], Observation]) -> None:
        """Ask beside the page; a fault in that is none of the page's."""
        try:
            observation = ask()
            if not life.is_retired:
                self.state.record(observation)
        except Exception as problem:
            self._failed(problem)

    def _failed(self, problem: Exception) -> Observation:
        """Note a fault of ours; its traceback once, for it comes again with every read."""
        name, kind = self.state.target.name, type(problem).__name__
        if kind in self._told:
            log.error("%s: a fault of the sidecar itself (%s)", name, kind)
        else:
            log.exception("%s: a fault of the sidecar itself", name)
            self._told.add(kind)
        failed = error(time.time(), name, "internal", plain(f"{kind}: {problem}", MAX_NAME_CHARS))
        self.state.record(failed)
        return failed

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
