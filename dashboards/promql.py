"""
Says each measure of a board in PromQL, on the sidecar's metrics or on vLLM's own.

Budgets and burn rates are the recordings of ``opsctl alarms build``; everything else reads the metrics. Names
of series and the matchers of a service are those of alarms/prometheus/conventions.py.

Beside its placeholders expressions and legends have these:

- ``${promised}``: labels that tell promises apart, for ``by``; ``{promised}`` is their values.
- ``{model}``, ``{target}``, ``{engine}``: what a series is of, in the source's names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from vllm_opsctl.alarms.burn import budget_of, duration_text
from vllm_opsctl.alarms.prometheus.conventions import (
    BUDGET_LEFT,
    TARGET_RATIO,
    Recorded,
    recorded_name,
)
from vllm_opsctl.alarms.vocabulary import NotMeasured, Vocabulary
from vllm_opsctl.dashboards.model import (
    AlertGroup,
    BadShare,
    BudgetLeft,
    Burn,
    Counted,
    Events,
    Gauge,
    Measure,
    Quantile,
    Query,
    Share,
)
from vllm_opsctl.exporter.catalogue import catalogue
from vllm_opsctl.exporter.identity import SERVICE

WINDOW = "$__rate_interval"
"""At least four scrapes, whatever the range (Grafana, Prometheus data source)."""

_OF_THE_TAP = "vllm:opsctl_tap_"

EVENTS_WINDOW = "5m"
"""The shortest that is recorded of events."""


USUAL_LABELS = ("cluster", "environment", "region", "namespace")
"""
What mostly tells fleets of one service apart. The board of all services knows no configuration, so it shows
these where they are there.
"""


@dataclass(frozen=True, slots=True)
class Promql:
    """
    The measures of a board in one source's names.

    Args:
        names: The vocabulary, of the board's scope.
        free: Labels that tell fleets of a service apart.
    """

    names: Vocabulary
    free: tuple[str, ...] = ()

    def expression(self, measure: Measure) -> str:
        """
        The measure, for each model.

        Raises:
            NotMeasured: This vLLM does not expose it.
        """
        if isinstance(measure, BudgetLeft):
            return self._recorded(BUDGET_LEFT, measure)
        if isinstance(measure, Burn):
            share = self._recorded(recorded_name("error", duration_text(measure.window_s)), measure)
            return f"{share} / {budget_of(measure.objective.target):.12g}"
        if isinstance(measure, BadShare):
            return self._recorded(recorded_name("error", EVENTS_WINDOW), measure)
        if isinstance(measure, Events):
            what: Recorded = "bad" if measure.bad else "total"
            return self._recorded(recorded_name(what, EVENTS_WINDOW), measure)
        if isinstance(measure, Gauge):
            return self._gauge(measure)
        if isinstance(measure, Quantile):
            buckets = self._rate(measure.concept, "_bucket")
            return (
                f"histogram_quantile({measure.quantile:g}, sum by ({self._model}, le) ({buckets}))"
            )
        if isinstance(measure, Counted):
            return self._counted(measure)
        if isinstance(measure, Query):
            return self.query(measure)
        if isinstance(measure, Share):
            part, whole = (
                f"sum by ({self._model}) ({self._rate(name)})"
                for name in (measure.part, measure.whole)
            )
            return f"{part} / ({whole} > 0)"
        return self._reporting()

    @property
    def _model(self) -> str:
        return self.names.labels("model")

    def selector(self, concept: str, suffix: str = "") -> str:
        """
        A concept's series of the chosen models and replicas.

        Raises:
            NotMeasured: This vLLM does not expose it.
        """
        return self._of_vllm(self._chosen.selector(concept, suffix))

    def query(self, measure: Query) -> str:
        """
        An expression in the source's names, for what is chosen.

        Raises:
            NotMeasured: This vLLM does not expose one of its metrics.
        """
        names = self._chosen if measure.of == "model" else self._replicas
        return self._of_vllm(names.expand(self._told_apart(measure.template.strip())))

    def alerts(self, group: AlertGroup | None, matchers: str) -> str:
        """
        The alerts that are firing.

        Args:
            group: Which; None for all.
            matchers: More matchers.
        """
        return self.names.expand(f"${{{group or 'alerts'}:{matchers}}}")

    def promises(self, *, chosen: bool) -> str:
        """
        One series for each objective.

        Args:
            chosen: Of the fleets that the board's variables choose; else of all.
        """
        scope = self.names.scope if chosen else replace(self.names.scope, chosen="")
        return scope.selector(TARGET_RATIO)

    @property
    def promise_labels(self) -> tuple[str, ...]:
        """Labels that tell promises apart: an objective of a model."""
        return (SERVICE, "objective", "model", *self.free)

    def _told_apart(self, template: str) -> str:
        """With labels that tell engines and replicas of several clusters apart, too."""
        found = template.replace("${promised}", ", ".join(self.promise_labels))
        if self.names.source == "sidecar":
            for level in ("engine", "replica"):
                labels = ", ".join((self.names.labels(level), *self.free))
                found = found.replace(f"${{{level}}}", labels)
        return found

    def label(self, text: str) -> str:
        """A legend with the source's names of model, replica and engine."""
        apart = " ".join(f"{{{{{name}}}}}" for name in self.free)
        names = {"model": self._model, "target": self._target, "engine": "engine"}
        own = {name: f"{{{{{label}}}}}" for name, label in names.items()}
        own["promised"] = " ".join(("{{objective}} {{model}}", apart)).strip()
        if self.names.source == "sidecar":
            own["target"] = f"{own['target']} {apart}".strip()
        return re.sub(r"(?<!\{)\{(\w+)\}(?!\})", lambda m: own[m[1]], text)

    @property
    def _target(self) -> str:
        return "target" if self.names.source == "sidecar" else "instance"

    @property
    def _replicas(self) -> Vocabulary:
        return replace(self.names, chosen=f'job=~"$job", {self._target}=~"$target"')

    @property
    def _chosen(self) -> Vocabulary:
        chosen = f'job=~"$job", {self._model}=~"$model", {self._target}=~"$target"'
        return replace(self.names, chosen=chosen)

    @staticmethod
    def _of_vllm(expression: str) -> str:
        of_the_tap = re.search(rf"{_OF_THE_TAP}(\w+)", expression)
        if of_the_tap is not None:
            raise NotMeasured(
                f"{of_the_tap[1]} is the tap's alone; build with --from sidecar (docs/tap.md)"
            )
        return expression

    def _rate(self, concept: str, suffix: str = "") -> str:
        return f"rate({self.selector(concept, suffix)}[{WINDOW}])"

    def _gauge(self, measure: Gauge) -> str:
        over = "max_over_time" if measure.of == "peak" else "avg_over_time"
        of = "max" if measure.of == "peak" else "avg"
        return f"{of} by ({self._model}) ({over}({self.selector(measure.concept)}[{WINDOW}]))"

    def _counted(self, measure: Counted) -> str:
        series = self.selector(measure.concept)
        if catalogue()[measure.concept].kind == "counter":
            return f"sum by ({self._model}) (increase({series}[{WINDOW}]))"
        # an estimate is a gauge that mostly grows
        return f"sum by ({self._model}) (clamp_min(delta({series}[{WINDOW}]), 0))"

    def _reporting(self) -> str:
        if self.names.source == "sidecar":
            up = Query(f"count(group by (${{replica}}) (${{target_up:{self._job}}} == 1))")
            return self.query(up)
        return (
            f"count(group by (instance) ({self.names.selector('requests_running', '', self._job)}))"
        )

    @property
    def _job(self) -> str:
        return 'job=~"$job"'

    def _recorded(self, series: str, measure: BudgetLeft | Burn | BadShare | Events) -> str:
        """One value, however many rulers recorded it; the worst of fleets that no label tells apart."""
        matchers = f'objective="{measure.objective.name}",model=~"$model"'
        worst = "min" if isinstance(measure, BudgetLeft) else "max"
        labels = ", ".join(self.promise_labels)
        return f"{worst} by ({labels}) ({self.names.scope.selector(series, matchers)})"
