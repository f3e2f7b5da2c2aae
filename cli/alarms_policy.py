"""
The permissions of opsctl alarms plan, apply and destroy, and of a drill through CloudWatch.

Source:
    Service authorization reference of CloudWatch, SNS and KMS: resource types and condition keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_opsctl.alarms.cloudwatch.account import OWNER
from vllm_opsctl.alarms.cloudwatch.wanted import alias_of, topic_name
from vllm_opsctl.alarms.prometheus.conventions import DRILL_ALERT
from vllm_opsctl.exporter.config import Config

_OWNER_KEY, _OWNER_VALUE = next(iter(OWNER.items()))


def alarms_statements(config: Config, partition: str) -> list[dict[str, Any]]:
    """
    What plan, apply and destroy do.

    Args:
        config: For the service and the region.
        partition: ``aws``, ``aws-cn`` or ``aws-us-gov``.
    """
    service = config.service.name
    place = f"{config.exporter.cloudwatch.region or '*'}:*"
    keys = [f"arn:{partition}:kms:{place}:key/*"]
    ours = {"StringEquals": {f"aws:RequestTag/{_OWNER_KEY}": _OWNER_VALUE}}
    return [
        _statement("Compare", _actions("cloudwatch", ("DescribeAlarms", "ListDashboards")), ["*"]),
        _statement(
            "Alarms",
            _actions(
                "cloudwatch",
                (
                    "DeleteAlarms",
                    "ListTagsForResource",
                    "PutCompositeAlarm",
                    "PutMetricAlarm",
                    "TagResource",
                ),
            ),
            [f"arn:{partition}:cloudwatch:{place}:alarm:LLM*"],
        ),
        _statement(
            "Board",
            _actions("cloudwatch", ("DeleteDashboards", "GetDashboard", "PutDashboard")),
            [f"arn:{partition}:cloudwatch::*:dashboard/{service}-*"],
        ),
        _statement(
            "Topics",
            _actions(
                "sns",
                (
                    "CreateTopic",
                    "DeleteTopic",
                    "GetTopicAttributes",
                    "ListTagsForResource",
                    "SetTopicAttributes",
                    "TagResource",
                ),
            ),
            _topics(config, partition),
        ),
        # an alias is asked for before there is one
        _statement("FindKey", ["kms:DescribeKey"], keys),
        _statement("NewKey", ["kms:CreateKey"], ["*"], Condition=ours),
        _statement("TagKey", ["kms:TagResource"], keys, Condition=ours),
        _statement(
            "Key",
            _actions(
                "kms",
                (
                    "CreateAlias",
                    "DeleteAlias",
                    "EnableKeyRotation",
                    "GetKeyPolicy",
                    "GetKeyRotationStatus",
                    "ListResourceTags",
                    "PutKeyPolicy",
                    "ScheduleKeyDeletion",
                    "UpdateKeyDescription",
                ),
            ),
            keys,
            Condition={"StringEquals": {f"aws:ResourceTag/{_OWNER_KEY}": _OWNER_VALUE}},
        ),
        _statement(
            "Alias",
            _actions("kms", ("CreateAlias", "DeleteAlias")),
            [f"arn:{partition}:kms:{place}:{alias_of(service)}"],
        ),
    ]


def drill_alarm_statements(config: Config, partition: str) -> list[dict[str, Any]]:
    """
    What a drill does in CloudWatch: it looks at alarms, and has one of its own for a minute.

    Args:
        config: For the service and the region.
        partition: ``aws``, ``aws-cn`` or ``aws-us-gov``.
    """
    place = f"{config.exporter.cloudwatch.region or '*'}:*"
    own = ("DeleteAlarms", "PutCompositeAlarm", "SetAlarmState", "TagResource")
    return [
        _statement("Look", ["cloudwatch:DescribeAlarms"], ["*"]),
        _statement(
            "Drill",
            _actions("cloudwatch", own),
            [f"arn:{partition}:cloudwatch:{place}:alarm:{DRILL_ALERT} *"],
        ),
    ]


def topics_heard(config: Config, partition: str) -> list[str]:
    """The topics of both ways: the configured ones, else those that alarms make."""
    named = [config.alarms.page_topic, config.alarms.ticket_topic]
    made = _topics(config, partition)
    return [given or own for given, own in zip(named, made, strict=True)]


def _topics(config: Config, partition: str) -> list[str]:
    place = f"{config.exporter.cloudwatch.region or '*'}:*"
    return [
        f"arn:{partition}:sns:{place}:{topic_name(config.service.name, way)}"
        for way in ("page", "ticket")
    ]


def _actions(service: str, names: Sequence[str]) -> list[str]:
    return [f"{service}:{name}" for name in names]


def _statement(
    sid: str, actions: Sequence[str], resources: Sequence[str], **more: Any
) -> dict[str, Any]:
    return {
        "Sid": sid,
        "Effect": "Allow",
        "Action": list(actions),
        "Resource": "*" if list(resources) == ["*"] else list(resources),
        **more,
    }
