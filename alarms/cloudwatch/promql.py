"""
Alarms in PromQL, for metrics that arrive by OTLP: the rules for Prometheus, as CloudWatch can ask them.

CloudWatch records nothing, so recordings are written out. A result's series are the alarm's contributors,
which tell models and replicas apart: no model needs to be named. Rows of an objective that notify alike are
one alarm. Absent series count as recovered, so a silent sidecar is watched by a classic alarm.

Source:
    PromQL alarms and PromQL querying, CloudWatch user guide (alarm-promql.html and
    CloudWatch-PromQL-Querying.html): names are those that were sent, without ``_total``; attributes of the
    resource begin with ``@resource.``; the language is that of Prometheus 3.0, where a histogram has no
    ``_count``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_opsctl.alarms.alert_rules import AlertRule
from vllm_opsctl.alarms.burn import Notify
from vllm_opsctl.alarms.cloudwatch.resources import logical_id, tags_of
from vllm_opsctl.alarms.cloudwatch.validate import MAX_QUERY
from vllm_opsctl.alarms.prometheus.conventions import (
    BURN_ALERT,
    FLOOR_ALERT,
    SELECTED_RECORDING,
    SIDECARS_ALERT,
)
from vllm_opsctl.alarms.rules import Rulebook
from vllm_opsctl.exporter.identity import SERVICE, Identity
from vllm_opsctl.exporter.matchers import matchers_in
from vllm_opsctl.exporter.series import quoted

EVERY_S = 60
"""Evaluation interval; 10 to 3,600 s are allowed."""

RECOVERY_S = 120
"""How long a series must stay away before its alarm ends, so that one late export ends none."""

_RECORDED = re.compile(
    rf"max by \(model\) \({SELECTED_RECORDING.pattern}\)|{SELECTED_RECORDING.pattern}"
)
"""Groups 1 and 2, or 3 and 4, are as of SELECTED_RECORDING; what is not recorded has no duplicates."""

_METRIC = re.compile(r"\b((?:vllm|opsctl)_\w+)(\{([^{}]*)\})?")
_PART = re.compile(r"\bvllm_\w+_(?:bucket|sum|count)\b")
_HISTOGRAM = re.compile(r"\b(rate|increase)\((\w+)_count((?:\{[^{}]*\})?\[\w+\](?: offset \w+)?)\)")


class NotAskable(Exception):
    """An expression that CloudWatch's PromQL has no counterpart for; says why."""


@dataclass(frozen=True, slots=True)
class PromqlAlarm:
    """
    One alarm.

    Args:
        alert: What it is called, as the Prometheus rules have it.
        objective: That it is about; None for none.
        notify: What it does.
        query: PromQL; every series that it returns is bad.
        pending_s: How long a series must be returned before it alarms.
        rule: Where it came from; its first row.
    """

    alert: str
    objective: str | None
    notify: Notify
    query: str
    pending_s: int
    rule: AlertRule


def promql_alarms(
    rulebook: Rulebook, identity: Identity, *, heartbeat: bool
) -> tuple[list[PromqlAlarm], list[str]]:
    """
    The alarms of a rulebook, and what there is none for, one line each.

    Args:
        rulebook: Of the sidecar's metrics; of the identity its selectors have the service alone.
        identity: The service, the resource's ``service.name``, and its other attributes.
        heartbeat: A classic alarm watches the sidecars; else PromQL does, for a day of silence.
    """
    ask = _Asker(_recordings(rulebook), identity)
    found, left_out = [], []
    grouped = _grouped(rulebook.alerts)
    for (alert, objective, notify), rules in grouped.items():
        if alert == SIDECARS_ALERT and heartbeat:
            continue
        try:
            query = ask.any_of(rules)
            pages = grouped.get((alert, objective, "page"), [])
            if notify == "ticket" and objective is not None and pages:
                # whoever is paged needs no ticket for the same budget
                query = f"(\n{query}\n)\nunless on (model) (\n{ask.any_of(pages)}\n)"
            if len(query) > MAX_QUERY:
                raise NotAskable(f"its query has {len(query)} characters; {MAX_QUERY} are allowed")
        except NotAskable as problem:
            left_out.append(f"alert {alert}: {problem}")
            continue
        pending = int(min(rule.for_s for rule in rules))
        found.append(PromqlAlarm(alert, objective, notify, query, pending, rules[0]))
    return found, left_out


def promql_alarm(
    name: str, description: str, alarm: PromqlAlarm, topic: Any, identity: Identity
) -> Any:
    """The resource."""
    about = {"objective": alarm.objective} if alarm.objective is not None else {}
    return {
        "Type": "AWS::CloudWatch::Alarm",
        "Properties": {
            "AlarmName": name,
            "AlarmDescription": description,
            "EvaluationCriteria": {
                "PromQLCriteria": {
                    "Query": alarm.query,
                    "PendingPeriod": alarm.pending_s,
                    "RecoveryPeriod": RECOVERY_S,
                }
            },
            "EvaluationInterval": EVERY_S,
            "AlarmActions": [topic],
            "OKActions": [topic],
            "Tags": tags_of(identity, notify=alarm.notify, **about),
        },
    }


def promql_id(alarm: PromqlAlarm) -> str:
    """Its id in the template."""
    return logical_id("promql", alarm.alert, alarm.notify, alarm.objective or "")


def told(text: str) -> str:
    """
    An annotation without what Prometheus would fill in: contributors tell that.

    >>> told("{{ $labels.model }} burns the error budget of ttft more than 14.4 times too fast.")
    'A model burns the error budget of ttft more than 14.4 times too fast.'
    >>> told("opsctl diagnose --sidecar http://sidecar:9836 {{ $labels.target }}")
    'opsctl diagnose --sidecar http://sidecar:9836'
    """
    text = re.sub(
        r"[?&]var-\w+=[^&\s]*", "", re.sub(r"^(opsctl .*) \{\{ \$labels[^}]*\}\}$", r"\1", text)
    )
    for label, name in _WORDS.items():
        text = text.replace(f"{{{{ $labels.{label} }}}}", name)
    return text[:1].upper() + text[1:] if not text.startswith(("opsctl", "http")) else text


_WORDS = {"model": "a model", "target": "a replica", "engine": "an engine"}

_Key = tuple[str, str | None, Notify]


def _grouped(rules: list[AlertRule]) -> Mapping[_Key, list[AlertRule]]:
    """Rows of an objective that notify alike are one alarm; all else is one each."""
    found: dict[_Key, list[AlertRule]] = {}
    for rule in rules:
        notify = rule.labels["notify"]
        if notify not in ("page", "ticket"):
            continue
        objective = rule.indicator.objective.name if rule.indicator is not None else None
        alert = BURN_ALERT if rule.alert == FLOOR_ALERT else rule.alert
        way: Notify = "page" if notify == "page" else "ticket"
        found.setdefault((alert, objective, way), []).append(rule)
    return found


@dataclass(frozen=True, slots=True)
class _Asker:
    recordings: Mapping[tuple[str, str], str]
    identity: Identity

    def any_of(self, rules: list[AlertRule]) -> str:
        """
        What any of some rules says.

        Raises:
            NotAskable: One of them needs what is not sent.
        """
        return "\nor\n".join(f"({self.query(rule.expr)})" for rule in rules)

    def query(self, expression: str) -> str:
        """
        An expression as CloudWatch takes it.

        Raises:
            NotAskable: It needs what is not sent.
        """
        whole = self._written_out(expression)
        whole = _HISTOGRAM.sub(r"histogram_count(\1(\2\3))", whole)
        part = _PART.search(whole)
        if part is not None:
            raise NotAskable(f"{part[0]} is a part of a histogram, which arrives as one")
        if _METRIC.search(whole) is None:
            raise NotAskable("it watches what no sidecar sends")
        return _METRIC.sub(self._selected, whole)

    def _written_out(self, expression: str) -> str:
        """The expression with every recording replaced by what it records."""
        return _RECORDED.sub(self._recorded, expression)

    def _recorded(self, match: re.Match[str]) -> str:
        key = match[1] or match[3], match[2] or match[4]
        return f"({self._written_out(self.recordings[key])})"

    def _selected(self, match: re.Match[str]) -> str:
        """
        A selector by the name that was sent, of this fleet alone.

        Its identity is the resource's: no data point has a label ``service``.
        """
        resource = {"service.name": self.identity.service, **dict(self.identity.free)}
        matchers = [f'"@resource.{name}"={quoted(value)}' for name, value in resource.items()]
        if match[3]:
            matchers += [str(one) for one in matchers_in(match[3]) if one.label != SERVICE]
        return f"{match[1].removesuffix('_total')}{{{', '.join(matchers)}}}"


def _recordings(rulebook: Rulebook) -> dict[tuple[str, str], str]:
    """What is recorded, by the recording's name and the objective."""
    return {
        (rule["record"], rule["labels"]["objective"]): rule["expr"]
        for group in rulebook.groups
        for rule in group["rules"]
        if "record" in rule and "objective" in rule.get("labels", {})
    }
