"""Alerting rules: those of an objective, and those that are data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_opsctl.alarms.alerts import SEVERITIES, AlertSpec, Notify, Per, Role
from vllm_opsctl.alarms.burn import (
    FLOOR,
    ROWS,
    Clock,
    Row,
    duration_text,
    threshold_of,
    unreachable,
)
from vllm_opsctl.alarms.links import Links
from vllm_opsctl.alarms.prometheus.conventions import BUCKET_ALERT, BURN_ALERT, FLOOR_ALERT
from vllm_opsctl.alarms.sli import Indicator
from vllm_opsctl.alarms.vocabulary import NotMeasured, Vocabulary, as_model_and_target, indented
from vllm_opsctl.exporter.identity import Identity
from vllm_opsctl.exporter.units import format_duration, format_percent, parse_duration

_BUCKET_FOR_S = 600.0
"""A rolling deploy of a new bound takes minutes."""

_ROUTING = ("severity", "notify", "role")
"""Labels by which Alertmanager routes and mutes."""

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

    def as_file(self, clock: Clock) -> dict[str, Any]:
        """The rule as a rule file has it."""
        held = {"for": clock.text(self.for_s)} if self.for_s else {}
        return {
            "alert": self.alert,
            "expr": self.expr,
            **held,
            "labels": dict(self.labels),
            "annotations": dict(self.annotations),
        }


@dataclass(frozen=True, slots=True)
class AlertWriter:
    """
    Writes the alerting rules of one configuration.

    Args:
        identity: Labels of every rule.
        names: The vocabulary of the source.
        links: Where a page leads.
    """

    identity: Identity
    names: Vocabulary
    links: Links

    # -- alerts of an objective --------------------------------------------------------------------

    def of_objective(self, one: Indicator, left_out: list[str]) -> Iterator[AlertRule]:
        """Every alert of an objective; rows that cannot fire are told in ``left_out``."""
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
            f"{one.recorded('error', short)} > {threshold}\n"
            f"and {one.recorded('error', long)} > {threshold}\n"
            f"and {one.recorded('bad', long)} * {long_s} {_at_least(row.min_bad)}"
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
            f"{one.recorded('error', window)} > {FLOOR.ratio:g}\n"
            f"and {one.recorded('total', window)} * {seconds} {_at_least(FLOOR.min_events)}"
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
        name = one.objective.name
        if self.names.source == "sidecar":
            if one.bound != one.objective.threshold:
                # asked for: the sidecar counts at the bound below
                return None
            by = f"{self.names.labels('replica')}, model"
            asked, used = one.threshold("asked"), one.threshold("used")
            missing = (
                f"{asked}\nunless on ({by}) (\n"
                f"  max by ({by}) ({asked}) == max by ({by}) ({used})\n)"
            )
            effect = "The sidecar counts its events at the bound below, so more of them as bad."
        else:
            on = self.names.labels("engine")
            by = f"{on}, target, model"
            missing = as_model_and_target(
                f"{one.series('_count')}\nunless on ({on}) {one.series()}", self.names.source
            )
            effect = (
                "Its events are missing from the objective; a rolling deploy ends this by itself."
            )
        return self._objective_rule(
            one,
            alert=BUCKET_ALERT,
            expr=f"group by ({by}) (\n{indented(missing)}\n)",
            for_s=_BUCKET_FOR_S,
            notify="ticket",
            role="companion",
            per="engine",
            labels={},
            summary=f"{{{{ $labels.target }}}} does not measure {name} as asked.",
            description=f"{{{{ $labels.target }}}} has no bucket bound of {one.bound:g} s for {name}. "
            + effect,
        )

    def _objective_rule(
        self,
        one: Indicator,
        *,
        alert: str,
        expr: str,
        for_s: float,
        notify: Notify,
        labels: dict[str, str],
        summary: str,
        description: str,
        role: Role = "symptom",
        per: Per = "model",
        row: Row | None = None,
    ) -> AlertRule:
        return AlertRule(
            alert=alert,
            expr=expr,
            for_s=for_s,
            labels={**labels_of(one, self.identity), **self._routing(notify, role), **labels},
            annotations={
                "summary": summary,
                "description": description,
                **self.links.annotations(per, (), one.objective.name),
            },
            row=row,
            indicator=one,
        )

    def _without_own_labels(self, expr: str) -> str:
        """
        One series where several differ in a label that the rule sets alone.

        Else they would be the same alert twice, which fails the rule: a series from before and after the
        upgrade of its sidecar, or one that a scrape gave a label of that name.
        """
        own = ", ".join((*self.identity.names, *_ROUTING, "scale"))
        return f"max without ({own}) (\n{indented(expr)}\n)"

    def _routing(self, notify: Notify, role: Role) -> dict[str, str]:
        labels = dict(zip(_ROUTING, (SEVERITIES[notify], notify, role), strict=True))
        if self.names.clock.scale != 1:
            labels["scale"] = str(self.names.clock.scale)
        return labels

    # -- alerts that are data ----------------------------------------------------------------------

    def shipped(self, specs: tuple[AlertSpec, ...], left_out: list[str]) -> list[AlertRule]:
        """The alerts of a data file; those that this vLLM cannot show are told in ``left_out``."""
        rules = []
        for spec in specs:
            template = spec.expression(self.names.source)
            if template is None:
                continue
            try:
                expr = self.names.expand(template.strip(), spec.optional)
            except NotMeasured as problem:
                left_out.append(f"alert {spec.alert}: {problem}")
                continue
            if spec.per != "none":
                expr = as_model_and_target(expr, self.names.source)
            if spec.role != "watchdog":
                expr = self._without_own_labels(expr)
            rules.append(
                AlertRule(
                    alert=spec.alert,
                    expr=expr,
                    for_s=parse_duration(spec.hold),
                    labels={
                        **self.identity.labels(),
                        **self._routing(spec.notify, spec.role),
                    },
                    annotations={
                        "summary": spec.summary,
                        "description": spec.description.strip(),
                        **self.links.annotations(spec.per, spec.modes, None, spec.command),
                    },
                    spec=spec,
                )
            )
        return rules


def labels_of(one: Indicator, identity: Identity) -> dict[str, str]:
    """The labels of everything that is about an objective."""
    return {"objective": one.objective.name, **identity.labels()}


def _at_least(events: int) -> str:
    """So many events, of a rate times its seconds: five of them may well be 4.999999999999999."""
    return f"> {events - 0.5:g}"


def _bad_text(one: Indicator) -> str:
    if one.bound is None:
        return _SLI_TEXT[one.objective.sli]
    used = format_duration(one.bound)
    text = _SLI_TEXT[one.objective.sli].format(threshold=used)
    if one.bound != one.objective.threshold and one.objective.threshold is not None:
        text += f" ({format_duration(one.objective.threshold)} was asked for)"
    return text
