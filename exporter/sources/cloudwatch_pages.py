"""
Our own metrics in CloudWatch as metrics pages again, one a minute: what an average replica showed.

The curated set (data/cloudwatch.yaml) is the fleet's. Gauges are the mean over all reads of all replicas,
and their peaks the highest of any; what was counted is divided by the replicas that published, of which
each sends one heartbeat an interval. Of a distribution its sum and its count are known, no buckets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from vllm_opsctl.exporter.catalogue import catalogue
from vllm_opsctl.exporter.observation import Observation, error, metrics
from vllm_opsctl.exporter.series import labels_text
from vllm_opsctl.exporter.sinks.cloudwatch.curated import CuratedMetric, Kind, curated
from vllm_opsctl.exporter.sinks.cloudwatch.interval import HEARTBEAT
from vllm_opsctl.exporter.sources.aws_reading import AwsReader
from vllm_opsctl.exporter.sources.cloudwatch_series import PERIOD_S, Stat, Values, read, total
from vllm_opsctl.exporter.window import RECENT_PEAKS

MOST_MODELS = 10
"""Models of one service that are read."""

_MOST_LISTS = 20
"""Calls of ListMetrics, 500 metrics each: with a dimension Target there is one a replica."""

LATE_S = 240.0
"""A minute's data are sent when it is over, and CloudWatch shows them a little later."""

SILENT = "silent"
"""Reason of an error observation: the sidecar published, and does so no more."""

_STATISTICS: Mapping[Kind, tuple[str, ...]] = {
    "gauge": ("Average", "Maximum", "SampleCount"),
    "increase": ("Sum",),
    "distribution": ("Sum", "SampleCount"),
    "ratio": ("Sum", "SampleCount"),
}

_READ = "RequestsRunning"
"""Every read of every replica is in it."""

_FINISHED = "request_e2e_seconds"
"""A request is in it once it has finished."""

_TOKENS = ("TimeToFirstToken", "InterTokenLatency")
"""Every token is in one of them: the first ends the wait, each later one a gap (but with speculation)."""

NOT_IN_CLOUDWATCH = (
    "what CloudWatch does not hold: prompt lengths, fan-out, finish reasons, LoRA, limits, the server's "
    "process and host; what shows in these alone is not found here (docs/sagemaker.md)"
)

_GAP_S = 180
"""Without a heartbeat for so long, a sidecar was away; one late datum is no gap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """
    Where our metrics are.

    Args:
        namespace: ``exporter.cloudwatch.namespace`` of the sidecars.
        service: ``service.name`` of the sidecars.
        interval_s: ``exporter.cloudwatch.interval`` of the sidecars.
    """

    namespace: str
    service: str
    interval_s: float


@dataclass(frozen=True, slots=True)
class Published:
    """
    What the sidecars of a service published.

    Args:
        pages: Ordered by time, and an error at the end where heartbeats have stopped.
        gaps: Unix seconds between which nobody sent a heartbeat.
        events: Good and bad events by objective, within the window that was asked for.
    """

    pages: tuple[Observation, ...] = ()
    gaps: tuple[tuple[float, float], ...] = ()
    events: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def read_pages(reader: AwsReader, ours: Ours, target: str, start: float, end: float) -> Published:
    """
    Read what the sidecars of a service published.

    Args:
        reader: Calls AWS.
        ours: Which metrics.
        target: What the observations are of.
        start: Unix seconds.
        end: Unix seconds.

    Raises:
        AwsError: They may not be read.
    """
    models = _models(reader, ours)
    stats = {
        (model, metric.metric, statistic): Stat(
            ours.namespace,
            metric.metric,
            (("Service", ours.service), ("Model", model)),
            statistic,
        )
        for model in models
        for metric in curated()
        for statistic in _STATISTICS.get(metric.kind, ())
    }
    heartbeat = Stat(ours.namespace, HEARTBEAT, (("Service", ours.service),), "Sum")
    found = read(reader, [heartbeat, *stats.values()], start, end)
    beats = found.get(heartbeat, {})
    minutes = sorted(beats)
    if not minutes:
        return Published()
    by_model = {
        model: {
            (metric, statistic): found.get(stat, {})
            for (of, metric, statistic), stat in stats.items()
            if of == model
        }
        for model in models
    }
    engines = [_Engine(model, known) for model, known in by_model.items() if any(known.values())]
    pages = []
    for minute in minutes:
        replicas = beats[minute] * min(1.0, ours.interval_s / PERIOD_S)
        reads = sum(engine.reads(minute) for engine in engines)
        lines = [
            line
            for engine in engines
            # all sidecars read at one pace, so a model has as many of the reads as of the replicas
            for line in engine.lines(
                minute, max(1.0, replicas * (engine.reads(minute) / reads if reads else 1.0))
            )
        ]
        if lines:
            pages.append(metrics(float(minute + PERIOD_S), target, "\n".join(lines) + "\n"))
    silent_s = end - (minutes[-1] + PERIOD_S)
    if silent_s > LATE_S + max(0.0, ours.interval_s - PERIOD_S):
        detail = (
            f"the sidecar has sent no heartbeat for {silent_s / 60:.0f} minutes: it or its container is "
            "gone, or it cannot reach CloudWatch"
        )
        pages.append(error(end, target, SILENT, detail))
    longest = max(_GAP_S, 2 * ours.interval_s)
    gaps = tuple(
        (float(before + PERIOD_S), float(after))
        for before, after in pairwise(minutes)
        if after - before > longest
    )
    return Published(tuple(pages), gaps)


def read_events(
    reader: AwsReader, ours: Ours, start: float, end: float
) -> dict[str, tuple[float, float]]:
    """
    Read how the objectives fared.

    Args:
        reader: Calls AWS.
        ours: Which metrics.
        start: Unix seconds.
        end: Unix seconds.

    Returns:
        Good and bad events by objective, of all models.

    Raises:
        AwsError: They may not be read.
    """
    stats = {
        (named["Objective"], metric, tuple(named.items())): Stat(
            ours.namespace, metric, tuple(named.items()), "Sum"
        )
        for named in _named(reader, ours, "GoodEvents")
        if named.keys() == {"Service", "Model", "Objective"}
        for metric in ("GoodEvents", "BadEvents")
    }
    found = read(reader, stats.values(), start, end) if stats else {}
    events: dict[str, tuple[float, float]] = {}
    for (objective, metric, _), stat in stats.items():
        good, bad = events.get(objective, (0.0, 0.0))
        number = total(found.get(stat, {}))
        events[objective] = (good + number, bad) if metric == "GoodEvents" else (good, bad + number)
    return events


def _models(reader: AwsReader, ours: Ours) -> Sequence[str]:
    found = {
        named["Model"]: None
        for named in _named(reader, ours, _READ)
        if named.keys() == {"Service", "Model"}
    }
    return list(found)[:MOST_MODELS]


def _named(reader: AwsReader, ours: Ours, metric: str) -> Iterator[dict[str, str]]:
    """Dimensions under which a metric of the service was published lately."""
    asked: dict[str, Any] = {
        "Namespace": ours.namespace,
        "MetricName": metric,
        "Dimensions": [{"Name": "Service", "Value": ours.service}],
    }
    for _ in range(_MOST_LISTS):
        said = reader.call("cloudwatch", "ListMetrics", **asked)
        for one in said.get("Metrics", ()):
            yield {entry["Name"]: entry["Value"] for entry in one["Dimensions"]}
        if not said.get("NextToken"):
            break
        asked["NextToken"] = said["NextToken"]


class _Engine:
    """One model's counters, which grow from minute to minute as an engine's do."""

    def __init__(self, model: str, known: Mapping[tuple[str, str], Values]) -> None:
        self._known = known
        self._labels = labels_text({"engine": "0", "model_name": model})
        self._counted: dict[tuple[str, str], float] = {}

    def reads(self, minute: int) -> float:
        """Reads of this model's replicas in a minute."""
        return self._known[_READ, "SampleCount"].get(minute, 0.0)

    def lines(self, minute: int, replicas: float) -> Iterator[str]:
        """The page at the end of a minute."""
        for metric in curated():
            if metric.kind == "gauge":
                yield from self._gauge(metric, minute)
            elif metric.kind in ("increase", "ratio", "distribution"):
                yield from self._counter(metric, minute, replicas)
        tokens = [self._counted[name, "SampleCount"] for name in _TOKENS if self._has(name)]
        if tokens:
            yield self._line("generation_tokens", sum(tokens))

    def _has(self, metric: str) -> bool:
        return any(values for (name, _), values in self._known.items() if name == metric)

    def _gauge(self, metric: CuratedMetric, minute: int) -> Iterator[str]:
        concept = metric.concept or ""
        mean = self._known[metric.metric, "Average"].get(minute)
        peak = self._known[metric.metric, "Maximum"].get(minute)
        if mean is not None:
            yield self._line(concept, mean / metric.scale)
        if peak is not None and concept in RECENT_PEAKS:
            yield self._line(RECENT_PEAKS[concept], peak / metric.scale)

    def _counter(self, metric: CuratedMetric, minute: int, replicas: float) -> Iterator[str]:
        if not self._has(metric.metric):
            return
        grown = {
            name: self._grown(metric.metric, name, minute, replicas)
            for name in _STATISTICS[metric.kind]
        }
        concept = metric.concept or ""
        if metric.kind == "increase":
            yield self._line(concept, grown["Sum"] / metric.scale)
        elif metric.kind == "ratio":
            # counted as often as there was something to hit
            yield self._line(concept, grown["Sum"] / metric.scale)
            yield self._line(metric.of or "", grown["SampleCount"])
        else:
            yield self._line(concept, grown["SampleCount"], "_count")
            yield self._line(concept, grown["Sum"] / metric.scale, "_sum")
            if concept == _FINISHED:
                yield self._line("requests_finished", grown["SampleCount"])

    def _grown(self, metric: str, statistic: str, minute: int, replicas: float) -> float:
        key = (metric, statistic)
        before = self._counted.get(key, 0.0)
        # a minute without a datum is one in which nothing was observed: a heartbeat came
        self._counted[key] = before + self._known[key].get(minute, 0.0) / replicas
        return self._counted[key]

    def _line(self, concept: str, value: float, suffix: str = "") -> str:
        name = catalogue()[concept].names[0].name
        return f"{name}{suffix}{{{self._labels}}} {value!r}"
