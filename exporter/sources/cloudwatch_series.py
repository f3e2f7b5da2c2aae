"""
Time series out of CloudWatch by GetMetricData: many statistics in few calls, one value a minute.

Source:
    CloudWatch API reference, GetMetricData: 500 queries a call; data of 60 s are kept for 15 days.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from vllm_opsctl.exporter.sources.aws_reading import AwsReader

PERIOD_S = 60
"""AWS publishes endpoint metrics once a minute, the sidecar too unless it is told otherwise."""

MAX_QUERIES = 500

Dimensions = tuple[tuple[str, str], ...]

Values = Mapping[int, float]
"""Start of a period (unix seconds) to its value."""


class Stat(NamedTuple):
    """
    One statistic of one metric.

    Args:
        namespace: Of the metric.
        metric: Its name.
        dimensions: All that it has.
        statistic: ``Sum``, ``Average``, ``Maximum`` or ``SampleCount``.
    """

    namespace: str
    metric: str
    dimensions: Dimensions
    statistic: str


def read(reader: AwsReader, stats: Iterable[Stat], start: float, end: float) -> dict[Stat, Values]:
    """
    Read statistics over a time.

    Args:
        reader: Calls AWS.
        stats: What is wanted.
        start: Unix seconds; the minute that it lies in is the first one.
        end: Unix seconds; only minutes that are over by then.

    Returns:
        Only statistics that have any value.

    Raises:
        AwsError: It may not be asked.
    """
    first, last = math.floor(start / PERIOD_S) * PERIOD_S, math.floor(end / PERIOD_S) * PERIOD_S
    found: dict[Stat, dict[int, float]] = {}
    asked = list(dict.fromkeys(stats))
    for index in range(0, len(asked), MAX_QUERIES):
        group = asked[index : index + MAX_QUERIES]
        for number, values in _read(reader, group, first, last):
            found.setdefault(group[number], {}).update(values)
    return {stat: values for stat, values in found.items() if values}


def _read(
    reader: AwsReader, stats: Sequence[Stat], first: int, last: int
) -> list[tuple[int, dict[int, float]]]:
    asked: dict[str, Any] = {
        "MetricDataQueries": [_query(number, stat) for number, stat in enumerate(stats)],
        "StartTime": datetime.fromtimestamp(first, UTC),
        "EndTime": datetime.fromtimestamp(last, UTC),
        "ScanBy": "TimestampAscending",
    }
    found = []
    while True:
        said = reader.call("cloudwatch", "GetMetricData", **asked)
        for one in said.get("MetricDataResults", ()):
            pairs = zip(one.get("Timestamps", ()), one.get("Values", ()), strict=True)
            values = {int(at.timestamp()): float(value) for at, value in pairs}
            found.append((int(one["Id"].removeprefix("m")), values))
        if not said.get("NextToken"):
            return found
        asked["NextToken"] = said["NextToken"]


def _query(number: int, stat: Stat) -> dict[str, Any]:
    metric = {
        "Namespace": stat.namespace,
        "MetricName": stat.metric,
        "Dimensions": [{"Name": name, "Value": value} for name, value in stat.dimensions],
    }
    return {
        "Id": f"m{number}",
        "MetricStat": {"Metric": metric, "Period": PERIOD_S, "Stat": stat.statistic},
    }


def total(values: Values, start: float = -math.inf) -> float:
    """Sum of the values from a time on."""
    return math.fsum(value for t, value in values.items() if t >= start)


def largest(values: Values, start: float = -math.inf) -> float | None:
    """The largest value from a time on; None without any."""
    return max((value for t, value in values.items() if t >= start), default=None)
