"""Rolling numbers over the last seconds: peaks that a slow scrape would miss, and ratios."""

from __future__ import annotations

import itertools
from collections import deque


class RollingPeak:
    """
    The largest value of the last seconds.

    Args:
        span_s: How far back it looks.
    """

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        # values fall from left to right: whatever is smaller than a newer one cannot be the peak
        self._values: deque[tuple[float, float]] = deque()

    def add(self, t: float, value: float) -> None:
        """Add the newest value."""
        while self._values and self._values[-1][1] <= value:
            self._values.pop()
        self._values.append((t, value))
        self._expire(t)

    def peak(self, now: float) -> float | None:
        """The largest value within the span; None when there was none."""
        self._expire(now)
        return self._values[0][1] if self._values else None

    def _expire(self, now: float) -> None:
        while self._values and self._values[0][0] < now - self._span_s:
            self._values.popleft()


class RollingRatio:
    """
    The ratio of two counters' increases over the last seconds, across resets.

    Args:
        span_s: How far back it looks.
    """

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._readings: deque[tuple[float, float, float]] = deque()

    def add(self, t: float, top: float, bottom: float) -> None:
        """Add the newest reading of both counters."""
        self._readings.append((t, top, bottom))
        while len(self._readings) > 2 and self._readings[1][0] <= t - self._span_s:
            self._readings.popleft()

    def ratio(self, now: float) -> float | None:
        """None when the bottom counter did not move, or nothing was read for a whole span."""
        if not self._readings or self._readings[-1][0] < now - self._span_s:
            return None
        tops = [reading[1] for reading in self._readings]
        bottoms = [reading[2] for reading in self._readings]
        below = _increase(bottoms)
        return _increase(tops) / below if below > 0 else None


def _increase(values: list[float]) -> float:
    pairs = itertools.pairwise(values)
    return sum(new - old if new >= old else new for old, new in pairs)
