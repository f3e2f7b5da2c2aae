"""
The numbers that scaling reads, as metric math on what the sidecars publish.

Every engine is read equally often, so the average of a gauge over the fleet's dimensions is the mean of its
engines: it falls in proportion when replicas are added, which target tracking needs, and nothing has to be
divided by a fleet size that somebody else counts. No expression fills in what is missing: a fleet that is not
seen is not scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_opsctl.alarms.cloudwatch.resources import expression, stat
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.config_autoscaling import ScaledResource, SignalName
from vllm_opsctl.exporter.sinks.cloudwatch.datum import Dimensions
from vllm_opsctl.exporter.sinks.cloudwatch.interval import Labels

PERIOD_S = 60
"""Target tracking's alarms have points of a minute (Application Auto Scaling user guide)."""

REPLICAS_METRIC = "Preemptions"
"""Published once an interval by every engine, busy or idle: its SampleCount counts engines."""

_READS: Mapping[SignalName, tuple[tuple[str, str], ...]] = {
    "demand": (("running", "RequestsRunning"), ("waiting", "RequestsWaiting")),
    "kv_cache": (("kv", "KVCacheUsage"),),
}

LABELS: Mapping[SignalName, str] = {
    "demand": "requests an engine, running and waiting, percent of max_num_seqs",
    "kv_cache": "usage of an engine's KV cache, percent",
}


@dataclass(frozen=True, slots=True)
class FleetMath:
    """
    Queries on one fleet's metrics.

    Args:
        config: The whole configuration.
        resource: What is scaled.
        model: Served name, or a reference to the template's parameter.
    """

    config: Config
    resource: ScaledResource
    model: str

    def target(self, signal: SignalName) -> float:
        """What a signal is held at, percent."""
        settings = self.config.autoscaling
        ratio = settings.demand_target if signal == "demand" else settings.kv_cache_target
        return round(100 * ratio, 6)

    def percent(self, signal: SignalName) -> str:
        """A signal as an expression of the metrics that it reads, percent."""
        if signal == "demand":
            return f"100 * (running + waiting) / {self.resource.max_num_seqs}"
        return "kv"

    def tracked(self, signal: SignalName) -> list[dict[str, Any]]:
        """The queries of a target-tracking policy; exactly one returns data."""
        if signal == "kv_cache":
            return [_tracked_stat("kv", "KVCacheUsage", self._namespace, self._dimensions, True)]
        reads = [
            _tracked_stat(name, metric, self._namespace, self._dimensions, False)
            for name, metric in _READS[signal]
        ]
        return [*reads, expression("demand", self.percent(signal), LABELS[signal])]

    def pressure(self, *, is_at_max: bool) -> list[dict[str, Any]]:
        """
        How many times over its target the fleet is, by the signal that is worst.

        Args:
            is_at_max: Only while as many replicas as are allowed serve; else only while fewer do.
        """
        signals = self.config.autoscaling.signals
        ratios = [f"{self.percent(one)} / {self.target(one):g}" for one in signals]
        worst = (
            ratios[0] if len(ratios) == 1 else f"IF({ratios[0]} > {ratios[1]}, {', '.join(ratios)})"
        )
        relation = ">=" if is_at_max else "<"
        text = f"IF({self.replicas} {relation} {self.resource.max}, {worst}, 0)"
        reads = [read for one in signals for read in _READS[one]]
        return [
            *(self._stat(name, metric, "Average") for name, metric in reads),
            self._engines,
            expression("pressure", text, "load over target; 1 is the target"),
        ]

    @property
    def replicas(self) -> str:
        """Replicas that publish, as an expression of ``engines``."""
        intervals = round(PERIOD_S / self.config.exporter.cloudwatch.interval)
        each = intervals * self.resource.engines
        return "engines" if each == 1 else f"engines / {each}"

    def changes(self, comparison: str) -> list[dict[str, Any]]:
        """
        1 in a minute in which the number of replicas changed one way.

        Args:
            comparison: ``>`` for growth, ``<`` for its opposite.
        """
        label = "1 in a minute in which the fleet " + ("grew" if comparison == ">" else "shrank")
        return [
            self._engines,
            expression("changed", f"IF(DIFF(engines) {comparison} 0, 1, 0)", label),
        ]

    @property
    def _namespace(self) -> str:
        return self.config.exporter.cloudwatch.namespace

    @property
    def _dimensions(self) -> Dimensions:
        return Labels(self.config.service.name, None).of(self.model)

    @property
    def _engines(self) -> dict[str, Any]:
        return self._stat("engines", REPLICAS_METRIC, "SampleCount")

    def _stat(self, name: str, metric: str, statistic: str) -> dict[str, Any]:
        return stat(
            name,
            metric,
            statistic,
            namespace=self._namespace,
            dimensions=self._dimensions,
            period_s=PERIOD_S,
        )


def _tracked_stat(
    name: str, metric: str, namespace: str, dimensions: Dimensions, is_returned: bool
) -> dict[str, Any]:
    """One metric of a policy; the service sets the period itself."""
    query = stat(
        name,
        metric,
        "Average",
        namespace=namespace,
        dimensions=dimensions,
        period_s=PERIOD_S,
        watched=is_returned,
    )
    del query["MetricStat"]["Period"]
    return query
