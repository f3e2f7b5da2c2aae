"""
What is wrong with a template of alarms that cfn-lint does not see: CloudWatch would refuse it at deployment,
or take it and never alarm.

Source:
    PutMetricAlarm and PutCompositeAlarm, CloudWatch API reference (botocore 1.44's service model);
    quotas of CloudFormation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm_opsctl.alarms.cloudwatch.composite import RuleError, parse_rule
from vllm_opsctl.alarms.cloudwatch.definitions import (
    BOARD,
    COMPOSITE_ALARM,
    METRIC_ALARM,
    Resolver,
    TemplateError,
)
from vllm_opsctl.alarms.cloudwatch.evaluator import OPERATORS
from vllm_opsctl.alarms.cloudwatch.metric_math import MathError, parse
from vllm_opsctl.alarms.cloudwatch.statistics import is_statistic
from vllm_opsctl.alarms.cloudwatch.validate_boards import board_mistakes

MAX_NAME = 255
MAX_DESCRIPTION = 1024
MAX_RULE = 10240
MAX_CHILDREN = 100
MAX_ACTIONS = 5
MAX_METRICS = 10
MAX_TAGS = 50
MAX_QUERY = 10_000
MAX_RESOURCES = 500
MAX_BYTES = 1_000_000
"""Of a template in S3."""

_HOUR_S, _DAY_S = 3600, 86400
_HIGH_RESOLUTION_S = (10, 20, 30)
_ACTIONS = ("AlarmActions", "OKActions", "InsufficientDataActions")
_MISSING = ("missing", "notBreaching", "breaching", "ignore")
_ID = re.compile(r"[a-z][A-Za-z0-9_]{0,254}")


def mistakes(template: Mapping[str, Any]) -> list[str]:
    """
    Everything that is wrong, one line each: the resource's id, and what.

    Args:
        template: As CloudFormation reads it.
    """
    resources: Mapping[str, Any] = template.get("Resources", {})
    # as long as they can get, so that limits hold whatever is given
    longest = {
        name: "x" * int(one.get("MaxLength", 1))
        for name, one in (template.get("Parameters") or {}).items()
    }
    check = _Check(Resolver(template, longest), resources)
    found = [f"{name}: {what}" for name, what in check.all()]
    if len(resources) > MAX_RESOURCES:
        found.append(f"Resources: {len(resources)}; {MAX_RESOURCES} are allowed")
    return found


class _Check:
    def __init__(self, resolver: Resolver, resources: Mapping[str, Any]) -> None:
        self._resolver = resolver
        self._alarms = {
            name: one["Properties"]
            for name, one in resources.items()
            if one.get("Type") in (METRIC_ALARM, COMPOSITE_ALARM)
        }
        self._resources = resources
        self._names: dict[str, str] = {}

    def all(self) -> Iterator[tuple[str, str]]:
        """Every mistake with its resource; names first, for rules refer to them."""
        for name, properties in self._alarms.items():
            for what in self._common(name, properties):
                yield name, what
        for name, properties in self._alarms.items():
            kind = self._resources[name]["Type"]
            found = (
                self._metric(properties) if kind == METRIC_ALARM else self._composite(properties)
            )
            for what in found:
                yield name, what
        yield from self._boards()

    def _boards(self) -> Iterator[tuple[str, str]]:
        arns = [self._resolver.ref(f"{name}.Arn") for name in self._alarms]
        for name, one in self._resources.items():
            if one.get("Type") == BOARD:
                properties = one["Properties"]
                texts = [
                    self._text(properties.get(key, name))
                    for key in ("DashboardName", "DashboardBody")
                ]
                broken = [problem for _, problem in texts if problem is not None]
                found = broken or board_mistakes(texts[0][0], texts[1][0], arns)
                yield from ((name, what) for what in found)

    def _text(self, value: Any) -> tuple[str, str | None]:
        """A text, and what is wrong with it."""
        try:
            return self._resolver.text(value), None
        except TemplateError as problem:
            return "", str(problem)

    def _common(self, resource: str, properties: Mapping[str, Any]) -> Iterator[str]:
        name, problem = self._text(properties.get("AlarmName", resource))
        if problem is not None:
            yield f"AlarmName: {problem}"
        elif not 0 < len(name) <= MAX_NAME:
            yield f"AlarmName: {len(name)} characters; 1 to {MAX_NAME} are allowed"
        elif name in self._names:
            yield f"AlarmName: {name} is that of {self._names[name]} too"
        elif '"' in name or not name.isprintable():
            yield f"AlarmName: {name!r} cannot stand in a composite's rule"
        self._names.setdefault(name, resource)
        description, problem = self._text(properties.get("AlarmDescription", ""))
        if problem is not None:
            yield f"AlarmDescription: {problem}"
        elif len(description) > MAX_DESCRIPTION:
            yield f"AlarmDescription: {len(description)} characters; {MAX_DESCRIPTION} are allowed"
        for key in _ACTIONS:
            actions = properties.get(key, [])
            if len(actions) > MAX_ACTIONS:
                yield f"{key}: {len(actions)}; {MAX_ACTIONS} are allowed"
            for action in actions:
                _, problem = self._text(action)
                if problem is not None:
                    yield f"{key}: {problem}"
        if len(properties.get("Tags", ())) > MAX_TAGS:
            yield f"Tags: {len(properties['Tags'])}; {MAX_TAGS} are allowed"

    # -- metric alarms -----------------------------------------------------------------------------

    def _metric(self, properties: Mapping[str, Any]) -> Iterator[str]:
        if "EvaluationCriteria" in properties:
            yield from _promql(properties)
            return
        comparison = properties.get("ComparisonOperator")
        if comparison not in OPERATORS:
            yield f"ComparisonOperator: {comparison!r} is none of {', '.join(OPERATORS)}"
        missing = properties.get("TreatMissingData", "missing")
        if missing not in _MISSING:
            yield f"TreatMissingData: {missing!r} is none of {', '.join(_MISSING)}"
        queries = properties.get("Metrics")
        if not queries:
            # of a single metric without Metrics: the same fields, one level higher
            queries = [{"Id": "m", "MetricStat": properties}] if "MetricName" in properties else []
        stats = [query for query in queries if "MetricStat" in query]
        if not stats:
            yield "Metrics: none, the alarm watches nothing"
            return
        yield from self._queries(queries, stats)
        periods = {query["MetricStat"].get("Period") for query in stats}
        if len(periods) > 1:
            yield f"Metrics: the periods {sorted(map(str, periods))} differ; all must be one"
        yield from _timing(properties, next(iter(periods)))

    def _queries(
        self, queries: Sequence[Mapping[str, Any]], stats: Sequence[Mapping[str, Any]]
    ) -> Iterator[str]:
        if len(stats) > MAX_METRICS:
            yield f"Metrics: {len(stats)} metrics; {MAX_METRICS} are allowed"
        if len(queries) - len(stats) > MAX_METRICS:
            yield f"Metrics: {len(queries) - len(stats)} expressions; {MAX_METRICS} are allowed"
        watched = [query["Id"] for query in queries if query.get("ReturnData", True)]
        if len(watched) != 1:
            yield f"Metrics: {len(watched)} have ReturnData; exactly one is what the alarm watches"
        ids = [query["Id"] for query in queries]
        for name in ids:
            if not _ID.fullmatch(name):
                yield f"Metrics: {name!r} is no id; begin with a-z, go on with letters, digits, _"
        if len(set(ids)) < len(ids):
            yield "Metrics: an id stands twice"
        for query in stats:
            statistic = query["MetricStat"].get("Stat") or query["MetricStat"].get("Statistic")
            statistic = statistic or query["MetricStat"].get("ExtendedStatistic")
            if not is_statistic(statistic):
                yield f"{query['Id']}: {statistic!r} is no statistic; write p99, Sum, Average"
            for one in query["MetricStat"].get("Metric", {}).get("Dimensions", ()):
                _, problem = self._text(one["Value"])
                if problem is not None:
                    yield f"{query['Id']}: dimension {one['Name']}: {problem}"
        for query in queries:
            if "Expression" in query:
                yield from _expression(query, ids)

    # -- composites --------------------------------------------------------------------------------

    def _composite(self, properties: Mapping[str, Any]) -> Iterator[str]:
        text, problem = self._text(properties.get("AlarmRule", ""))
        if problem is not None:
            yield f"AlarmRule: {problem}"
            return
        if len(text) > MAX_RULE:
            yield f"AlarmRule: {len(text)} characters; {MAX_RULE} are allowed"
        try:
            children = dict.fromkeys(parse_rule(text).alarms())
        except RuleError as wrong:
            yield f"AlarmRule: {wrong}"
            return
        if len(children) > MAX_CHILDREN:
            yield f"AlarmRule: {len(children)} alarms; {MAX_CHILDREN} are allowed"
        for child in children:
            if child not in self._names:
                yield f"AlarmRule: {child!r} is no alarm of the template"
        suppressor = properties.get("ActionsSuppressor")
        if suppressor is None:
            return
        name, problem = self._text(suppressor)
        if problem is not None or name not in self._names:
            yield f"ActionsSuppressor: {problem or f'{name!r} is no alarm of the template'}"
        for key in ("ActionsSuppressorWaitPeriod", "ActionsSuppressorExtensionPeriod"):
            if not isinstance(properties.get(key), int):
                yield f"{key}: must be given with a suppressor, in whole seconds"


def _promql(properties: Mapping[str, Any]) -> Iterator[str]:
    """Limits of AlarmPromQLCriteria and EvaluationInterval, CloudWatch API reference."""
    criteria = properties["EvaluationCriteria"].get("PromQLCriteria", {})
    if not 1 <= len(criteria.get("Query", "")) <= MAX_QUERY:
        yield f"Query: {len(criteria.get('Query', ''))} characters; 1 to {MAX_QUERY} are allowed"
    for key in ("PendingPeriod", "RecoveryPeriod"):
        if not 0 <= criteria.get(key, 0) <= _DAY_S:
            yield f"{key}: {criteria[key]} s; 0 to {_DAY_S} are allowed"
    every = properties.get("EvaluationInterval")
    if not isinstance(every, int) or not 10 <= every <= _HOUR_S:
        yield f"EvaluationInterval: {every!r}; 10 to {_HOUR_S} s are allowed"
    mixed = [key for key in ("Metrics", "MetricName", "Threshold") if key in properties]
    if mixed:
        yield f"{mixed[0]}: does not go with EvaluationCriteria"


def _timing(properties: Mapping[str, Any], period: Any) -> Iterator[str]:
    periods = properties.get("EvaluationPeriods")
    if not isinstance(periods, int) or periods < 1:
        yield f"EvaluationPeriods: {periods!r} is no number of periods"
        return
    to_alarm = properties.get("DatapointsToAlarm", periods)
    if not isinstance(to_alarm, int) or not 1 <= to_alarm <= periods:
        yield f"DatapointsToAlarm: {to_alarm!r} of {periods}; 1 to {periods} are possible"
    if not isinstance(period, int) or not (
        period in _HIGH_RESOLUTION_S or (period > 0 and period % 60 == 0)
    ):
        yield f"Period: {period!r}; 10, 20, 30 and multiples of 60 are allowed"
        return
    longest = _DAY_S if period < _HOUR_S else 7 * _DAY_S
    if period * periods > longest:
        yield f"Period: {periods} times {period} s is more than {longest} s, which is the most"


def _expression(query: Mapping[str, Any], ids: Sequence[str]) -> Iterator[str]:
    try:
        referred = list(parse(query["Expression"]).ids())
    except MathError as problem:
        yield f"{query['Id']}: {problem}"
        return
    for name in dict.fromkeys(referred):
        if name not in ids or name == query["Id"]:
            yield f"{query['Id']}: {name!r} is no id of another metric or expression of the alarm"
    if not referred:
        yield f"{query['Id']}: a number alone is no series that an alarm can watch"
