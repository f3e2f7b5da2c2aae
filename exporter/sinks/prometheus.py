"""The Prometheus sink: snapshots of the targets become metric families."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from vllm_opsctl import __version__
from vllm_opsctl.exporter.catalogue import Concept, catalogue
from vllm_opsctl.exporter.config import Objective
from vllm_opsctl.exporter.engine import EngineSample, Histogram, split_key
from vllm_opsctl.exporter.identity import Identity
from vllm_opsctl.exporter.own_series import (
    BUILD_INFO,
    ENGINE_INFO,
    KV_CACHE_CAPACITY,
    LORA_ADAPTERS_RUNNING,
    SLI_EVENTS,
    SLI_TARGET,
    SLI_THRESHOLD,
    TARGET_UP,
)
from vllm_opsctl.exporter.sinks.losses import lost_family
from vllm_opsctl.exporter.target_state import PEAK_CONCEPTS, PEAK_SPANS_S, Snapshot
from vllm_opsctl.exporter.workers import restarts_family

ENGINE_LABELS = ("target", "model", "engine")

_INFO_FACTS = (
    "block_size",
    "cache_dtype",
    "enable_prefix_caching",
    "gpu_memory_utilization",
    "num_gpu_blocks",
)
"""Facts worth a label: few, and fixed for the life of a process."""

_PEAKS = {
    "requests_running": ("vllm_engine_requests_running_peak", "Most requests running"),
    "requests_waiting": ("vllm_engine_requests_waiting_peak", "Most requests waiting"),
    "kv_cache_usage_ratio": ("vllm_engine_kv_cache_usage_peak_ratio", "Highest KV-cache usage"),
}


class EngineCollector(Collector):
    """
    Collects all targets at scrape time.

    Args:
        snapshots: Gives the targets' current snapshots.
        objectives: The configured objectives, for their thresholds.
    """

    def __init__(
        self, snapshots: Callable[[], Sequence[Snapshot]], objectives: Sequence[Objective]
    ) -> None:
        self._snapshots = snapshots
        self._objectives = objectives

    def describe(self) -> Iterable[Metric]:
        """Nothing: the families depend on what the targets expose."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        snapshots = self._snapshots()
        yield from _engine_families(snapshots)
        yield from _derived(snapshots)
        yield from _sli(snapshots, self._objectives)
        yield from _own(snapshots)


class LabelledCollector(Collector):
    """
    Other families, every sample with the fleet's identity.

    Args:
        families: Collects them.
        identity: Labels that every sample gets.
    """

    def __init__(self, families: Callable[[], Iterable[Metric]], identity: Identity) -> None:
        self._families = families
        self._labels = identity.labels()

    def describe(self) -> Iterable[Metric]:
        """Nothing: the families depend on what the targets expose."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        for family in self._families():
            # a copy: some collectors give the same family each time
            labelled = copy.copy(family)
            labelled.samples = [
                sample._replace(labels={**self._labels, **sample.labels})
                for sample in family.samples
            ]
            yield labelled


def _engine_families(snapshots: Sequence[Snapshot]) -> Iterator[Metric]:
    for concept in catalogue():
        if concept.kind == "info":
            continue
        labels = ENGINE_LABELS if concept.scope == "engine" else ("target",)
        split = (concept.split,) if concept.split else ()
        family = _family(concept, (*labels, *split))
        found = False
        for snapshot in snapshots:
            samples = snapshot.page.engines if snapshot.page else ()
            for sample in samples if concept.scope == "engine" else samples[:1]:
                own = (snapshot.target.name,)
                values = (*own, *sample.key) if concept.scope == "engine" else own
                found = _add(family, concept, sample, values) or found
        if found:
            yield family


def _family(concept: Concept, labels: Sequence[str]) -> Metric:
    name, text = concept.exported_name, concept.meaning
    if concept.kind == "counter":
        return CounterMetricFamily(name, text, labels=labels)
    if concept.kind == "histogram":
        return HistogramMetricFamily(name, text, labels=labels)
    if concept.kind == "summary":
        return SummaryMetricFamily(name, text, labels=labels)
    return GaugeMetricFamily(name, text, labels=labels)


def _add(family: Metric, concept: Concept, sample: EngineSample, labels: Sequence[str]) -> bool:
    if isinstance(family, HistogramMetricFamily | SummaryMetricFamily):
        histogram = sample.histograms.get(concept.concept)
        if histogram is None:
            return False
        if isinstance(family, SummaryMetricFamily):
            family.add_metric(labels, count_value=int(histogram.count), sum_value=histogram.sum)
        else:
            family.add_metric(labels, buckets=_buckets(histogram), sum_value=histogram.sum)
        return True
    assert isinstance(family, GaugeMetricFamily | CounterMetricFamily)
    values = sample.counters if concept.kind == "counter" else sample.gauges
    found = False
    for key, value in values.items():
        name, part = split_key(key)
        if name == concept.concept:
            family.add_metric([*labels, part] if part is not None else labels, value)
            found = True
    return found


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    return [
        (str(floatToGoString(bound)), count)  # type: ignore[no-untyped-call]
        for bound, count in zip(histogram.bounds, histogram.counts, strict=True)
    ]


def _derived(snapshots: Sequence[Snapshot]) -> Iterator[Metric]:
    for concept in PEAK_CONCEPTS:
        name, text = _PEAKS[concept]
        peak = GaugeMetricFamily(
            name, f"{text} within the window, seen every poll.", labels=(*ENGINE_LABELS, "window")
        )
        for snapshot in snapshots:
            for (key, of, span), value in snapshot.peaks.items():
                if of == concept and span in PEAK_SPANS_S:
                    peak.add_metric([snapshot.target.name, *key, f"{span:g}s"], value)
        yield peak
    ratio = GaugeMetricFamily(
        "vllm_engine_prefix_cache_hit_ratio",
        "Prefix-cache hit ratio of the last 60 s, hit tokens over queried tokens.",
        labels=ENGINE_LABELS,
    )
    info = GaugeMetricFamily(
        ENGINE_INFO,
        "Configuration facts of the engine.",
        labels=(*ENGINE_LABELS, *_INFO_FACTS),
    )
    running = GaugeMetricFamily(
        LORA_ADAPTERS_RUNNING,
        "LoRA adapters in the running batch.",
        labels=ENGINE_LABELS,
    )
    capacity = GaugeMetricFamily(
        KV_CACHE_CAPACITY,
        "Tokens that the KV cache holds.",
        labels=ENGINE_LABELS,
    )
    for snapshot in snapshots:
        name = snapshot.target.name
        for key, value in snapshot.hit_ratios.items():
            ratio.add_metric([name, *key], value)
        for sample in snapshot.page.engines if snapshot.page else ():
            info.add_metric([name, *sample.key, *(sample.facts.get(f, "") for f in _INFO_FACTS)], 1)
            if sample.kv_capacity_tokens is not None:
                capacity.add_metric([name, *sample.key], sample.kv_capacity_tokens)
            adapters = sample.facts.get("lora.running_lora_adapters")
            if adapters is not None:
                count = len([adapter for adapter in adapters.split(",") if adapter])
                running.add_metric([name, *sample.key], count)
    yield from (ratio, info, running, capacity)


def _sli(snapshots: Sequence[Snapshot], objectives: Sequence[Objective]) -> Iterator[Metric]:
    events = CounterMetricFamily(
        SLI_EVENTS.removesuffix("_total"),
        "Events of an objective by outcome, since the sidecar started.",
        labels=("target", "model", "objective", "outcome"),
    )
    used = GaugeMetricFamily(
        SLI_THRESHOLD,
        "Threshold of an objective: the one asked for, and the bucket bound it is counted at.",
        labels=("target", "model", "objective", "kind"),
    )
    target = GaugeMetricFamily(
        SLI_TARGET, "Share of the events that must be good.", labels=("objective",)
    )
    asked = {objective.name: objective.threshold for objective in objectives}
    for objective in objectives:
        target.add_metric([objective.name], objective.target)
    for snapshot in snapshots:
        for (name, model), counted in snapshot.events.items():
            labels = [snapshot.target.name, model, name]
            events.add_metric([*labels, "good"], counted.good)
            events.add_metric([*labels, "bad"], counted.bad)
            if counted.threshold_used is not None:
                used.add_metric([*labels, "used"], counted.threshold_used)
            if asked.get(name) is not None:
                used.add_metric([*labels, "asked"], asked[name] or 0.0)
    yield from (events, used, target)


def _own(snapshots: Sequence[Snapshot]) -> Iterator[Metric]:
    build = GaugeMetricFamily(BUILD_INFO, "Version of the sidecar.", labels=("version",))
    build.add_metric([__version__], 1)
    yield build
    rows: list[tuple[str, str, Callable[[Snapshot], float | None]]] = [
        (TARGET_UP, "1 when the newest read gave a page, and not long ago.", lambda s: float(s.up)),
        (
            "opsctl_target_ready",
            "1 when the engine makes progress and has room.",
            lambda s: float(s.ready),
        ),
        (
            "opsctl_target_stale_seconds",
            "Time since the newest page.",
            lambda s: s.now - s.last_success if s.last_success is not None else None,
        ),
        ("opsctl_target_read_seconds", "Duration of the newest read.", lambda s: s.read_seconds),
        (
            "opsctl_target_page_problems",
            "Series of the newest page that were left out.",
            lambda s: float(s.problems),
        ),
        (
            "opsctl_recorder_size_bytes",
            "Memory that the flight recorder holds.",
            lambda s: float(s.recorder_bytes),
        ),
        (
            "opsctl_recorder_span_seconds",
            "How far back the flight recorder goes.",
            lambda s: s.recorder_span_s,
        ),
    ]
    for name, text, read in rows:
        gauge = GaugeMetricFamily(name, text, labels=("target",))
        for snapshot in snapshots:
            value = read(snapshot)
            if value is not None:
                gauge.add_metric([snapshot.target.name], value)
        yield gauge
    left_out = GaugeMetricFamily(
        "opsctl_target_left_out",
        "What of the newest page lies beyond a bound, by the bound's name.",
        labels=("target", "bound"),
    )
    for snapshot in snapshots:
        for bound, beyond in snapshot.left_out.items():
            left_out.add_metric([snapshot.target.name, bound], beyond)
    yield left_out
    restarts = CounterMetricFamily(
        "opsctl_target_restarts", "Restarts of the target's process.", labels=("target",)
    )
    reads = CounterMetricFamily(
        "opsctl_target_reads", "Reads of the target's page.", labels=("target",)
    )
    failures = CounterMetricFamily(
        "opsctl_target_read_failures", "Failed reads by reason.", labels=("target", "reason")
    )
    for snapshot in snapshots:
        restarts.add_metric([snapshot.target.name], snapshot.restarts)
        reads.add_metric([snapshot.target.name], snapshot.reads)
        for reason, count in snapshot.failures.items():
            failures.add_metric([snapshot.target.name, reason], count)
    yield from (restarts, reads, failures)


def own_metrics() -> dict[str, str]:
    """Name (without a counter's ``_total``) and meaning of what no vLLM has: the sidecar makes it."""
    families = (*_derived(()), *_sli((), ()), *_own(()), lost_family(), restarts_family())
    return {family.name: family.documentation for family in families}
