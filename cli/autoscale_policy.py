"""
The permissions of opsctl autoscale plan, apply and destroy, for the resources that are configured.

Source:
    Service authorization reference of Application Auto Scaling, EC2 Auto Scaling and CloudWatch (resource
    types and condition keys); Application Auto Scaling user guide, identity-based policies (what a caller
    needs of the scaled service, and alarms that target tracking makes) and service-linked roles (names).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm_opsctl.alarms.autoscale.parts import ALARM_PREFIX, NAMESPACES
from vllm_opsctl.alarms.cloudwatch.resources import logical_id
from vllm_opsctl.alarms.cloudwatch.wanted import alarm_parts
from vllm_opsctl.cli.alarms_policy import composites_statement
from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.config_autoscaling import ResourceKind, ScaledResource

_ROLES = {
    "ecs": "AWSServiceRoleForApplicationAutoScaling_ECSService",
    "sagemaker": "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint",
}

_OF_THE_SERVICE: dict[ResourceKind, tuple[str, tuple[str, ...]]] = {
    "ecs-service": ("service/{0}/{1}", ("ecs:DescribeServices", "ecs:UpdateService")),
    "sagemaker-variant": (
        "endpoint/{0}",
        ("sagemaker:DescribeEndpoint", "sagemaker:UpdateEndpointWeightsAndCapacities"),
    ),
    "sagemaker-inference-component": (
        "inference-component/{0}",
        (
            "sagemaker:DescribeInferenceComponent",
            "sagemaker:UpdateInferenceComponentRuntimeConfig",
        ),
    ),
}
"""Resource, and what registering and scaling it asks of the caller."""


def autoscale_statements(config: Config, partition: str) -> list[dict[str, Any]]:
    """
    What plan, apply and destroy do.

    Args:
        config: For the resources and the region.
        partition: ``aws``, ``aws-cn`` or ``aws-us-gov``.

    Raises:
        ConfigError: Nothing is scaled.
    """
    resources = config.autoscaling.resources
    if not resources:
        raise ConfigError(
            ["autoscaling.resources: none; say what is scaled, permissions are for these alone"]
        )
    place = f"{config.exporter.cloudwatch.region or '*'}:*"
    return [
        _read(),
        *_targets(resources, partition, place),
        *_groups(resources, partition, place),
        _alarms(partition, place, config.service.name),
        composites_statement(),
    ]


def _statement(
    sid: str, actions: tuple[str, ...], resources: list[str], **more: Any
) -> dict[str, Any]:
    return {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": resources, **more}


def _read() -> dict[str, Any]:
    return {
        "Sid": "Compare",
        "Effect": "Allow",
        "Action": [
            "application-autoscaling:DescribeScalableTargets",
            "application-autoscaling:DescribeScalingPolicies",
            "autoscaling:DescribeAutoScalingGroups",
            "autoscaling:DescribePolicies",
            "cloudwatch:DescribeAlarms",
        ],
        "Resource": "*",
    }


def _targets(
    resources: tuple[ScaledResource, ...], partition: str, place: str
) -> Iterator[dict[str, Any]]:
    found = [one for one in resources if one.kind in NAMESPACES]
    if not found:
        return
    namespaces = sorted({NAMESPACES[one.kind][0] for one in found})
    yield _statement(
        "Scale",
        tuple(
            f"application-autoscaling:{action}"
            for action in (
                "DeleteScalingPolicy",
                "DeregisterScalableTarget",
                "ListTagsForResource",
                "PutScalingPolicy",
                "RegisterScalableTarget",
                "TagResource",
            )
        ),
        [f"arn:{partition}:application-autoscaling:{place}:scalable-target/*"],
    )
    for one in found:
        path, actions = _OF_THE_SERVICE[one.kind]
        namespace = NAMESPACES[one.kind][0]
        arn = f"arn:{partition}:{namespace}:{place}:{path.format(*one.name.split('/'))}"
        yield _statement(logical_id("resource", one.kind, one.name), actions, [arn])
    names = {name: f"{name}.application-autoscaling.amazonaws.com" for name in namespaces}
    yield _statement(
        "FirstTime",
        ("iam:CreateServiceLinkedRole",),
        [
            f"arn:{partition}:iam::*:role/aws-service-role/{names[name]}/{_ROLES[name]}"
            for name in namespaces
        ],
        Condition={"StringEquals": {"iam:AWSServiceName": list(names.values())}},
    )


def _groups(
    resources: tuple[ScaledResource, ...], partition: str, place: str
) -> Iterator[dict[str, Any]]:
    names = [one.name for one in resources if one.kind == "auto-scaling-group"]
    if names:
        yield _statement(
            "ScaleGroups",
            ("autoscaling:DeletePolicy", "autoscaling:PutScalingPolicy"),
            [
                f"arn:{partition}:autoscaling:{place}:autoScalingGroup:*:autoScalingGroupName/{name}"
                for name in names
            ],
        )


def _alarms(partition: str, place: str, service: str) -> dict[str, Any]:
    alarms = f"arn:{partition}:cloudwatch:{place}:alarm:"
    return _statement(
        "Alarms",
        tuple(
            f"cloudwatch:{action}"
            for action in (
                "DeleteAlarms",
                "ListTagsForResource",
                "PutMetricAlarm",
                "TagResource",
            )
        ),
        # target tracking makes alarms of its own in the caller's name
        [
            *(f"{alarms}{ALARM_PREFIX}*/{part}/*" for part in sorted(alarm_parts(service))),
            f"{alarms}TargetTracking-*",
        ],
    )
