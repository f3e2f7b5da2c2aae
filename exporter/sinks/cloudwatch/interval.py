"""
One interval of a target: pages become the curated data.

Everything is computed from the pages of the interval and the last one before it. That one can be kept
over a restart of the sidecar, so what happened in between is counted once, in the first interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_opsctl.exporter.config import Objective
from vllm_opsctl.exporter.engine import EngineKey, PageSample
from vllm_opsctl.exporter.sinks.cloudwatch.curated import CuratedMetric, curated
from vllm_opsctl.exporter.sinks.cloudwatch.datum import (
    Datum,
    Dimensions,
    Statistics,
    distribution,
    statistics_of,
)
from vllm_opsctl.exporter.sli import SliCounter
from vllm_opsctl.exporter.window import RECENT_PEAKS, Window, windows_by_engine

HEARTBEAT = "Heartbeat"


@dataclass(frozen=True, slots=True)
class Labels:
    """
    How data of a target are told apart.

    Args:
        service: Name of the fleet.
        target: The target; None for the fleet's dimensions alone.
    """

    service: str
    target: str | None

    def of(self, model: str | None, objective: str | None = None) -> Dimensions:
        """The dimensions, always in the same order."""
        named = {
            "Service": self.service,
            "Model": model,
            "Target": self.target,
            "Objective": objective,
        }
        return tuple((name, text) for name, text in named.items() if text is not None)


def data_of(
    before: PageSample | None,
    pages: Sequence[PageSample],
    *,
    t: float,
    labels: Labels,
    objectives: Sequence[Objective],
    fine: tuple[PageSample, PageSample] | None = None,
) -> list[Datum]:
    """
    The data of one target's interval.

    Args:
        before: The last page before it; None when there is none, then counters begin with its first.
        pages: Those of the interval, in order.
        t: Its start, Unix seconds.
        labels: Its dimensions.
        objectives: Whose events are counted.
        fine: Pages of the tap with all of its bounds, of the interval's start and end; distributions are
            taken from these.
    """
    known = [before, *pages] if before is not None else list(pages)
    windows = windows_by_engine(known)
    inside = windows_by_engine(pages)
    distributions = windows_by_engine(fine) if fine is not None else windows
    found: list[Datum] = []
    for metric in curated():
        if metric.kind == "events":
            continue
        if metric.kind == "heartbeat":
            if pages:
                dimensions = labels.of(None)
                found.append(_count(metric, dimensions, t, 1.0))
            continue
        for key, window in windows.items():
            found += _of_engine(
                metric,
                key,
                window=window,
                inside=inside.get(key, Window(())),
                observed=distributions.get(key, window),
                t=t,
                labels=labels,
            )
    return found + list(_events(known, objectives, t, labels))


def _of_engine(
    metric: CuratedMetric,
    key: EngineKey,
    *,
    window: Window,
    inside: Window,
    observed: Window,
    t: float,
    labels: Labels,
) -> Iterator[Datum]:
    dimensions = labels.of(key.model)
    concept = metric.concept or ""
    if metric.kind == "gauge":
        readings = [reading * metric.scale for reading in inside.gauge(concept)]
        if readings:
            whole = statistics_of(readings)
            # the tap has also seen what lies between two reads
            peak = max(
                inside.gauge(RECENT_PEAKS.get(concept, "")), default=whole.most / metric.scale
            )
            most = max(whole.most, peak * metric.scale)
            yield Datum(
                metric=metric.metric,
                dimensions=dimensions,
                t=t,
                unit=metric.unit,
                statistics=Statistics(whole.least, most, whole.total, whole.count),
            )
    elif metric.kind == "increase":
        increase = _increase(window, concept)
        if increase is not None:
            yield _count(metric, dimensions, t, increase)
    elif metric.kind == "ratio":
        part, whole_delta = window.delta(concept), window.delta(metric.of or "")
        if part is not None and whole_delta:
            # counted as often as there was something to hit: the fleet's average is the fleet's ratio
            yield _count(metric, dimensions, t, metric.scale * part / whole_delta, whole_delta)
    elif metric.kind == "distribution":
        histogram = observed.histogram(concept)
        if histogram is not None and histogram.count > 0:
            values, counts = distribution(histogram)
            yield Datum(
                metric=metric.metric,
                dimensions=dimensions,
                t=t,
                unit=metric.unit,
                values=values,
                counts=counts,
            )


def _increase(window: Window, concept: str) -> float | None:
    """Of a counter; an estimate is a gauge that mostly grows."""
    increase = window.delta(concept)
    if increase is not None:
        return increase
    readings = window.gauge(concept)
    return max(0.0, readings[-1] - readings[0]) if len(readings) >= 2 else None


def _events(
    pages: Sequence[PageSample], objectives: Sequence[Objective], t: float, labels: Labels
) -> Iterator[Datum]:
    counter = SliCounter(objectives)
    for page in pages:
        counter.add(page)
    for (objective, model), events in counter.events.items():
        dimensions = labels.of(model, objective)
        for metric in curated():
            if metric.kind == "events":
                number = events.good if metric.metric == "GoodEvents" else events.bad
                yield _count(metric, dimensions, t, number)


def _count(
    metric: CuratedMetric, dimensions: Dimensions, t: float, number: float, times: float = 1.0
) -> Datum:
    return Datum(
        metric=metric.metric,
        dimensions=dimensions,
        t=t,
        unit=metric.unit,
        values=(number,),
        counts=(times,),
    )
