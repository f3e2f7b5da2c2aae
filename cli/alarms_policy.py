"""
The permissions of opsctl alarms plan, apply and destroy, and of a drill through CloudWatch.

Source:
    Service authorization reference of CloudWatch, SNS and KMS: resource types and condition keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_opsctl.alarms.cloudwatch.ownership import OWNER, SERVICE_TAG
from vllm_opsctl.alarms.cloudwatch.wanted import (
    alarm_parts,
    each_name,
    old_board_name,
    old_key_alias,
    old_topic_name,
)
from vllm_opsctl.alarms.prometheus.conventions import ALERT_PREFIX, DRILL_ALERT
from vllm_opsctl.alarms.resource_names import alarm_part, dashboard_name, key_alias, topic_name
from vllm_opsctl.exporter.config import Config


def alarms_statements(config: Config, partition: str) -> list[dict[str, Any]]:
    """
    What plan, apply and destroy do.

    Args:
        config: For the service and the region.
        partition: ``aws``, ``aws-cn`` or ``aws-us-gov``.
    """
    service = config.service.name
    place = f"{config.exporter.cloudwatch.region or '*'}:*"
    alarm = f"arn:{partition}:cloudwatch:{place}:alarm:{ALERT_PREFIX}"
    keys = [f"arn:{partition}:kms:{place}:key/*"]
    tags = {**OWNER, SERVICE_TAG: service}
    ours = {"StringEquals": {f"aws:RequestTag/{key}": value for key, value in tags.items()}}
    return [
        _statement("Compare", ["cloudwatch:DescribeAlarms"], ["*"]),
        _statement(
            "Alarms",
            _actions(
                "cloudwatch",
                (
                    "DeleteAlarms",
                    "ListTagsForResource",
                    "PutMetricAlarm",
                    "TagResource",
                ),
            ),
            [f"{alarm}*/{part}/*" for part in sorted(alarm_parts(service))],
        ),
        composites_statement(),
        _statement(
            "Board",
            _actions("cloudwatch", ("DeleteDashboards", "GetDashboard", "PutDashboard")),
            [
                f"arn:{partition}:cloudwatch::*:dashboard/{name}"
                for name in each_name(
                    dashboard_name(service, config.exporter.cloudwatch.region or "*"),
                    old_board_name(service),
                )
            ],
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
            [
                f"arn:{partition}:sns:{place}:{name}"
                for way in ("page", "ticket")
                for name in each_name(topic_name(service, way), old_topic_name(service, way))
            ],
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
            Condition={
                "StringEquals": {f"aws:ResourceTag/{key}": value for key, value in tags.items()}
            },
        ),
        _statement(
            "Alias",
            _actions("kms", ("CreateAlias", "DeleteAlias")),
            [
                f"arn:{partition}:kms:{place}:{name}"
                for name in each_name(key_alias(service), old_key_alias(service))
            ],
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
    alarm = f"arn:{partition}:cloudwatch:{place}:alarm:"
    part = alarm_part(config.service.name)
    own = ("DeleteAlarms", "SetAlarmState", "TagResource")
    return [
        _statement("Look", ["cloudwatch:DescribeAlarms"], ["*"]),
        _statement(
            "Whose", ["cloudwatch:ListTagsForResource"], [f"{alarm}{ALERT_PREFIX}*/{part}/*"]
        ),
        composites_statement(),
        _statement(
            "Drill",
            _actions("cloudwatch", own),
            [f"{alarm}{DRILL_ALERT} */{part}/*"],
        ),
    ]


def composites_statement() -> dict[str, Any]:
    """
    Making composite alarms, which cannot be allowed for some of them alone.

    Source:
        PutCompositeAlarm, CloudWatch API reference: the permission must be scoped to ``*``.
    """
    return _statement("Composites", ["cloudwatch:PutCompositeAlarm"], ["*"])


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
