"""
What was published to CloudWatch, and the statistics that it gives of it.

Source:
    CloudWatch statistics definitions; a statistic set gives percentiles only where all its values are one.
"""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

from vllm_opsctl.exporter.sinks.cloudwatch.datum import Datum, Dimensions

PUBLISHED_EVERY_S = 60.0
"""A datum is of the interval that starts with its timestamp, and is there when that has ended."""


@dataclass(frozen=True, slots=True)
class MetricKey:
    """
    One metric.

    Args:
        namespace: Its namespace.
        name: Its name.
        dimensions: Names and values; CloudWatch knows no order.
    """

    namespace: str
    name: str
    dimensions: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Point:
    t: float
    least: float
    most: float
    total: float
    count: float
    values: tuple[tuple[float, float], ...]


@dataclass(slots=True)
class _Stored:
    points: list[_Point] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    counts: list[float] = field(default_factory=list)

    def index(self) -> None:
        """Sort, and sum up from the start, so that a window's sum is one difference."""
        self.points.sort(key=lambda point: point.t)
        self.times = [point.t for point in self.points]
        self.totals = [0.0, *itertools.accumulate(point.total for point in self.points)]
        self.counts = [0.0, *itertools.accumulate(point.count for point in self.points)]


class Metrics:
    """
    A store of data by metric.

    Args:
        namespace: Where data go.
        late_s: How long after its timestamp a datum is there, seconds.
    """

    def __init__(self, namespace: str, *, late_s: float = PUBLISHED_EVERY_S) -> None:
        self._namespace = namespace
        self._late_s = late_s
        self._stored: dict[MetricKey, _Stored] = {}

    def add(self, data: Iterable[Datum]) -> None:
        """Take data as the sidecar publishes them."""
        for datum in data:
            if datum.statistics is not None:
                one = datum.statistics
                same = ((one.least, one.count),) if one.least == one.most else ()
                point = _Point(datum.t, one.least, one.most, one.total, one.count, same)
            else:
                values = tuple(zip(datum.values, datum.counts, strict=True))
                total = math.fsum(value * count for value, count in values)
                count = math.fsum(datum.counts)
                least, most = min(datum.values), max(datum.values)
                point = _Point(datum.t, least, most, total, count, values)
            self._put(datum.metric, datum.dimensions, point)

    def put(self, name: str, dimensions: Dimensions, t: float, number: float) -> None:
        """One number, as one sample."""
        self._put(name, dimensions, _Point(t, number, number, number, 1.0, ((number, 1.0),)))

    def _put(self, name: str, dimensions: Dimensions, point: _Point) -> None:
        key = MetricKey(self._namespace, name, frozenset(dimensions))
        stored = self._stored.setdefault(key, _Stored())
        stored.points.append(point)
        stored.times = []

    def statistic(
        self, key: MetricKey, statistic: str, start: float, end: float, now: float
    ) -> float | None:
        """
        A statistic over a window.

        Args:
            key: The metric.
            statistic: Its name.
            start: Of the window, included, unix seconds.
            end: Of the window, not included.
            now: What is there by then counts.

        Returns:
            None without data, and for percentiles that the data do not give.
        """
        stored = self._stored.get(key)
        if stored is None:
            return None
        if not stored.times:
            stored.index()
        first = bisect_left(stored.times, start)
        # a datum of exactly the newest timestamp that can be there is there
        stop = bisect_left(stored.times, min(end, math.nextafter(now - self._late_s, math.inf)))
        if first >= stop:
            return None
        total = stored.totals[stop] - stored.totals[first]
        count = stored.counts[stop] - stored.counts[first]
        if statistic == "Sum":
            return total
        if statistic == "SampleCount":
            return count
        if statistic == "Average":
            return total / count if count else None
        points = stored.points[first:stop]
        if statistic == "Minimum":
            return min(point.least for point in points)
        if statistic == "Maximum":
            return max(point.most for point in points)
        return _percentile(points, statistic)


def percentile_of(statistic: str) -> float | None:
    """
    The share that a percentile's name means; None for other statistics.

    >>> percentile_of("p99.9"), percentile_of("pp99")
    (0.999, None)
    """
    match = re.fullmatch(r"p(\d{1,2}(?:\.\d+)?)", statistic)
    return round(float(match[1]) / 100, 12) if match and float(match[1]) > 0 else None


def _percentile(points: list[_Point], statistic: str) -> float | None:
    share = percentile_of(statistic)
    if share is None or not all(point.values for point in points):
        return None
    values = sorted(value for point in points for value in point.values)
    wanted, seen = share * math.fsum(count for _, count in values), 0.0
    for value, count in values:
        seen += count
        if seen >= wanted:
            return value
    return values[-1][0]
