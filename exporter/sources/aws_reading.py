"""
Reading from AWS: one client a service, and what could not be read is said instead of raised.

Every operation that is called is in :data:`OPERATIONS`; none of them writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vllm_opsctl.errors import AwsError
from vllm_opsctl.exporter.aws import aws_client, aws_mistakes

OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "sagemaker": (
        "DescribeEndpoint",
        "DescribeEndpointConfig",
        "ListInferenceComponents",
        "DescribeInferenceComponent",
    ),
    "application-autoscaling": ("DescribeScalingActivities",),
    "cloudwatch": ("ListMetrics", "GetMetricData"),
    "logs": ("FilterLogEvents",),
}
"""What a diagnosis of an endpoint calls, by service; each is an IAM action of the same name."""

MakeClient = Callable[[str], Any]
"""A service's name to its boto3 client."""


class AwsReader:
    """
    Calls read operations, and keeps what could not be read.

    Args:
        region: AWS region.
        make_client: For other endpoints than AWS's own; None for boto3's usual ones.
    """

    def __init__(self, region: str, make_client: MakeClient | None = None) -> None:
        self.region = region
        self.not_seen: list[str] = []
        self._make = make_client or (lambda service: aws_client(service, region))
        self._clients: dict[str, Any] = {}

    def call(self, service: str, operation: str, **params: Any) -> dict[str, Any]:
        """
        Call one operation.

        Args:
            service: Such as ``sagemaker``.
            operation: As in :data:`OPERATIONS`.
            params: As the API names them.

        Raises:
            AwsError: It was refused, or nothing answered.
            UsageError: boto3 is not installed.
        """
        assert operation in OPERATIONS[service], operation
        if service not in self._clients:
            self._clients[service] = self._make(service)
        with aws_mistakes(service):
            # boto3 names methods as the API does, in snake case
            answer = getattr(self._clients[service], _snake(operation))(**params)
        assert isinstance(answer, dict)
        return answer

    @contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """
        What can be done without: a refusal becomes a statement of what was not seen.

        Args:
            what: What is missing then.
        """
        try:
            yield
        except AwsError as problem:
            self.not_seen.append(f"{what}: {problem}")


def _snake(operation: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in operation).lstrip("_")
