"""
Whether the machine itself stood still while a scenario was played: only then is it played again.

Load, engine and sidecar share whatever cores there are. Where the hypervisor takes those away, or nothing
runs for seconds, healthy load is an overload too, and what was to be shown was not. That is measured, by the
time that was stolen and by the load generator's round trips to ``/version``, which ask no engine; a failure
without a measured stall stays one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

from load.counts import Summary
from load.generator import LoadProcess

STALL_ROUND_TRIP_S = 1.0
"""Of one ``GET /version``: 0.03 s in the scenarios here, 5 s on a machine that stood still."""

STALL_STEAL_RATIO = 0.2
"""Of the time of all cores, over `STEAL_OVER_S`."""

STEAL_OVER_S = 3.0

MOST_PLAYS = 3


class MachineWatch:
    """Watches the machine from entering to leaving; a context manager."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._ticks = self._read_ticks()
        self.steal_ratio = 0.0
        """The largest share of the cores' time that was stolen over `STEAL_OVER_S`."""
        self.round_trip_s = 0.0
        """The longest round trip that :meth:`saw` was told of."""
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._left.set()
        self._thread.join()

    def saw(self, load: Summary) -> None:
        """Take in what a load's clients measured."""
        self.round_trip_s = max(self.round_trip_s, load.longest_round_trip_s)

    @contextmanager
    def during(self, load: LoadProcess) -> Iterator[None]:
        """End a load that would last for ever, whatever comes of it, and take in what it measured."""
        try:
            yield
        finally:
            self.saw(load.stop())

    @property
    def stood_still(self) -> bool:
        """Whether what was played says something of the machine rather than of the engine."""
        return self.round_trip_s >= STALL_ROUND_TRIP_S or self.steal_ratio >= STALL_STEAL_RATIO

    def __str__(self) -> str:
        """What was measured."""
        return (
            f"longest GET /version {self.round_trip_s:.2f} s, "
            f"at most {self.steal_ratio:.0%} of the cores' time stolen over {STEAL_OVER_S:g} s"
        )

    def measure(self) -> None:
        """Take in what was stolen since the last time."""
        before, self._ticks = self._ticks, self._read_ticks()
        stolen, total = (now - then for now, then in zip(self._ticks, before, strict=True))
        self.steal_ratio = max(self.steal_ratio, stolen / total if total else 0.0)

    def _watch(self) -> None:
        while not self._left.wait(STEAL_OVER_S):
            self.measure()

    def _read_ticks(self) -> tuple[int, int]:
        """Stolen and all ticks of all cores since boot; ``steal`` is the eighth column (proc_stat(5))."""
        cores = self._stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]
        ticks = [int(field) for field in cores]
        return ticks[7], sum(ticks)


def play(
    what: str,
    attempt: Callable[[MachineWatch], None],
    note: Callable[[str], None],
    watching: Callable[[], MachineWatch] = MachineWatch,
) -> None:
    """
    Play a scenario and judge it; again, up to `MOST_PLAYS` times, if it failed and the machine stood still.

    Args:
        what: Its name.
        attempt: Plays and asserts; tells the watch of its load.
        note: Gets a line for the report on each play.
        watching: Makes the watch.
    """
    for left in reversed(range(MOST_PLAYS)):
        with watching() as watch:
            try:
                attempt(watch)
            except (AssertionError, pytest.fail.Exception) as problem:
                failure: BaseException | None = problem
            else:
                failure = None
        note(f"{what}: {'failed' if failure else 'held'}; {watch}")
        if failure is None:
            return
        if not watch.stood_still or not left:
            raise failure
        note(
            f"{what}: PLAYED AGAIN, for the machine stood still; it had failed with: {_head(failure)}"
        )


def _head(failure: BaseException) -> str:
    return (str(failure).splitlines() or [type(failure).__name__])[0][:200]
