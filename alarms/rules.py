"""
Prometheus rules of a configuration: recordings of every objective, and all alerts.

Bad and total events are recorded apart, so that every ratio is a ratio of sums and an idle hour is no
data instead of NaN. No alert rests on data that a dead server would have to send; companions.yaml
holds those that tell its silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_opsctl.alarms.alerts import SEVERITIES, AlertSpec, shipped_alerts
from vllm_opsctl.alarms.burn import (
    FLOOR,
    PERIOD_S,
    ROWS,
    WINDOWS_S,
    Clock,
    Row,
    budget_of,
    duration_text,
    threshold_of,
    unreachable,
)
from vllm_opsctl.alarms.links import Links
from vllm_opsctl.alarms.sli import Indicator, NoBound, buckets_flag, indicator
from vllm_opsctl.alarms.vocabulary import NotMeasured, Source, Vocabulary, as_model_and_target
from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.catalogue import Version
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.units import format_duration, format_percent, parse_duration

BURN_ALERT = "LLMSLOErrorBudgetBurn"
FLOOR_ALERT = "LLMSLOHardFloor"
BUCKET_ALERT = "LLMSLOBucketMissing"

_SHORT_S = 60.0
_LONG_S = 120.0
"""Evaluation intervals; the long one well within the five minutes that Prometheus looks back."""

_LONG_FROM_S = 6 * 3600.0

_SLI_TEXT = {
    "availability": "failed",
    "time_to_first_token": "waited longer than {threshold} for their first token",
    "time_to_first_token_cached": "had a prefix-cache hit and waited longer than {threshold} for their "
    "first token",
    "inter_token_latency": "were gaps between tokens longer than {threshold}",
    "e2e_latency": "took longer than {threshold} from end to end",
    "queue_time": "queued for longer than {threshold}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """One alerting rule, as the rule file has it."""

    alert: str
    expr: str
    for_s: float
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    spec: AlertSpec | None = None
    """Where it came from; None for those of an objective."""
    row: Row | None = None
    indicator: Indicator | None = None


@dataclass(frozen=True, slots=True)
class Rulebook:
    """
    All rules of a configuration.

    Args:
        groups: Rule groups as Prometheus reads them.
        alerts: The alerting rules in them.
        indicators: The objectives that are measured.
        left_out: What there is no rule for, and why, one line each.
        names: The vocabulary they are written in.
    """

    groups: list[dict[str, Any]]
    alerts: list[AlertRule]
    indicators: list[Indicator]
    left_out: list[str]
    names: Vocabulary
    links: Links = field(repr=False)


def build_rules(
    config: Config, source: Source, *, version: Version | None = None, clock: Clock | None = None
) -> Rulebook:
    """
    Write the rules.

    Args:
        config: Objectives and links.
        source: The sidecar's metrics, or vLLM's own.
        version: Release of vLLM whose names are used with ``vllm``; None for the newest known.
        clock: Shorter windows for tests.

    Raises:
        ConfigError: A threshold is no bucket bound and may not be moved; one line an objective, the
            last with the flag that gives vLLM all the bounds.
    """
    names = Vocabulary(source, version, clock or Clock())
    links = Links(config, source)
    left_out: list[str] = []
    indicators: list[Indicator] = []
    problems: list[str] = []
    for index, objective in enumerate(config.objectives):
        try:
            indicators.append(indicator(objective, names, config))
        except NotMeasured as problem:
            left_out.append(f"objective {objective.name}: {problem}")
        except NoBound as problem:
            problems.append(f"objectives[{index}] ({objective.name}).threshold: {problem}")
    if problems:
        raise ConfigError([*problems, *how_to_get_bounds(config, names)])
    writer = _Writer(config, names, links)
    alerts: list[AlertRule] = []
    for one in indicators:
        alerts += writer.objective_alerts(one, left_out)
    own = {group: writer.shipped(specs, left_out) for group, specs in shipped_alerts().items()}
    groups = writer.recordings(indicators)
    groups.append(writer.group("llm-slo-alerts", _SHORT_S, [writer.alert(a) for a in alerts]))
    for name, rules in own.items():
        groups.append(writer.group(f"llm-{name}", _SHORT_S, [writer.alert(a) for a in rules]))
        alerts += rules
    return Rulebook(
        [group for group in groups if group["rules"]], alerts, indicators, left_out, names, links
    )


def how_to_get_bounds(config: Config, names: Vocabulary) -> list[str]:
    """The ways to a threshold that is no bucket bound, the flag for all objectives at once among them."""
    flag = buckets_flag(config.objectives, names, config)
    if flag is None:
        return []
    too_old = names.source == "vllm" and names.version is not None and names.version < (0, 32)
    return [
        "alarms: give vLLM 0.32 or newer every threshold as a bound, and put the same into "
        f"alarms.histogram_buckets: {flag}"
        + (" (this release has no such flag)" if too_old else ""),
        "alarms: or run the sidecar with the tap (exporter.tap.dir, docs/tap.md), which has every "
        "threshold as a bound; or set bucket_policy: stricter or looser",
    ]


@dataclass(frozen=True, slots=True)
class _Writer:
    config: Config
    names: Vocabulary
    links: Links

    def group(self, name: str, interval_s: float, rules: list[dict[str, Any]]) -> dict[str, Any]:
        return {"name": name, "interval": self.names.clock.text(interval_s), "rules": rules}

    # -- recordings --------------------------------------------------------------------------------

    def recordings(self, indicators: list[Indicator]) -> list[dict[str, Any]]:
        short: list[dict[str, Any]] = []
        long: list[dict[str, Any]] = []
        period: list[dict[str, Any]] = []
        for one in indicators:
            for window_s in WINDOWS_S:
                rules = long if window_s >= _LONG_FROM_S else short
                rules += self._window(one, window_s)
            period += self._period(one)
        return [
            self.group("llm-slo-short", _SHORT_S, short),
            self.group("llm-slo-long", _LONG_S, long),
            self.group("llm-slo-period", _LONG_S, period),
        ]

    def _labels(self, one: Indicator) -> dict[str, str]:
        return {"objective": one.objective.name, "service": self.config.service.name}

    def _record(self, one: Indicator, name: str, expr: str, **more: str) -> dict[str, Any]:
        return {"record": name, "expr": expr, "labels": {**self._labels(one), **more}}

    def _window(self, one: Indicator, window_s: float) -> Iterator[dict[str, Any]]:
        # named by the nominal window, so that a scaled test reads like the real thing
        window = duration_text(window_s)
        yield self._record(one, f"llm_slo:total:rate{window}", one.total(window_s))
        yield self._record(one, f"llm_slo:bad:rate{window}", one.bad(window_s))
        yield self._record(
            one,
            f"llm_slo:error:ratio_rate{window}",
            f"{_recorded('bad', window, one)}\n/ ({_recorded('total', window, one)} > 0)",
        )

    def _period(self, one: Indicator) -> Iterator[dict[str, Any]]:
        objective = one.objective
        period = self.names.clock.text(PERIOD_S)
        budget = budget_of(objective.target)
        selector = f'{{objective="{objective.name}"}}'
        yield self._record(one, "llm_slo:objective:ratio", f"vector({objective.target:.12g})")
        yield self._record(
            one,
            "llm_slo:error:ratio_rate30d",
            f"sum_over_time(llm_slo:bad:rate5m{selector}[{period}])\n"
            f"/ (sum_over_time(llm_slo:total:rate5m{selector}[{period}]) > 0)",
        )
        yield self._record(
            one,
            "llm_slo:error_budget_remaining:ratio",
            f"1 - llm_slo:error:ratio_rate30d{selector} / {budget:.12g}",
        )
        facts: dict[str, str] = {"sli": objective.sli, "bucket_policy": objective.bucket_policy}
        if objective.threshold is not None:
            facts["threshold_asked"] = f"{objective.threshold:g}"
            facts["threshold_used"] = f"{one.bound:g}"
        yield self._record(one, "llm_slo_info", "vector(1)", **facts)

    # -- alerts of an objective --------------------------------------------------------------------

    def objective_alerts(self, one: Indicator, left_out: list[str]) -> Iterator[AlertRule]:
        target = one.objective.target
        for row in ROWS:
            reason = unreachable(row, target)
            if reason is not None:
                windows = f"{duration_text(row.short_s)}/{duration_text(row.long_s)}"
                left_out.append(f"objective {one.objective.name}, row {windows}: {reason}")
            else:
                yield self._burn(one, row)
        if target <= FLOOR.highest_target:
            yield self._floor(one)
        missing = self._bucket_missing(one)
        if missing is not None:
            yield missing

    def _burn(self, one: Indicator, row: Row) -> AlertRule:
        objective = one.objective
        short, long = duration_text(row.short_s), duration_text(row.long_s)
        threshold = f"{threshold_of(row, objective.target):.12g}"
        long_s = f"{self.names.clock.seconds(row.long_s):g}"
        expr = (
            f"{_recorded('error', short, one)} > {threshold}\n"
            f"and {_recorded('error', long, one)} > {threshold}\n"
            f"and {_recorded('bad', long, one)} * {long_s} >= {row.min_bad}"
        )
        spent = format_percent(row.budget_spent)
        return self._objective_rule(
            one,
            alert=BURN_ALERT,
            expr=expr,
            for_s=row.for_s,
            notify=row.notify if objective.notify == "page" else "ticket",
            labels={"window": long, "burn": f"{row.burn:g}"},
            summary=f"{{{{ $labels.model }}}} burns the error budget of {objective.name} more than "
            f"{row.burn:g} times too fast.",
            description=f"{{{{ $value | humanizePercentage }}}} of the events of {{{{ $labels.model }}}} "
            f"{_bad_text(one)} over the last {short}; {format_percent(objective.target)} must not. At this "
            f"rate {spent} of the budget of 30 days go in {long}.",
            row=row,
        )

    def _floor(self, one: Indicator) -> AlertRule:
        window = duration_text(FLOOR.window_s)
        seconds = f"{self.names.clock.seconds(FLOOR.window_s):g}"
        expr = (
            f"{_recorded('error', window, one)} > {FLOOR.ratio:g}\n"
            f"and {_recorded('total', window, one)} * {seconds} >= {FLOOR.min_events}"
        )
        return self._objective_rule(
            one,
            alert=FLOOR_ALERT,
            expr=expr,
            for_s=FLOOR.for_s,
            notify=one.objective.notify,
            labels={},
            summary=f"Most events of {{{{ $labels.model }}}} miss {one.objective.name}.",
            description=f"{{{{ $value | humanizePercentage }}}} of the events of {{{{ $labels.model }}}} "
            f"{_bad_text(one)} over the last {window}. With a target of "
            f"{format_percent(one.objective.target)} the burn rates tell an outage late; this does not.",
        )

    def _bucket_missing(self, one: Indicator) -> AlertRule | None:
        if one.bound is None:
            return None
        asked = f"{one.bound:g} s"
        if self.names.source == "sidecar":
            if one.bound != one.objective.threshold:
                return None
            name = one.objective.name
            key = "on (job, instance, target, model)"
            wanted = f'vllm_sli_threshold_seconds{{objective="{name}", kind="asked"}}'
            used = f'vllm_sli_threshold_seconds{{objective="{name}", kind="used"}}'
            expr = f"{wanted}\nunless {key} (\n  {wanted} == {key} {used}\n)"
        else:
            on = self.names.labels("engine")
            expr = as_model_and_target(
                f"{one.series('_count')}\nunless on ({on}) {one.series()}", self.names.source
            )
        on = self.names.labels("engine" if self.names.source == "vllm" else "replica")
        labels = on if self.names.source == "vllm" else f"{on}, model"
        grouped = (
            f"group by ({labels}{', target, model' if self.names.source == 'vllm' else ''}) (\n"
        )
        body = "\n".join(f"  {line}" for line in expr.splitlines())
        return self._objective_rule(
            one,
            alert=BUCKET_ALERT,
            expr=f"{grouped}{body}\n)",
            for_s=600.0,
            notify="ticket",
            role="companion",
            per="engine",
            labels={},
            summary=f"{{{{ $labels.target }}}} does not measure {one.objective.name} as asked.",
            description=f"{{{{ $labels.target }}}} has no bucket bound of {asked} for "
            f"{one.objective.name}. "
            + (
                "The sidecar counts its events at the bound below, so more of them as bad."
                if self.names.source == "sidecar"
                else "Its events are missing from the objective; a rolling deploy ends this by itself."
            ),
        )

    def _objective_rule(
        self,
        one: Indicator,
        *,
        alert: str,
        expr: str,
        for_s: float,
        notify: str,
        labels: dict[str, str],
        summary: str,
        description: str,
        role: str = "symptom",
        per: Any = "model",
        row: Row | None = None,
    ) -> AlertRule:
        return AlertRule(
            alert=alert,
            expr=expr,
            for_s=for_s,
            labels={**self._labels(one), **self._routing(notify, role), **labels},
            annotations={
                "summary": summary,
                "description": description,
                **self.links.annotations(per, (), one.objective.name),
            },
            row=row,
            indicator=one,
        )

    def _routing(self, notify: str, role: str) -> dict[str, str]:
        labels = {"severity": SEVERITIES[notify], "notify": notify, "role": role}
        if self.names.clock.scale != 1:
            labels["scale"] = str(self.names.clock.scale)
        return labels

    # -- alerts that are data ----------------------------------------------------------------------

    def shipped(self, specs: tuple[AlertSpec, ...], left_out: list[str]) -> list[AlertRule]:
        rules = []
        for spec in specs:
            template = spec.expression(self.names.source)
            if template is None:
                continue
            try:
                expr = self.names.expand(template.strip())
            except NotMeasured as problem:
                left_out.append(f"alert {spec.alert}: {problem}")
                continue
            if spec.per != "none":
                expr = as_model_and_target(expr, self.names.source)
            rules.append(
                AlertRule(
                    alert=spec.alert,
                    expr=expr,
                    for_s=parse_duration(spec.hold),
                    labels={
                        "service": self.config.service.name,
                        **self._routing(spec.notify, spec.role),
                    },
                    annotations={
                        "summary": spec.summary,
                        "description": spec.description.strip(),
                        **self.links.annotations(spec.per, spec.modes, None),
                    },
                    spec=spec,
                )
            )
        return rules

    def alert(self, rule: AlertRule) -> dict[str, Any]:
        """A rule as the file has it."""
        held = {"for": self.names.clock.text(rule.for_s)} if rule.for_s else {}
        return {
            "alert": rule.alert,
            "expr": rule.expr,
            **held,
            "labels": dict(rule.labels),
            "annotations": dict(rule.annotations),
        }


def _recorded(what: str, window: str, one: Indicator) -> str:
    operation = "ratio_rate" if what == "error" else "rate"
    return f'llm_slo:{what}:{operation}{window}{{objective="{one.objective.name}"}}'


def _bad_text(one: Indicator) -> str:
    if one.bound is None:
        return _SLI_TEXT[one.objective.sli]
    used = format_duration(one.bound)
    text = _SLI_TEXT[one.objective.sli].format(threshold=used)
    if one.bound != one.objective.threshold and one.objective.threshold is not None:
        text += f" ({format_duration(one.objective.threshold)} was asked for)"
    return text
