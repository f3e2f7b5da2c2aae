"""
A datum of CloudWatch, and what CloudWatch refuses: checked here, for no emulator does.

Source:
    PutMetricData and MetricDatum in the CloudWatch API reference; botocore 1.44's service model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from vllm_opsctl.exporter.engine import Histogram
from vllm_opsctl.exporter.sinks.cloudwatch.curated import Unit

MAX_VALUES = 150
"""Unique values of one datum."""

MAX_DIMENSIONS = 30

MAX_NAME = 255
"""Characters of a metric's name, and of a dimension's."""

MAX_TEXT = 1024
"""Characters of a dimension's value."""

OLDEST_S = 14 * 86400.0
NEWEST_S = 2 * 3600.0
"""Timestamps may lie so far in the past and in the future."""

_LARGEST = 2.0**360
_SMALLEST = 2.0**-360

log = logging.getLogger(__name__)

Dimensions = tuple[tuple[str, str], ...]


class Refused(Exception):
    """CloudWatch would refuse this datum; says which, and why."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """
    What many readings of a gauge were.

    Args:
        least: The smallest.
        most: The largest.
        total: Their sum.
        count: How many.
    """

    least: float
    most: float
    total: float
    count: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Datum:
    """
    One metric of one interval: statistics, or values and how often each came.

    Args:
        metric: Its name.
        dimensions: Names and values.
        t: Unix seconds, the interval's start.
        unit: CloudWatch's.
        statistics: Of a gauge; None for values.
        values: Values, unique, shape (n,).
        counts: How often each came, shape (n,).
    """

    metric: str
    dimensions: Dimensions
    t: float
    unit: Unit
    statistics: Statistics | None = None
    values: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()

    def split(self, most: int) -> Iterator[Datum]:
        """
        As many as CloudWatch wants it in: several of one time are added up.

        Args:
            most: Values that one may have.
        """
        for start in range(0, max(len(self.values), 1), most):
            stop = start + most
            yield replace(self, values=self.values[start:stop], counts=self.counts[start:stop])

    def check(self, now: float) -> None:
        """
        Refuse what CloudWatch refuses.

        Args:
            now: Unix seconds.

        Raises:
            Refused: With the limit's name.
        """
        problem = next(self._problems(now), None)
        if problem is not None:
            raise Refused(f"{self.metric}: {problem}")

    def _problems(self, now: float) -> Iterator[str]:
        yield from _wrong_text("the name", self.metric, MAX_NAME)
        for name, text in self.dimensions:
            yield from _wrong_text(f"the dimension's name {name!r}", name, MAX_NAME)
            if name.startswith(":"):
                yield f"the dimension's name {name!r} begins with a colon"
            yield from _wrong_text(f"the dimension {name}", text, MAX_TEXT)
        if len(self.dimensions) > MAX_DIMENSIONS:
            yield f"{len(self.dimensions)} dimensions; {MAX_DIMENSIONS} are allowed"
        if len(self.values) > MAX_VALUES:
            yield f"{len(self.values)} values; {MAX_VALUES} are allowed"
        if not now - OLDEST_S <= self.t <= now + NEWEST_S:
            yield "the timestamp is older than 14 days or more than 2 hours ahead"
        numbers = [*self.values, *self.counts]
        if self.statistics is not None:
            one = self.statistics
            numbers += [one.least, one.most, one.total, one.count]
        for number in numbers:
            yield from _wrong_number(number)


def accepted(data: Iterable[Datum], now: float, most: int = MAX_VALUES) -> Iterator[Datum]:
    """
    Data as CloudWatch takes them: in parts where they are large; what it would refuse is logged.

    Args:
        data: Of any number.
        now: Unix seconds.
        most: Values that one datum may have.
    """
    for datum in data:
        for part in datum.split(most):
            try:
                part.check(now)
            except Refused as problem:
                log.error("not sent to CloudWatch: %s", problem)
            else:
                yield part


def _wrong_text(what: str, text: str, most: int) -> Iterator[str]:
    """
    What CloudWatch has against a name or a value.

    Source:
        Dimension and MetricDatum in the CloudWatch API reference.
    """
    if len(text) > most:
        yield f"{what} is longer than {most} characters"
    if not text.isascii():
        yield f"{what} is not ASCII"
    if not text.strip():
        yield f"{what} is empty, or nothing but spaces"
    # of ASCII, only control characters cannot be printed
    if text.isascii() and not text.isprintable():
        yield f"{what} has a control character"


def _wrong_number(number: float) -> Iterator[str]:
    if math.isnan(number) or math.isinf(number):
        yield f"{number} is no number that CloudWatch takes"
    elif number and not _SMALLEST <= abs(number) <= _LARGEST:
        yield f"{number:g} is outside of 2^-360 to 2^360"


def distribution(histogram: Histogram) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """
    A histogram's observations as values and counts.

    Each bucket is told at its middle, the geometric one where it does not begin at 0, so a percentile is
    off by half a bucket at most. What lies beyond the last bound is told at that bound.

    Args:
        histogram: Of one interval.
    """
    values: dict[float, float] = {}
    below, lower = 0.0, 0.0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=True):
        inside = count - below
        if inside > 0:
            value = _middle(lower, bound)
            values[value] = values.get(value, 0.0) + inside
        below, lower = count, bound
    return tuple(values), tuple(values.values())


def _middle(lower: float, upper: float) -> float:
    if math.isinf(upper):
        return lower
    return math.sqrt(lower * upper) if lower > 0 else upper / 2


def statistics_of(readings: Sequence[float]) -> Statistics:
    """
    Statistics of readings.

    Args:
        readings: At least one.
    """
    return Statistics(min(readings), max(readings), math.fsum(readings), float(len(readings)))
