"""
Events over time, in slots of five minutes: what budgets and burn rates are summed from.

Only slots that something is known of are there, so that "nothing happened" (a slot without events) and
"nobody looked" (no slot) stay apart. Every ratio is a ratio of sums over slots.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SLOT_S = 300.0
"""The shortest window that alarms look at (burn.ROWS); nothing finer decides anything."""

_EDGE_S = 1.0
"""Times are compared with this tolerance; slots are far longer."""


@dataclass(frozen=True, slots=True)
class Count:
    """
    Events and how many of them were bad.

    Args:
        total: All events.
        bad: Bad ones, at most all.
    """

    total: float = 0.0
    bad: float = 0.0

    @property
    def ratio(self) -> float | None:
        """
        Share of bad events; None without any event.

        >>> Count(200, 1).ratio, Count().ratio
        (0.005, None)
        """
        return self.bad / self.total if self.total > 0 else None

    def __add__(self, other: Count) -> Count:
        return Count(self.total + other.total, self.bad + other.bad)


@dataclass(frozen=True, slots=True)
class Slot:
    """
    One stretch of time.

    Args:
        end: Unix seconds; the slot began SLOT_S before.
        count: What happened in it.
    """

    end: float
    count: Count

    @property
    def start(self) -> float:
        """Unix seconds at which it began."""
        return self.end - SLOT_S


@dataclass(frozen=True, slots=True)
class Known:
    """
    What is known of a window.

    Args:
        count: The events.
        seconds: How much of the window is known.
    """

    count: Count
    seconds: float


NOTHING = Known(Count(), 0.0)
"""Nobody looked."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """
    The events of one objective and model within a period.

    Args:
        start: Unix seconds.
        end: Unix seconds.
        slots: Those that something is known of, ascending.
    """

    start: float
    end: float
    slots: tuple[Slot, ...]

    @property
    def since(self) -> float | None:
        """Unix seconds from which on something is known; None for nothing."""
        return self.slots[0].start if self.slots else None

    @property
    def whole(self) -> Known:
        """All of the period."""
        return _known(self.slots)

    def last(self, window_s: float) -> Known:
        """The newest part of the period, so many seconds."""
        return self.between(self.end - window_s, self.end)

    def between(self, start: float, end: float) -> Known:
        """The slots whose end lies after a time, and up to another."""
        return _known(s for s in self.slots if start + _EDGE_S < s.end <= end + _EDGE_S)


def _known(slots: Iterable[Slot]) -> Known:
    found = [slot.count for slot in slots]
    return Known(sum(found, Count()), len(found) * SLOT_S)
