"""
The sidecar's threads, supervised: one that dies or hangs is reported and replaced.

Nothing that one target, sink or file does may silence another, nor itself for good. What a replaced
thread still does when it comes back counts for nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

FIRST_DELAY_S = 1.0
LAST_DELAY_S = 30.0
"""Between two starts of a worker that dies again and again."""

SETTLED_S = 60.0
"""A worker that lived this long is restarted after the first delay again."""

MOST_PATIENCE = 64
"""
Times its limit, for a worker that hangs again and again.

A thread that hangs cannot be ended: each one that is replaced stays.
"""

Reason = Literal["died", "hung"]

log = logging.getLogger(__name__)


class Life:
    """
    One run of a worker: how it waits, and how it learns that it is over.

    Args:
        stop: Ends all workers.
        clock: Monotonic seconds.
    """

    def __init__(self, stop: threading.Event, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop = stop
        self._clock = clock
        self.is_retired = False
        self.busy_since = clock()

    @property
    def is_over(self) -> bool:
        """Time to end, for all or for this one."""
        return self.is_retired or self._stop.is_set()

    def wait(self, seconds: float) -> bool:
        """
        Do nothing for some seconds; what is waited does not count as hanging.

        Returns:
            Whether it is over.
        """
        if seconds > 0:
            self.busy_since = self._clock() + seconds
            self._stop.wait(seconds)
        self.busy_since = self._clock()
        return self.is_over


Run = Callable[[Life], None]


@dataclass(slots=True)
class _Worker:
    name: str
    run: Run
    hangs_after_s: float | None
    thread: threading.Thread | None = None
    life: Life | None = None
    started: float = 0.0
    due: float = 0.0
    delay_s: float = FIRST_DELAY_S
    patience: int = 1
    is_reported: bool = field(default=False)


class Workers(Collector):
    """
    Starts threads and keeps them running; not for several threads.

    Args:
        stop: Ends all of them.
        clock: Monotonic seconds.
    """

    def __init__(self, stop: threading.Event, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop = stop
        self._clock = clock
        self._workers: list[_Worker] = []
        self.restarts: Counter[tuple[str, Reason]] = Counter()

    def start(self, name: str, run: Run, *, hangs_after_s: float | None = None) -> None:
        """
        Start a worker.

        Args:
            name: For people, and the label ``worker``.
            run: Called again, with a new life, where it raised or hung.
            hangs_after_s: Longest time without a :meth:`Life.wait`; None for those that may.
        """
        worker = _Worker(name, run, hangs_after_s)
        self._workers.append(worker)
        self._begin(worker)

    def look(self) -> None:
        """Replace whoever has died or hangs; called every second or so."""
        now = self._clock()
        # a copy: the one that looks for new servers adds workers
        for worker in list(self._workers):
            if worker.thread is None or not worker.thread.is_alive():
                self._replace_dead(worker, now)
            elif worker.hangs_after_s is not None and worker.life is not None:
                self._replace_hung(worker, worker.life, worker.hangs_after_s, now)

    def join(self, names: Sequence[str], within_s: float) -> bool:
        """Wait for some together, after ``stop`` was set; whether all have ended."""
        deadline = time.monotonic() + within_s
        for worker in self._workers:
            if worker.name in names and worker.thread is not None:
                worker.thread.join(max(0.0, deadline - time.monotonic()))
        return not any(map(self.is_alive, names))

    def is_alive(self, name: str) -> bool:
        """Whether a worker's thread runs."""
        return any(
            worker.thread is not None and worker.thread.is_alive()
            for worker in self._workers
            if worker.name == name
        )

    def _replace_dead(self, worker: _Worker, now: float) -> None:
        if not worker.is_reported:
            worker.is_reported = True
            if now - worker.started >= SETTLED_S:
                worker.delay_s = FIRST_DELAY_S
            worker.due = now + worker.delay_s
            self.restarts[worker.name, "died"] += 1
            log.error(
                "%s: its worker has died; a new one starts in %g s", worker.name, worker.delay_s
            )
            worker.delay_s = min(2 * worker.delay_s, LAST_DELAY_S)
        if now >= worker.due:
            self._begin(worker)

    def _replace_hung(self, worker: _Worker, life: Life, hangs_after_s: float, now: float) -> None:
        silent_s = now - life.busy_since
        if silent_s <= hangs_after_s * worker.patience:
            # who waits gives the sign of life of the wait's end
            if min(life.busy_since, now) - worker.started >= SETTLED_S:
                worker.patience = 1
            return
        life.is_retired = True
        self.restarts[worker.name, "hung"] += 1
        worker.patience = min(2 * worker.patience, MOST_PATIENCE)
        log.error("%s: no sign of life for %.0f s; a new worker takes over", worker.name, silent_s)
        self._begin(worker)

    def _begin(self, worker: _Worker) -> None:
        life = Life(self._stop, self._clock)
        worker.life, worker.started, worker.is_reported = life, self._clock(), False
        worker.thread = threading.Thread(
            target=self._run, args=(worker, life), name=worker.name, daemon=True
        )
        try:
            worker.thread.start()
        except RuntimeError as problem:
            # no thread left here; tried again as if it had died
            worker.thread = None
            log.error("%s: %s", worker.name, problem)

    def _run(self, worker: _Worker, life: Life) -> None:
        try:
            worker.run(life)
        except BaseException:
            # MemoryError and SystemExit of a library included: whatever it is, the thread is gone
            if not life.is_over:
                log.exception("%s: a fault of the sidecar itself", worker.name)

    def describe(self) -> Iterator[Metric]:
        """Nothing that prometheus-client would have to know beforehand."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """How often workers were replaced, 0 included, so that an increase is seen."""
        family = restarts_family()
        for name in dict.fromkeys(worker.name for worker in list(self._workers)):
            for reason in ("died", "hung"):
                family.add_metric([name, reason], self.restarts[name, reason])
        yield family


def restarts_family() -> CounterMetricFamily:
    """The family without data."""
    return CounterMetricFamily(
        "opsctl_worker_restarts",
        "Threads of the sidecar that died or hung and were replaced.",
        labels=("worker", "reason"),
    )
