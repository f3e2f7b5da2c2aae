"""
What SageMaker says of an endpoint: its status, its variants or inference components, what happened to it.

Source:
    Amazon SageMaker API reference, DescribeEndpoint and DescribeInferenceComponent; Application Auto
    Scaling API reference, DescribeScalingActivities; botocore 1.44's service models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_opsctl.errors import AwsError
from vllm_opsctl.exporter.sources.aws_reading import AwsReader

MOST_COMPONENTS = 50
"""Inference components that are described; each is a call."""

MOST_ACTIVITIES = 20
"""Newest scaling activities that are looked at."""

BROKEN = ("Failed", "OutOfService", "RollingBack", "UpdateRollbackFailed")
"""Statuses in which the endpoint, or its last deployment, is not what was wanted."""

_GONE = "Could not find"
"""SageMaker's words for a name that it does not know (a ValidationException)."""

_WORDS = {"InProgress": "in progress"}

_FAILED_ACTIVITY = ("Failed", "Unfulfilled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """
    What is diagnosed on its own: a production variant, or an inference component.

    Args:
        name: As SageMaker has it.
        is_component: An inference component.
        status: Its own, or the endpoint's.
        failure: Why it or the endpoint failed; None when SageMaker says nothing.
        current: Instances (copies of a component) that are there; None for serverless variants.
        desired: How many there should be.
        weight: Share of the traffic; None for components.
        instance_type: Such as ``ml.g5.2xlarge``.
        working: What SageMaker is doing with it.
    """

    name: str
    is_component: bool = False
    status: str
    failure: str | None = None
    current: int | None = None
    desired: int | None = None
    weight: float | None = None
    instance_type: str | None = None
    working: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """What it is counted in."""
        return "copies" if self.is_component else "instances"

    def log_group(self, endpoint: str) -> str:
        """Where its containers' logs go."""
        if self.is_component:
            return f"/aws/sagemaker/InferenceComponents/{self.name}"
        return f"/aws/sagemaker/Endpoints/{endpoint}"

    def log_prefix(self) -> str | None:
        """What the names of its log streams begin with; None for all streams of the group."""
        return None if self.is_component else f"{self.name}/"

    def dimensions(self, endpoint: str) -> tuple[tuple[str, str], ...]:
        """Of AWS's own metrics."""
        if self.is_component:
            return (("InferenceComponentName", self.name),)
        return (("EndpointName", endpoint), ("VariantName", self.name))


@dataclass(frozen=True, slots=True)
class Happened:
    """
    An event.

    Args:
        t: Unix seconds.
        what: In words.
        is_failure: It did not do what it should.
    """

    t: float
    what: str
    is_failure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """
    An endpoint now.

    Args:
        name: As SageMaker has it.
        status: Such as ``InService``.
        failure: FailureReason.
        modified: Unix seconds of the last change.
        deploying_since: Unix seconds; None when no deployment is in progress.
        parts: Variants, or components where it has any.
    """

    name: str
    status: str
    failure: str | None
    modified: float
    deploying_since: float | None
    parts: tuple[Part, ...]


def describe(reader: AwsReader, name: str) -> Endpoint:
    """
    Look at an endpoint.

    Args:
        reader: Calls AWS.
        name: Of the endpoint.

    Raises:
        AwsError: There is none of that name, or it may not be looked at.
    """
    try:
        said = reader.call("sagemaker", "DescribeEndpoint", EndpointName=name)
    except AwsError as problem:
        if _GONE in str(problem):
            raise AwsError(
                f"no SageMaker endpoint {name} in {reader.region}; other AWS_REGION, other AWS_PROFILE? "
                "aws sagemaker list-endpoints shows what there is"
            ) from None
        raise
    types: Mapping[str, str] = {}
    with reader.optional("instance types"):
        types = _instance_types(reader, str(said["EndpointConfigName"]))
    failure = said.get("FailureReason")
    variants = [
        _variant(one, str(said["EndpointStatus"]), failure, types)
        for one in said.get("ProductionVariants", ())
    ] or [
        # a failed first deployment has no variants yet
        Part(name=variant, status=str(said["EndpointStatus"]), failure=failure, instance_type=kind)
        for variant, kind in types.items()
    ]
    components: Sequence[Part] = ()
    with reader.optional("inference components"):
        components = _components(reader, name, str(said["EndpointStatus"]), failure)
    pending = said.get("PendingDeploymentSummary", {}).get("StartTime")
    return Endpoint(
        name=name,
        status=str(said["EndpointStatus"]),
        failure=failure,
        modified=said["LastModifiedTime"].timestamp(),
        deploying_since=pending.timestamp() if pending is not None else None,
        parts=tuple(components or variants),
    )


def _instance_types(reader: AwsReader, config: str) -> dict[str, str]:
    said = reader.call("sagemaker", "DescribeEndpointConfig", EndpointConfigName=config)
    return {
        str(one["VariantName"]): str(one.get("InstanceType", "serverless"))
        for one in said.get("ProductionVariants", ())
    }


def _variant(
    said: Mapping[str, Any], status: str, failure: str | None, types: Mapping[str, str]
) -> Part:
    return Part(
        name=str(said["VariantName"]),
        status=status,
        failure=failure,
        current=said.get("CurrentInstanceCount"),
        desired=said.get("DesiredInstanceCount"),
        weight=said.get("CurrentWeight"),
        instance_type=types.get(str(said["VariantName"])),
        working=tuple(
            " ".join(str(one[key]) for key in ("Status", "StatusMessage") if one.get(key))
            for one in said.get("VariantStatus", ())
        ),
    )


def _components(
    reader: AwsReader, endpoint: str, status: str, failure: str | None
) -> Sequence[Part]:
    said = reader.call(
        "sagemaker",
        "ListInferenceComponents",
        EndpointNameEquals=endpoint,
        MaxResults=MOST_COMPONENTS,
    )
    if said.get("NextToken"):
        reader.not_seen.append(f"inference components beyond the first {MOST_COMPONENTS}")
    found = []
    for one in said.get("InferenceComponents", ()):
        name = str(one["InferenceComponentName"])
        part = Part(name=name, is_component=True, status=str(one["InferenceComponentStatus"]))
        with reader.optional(f"copies of {name}"):
            part = _described(reader, part)
        # what is wrong with the endpoint is wrong with all of its components
        found.append(replace(part, status=status, failure=failure) if status in BROKEN else part)
    return found


def _described(reader: AwsReader, part: Part) -> Part:
    said = reader.call("sagemaker", "DescribeInferenceComponent", InferenceComponentName=part.name)
    counts = said.get("RuntimeConfig", {})
    return replace(
        part,
        failure=said.get("FailureReason"),
        current=counts.get("CurrentCopyCount"),
        desired=counts.get("DesiredCopyCount"),
    )


def scaling(reader: AwsReader, endpoint: str, part: Part) -> Iterator[Happened]:
    """
    What Application Auto Scaling did lately; nothing where it does not scale this.

    Args:
        reader: Calls AWS.
        endpoint: Its name.
        part: Of the endpoint.

    Raises:
        AwsError: It may not be asked.
    """
    resource, dimension = f"endpoint/{endpoint}/variant/{part.name}", "variant:DesiredInstanceCount"
    if part.is_component:
        resource = f"inference-component/{part.name}"
        dimension = "inference-component:DesiredCopyCount"
    said = reader.call(
        "application-autoscaling",
        "DescribeScalingActivities",
        ServiceNamespace="sagemaker",
        ResourceId=resource,
        ScalableDimension=f"sagemaker:{dimension}",
        MaxResults=MOST_ACTIVITIES,
    )
    for one in said.get("ScalingActivities", ()):
        status = str(one["StatusCode"])
        detail = f" ({one['StatusMessage']})" if one.get("StatusMessage") else ""
        yield Happened(
            one["StartTime"].timestamp(),
            f"scaling {_WORDS.get(status, status.lower())}: {str(one['Description']).rstrip('.')}{detail}",
            is_failure=status in _FAILED_ACTIVITY,
        )
