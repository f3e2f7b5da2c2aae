"""
What the CloudWatch sink costs a month, beside exporting every series; prices are data/aws_prices.yaml.

What is exported is not written down a second time: a busy interval goes through the sink's own code, and what
comes out is counted.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.resources import files
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vllm_opsctl.exporter.aws import sends_heartbeat
from vllm_opsctl.exporter.catalogue import Concept, catalogue
from vllm_opsctl.exporter.config import SLI_CONCEPTS, Config
from vllm_opsctl.exporter.engine import EngineKey, EngineSample, Histogram, PageSample
from vllm_opsctl.exporter.otlp_cost import export_bytes
from vllm_opsctl.exporter.sinks.cloudwatch.curated import curated
from vllm_opsctl.exporter.sinks.cloudwatch.datum import Datum
from vllm_opsctl.exporter.sinks.cloudwatch.emf import lines_of
from vllm_opsctl.exporter.sinks.cloudwatch.interval import HEARTBEAT, Labels, data_of
from vllm_opsctl.exporter.sinks.cloudwatch.put import MAX_METRICS, requests_of
from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.yaml_text import read_yaml

MONTH_S = 30 * 86400.0

Item = Literal["metrics", "calls", "logs", "alarms", "composites", "dashboards", "keys"]
Unknown = Literal["otlp", "promql"]
Sink = Literal["put", "emf", "otlp"]

_GB = 1e9
_TAP = "vllm:opsctl_tap_"
_BUSY = 1234.0
"""What each bucket and counter of a busy interval grew by."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tier(_Strict):
    """A price up to a number of units a month; None: without an end."""

    up_to: float | None = Field(None, gt=0)
    price: float = Field(gt=0)


class Price(_Strict):
    """The price of one thing; fields as in the head of data/aws_prices.yaml."""

    per: str
    tiers: tuple[Tier, ...] = Field(min_length=1)
    free: float = Field(0.0, ge=0)
    source: str = Field(pattern=r"^https://")
    standing: Literal["documented", "third-party text"]

    @model_validator(mode="after")
    def _tiers_ascend_to_no_end(self) -> Price:
        *bounded, last = [tier.up_to for tier in self.tiers]
        bounds = [bound for bound in bounded if bound is not None]
        if last is not None or len(bounds) < len(bounded):
            raise ValueError(f"{self.per}: the last tier, and no other, has no up_to")
        if any(lower >= upper for lower, upper in pairwise(bounds)):
            raise ValueError(f"{self.per}: tiers must ascend")
        return self

    def cost(self, units: float) -> float:
        """What so many units cost a month, the free ones included."""
        total, below = 0.0, 0.0
        for tier in self.tiers:
            upper = units if tier.up_to is None else min(units, tier.up_to)
            total += max(0.0, upper - below) * tier.price
            below = upper
        return total

    def saved(self, units: float) -> float:
        """What the free tier takes off that."""
        return self.cost(units) - self.cost(max(0.0, units - self.free))


class Unpriced(_Strict):
    """What is billed at a price that is not known; fields as in the head of data/aws_prices.yaml."""

    per: str
    why: str
    source: str = Field(pattern=r"^https://")


class Naive(_Strict):
    """The page whose every series is exported for comparison."""

    series: int = Field(gt=0)
    vllm_version: str
    what: str


class Prices(_Strict):
    """The price file."""

    region: str
    read: date
    currency: str
    prices: Mapping[Item, Price]
    unpriced: Mapping[Unknown, Unpriced]
    naive: Naive
    not_included: tuple[str, ...]


@functools.cache
def prices() -> Prices:
    """
    The price file, read once.

    Raises:
        pydantic.ValidationError: The file is wrong; only in development, a test loads it.
    """
    text = (
        files("vllm_opsctl.exporter").joinpath("data/aws_prices.yaml").read_text(encoding="utf-8")
    )
    return Prices.model_validate(read_yaml(text))


@dataclass(frozen=True, slots=True)
class Fleet:
    """
    Who exports.

    Args:
        replicas: How many; each serves one model.
        models: Their served names, dealt out to the replicas in turn; not more than replicas.
        sidecars: How many send, each for as many replicas; not more than replicas.
    """

    replicas: int
    models: tuple[str, ...]
    sidecars: int

    def replicas_of(self, index: int) -> int:
        """How many replicas serve the model of that index."""
        return len(range(index, self.replicas, len(self.models)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """
    What is billed for a month.

    Args:
        metrics: Distinct names and dimensions.
        calls: Of PutMetricData.
        logs: GB of lines.
        alarms: Metrics that alarms read, each alarm's counted anew.
        composites: Composite alarms.
        dashboards: Dashboards.
        keys: KMS keys.
        otlp: GB of data points by OTLP.
        promql: PromQL alarms.
    """

    metrics: float = 0
    calls: float = 0
    logs: float = 0
    alarms: float = 0
    composites: float = 0
    dashboards: float = 0
    keys: float = 0
    otlp: float = 0
    promql: float = 0


@dataclass(frozen=True, slots=True)
class Line:
    """
    One thing on a bill.

    Args:
        item: What.
        quantity: Units a month.
        listed: Their price.
        free: What the free tier takes off it.
    """

    item: Item
    quantity: float
    listed: float
    free: float


@dataclass(frozen=True, slots=True)
class Bill:
    """
    A month.

    Args:
        lines: In the price file's order; what is not used is left out.
        unpriced: What comes on top at a price that is not known: how much of it.
    """

    lines: tuple[Line, ...]
    unpriced: Mapping[Unknown, float]

    @property
    def listed(self) -> float:
        """At list prices."""
        return sum(line.listed for line in self.lines)

    @property
    def free(self) -> float:
        """What the free tier takes off."""
        return sum(line.free for line in self.lines)

    @property
    def total(self) -> float:
        """What is left to pay of what has a price."""
        return self.listed - self.free


def bill(usage: Usage) -> Bill:
    """
    Price a month's usage.

    Args:
        usage: Any.
    """
    quantities = asdict(usage)
    return Bill(
        tuple(
            Line(
                item, quantities[item], price.cost(quantities[item]), price.saved(quantities[item])
            )
            for item, price in prices().prices.items()
            if quantities[item]
        ),
        {item: quantities[item] for item in prices().unpriced if quantities[item]},
    )


def exported(config: Config, fleet: Fleet, sink: Sink) -> Usage:
    """
    What the sink's metrics, calls, log lines and data points add up to.

    At most: every replica is busy in every interval, and every bucket of its histograms is hit.

    Args:
        config: Objectives, interval, and whether targets are told apart.
        fleet: Who exports.
        sink: How.

    Raises:
        UsageError: The OpenTelemetry exporter, which encodes what goes by OTLP, is not installed.
    """
    settings = config.exporter.cloudwatch
    intervals = MONTH_S / settings.interval
    data = [_busy_interval(config, model) for model in fleet.models]
    serving = [fleet.replicas_of(index) for index in range(len(data))]
    otlp = 0.0
    if sink == "otlp":
        otlp = intervals * _otlp_bytes(config, fleet, serving) / _GB
        if not sends_heartbeat(settings):
            return Usage(otlp=otlp)
        # beside OTLP the heartbeat alone is put
        data = [[one for one in found if one.metric == HEARTBEAT] for found in data]
    if settings.per_target:
        metrics = sum(n * len(_metrics(found)) for n, found in zip(serving, data, strict=True))
    else:
        metrics = len(set().union(*map(_metrics, data)))
    if sink == "emf":
        size = sum(
            n * len(line.encode())
            for n, found in zip(serving, data, strict=True)
            for line in lines_of(settings.namespace, found, now=0.0)
        )
        return Usage(metrics=metrics, logs=intervals * size / _GB)
    calls = 0
    fewest, more = divmod(fleet.replicas, fleet.sidecars)
    for sidecars, replicas in ((fleet.sidecars - more, fewest), (more, fewest + 1)):
        if sidecars:
            sent = [datum for i in range(replicas) for datum in data[i % len(data)]]
            calls += sidecars * sum(1 for _ in requests_of(sent, now=0.0))
    return Usage(metrics=metrics, calls=intervals * calls, otlp=otlp)


def _otlp_bytes(config: Config, fleet: Fleet, serving: Sequence[int]) -> float:
    """Of all sidecars in one interval: what each says of itself, and what it says of each replica."""
    own = export_bytes(config, ())
    replicas = [export_bytes(config, (model,)) - own for model in fleet.models]
    return fleet.sidecars * own + sum(n * size for n, size in zip(serving, replicas, strict=True))


def naively_exported(config: Config, replicas: int, series: int) -> Usage:
    """
    The same interval's calls and metrics when every series of every replica is a metric.

    Args:
        config: For the interval.
        replicas: How many, each with a dimension of its own and calls of its own.
        series: Of one replica's page.
    """
    intervals = MONTH_S / config.exporter.cloudwatch.interval
    return Usage(metrics=replicas * series, calls=intervals * replicas * -(-series // MAX_METRICS))


def _metrics(data: Sequence[Datum]) -> set[tuple[str, object]]:
    return {(datum.metric, datum.dimensions) for datum in data}


def _busy_interval(config: Config, model: str) -> list[Datum]:
    """The data of a replica whose page has everything that this configuration can measure."""
    settings = config.exporter.cloudwatch
    pages = [_page(config, model, t=float(t)) for t in range(3)]
    fine = [_page(config, model, t=t, bounds=_tap_bounds()) for t in (0.0, 2.0)]
    return data_of(
        pages[0],
        pages[1:],
        t=0.0,
        labels=Labels(config.service.name, "replica-00000" if settings.per_target else None),
        objectives=config.objectives,
        fine=(fine[0], fine[1]) if config.exporter.tap.dir else None,
    )


def _page(
    config: Config, model: str, *, t: float, bounds: tuple[float, ...] | None = None
) -> PageSample:
    """A page on which every counter and bucket has grown since time 0; with vLLM's own bounds when None."""
    grown = t * _BUSY
    known = list(_measured(config))
    sample = EngineSample(
        t=t,
        key=EngineKey(model, "0"),
        # with as many digits as a real average has
        gauges={one.concept: grown / 3 for one in known if one.kind == "gauge"},
        counters={one.concept: grown for one in known if one.kind == "counter"},
        histograms={
            # the tap's own histograms have no default bounds; only their events are exported
            one.concept: _histogram(bounds or one.bounds_of(None) or (1.0,), grown)
            for one in known
            if one.kind == "histogram"
        },
    )
    return PageSample(t=t, target="replica", engines=(sample,))


def _measured(config: Config) -> Iterator[Concept]:
    """The curated set's concepts and the objectives'; those of the tap where there is one."""
    names = {name for metric in curated() for name in (metric.concept, metric.of) if name}
    names |= {SLI_CONCEPTS[one.sli] for one in config.objectives if one.sli in SLI_CONCEPTS}
    for name in sorted(names):
        concept = catalogue()[name]
        if config.exporter.tap.dir or not concept.names[0].name.startswith(_TAP):
            yield concept


def _tap_bounds() -> tuple[float, ...]:
    return tuple(layout.SECONDS.lower(bucket) for bucket in range(1, layout.SECONDS.buckets))


def _histogram(bounds: tuple[float, ...], grown: float) -> Histogram:
    counts = tuple(grown * (i + 1) for i in range(len(bounds) + 1))
    return Histogram((*bounds, float("inf")), counts, counts[-1])
