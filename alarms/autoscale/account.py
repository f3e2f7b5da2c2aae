"""
An AWS account as far as scaling goes: what it has of a service, and how that is changed, slowly.

Policies have no tags and are known by their exact names, alarms by names and tags. A target has no name of
its own: it is ours when it has our tags, or no tags of opsctl and a policy of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_opsctl.alarms.autoscale.parts import ALARM_PREFIX, PartKind, old_policy_prefix
from vllm_opsctl.alarms.cloudwatch.account import Pace
from vllm_opsctl.alarms.cloudwatch.wanted import alarm_parts
from vllm_opsctl.alarms.resource_names import scaling_policy_prefix
from vllm_opsctl.exporter.aws import aws_client, aws_mistakes

POLICY_NAMES = ("demand", "kv-cache", "wake")
"""What names of our policies end with."""

_OF_OPSCTL = re.compile(rf"opsctl-.+-(?:{'|'.join(POLICY_NAMES)})")

_SCALING, _GROUPS, _ALARMS = "application-autoscaling", "autoscaling", "cloudwatch"
_NAMESPACES = ("ecs", "sagemaker")
_PLACE = ("ServiceNamespace", "ResourceId", "ScalableDimension")
_GROUP = "AutoScalingGroupName"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """
    One target, policy or alarm, wanted or there.

    Args:
        kind: What it is.
        name: Its own; of a target the resource's id.
        properties: As the API has them.
        arn: Of what is there.
        where: The resource that it scales; empty for alarms.
        was: Of what is wanted, its name in 0.1; empty when that is the same.
    """

    kind: PartKind
    name: str
    properties: Mapping[str, Any]
    arn: str = ""
    where: str = ""
    was: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same thing."""
        return self.kind, self.where, self.name

    @property
    def place(self) -> dict[str, Any]:
        """The arguments that name the resource."""
        names = (_GROUP,) if self.kind == "group policy" else _PLACE
        return {name: self.properties[name] for name in names}


@dataclass(slots=True)
class Contents:
    """
    What an account has.

    Args:
        things: Policies and alarms with names of ours, and targets that policies or the configuration name.
        crowded: Ids of targets with policies of somebody else.
        rivals: By resource, a policy that opsctl made for another service.
        sample: Tags of the first alarm: policies have none, and came the same way.
        groups: Least and most instances of each group that was asked for.
    """

    things: list[Thing] = field(default_factory=list)
    crowded: set[str] = field(default_factory=set)
    rivals: dict[str, str] = field(default_factory=dict)
    sample: Mapping[str, str] = field(default_factory=dict)
    groups: dict[str, tuple[int, int]] = field(default_factory=dict)


class ScalingAccount:
    """
    One region of an account; every request is paced.

    Args:
        region: Such as ``eu-central-1``.
        endpoint_url: CloudWatch's; None for AWS's own.
        pace: Between requests; None for three a second.

    Raises:
        UsageError: boto3 is not installed.
    """

    def __init__(
        self, region: str, endpoint_url: str | None = None, pace: Pace | None = None
    ) -> None:
        self._pace = pace or Pace()
        self._clients = {
            name: aws_client(name, region, endpoint_url if name == _ALARMS else None)
            for name in (_SCALING, _GROUPS, _ALARMS)
        }

    # -- what is there -----------------------------------------------------------------------------

    def contents(self, service: str, wanted: list[Thing]) -> Contents:
        """
        All that there is of a service, and of what is wanted.

        Raises:
            AwsError: AWS refuses, or does not answer.
        """
        found = Contents()
        prefixes = (scaling_policy_prefix(service), old_policy_prefix(service))
        names = {prefix + end for prefix in prefixes for end in POLICY_NAMES}
        places = {
            (one.place["ServiceNamespace"], one.where) for one in wanted if one.kind == "target"
        }
        for namespace in _NAMESPACES:
            for one in self._pages(
                _SCALING, "describe_scaling_policies", "ScalingPolicies", ServiceNamespace=namespace
            ):
                if one["PolicyName"] in names:
                    places.add((namespace, one["ResourceId"]))
                    found.things.append(_policy("policy", one, one["ResourceId"], one["PolicyARN"]))
                else:
                    found.crowded.add(one["ResourceId"])
                    if _OF_OPSCTL.fullmatch(one["PolicyName"]):
                        found.rivals[one["ResourceId"]] = one["PolicyName"]
        found.things += self._targets(places)
        groups = {one.where for one in wanted if one.kind == "group policy"}
        found.things += self._group_policies(names, groups, found)
        alarms = list(self._alarms(service))
        found.things += alarms
        if alarms:
            found.sample = self.tags(alarms[0])
        return found

    def _targets(self, places: set[tuple[str, str]]) -> Iterator[Thing]:
        for namespace in _NAMESPACES:
            ids = sorted(where for space, where in places if space == namespace)
            # ResourceIds takes 50
            for start in range(0, len(ids), 50):
                for one in self._pages(
                    _SCALING,
                    "describe_scalable_targets",
                    "ScalableTargets",
                    ServiceNamespace=namespace,
                    ResourceIds=ids[start : start + 50],
                ):
                    where = one["ResourceId"]
                    arn = one.get("ScalableTargetARN", "")
                    yield Thing(kind="target", name=where, properties=one, arn=arn, where=where)

    def _group_policies(
        self, names: set[str], groups: set[str], found: Contents
    ) -> Iterator[Thing]:
        for one in self._pages(
            _GROUPS, "describe_policies", "ScalingPolicies", PolicyNames=sorted(names)
        ):
            yield _policy("group policy", one, one[_GROUP], one.get("PolicyARN", ""))
        for group in sorted(groups):
            for one in self._pages(
                _GROUPS, "describe_policies", "ScalingPolicies", AutoScalingGroupName=group
            ):
                if one["PolicyName"] not in names and _OF_OPSCTL.fullmatch(one["PolicyName"]):
                    found.rivals[group] = one["PolicyName"]
        if groups:
            for one in self._pages(
                _GROUPS,
                "describe_auto_scaling_groups",
                "AutoScalingGroups",
                AutoScalingGroupNames=sorted(groups),
            ):
                found.groups[one[_GROUP]] = (one["MinSize"], one["MaxSize"])

    def _alarms(self, service: str) -> Iterator[Thing]:
        kinds: Mapping[str, PartKind] = {
            "MetricAlarms": "metric alarm",
            "CompositeAlarms": "composite alarm",
        }
        parts = alarm_parts(service)
        asked = {"AlarmNamePrefix": ALARM_PREFIX, "AlarmTypes": ["MetricAlarm", "CompositeAlarm"]}
        for page in self._answers(_ALARMS, "describe_alarms", **asked):
            for key, kind in kinds.items():
                for one in page.get(key, ()):
                    name = one["AlarmName"]
                    if name.count("/") > 1 and name.split("/")[1] in parts:
                        yield Thing(kind=kind, name=name, properties=one, arn=one["AlarmArn"])

    def tags(self, thing: Thing) -> dict[str, str]:
        """
        The tags of a target or an alarm; none of what has no ARN, as targets of before tags existed.

        Raises:
            AwsError: AWS refuses, or does not answer.
        """
        if not thing.arn:
            return {}
        if thing.kind == "target":
            return dict(
                self._ask(_SCALING, "list_tags_for_resource", ResourceARN=thing.arn)["Tags"]
            )
        found = self._ask(_ALARMS, "list_tags_for_resource", ResourceARN=thing.arn)["Tags"]
        return {one["Key"]: one["Value"] for one in found}

    # -- changes -----------------------------------------------------------------------------------

    def put(self, thing: Thing, *, new: bool) -> str:
        """
        Make it, or make it as it shall be.

        Returns:
            The policy's ARN; empty for others.

        Raises:
            AwsError: AWS refuses, or does not answer.
        """
        arguments = dict(thing.properties)
        if thing.kind == "target":
            if not new:
                # AWS takes tags with a registration only when it is the first
                tags = arguments.pop("Tags")
                if thing.arn:
                    self._ask(_SCALING, "tag_resource", ResourceARN=thing.arn, Tags=tags)
            self._ask(_SCALING, "register_scalable_target", **arguments)
            return ""
        if thing.kind == "policy":
            return str(self._ask(_SCALING, "put_scaling_policy", **arguments)["PolicyARN"])
        if thing.kind == "group policy":
            return str(self._ask(_GROUPS, "put_scaling_policy", **arguments).get("PolicyARN", ""))
        if not new:
            # a put leaves the tags of an alarm that is there
            tags = arguments.pop("Tags")
            self._ask(_ALARMS, "tag_resource", ResourceARN=thing.arn, Tags=tags)
        call = "put_metric_alarm" if thing.kind == "metric alarm" else "put_composite_alarm"
        self._ask(_ALARMS, call, **arguments)
        return ""

    def delete(self, thing: Thing) -> None:
        """
        Remove it; of a target its registration, capacity stays what it is.

        Raises:
            AwsError: AWS refuses, or does not answer.
        """
        if thing.kind == "target":
            self._ask(_SCALING, "deregister_scalable_target", **thing.place)
        elif thing.kind == "policy":
            name = thing.properties["PolicyName"]
            self._ask(_SCALING, "delete_scaling_policy", PolicyName=name, **thing.place)
        elif thing.kind == "group policy":
            self._ask(_GROUPS, "delete_policy", PolicyName=thing.name, **thing.place)
        else:
            # a composite must be alone in its request
            self._ask(_ALARMS, "delete_alarms", AlarmNames=[thing.name])

    # -- requests ----------------------------------------------------------------------------------

    def _pages(self, service: str, operation: str, key: str, **asked: Any) -> Iterator[Any]:
        for page in self._answers(service, operation, **asked):
            yield from page.get(key, ())

    def _answers(self, service: str, operation: str, **asked: Any) -> Iterator[Any]:
        while True:
            page = self._ask(service, operation, **asked)
            yield page
            if not page.get("NextToken"):
                return
            asked["NextToken"] = page["NextToken"]

    def _ask(self, service: str, operation: str, **arguments: Any) -> Any:
        self._pace.wait()
        with aws_mistakes(service):
            return getattr(self._clients[service], operation)(**arguments)


def _policy(kind: PartKind, answer: Mapping[str, Any], where: str, arn: str) -> Thing:
    return Thing(kind=kind, name=answer["PolicyName"], properties=answer, arn=arn, where=where)
