"""
Writes the alarms of a template: those of objectives, and the signals beside them.

A window is a metric alarm on a period of that length, on good and bad events, whose number is the burn rate.
Rows are joined by composites, one that pages and one that opens a ticket for each objective and model: only
these notify. A row's ``for`` has no counterpart: alarms go off as soon as both windows burn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_opsctl.alarms.alert_rules import AlertRule
from vllm_opsctl.alarms.burn import FLOOR, Notify, Row, budget_of, duration_text
from vllm_opsctl.alarms.cloudwatch.models import AS_PARAMETER
from vllm_opsctl.alarms.cloudwatch.promql import PromqlAlarm, promql_alarm, promql_id, told
from vllm_opsctl.alarms.cloudwatch.resources import (
    composite_alarm,
    expression,
    in_alarm,
    logical_id,
    metric_alarm,
    stat,
    tags_of,
)
from vllm_opsctl.alarms.cloudwatch.signals import SILENT_IS_FINE, Signal
from vllm_opsctl.alarms.cloudwatch.topics import topic_ref
from vllm_opsctl.alarms.links import Links
from vllm_opsctl.alarms.prometheus.conventions import ALERT_PREFIX, BURN_ALERT, THRASH_ALERT
from vllm_opsctl.alarms.resource_names import alarm_part
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.identity import Identity, identity_of
from vllm_opsctl.exporter.sinks.cloudwatch.datum import Dimensions
from vllm_opsctl.exporter.sinks.cloudwatch.interval import Labels
from vllm_opsctl.exporter.units import format_percent

WINDOW_ALARM = f"{ALERT_PREFIX}SLOWindow"
"""Of one window of a row; only its composite notifies."""


@dataclass(slots=True)
class AlarmWriter:
    """
    Writes resources in order.

    Args:
        config: The whole configuration.
        links: Where a notification leads.
        resources: What was written, by id.
    """

    config: Config
    links: Links
    resources: dict[str, Any] = field(default_factory=dict)

    # -- objectives --------------------------------------------------------------------------------

    def objective(self, rules: list[AlertRule], model: str) -> None:
        """The alarms of one objective and model: windows, then what joins them."""
        of: dict[Notify, list[AlertRule]] = {"page": [], "ticket": []}
        for rule in rules:
            of["page" if rule.labels["notify"] == "page" else "ticket"].append(rule)
        tests = {
            way: [
                self._floor(rule, model) if rule.row is None else self._row(rule, rule.row, model)
                for rule in some
            ]
            for way, some in of.items()
        }
        pager = None
        if tests["page"]:
            pager = self._joined("page", of["page"], " OR ".join(tests["page"]), model)
        if tests["ticket"]:
            text = " OR ".join(tests["ticket"])
            if pager is not None:
                # whoever is paged needs no ticket for the same budget
                text = f"({text}) AND NOT {in_alarm(pager)}"
            self._joined("ticket", of["ticket"], text, model)

    def _row(self, rule: AlertRule, row: Row, model: str) -> str:
        long = self._window(rule, row, row.long_s, row.min_bad, model)
        short = self._window(rule, row, row.short_s, 1, model)
        return f"({in_alarm(long)} AND {in_alarm(short)})"

    def _window(self, rule: AlertRule, row: Row, window_s: float, least: int, model: str) -> str:
        assert rule.indicator is not None
        objective = rule.indicator.objective
        window, burn = duration_text(window_s), f"{row.burn:g}"
        budget = f"{budget_of(objective.target):.12g}"
        return self._events_alarm(
            rule,
            model,
            kind=f"burn {burn}x {window}",
            about=f"{model} burned the budget of {objective.name} more than {burn} times too fast over "
            f"{window}{f', with {least} bad events or more' if least > 1 else ''}.",
            number=f"the burn rate over {window}; at 1 the budget of 30 days lasts 30 days",
            text=f"IF(FILL(bad, 0) >= {least}, bad / (good + bad) / {budget}, 0)",
            threshold=row.burn,
            period_s=window_s,
            periods=1,
        )

    def _floor(self, rule: AlertRule, model: str) -> str:
        assert rule.indicator is not None
        objective = rule.indicator.objective
        # as long as the window and the rule's `for`: as many windows in a row
        periods = 1 + round(FLOOR.for_s / FLOOR.window_s)
        name = self._events_alarm(
            rule,
            model,
            kind="floor",
            about=f"More than {FLOOR.ratio:.0%} of at least {FLOOR.min_events} events of {model} missed "
            f"{objective.name} in each of {periods} times {duration_text(FLOOR.window_s)}.",
            number="the share of bad events",
            text=f"IF(FILL(good, 0) + FILL(bad, 0) >= {FLOOR.min_events}, bad / (good + bad), 0)",
            threshold=FLOOR.ratio,
            period_s=FLOOR.window_s,
            periods=periods,
        )
        return in_alarm(name)

    def _events_alarm(
        self,
        rule: AlertRule,
        model: str,
        *,
        kind: str,
        about: str,
        number: str,
        text: str,
        threshold: float,
        period_s: float,
        periods: int,
    ) -> str:
        assert rule.indicator is not None
        objective = rule.indicator.objective.name
        name = logical_id(kind, objective, model)
        dimensions = self._labels.of(model, objective)
        queries = [
            self._stat("good", "GoodEvents", "Sum", dimensions, int(period_s)),
            self._stat("bad", "BadEvents", "Sum", dimensions, int(period_s)),
            expression("number", text, number.partition(";")[0]),
        ]
        self.resources[name] = metric_alarm(
            name=self._name(f"{WINDOW_ALARM} {kind}", objective, model),
            description=f"{about} It notifies nobody by itself.\nThe number: {number}.\n"
            f"Missing data: notBreaching; {SILENT_IS_FINE}.",
            queries=queries,
            comparison="GreaterThanThreshold",
            threshold=threshold,
            periods=periods,
            to_alarm=periods,
            missing="notBreaching",
            tags=tags_of(self._identity, objective=objective, model=model),
        )
        return name

    def _joined(self, way: Notify, rules: list[AlertRule], text: str, model: str) -> str:
        one = rules[0].indicator
        assert one is not None
        objective, target = one.objective.name, format_percent(one.objective.target)
        name = logical_id(BURN_ALERT, way, objective, model)
        what = _filled(rules[0].annotations["description"], model).partition(" over the last")[0]
        self.resources[name] = composite_alarm(
            name=self._name(f"{BURN_ALERT} {way}", objective, model),
            description=f"{model} burns the error budget of {objective} too fast.\n"
            f"{what}; {target} must not.\n"
            f"It goes off at {', or '.join(_speed(rule.row) for rule in rules)}; the numbers are in the "
            "alarms behind it.\n" + self._leads(rules[0].annotations, model),
            rule=text,
            topic=self._topic(way),
            suppressor=logical_id("signal", THRASH_ALERT, model) if way == "ticket" else None,
            tags=tags_of(self._identity, objective=objective, model=model, notify=way),
        )
        return name

    # -- signals -----------------------------------------------------------------------------------

    def signal(self, signal: Signal, model: str | None) -> None:
        """A signal's alarm, and the composite that notifies of it."""
        of_model = model if signal.per == "model" else None
        summary = signal.summary.format(model=model, service=self._service)
        dimensions = self._labels.of(of_model)
        queries = [
            self._stat(
                name,
                metric,
                statistic,
                dimensions,
                signal.period_s,
                watched=signal.expression is None,
            )
            for name, metric, statistic in signal.reads
        ]
        if signal.expression is not None:
            queries.append(expression("number", signal.expression, signal.number))
        facts = {"model": model} if model is not None else {}
        name = logical_id("signal", signal.alert, model or "")
        self.resources[name] = metric_alarm(
            name=self._name(f"{signal.alert} signal", None, model),
            description=f"{summary} It notifies nobody by itself.\nThe number: {signal.number}.\n"
            f"Missing data: {signal.missing}; {signal.because}.",
            queries=queries,
            comparison=signal.comparison,
            threshold=signal.threshold,
            periods=signal.periods,
            to_alarm=signal.to_alarm,
            missing=signal.missing,
            tags=tags_of(self._identity, **facts),
        )
        rule, suppressor = in_alarm(name), None
        if signal.muted_by == THRASH_ALERT:
            suppressor = logical_id("signal", THRASH_ALERT, model or "")
        elif signal.muted_by is not None:
            rule += f" AND NOT {in_alarm(self._fleet_signal(signal.muted_by, model))}"
        annotations = self.links.annotations("model" if of_model else "none", signal.modes, None)
        self.resources[logical_id(signal.alert, model or "")] = composite_alarm(
            name=self._name(f"{signal.alert} {signal.notify}", None, model),
            description=f"{summary}\nThe number is in the alarm behind it: {signal.number}.\n"
            + self._leads(annotations, model or ""),
            rule=rule,
            topic=self._topic(signal.notify),
            suppressor=suppressor,
            tags=tags_of(self._identity, **facts, notify=signal.notify),
        )

    # -- metrics by OTLP ---------------------------------------------------------------------------

    def promql(self, alarm: PromqlAlarm) -> None:
        """An alarm that is a PromQL query; it notifies by itself."""
        lines = [told(alarm.rule.annotations["summary"])]
        if alarm.rule.indicator is not None:
            objective = alarm.rule.indicator.objective
            lines.append(
                f"{format_percent(objective.target)} of its events are promised to be good."
            )
        lines.append("Its contributors are the models and replicas that it is about.")
        leads = {key: told(text) for key, text in alarm.rule.annotations.items()}
        description = "\n".join([*lines, self._leads(leads, "")])
        self.resources[promql_id(alarm)] = promql_alarm(
            self._name(f"{alarm.alert} {alarm.notify}", alarm.objective, None),
            description,
            alarm,
            self._topic(alarm.notify),
            self._identity,
        )

    def _fleet_signal(self, alert: str, model: str | None) -> str:
        return logical_id("signal", alert, AS_PARAMETER if model == AS_PARAMETER else "")

    # -- what all have -----------------------------------------------------------------------------

    @property
    def _service(self) -> str:
        return self.config.service.name

    @property
    def _identity(self) -> Identity:
        return identity_of(self.config)

    @property
    def _labels(self) -> Labels:
        return Labels(self._service, None)

    def _name(self, alert: str, objective: str | None, model: str | None) -> str:
        """An alarm's name: alert, service, objective and model; only the last can hold a slash."""
        about = "-" if objective is None else alarm_part(objective)
        model_part = [model] if model is not None else []
        return "/".join([alert, alarm_part(self._service), about, *model_part])

    def _stat(
        self,
        name: str,
        metric: str,
        statistic: str,
        dimensions: Dimensions,
        period_s: int,
        *,
        watched: bool = False,
    ) -> dict[str, Any]:
        return stat(
            name,
            metric,
            statistic,
            namespace=self.config.exporter.cloudwatch.namespace,
            dimensions=dimensions,
            period_s=period_s,
            watched=watched,
        )

    def arn(self, way: Notify) -> str | None:
        """The configured topic of a way."""
        alarms = self.config.alarms
        return alarms.page_topic if way == "page" else alarms.ticket_topic

    def _topic(self, way: Notify) -> Any:
        return self.arn(way) or topic_ref(way)

    def _leads(self, annotations: Mapping[str, str], model: str) -> str:
        lines = [f"Diagnose: {_filled(annotations['command'], model)}"]
        for key, title in (("runbook_url", "Runbook"), ("dashboard_url", "Board")):
            if key in annotations:
                lines.append(f"{title}: {_filled(annotations[key], model)}")
        return "\n".join(lines)


def _speed(row: Row | None) -> str:
    """What makes a row go off, or the hard floor."""
    if row is None:
        return f"more than {FLOOR.ratio:.0%} bad for {duration_text(FLOOR.window_s + FLOOR.for_s)}"
    return f"{row.burn:g}x over {duration_text(row.long_s)} and {duration_text(row.short_s)}"


def _filled(text: str, model: str) -> str:
    """An annotation of an alerting rule without Prometheus' templates."""
    return (
        text.replace("{{ $labels.model }}", model)
        .replace("{{ $value | humanizePercentage }} of the events", "Too many of the events")
        .strip()
    )
