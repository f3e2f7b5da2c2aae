"""CloudFormation's form of alarms: names, ids, tags, metric alarms and composites."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_opsctl.alarms.cloudwatch.evaluator import MissingData
from vllm_opsctl.alarms.cloudwatch.ownership import owner_tags, tag_value
from vllm_opsctl.exporter.identity import Identity
from vllm_opsctl.exporter.sinks.cloudwatch.datum import Dimensions

Tags = list[dict[str, Any]]

MUTED_FOR_S = 120
"""How long a symptom waits for its root cause's alarm, and stays silent after it, seconds."""


def sub(text: str) -> Any:
    """A text as the template has it: with a function where it refers to something."""
    if re.fullmatch(r"\$\{\w+\}", text):
        return {"Ref": text[2:-1]}
    return {"Fn::Sub": text} if "${" in text else text


def logical_id(*parts: str) -> str:
    """
    An id in the template: letters and digits, readable, and different wherever the parts are.

    >>> logical_id("burn", "ttft", "1h", "Qwen/Qwen3-8B")
    'BurnTtft1hQwenQwen38B829b7a'
    """
    words = [word for part in parts for word in re.findall(r"[A-Za-z0-9]+", part)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:6]
    return "".join(word[:1].upper() + word[1:] for word in words)[:200] + digest


def tags_of(identity: Identity, **facts: str) -> Tags:
    """Tags of a resource: who made it for whom, and what it is about."""
    found = owner_tags(identity)
    for fact, text in facts.items():
        found[f"opsctl:{fact}"] = text if "${" in text else tag_value(text)
    return [{"Key": key, "Value": sub(text)} for key, text in found.items()]


def stat(
    name: str,
    metric: str,
    statistic: str,
    *,
    namespace: str,
    dimensions: Dimensions,
    period_s: int,
    watched: bool = False,
) -> dict[str, Any]:
    """
    One metric of an alarm.

    Args:
        name: Its id.
        metric: Its name in the namespace.
        statistic: CloudWatch's name.
        namespace: The metric's.
        dimensions: The metric's; all of them must be named.
        period_s: Seconds.
        watched: The alarm is on this one.
    """
    return {
        "Id": name,
        "MetricStat": {
            "Metric": {
                "Namespace": namespace,
                "MetricName": metric,
                "Dimensions": [{"Name": key, "Value": sub(text)} for key, text in dimensions],
            },
            "Period": period_s,
            "Stat": statistic,
        },
        "ReturnData": watched,
    }


def expression(name: str, text: str, label: str) -> dict[str, Any]:
    """The expression that an alarm is on; the label is what its number is called."""
    return {"Id": name, "Expression": text, "Label": label, "ReturnData": True}


def metric_alarm(
    *,
    name: str,
    description: str,
    queries: Sequence[Mapping[str, Any]],
    comparison: str,
    threshold: float,
    periods: int,
    to_alarm: int,
    missing: MissingData,
    tags: Tags,
) -> dict[str, Any]:
    """A metric alarm that notifies nobody; its composite does."""
    return {
        "Type": "AWS::CloudWatch::Alarm",
        "Properties": {
            "AlarmName": sub(name),
            "AlarmDescription": sub(description),
            "Metrics": list(queries),
            "ComparisonOperator": comparison,
            "Threshold": threshold,
            "EvaluationPeriods": periods,
            "DatapointsToAlarm": to_alarm,
            "TreatMissingData": missing,
            "Tags": tags,
        },
    }


def composite_alarm(
    *,
    name: str,
    description: str,
    rule: str,
    topic: Any,
    suppressor: str | None,
    tags: Tags,
) -> dict[str, Any]:
    """
    A composite alarm that notifies a topic, of its end too.

    Args:
        name: Its name.
        description: What is read in the notification.
        rule: Its rule; alarms by their ids in the template, as ``${Id}``.
        topic: ARN.
        suppressor: Id of the alarm that keeps it silent.
        tags: Its tags.
    """
    muted = (
        {
            "ActionsSuppressor": {"Ref": suppressor},
            "ActionsSuppressorWaitPeriod": MUTED_FOR_S,
            "ActionsSuppressorExtensionPeriod": MUTED_FOR_S,
        }
        if suppressor is not None
        else {}
    )
    return {
        "Type": "AWS::CloudWatch::CompositeAlarm",
        "Properties": {
            "AlarmName": sub(name),
            "AlarmDescription": sub(description),
            "AlarmRule": sub(rule),
            **muted,
            "AlarmActions": [topic],
            "OKActions": [topic],
            "Tags": tags,
        },
    }


def in_alarm(name: str) -> str:
    """A rule's test of an alarm of the template, by its id."""
    return f'ALARM("${{{name}}}")'
