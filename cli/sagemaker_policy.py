"""
The permissions of opsctl diagnose --sagemaker: to read, and nothing else.

Source:
    Service authorization reference of SageMaker, CloudWatch Logs, CloudWatch and Application Auto Scaling:
    which actions have resource types.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.sources.aws_reading import OPERATIONS
from vllm_opsctl.exporter.sources.sagemaker import Part

_RESOURCES: Mapping[str, tuple[str, ...]] = {
    "sagemaker:DescribeEndpoint": ("endpoint/*",),
    "sagemaker:DescribeEndpointConfig": ("endpoint-config/*",),
    "sagemaker:DescribeInferenceComponent": ("inference-component/*",),
    "logs:FilterLogEvents": tuple(
        f"log-group:{Part(name='*', status='', is_component=own).log_group('*')}"
        for own in (False, True)
    ),
}
"""What an action is for, within its service; all others take no resource."""


def sagemaker_statements(config: Config, partition: str) -> list[dict[str, Any]]:
    """
    What a diagnosis of any endpoint calls.

    Args:
        config: For the region.
        partition: ``aws``, ``aws-cn`` or ``aws-us-gov``.
    """
    place = f"{config.exporter.cloudwatch.region or '*'}:*"
    actions = [f"{service}:{one}" for service, found in OPERATIONS.items() for one in found]
    statements = [
        {
            "Sid": action.partition(":")[2],
            "Effect": "Allow",
            "Action": [action],
            "Resource": [
                f"arn:{partition}:{action.partition(':')[0]}:{place}:{resource}"
                for resource in _RESOURCES[action]
            ],
        }
        for action in actions
        if action in _RESOURCES
    ]
    others = [action for action in actions if action not in _RESOURCES]
    return [*statements, {"Sid": "Look", "Effect": "Allow", "Action": others, "Resource": "*"}]
