"""
How CloudWatch judges a metric alarm: from the data points of its evaluation range to its state.

More points are retrieved than the alarm's N periods. The missing-data setting counts only where fewer
than N of them are real; then as few as possible are filled in, and every real one is used. Where points are
not filled in (``missing``, ``ignore``), a breaching point alone becomes an alarm only when it has grown as
old as M: the next one may still be good.

Source:
    Configuring how CloudWatch alarms treat missing data, CloudWatch user guide
    (alarms-and-missing-data.html), with "Avoiding premature transitions to alarm state"; both of its tables
    are tests. Evaluating an alarm (alarm-evaluation.html): every minute, every 10 s for shorter periods,
    every hour for alarms of more than a day. How many more points are retrieved is documented for N = 3
    alone, where it is 5.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vllm_opsctl.alarms.cloudwatch.metric_math import Node, Series, evaluate
from vllm_opsctl.alarms.cloudwatch.metrics import MetricKey, Metrics, percentile_of

State = Literal["OK", "ALARM", "INSUFFICIENT_DATA"]
MissingData = Literal["missing", "notBreaching", "breaching", "ignore"]

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "GreaterThanThreshold": operator.gt,
    "GreaterThanOrEqualToThreshold": operator.ge,
    "LessThanThreshold": operator.lt,
    "LessThanOrEqualToThreshold": operator.le,
}

_HOUR_S = 3600.0
_DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """
    One statistic of a metric, under an id.

    Args:
        id: As expressions name it.
        metric: Namespace, name and dimensions.
        statistic: Sum, Average, Minimum, Maximum, SampleCount, or a percentile such as p99.
    """

    id: str
    metric: MetricKey
    statistic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricAlarm:
    """
    One metric alarm.

    Args:
        name: Its name.
        stats: The metrics that it reads.
        steps: Ids and expressions, each may use those before it; empty for an alarm of one metric.
        watched: The id that is compared with the threshold.
        period_s: Length of a data point, seconds.
        periods: N, the data points that are evaluated.
        to_alarm: M, how many of these must breach.
        comparison: Name of the comparison operator.
        threshold: What points are compared with.
        missing: The missing-data setting.
        ignores_low_samples: A percentile of too few samples changes nothing.
    """

    name: str
    stats: tuple[Stat, ...]
    steps: tuple[tuple[str, Node], ...] = ()
    watched: str
    period_s: float
    periods: int
    to_alarm: int
    comparison: str
    threshold: float
    missing: MissingData = "missing"
    ignores_low_samples: bool = False

    @property
    def retrieved(self) -> int:
        """The evaluation range, in data points."""
        return evaluation_range(self.periods)

    @property
    def every_s(self) -> float:
        """How often it is evaluated, seconds."""
        if self.period_s * self.periods > _DAY_S:
            return _HOUR_S
        return 60.0 if self.period_s >= 60 else 10.0

    def points(self, metrics: Metrics, now: float) -> Series:
        """
        The data points of the evaluation range, newest last.

        Args:
            metrics: What was published.
            now: Unix seconds; a multi-day alarm looks at whole hours only.
        """
        end = now // self.every_s * self.every_s
        starts = [end - k * self.period_s for k in range(self.retrieved, 0, -1)]
        series: dict[str, Series] = {
            stat.id: tuple(
                metrics.statistic(stat.metric, stat.statistic, start, start + self.period_s, now)
                for start in starts
            )
            for stat in self.stats
        }
        for name, node in self.steps:
            value = evaluate(node, series)
            series[name] = value if isinstance(value, tuple) else (value,) * len(starts)
        return series[self.watched]

    def next_state(self, before: State, metrics: Metrics, now: float) -> State:
        """
        The state after an evaluation.

        Args:
            before: The state so far.
            metrics: What was published.
            now: Unix seconds.
        """
        if self.ignores_low_samples and self._too_few_samples(metrics, now):
            return before
        compare = OPERATORS[self.comparison]
        breaching = [
            None if point is None else compare(point, self.threshold)
            for point in self.points(metrics, now)
        ]
        return state_of(breaching, self.periods, self.to_alarm, self.missing, before)

    def _too_few_samples(self, metrics: Metrics, now: float) -> bool:
        end = now // self.every_s * self.every_s
        start = end - self.periods * self.period_s
        for stat in self.stats:
            share = percentile_of(stat.statistic)
            if share is None:
                continue
            samples = metrics.statistic(stat.metric, "SampleCount", start, end, now) or 0.0
            if samples < samples_needed(share):
                return True
        return False


def evaluation_range(periods: int) -> int:
    """
    How many points are retrieved for N periods.

    >>> evaluation_range(3)
    5
    """
    return periods + max(periods // 3, 2)


def samples_needed(share: float) -> float:
    """
    Samples below which a percentile is not trusted.

    Args:
        share: The percentile, in (0, 1).

    >>> samples_needed(0.99), samples_needed(0.9), samples_needed(0.25)
    (1000.0, 100.0, 40.0)
    """
    return round(10 / (1 - share) if share >= 0.5 else 10 / share, 6)


def state_of(
    breaching: Sequence[bool | None],
    periods: int,
    to_alarm: int,
    missing: MissingData,
    before: State,
) -> State:
    """
    The state that the points of an evaluation range give.

    Args:
        breaching: Whether each point breaches, newest last, None where it is missing.
        periods: N.
        to_alarm: M.
        missing: The missing-data setting.
        before: The state so far.

    >>> state_of([None, None, True, None, None], 3, 3, "missing", "OK")
    'ALARM'
    """
    real = [point for point in breaching if point is not None]
    if len(real) >= periods:
        return "ALARM" if sum(real[-periods:]) >= to_alarm else "OK"
    bad = sum(real)
    if missing in ("breaching", "notBreaching"):
        filled = periods - len(real) if missing == "breaching" else 0
        return "ALARM" if bad + filled >= to_alarm else "OK"
    if not real:
        return "INSUFFICIENT_DATA" if missing == "missing" else before
    if bad >= to_alarm:
        return "ALARM"
    if bad < len(real):
        return "OK"
    age = len(breaching) - list(breaching).index(True)
    return "ALARM" if age >= to_alarm and missing == "missing" else before
