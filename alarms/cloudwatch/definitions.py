"""
Alarms as a template defines them: what CloudFormation would make of it, as far as alarms go.

Texts are resolved (``Ref``, ``Fn::Sub``, parameters); everything else is taken as it stands, so that a wrong
template gives wrong alarms here too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from vllm_opsctl.alarms.cloudwatch.composite import CompositeAlarm, RuleError, parse_rule
from vllm_opsctl.alarms.cloudwatch.evaluator import MetricAlarm, Stat
from vllm_opsctl.alarms.cloudwatch.metric_math import MathError, parse
from vllm_opsctl.alarms.cloudwatch.metrics import MetricKey
from vllm_opsctl.alarms.cloudwatch.timeline import Timeline
from vllm_opsctl.exporter.yaml_text import read_yaml

METRIC_ALARM = "AWS::CloudWatch::Alarm"
COMPOSITE_ALARM = "AWS::CloudWatch::CompositeAlarm"

BOARD = "AWS::CloudWatch::Dashboard"

_ARN = "arn:${AWS::Partition}:cloudwatch:${AWS::Region}:${AWS::AccountId}:alarm:"

_PSEUDO = {
    "AWS::Partition": "aws",
    "AWS::Region": "us-east-1",
    "AWS::AccountId": "123456789012",
    "AWS::StackName": "stack",
}


class TemplateError(Exception):
    """A template that CloudFormation or CloudWatch would refuse; says where and why."""


class Resolver:
    """
    Turns values of a template into texts.

    Args:
        template: The whole of it.
        parameters: Their values; those that are not given have their default.
        known: What other names stand for: pseudo parameters, and resources by their ids.
    """

    def __init__(
        self,
        template: Mapping[str, Any],
        parameters: Mapping[str, str],
        known: Mapping[str, str] | None = None,
    ) -> None:
        self._resources: Mapping[str, Any] = template.get("Resources", {})
        declared: Mapping[str, Any] = template.get("Parameters") or {}
        self._values = {
            **_PSEUDO,
            **{name: str(one["Default"]) for name, one in declared.items() if "Default" in one},
            **{name: value for name, value in parameters.items() if name in declared},
            **(known or {}),
        }

    def resolved(self, value: Any) -> Any:
        """
        A value with every function in it replaced by its text.

        Raises:
            TemplateError: One refers to what is not there.
        """
        if isinstance(value, Mapping):
            if len(value) == 1 and next(iter(value)) in ("Ref", "Fn::Sub"):
                return self.text(value)
            return {key: self.resolved(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.resolved(one) for one in value]
        return value

    def text(self, value: Any) -> str:
        """
        The text of a value.

        Raises:
            TemplateError: It refers to what is not there, or is no text.
        """
        if isinstance(value, str):
            return value
        if isinstance(value, dict) and len(value) == 1:
            function, argument = next(iter(value.items()))
            if function == "Ref" and isinstance(argument, str):
                return self.ref(argument)
            if function == "Fn::Sub" and isinstance(argument, str):
                return re.sub(r"\$\{(!?)([^}]*)\}", self._substituted, argument)
        raise TemplateError(f"{value!r} is no text")

    def _substituted(self, match: re.Match[str]) -> str:
        return f"${{{match[2]}}}" if match[1] else self.ref(match[2].strip())

    def ref(self, name: str) -> str:
        """
        What a name stands for: a parameter's value, an alarm's name or ARN, or a resource's id.

        Raises:
            TemplateError: The template has no such thing.
        """
        if name in self._values:
            return self._values[name]
        owner, _, attribute = name.partition(".")
        resource = self._resources.get(owner)
        if resource is None:
            raise TemplateError(f"{name} is not in the template")
        if attribute:
            if attribute != "Arn" or resource.get("Type") not in (METRIC_ALARM, COMPOSITE_ALARM):
                raise TemplateError(f"{name}: only alarms' ARNs are known here")
            return self.text({"Fn::Sub": f"{_ARN}{self.ref(owner)}"})
        if resource.get("Type") in (METRIC_ALARM, COMPOSITE_ALARM):
            return self.text(resource["Properties"].get("AlarmName", name))
        return name


@dataclass(frozen=True, slots=True)
class Definitions:
    """
    The alarms of a template.

    Args:
        metric_alarms: In the template's order.
        composites: In the template's order.
        notify: Topic by alarm, of those that notify in the state ALARM: its ARN, or its id.
        descriptions: By alarm.
    """

    metric_alarms: tuple[MetricAlarm, ...]
    composites: tuple[CompositeAlarm, ...]
    notify: Mapping[str, str]
    descriptions: Mapping[str, str]

    def values_of(self, dimension: str) -> set[str]:
        """Every value of a dimension that some alarm watches."""
        return {
            value
            for alarm in self.metric_alarms
            for stat in alarm.stats
            for name, value in stat.metric.dimensions
            if name == dimension
        }

    def topic_of(self, timeline: Timeline) -> Iterator[tuple[float, str, str]]:
        """Time, alarm and topic of every notification that an alarm went off."""
        for action in timeline.went_off():
            if action.alarm in self.notify:
                yield action.t, action.alarm, self.notify[action.alarm]


def read_definitions(text: str, parameters: Mapping[str, str] | None = None) -> Definitions:
    """
    Read the alarms of a template.

    Args:
        text: The template, YAML or JSON, with functions in their long form.
        parameters: Values of its parameters.

    Raises:
        TemplateError: It is no template, or an alarm of it is broken.
    """
    try:
        template = read_yaml(text)
    except yaml.YAMLError as problem:
        raise TemplateError(f"no YAML: {problem}") from None
    if not isinstance(template, dict) or not isinstance(template.get("Resources"), dict):
        raise TemplateError("no CloudFormation template: it has no Resources")
    resolver = Resolver(template, parameters or {})
    metric_alarms: list[MetricAlarm] = []
    composites: list[CompositeAlarm] = []
    notify: dict[str, str] = {}
    descriptions: dict[str, str] = {}
    for name, resource in template["Resources"].items():
        kind = resource.get("Type")
        if kind not in (METRIC_ALARM, COMPOSITE_ALARM):
            continue
        properties = resource["Properties"]
        if "EvaluationCriteria" in properties:
            # a PromQL alarm: what it reads is no classic metric
            continue
        try:
            alarm: MetricAlarm | CompositeAlarm
            if kind == METRIC_ALARM:
                alarm = _metric_alarm(properties, resolver)
                metric_alarms.append(alarm)
            else:
                alarm = _composite(properties, resolver)
                composites.append(alarm)
            if properties.get("AlarmActions"):
                notify[alarm.name] = resolver.text(properties["AlarmActions"][0])
            descriptions[alarm.name] = resolver.text(properties.get("AlarmDescription", ""))
        except (KeyError, StopIteration, TypeError) as problem:
            raise TemplateError(f"{name}: {problem} is missing or wrong") from None
        except (TemplateError, MathError, RuleError) as problem:
            raise TemplateError(f"{name}: {problem}") from None
    return Definitions(tuple(metric_alarms), tuple(composites), notify, descriptions)


def _metric_alarm(properties: Mapping[str, Any], resolver: Resolver) -> MetricAlarm:
    queries = properties["Metrics"]
    stats = tuple(_stat(query, resolver) for query in queries if "MetricStat" in query)
    steps = tuple((q["Id"], parse(q["Expression"])) for q in queries if "Expression" in q)
    periods = int(properties["EvaluationPeriods"])
    return MetricAlarm(
        name=resolver.text(properties["AlarmName"]),
        stats=stats,
        steps=steps,
        watched=next(query["Id"] for query in queries if query.get("ReturnData", True)),
        period_s=float(next(q["MetricStat"]["Period"] for q in queries if "MetricStat" in q)),
        periods=periods,
        to_alarm=int(properties.get("DatapointsToAlarm", periods)),
        comparison=properties["ComparisonOperator"],
        threshold=float(properties["Threshold"]),
        missing=properties.get("TreatMissingData", "missing"),
        ignores_low_samples=properties.get("EvaluateLowSampleCountPercentile") == "ignore",
    )


def _stat(query: Mapping[str, Any], resolver: Resolver) -> Stat:
    metric = query["MetricStat"]["Metric"]
    dimensions = frozenset(
        (one["Name"], resolver.text(one["Value"])) for one in metric.get("Dimensions", ())
    )
    key = MetricKey(resolver.text(metric["Namespace"]), metric["MetricName"], dimensions)
    return Stat(id=query["Id"], metric=key, statistic=query["MetricStat"]["Stat"])


def _composite(properties: Mapping[str, Any], resolver: Resolver) -> CompositeAlarm:
    suppressor = properties.get("ActionsSuppressor")
    return CompositeAlarm(
        name=resolver.text(properties["AlarmName"]),
        rule=parse_rule(resolver.text(properties["AlarmRule"])),
        suppressor=resolver.text(suppressor) if suppressor is not None else None,
        wait_s=float(properties.get("ActionsSuppressorWaitPeriod", 0)),
        extension_s=float(properties.get("ActionsSuppressorExtensionPeriod", 0)),
    )
