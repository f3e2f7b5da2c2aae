"""
What everything weighs by OTLP: an export is made and encoded as the sink does it, and counted as AWS does.

Numbers and counts have a fixed length in the encoding, so a busy replica's export weighs what an idle
one's does.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from itertools import product

from prometheus_client import CollectorRegistry
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from pydantic import BaseModel, ConfigDict

from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.config import TAP_ONLY, Config, Objective, Target
from vllm_opsctl.exporter.engine import EngineKey, EngineSample, Histogram, PageSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.identity import identity_of
from vllm_opsctl.exporter.sinks.otlp import metrics_data
from vllm_opsctl.exporter.sinks.prometheus import EngineCollector
from vllm_opsctl.exporter.sli import Events, measured
from vllm_opsctl.exporter.sources.tap_engine import EngineTotals
from vllm_opsctl.exporter.sources.tap_text import Bounds, EngineText, page_text
from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.page import TapHistogram
from vllm_opsctl.exporter.target_state import PEAK_CONCEPTS, PEAK_SPANS_S, Snapshot
from vllm_opsctl.exporter.yaml_text import read_yaml

_T = 1_700_000_000.0
_NAME = "replica-{:05d}"


class PageShape(BaseModel):
    """The concepts of a page; fields as in data/page.yaml, finite bounds of histograms."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vllm_version: str
    gauges: tuple[str, ...]
    counters: tuple[str, ...]
    histograms: dict[str, tuple[float, ...]]
    facts: dict[str, str]


@functools.cache
def page_shape() -> PageShape:
    """
    The shipped shape, read once.

    Raises:
        pydantic.ValidationError: The file is wrong; only in development, a test loads it.
    """
    text = files("vllm_opsctl.exporter").joinpath("data/page.yaml").read_text(encoding="utf-8")
    return PageShape.model_validate(read_yaml(text))


def export_bytes(config: Config, models: Sequence[str]) -> int:
    """
    Bytes that one export of a sidecar is billed for, before compression.

    Args:
        config: Service, objectives, and whether there is a tap.
        models: Served names, of each of its replicas.

    Raises:
        UsageError: The OpenTelemetry exporter is not installed.

    Source:
        OTel metrics pricing, CloudWatch user guide: every data point counts with its metric's name, its
        labels, the resource, its time and value, though in a request name and resource stand once.
    """
    try:
        from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
    except ImportError as problem:
        raise UsageError(
            f"{problem.name} is not installed; pip install 'vllm-opsctl[otlp,aws]' brings it"
        ) from None
    snapshots = [
        _snapshot(config, _NAME.format(index), model) for index, model in enumerate(models)
    ]
    registry = CollectorRegistry()
    registry.register(EngineCollector(lambda: snapshots, config.objectives))
    ProcessCollector(namespace="opsctl", registry=registry)
    PlatformCollector(registry=registry)
    starts = {snapshot.target.name: _T for snapshot in snapshots}
    state = metrics_data(
        registry.collect(), identity=identity_of(config), starts=starts, began=_T, now=_T
    )
    total = 0
    for resource in encode_metrics(state).resource_metrics:
        shared = resource.resource.ByteSize()
        for metric in (one for scope in resource.scope_metrics for one in scope.metrics):
            points = getattr(metric, metric.WhichOneof("data")).data_points
            total += sum(shared + len(metric.name) + point.ByteSize() for point in points)
    return total


def _snapshot(config: Config, name: str, model: str) -> Snapshot:
    """A replica about which everything is known that its page can tell."""
    sample = _sample(config, model)
    events = {
        (objective.name, model): Events(1.0, 1.0, objective.threshold)
        for objective in measured(config)
        if objective.model in (None, model)
    }
    return Snapshot(
        target=Target(name=name, url=TAP_ONLY),
        now=_T,
        up=True,
        error=None,
        page=PageSample(t=_T, target=name, engines=(sample,)),
        last_success=_T,
        reads=1,
        failures=Counter(),
        read_seconds=0.0,
        restarts=0,
        peaks={(sample.key, *one): 1.0 for one in product(PEAK_CONCEPTS, PEAK_SPANS_S)},
        hit_ratios={sample.key: 0.5},
        events=events,
        history=(),
        recorder_bytes=1,
        recorder_span_s=1.0,
        problems=0,
        left_out={},
        not_ready=None,
    )


def _sample(config: Config, model: str) -> EngineSample:
    shape = page_shape()
    served = EngineSample(
        t=_T,
        key=EngineKey(model, "0"),
        gauges=dict.fromkeys(shape.gauges, 1.0),
        counters=dict.fromkeys(shape.counters, 1.0),
        histograms={name: _histogram(bounds) for name, bounds in shape.histograms.items()},
        facts=shape.facts,
    )
    if config.exporter.tap.dir is None:
        return served
    # where both tell something, the tap's is taken
    tap = _tap_sample(model, config.objectives)
    return EngineSample(
        t=_T,
        key=served.key,
        gauges={**served.gauges, **tap.gauges},
        counters={**served.counters, **tap.counters},
        histograms={**served.histograms, **tap.histograms},
        facts=served.facts,
    )


def _tap_sample(model: str, objectives: Sequence[Objective]) -> EngineSample:
    """What a tap page has at most, with its bounds."""
    totals = EngineTotals(
        counters=dict.fromkeys(layout.COUNTERS, 1.0),
        gauges=dict.fromkeys(layout.GAUGES, 1.0),
        histograms={
            name: TapHistogram(scale, (0,) * scale.buckets, 0.0, 0.0)
            for name, scale, _ in layout.HISTOGRAMS
        },
        peaks=dict.fromkeys(("running_max", "waiting_max", "kv_cache_usage_max"), 1.0),
        adapters={},
        hung_up=0.0,
    )
    text = page_text(
        [EngineText(model=model, engine=0, totals=totals, facts={"vllm_version": "0.32.0"})],
        _T,
        Bounds(objectives),
    )
    (sample,) = read_page(text, t=_T, target="tap").engines
    return sample


def _histogram(bounds: Sequence[float]) -> Histogram:
    ends = (*bounds, float("inf"))
    return Histogram(ends, (1.0,) * len(ends), 1.0)
