"""
Verdicts for somebody who looks now and then: made in a thread while they are asked for, else not at all.

To diagnose a target of half an hour takes about 0.6 s of one core, most of it for reading pages. So it is
done only after somebody asked, by one thread at a time, which rests longer than it works and lets
others in after each page.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from vllm_opsctl.exporter.engine import PageSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.observation import Observation, thinned
from vllm_opsctl.runbooks.evidence import history_of
from vllm_opsctl.runbooks.examine import examine
from vllm_opsctl.runbooks.fleet import conclude_fleet
from vllm_opsctl.runbooks.load import Library
from vllm_opsctl.runbooks.verdict import Verdict

PAUSE_S = 15.0
"""Shortest time between two looks: ``opsctl diagnose --watch`` looks as often."""

REST = 4.0
"""It rests so many times as long as the last look took: a large fleet takes a fifth of one core."""

OUTDATED_S = 60.0
"""An answer so old, beyond a whole round, is about another time; nobody is shown it."""

GIVE_WAY_S = 0.001
"""Sleep after each page (some 2 ms of work): pollers and requests do not wait for a whole look."""

WINDOW_S = 60.0
"""Length of the window, as ``opsctl diagnose`` has it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Look:
    """
    What is known when somebody asks.

    Args:
        verdict: The newest one; None when there is none, or it is too old.
        at: Unix seconds at which the newest look ended, or failed; None before the first one.
        took_s: How long it took, seconds.
        problem: Why the newest look gave no verdict.
    """

    verdict: Verdict | None = None
    at: float | None = None
    took_s: float = 0.0
    problem: str | None = None

    @property
    def pause_s(self) -> float:
        """Seconds until the next look, while somebody asks."""
        return max(PAUSE_S, REST * self.took_s)


class OnDemand:
    """
    Verdicts on demand, cached; safe to ask from several threads.

    Args:
        diagnose: Makes a verdict; called in a thread of its own, never twice at once.
        now: Unix seconds.
    """

    def __init__(
        self, diagnose: Callable[[], Verdict], *, now: Callable[[], float] = time.time
    ) -> None:
        self._diagnose = diagnose
        self._now = now
        self._lock = threading.Lock()
        self._is_looking = False
        self._last = Look()

    def ask(self) -> Look:
        """What is known now; starts the next look when it is due, and never waits for one."""
        now = self._now()
        with self._lock:
            last = self._last
            age = None if last.at is None else abs(now - last.at)
            if not self._is_looking and (age is None or age >= last.pause_s):
                threading.Thread(target=self._look, name="verdict", daemon=True).start()
                self._is_looking = True
            if age is not None and age > last.pause_s + last.took_s + OUTDATED_S:
                # memory is given back as well
                self._last = last = replace(last, verdict=None, problem=None)
            return last

    def _look(self) -> None:
        started = time.monotonic()
        verdict: Verdict | None = None
        problem: str | None = None
        try:
            verdict = self._diagnose()
        except Exception as error:
            log.exception("the diagnosis for the page failed")
            problem = f"{type(error).__name__}: {error}"
        with self._lock:
            self._last = Look(verdict, self._now(), time.monotonic() - started, problem)
            self._is_looking = False


def diagnose_recorded(
    targets: Iterable[str],
    observations: Callable[[str, float, float], Iterable[Observation]],
    library: Library,
    *,
    now: float,
    runbook_url: str | None = None,
) -> Verdict:
    """
    Diagnose what flight recorders of this process hold, one target after the other.

    No process is forked, for pollers run in threads, and one target's pages are held at a time.

    Args:
        targets: Names.
        observations: Those of a target between two times (unix seconds), oldest first.
        library: Failure modes.
        now: Unix seconds.
        runbook_url: Base of the links to runbook pages.
    """
    history = history_of(now - WINDOW_S)
    examined = [
        examine(
            target,
            list(thinned(observations(target, history["start"], now), **history)),
            source="sidecar",
            window_s=WINDOW_S,
            now=now,
            read=_read_and_give_way,
        )
        for target in targets
    ]
    return conclude_fleet(examined, library, runbook_url=runbook_url)


def _read_and_give_way(text: str, *, t: float, target: str) -> PageSample:
    page = read_page(text, t=t, target=target)
    time.sleep(GIVE_WAY_S)
    return page
