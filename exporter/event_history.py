"""What the counters of objectives read in the last hour, so that burn rates need no second look."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from vllm_opsctl.exporter.sli import Events

KEEP_S = 3600.0
"""The longest window of the fastest page (14.4x over an hour, alarms/burn.py)."""

STEP_S = 15.0
"""Time between two kept readings: a twentieth of the shortest window, some 250 KiB an hour."""

MAX_SERIES = 200
"""Objectives times models of one target that are kept; a page with more models is not for people."""

Counted = Mapping[tuple[str, str], tuple[float, float]]
"""Objective's name and model to its good and bad events so far."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters at one time (unix seconds)."""

    t: float
    counted: Counted


class EventHistory:
    """Readings of one target's counters; not for several threads."""

    def __init__(self) -> None:
        self._kept: deque[Reading] = deque()
        self._newest: Reading | None = None

    def add(self, t: float, events: Mapping[tuple[str, str], Events]) -> None:
        """Take the counters in as they are at a time (unix seconds)."""
        if self._newest is not None and t < self._newest.t:
            # the clock was set back: readings of two clocks have no distance
            self._kept.clear()
        counted = {
            key: (found.good, found.bad) for key, found in islice(events.items(), MAX_SERIES)
        }
        self._newest = Reading(t, counted)
        if not self._kept or t - self._kept[-1].t >= STEP_S:
            self._kept.append(self._newest)
        # the one before the horizon stays: it says what was counted there
        while len(self._kept) > 1 and self._kept[1].t <= t - KEEP_S:
            self._kept.popleft()

    def readings(self) -> tuple[Reading, ...]:
        """What is kept, oldest first, and the newest."""
        if self._newest is None or self._newest is self._kept[-1]:
            return tuple(self._kept)
        return (*self._kept, self._newest)


@dataclass(frozen=True, slots=True)
class Grown:
    """
    Events within a window.

    Args:
        good: Good ones.
        bad: Bad ones.
        known_s: How much of the window was watched, seconds.
    """

    good: float
    bad: float
    known_s: float


def grown(
    readings: Sequence[Reading], key: tuple[str, str], *, end: float, window_s: float
) -> Grown | None:
    """
    What was counted in a window.

    Args:
        readings: Of one target, oldest first.
        key: Objective's name and model.
        end: Unix seconds at which the window ends.
        window_s: Its length, seconds.

    Returns:
        None where nothing was watched in it.
    """
    start = end - window_s
    # the window opens at the reading next to its start, half a step away at most
    inside = [reading for reading in readings if start - STEP_S / 2 <= reading.t <= end]
    if len(inside) < 2:
        return None
    first, last = inside[0], inside[-1]
    if key not in last.counted:
        return None
    good, bad = last.counted[key]
    good_before, bad_before = first.counted.get(key, (0.0, 0.0))
    return Grown(good - good_before, bad - bad_before, min(window_s, last.t - first.t))
