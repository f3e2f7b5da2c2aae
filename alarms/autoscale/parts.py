"""
What scaling consists of, as CloudFormation writes it: targets, policies, and alarms on both.

These resources are the one source: the template is made of them, and so are the requests of ``apply``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vllm_opsctl.alarms.autoscale.metrics import FleetMath
from vllm_opsctl.alarms.cloudwatch.evaluator import MissingData
from vllm_opsctl.alarms.cloudwatch.resources import (
    Tags,
    composite_alarm,
    logical_id,
    metric_alarm,
    sub,
    tags_of,
)
from vllm_opsctl.alarms.prometheus.conventions import SIDECARS_ALERT
from vllm_opsctl.alarms.resource_names import alarm_part, scaling_policy_prefix
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.config_autoscaling import ResourceKind, ScaledResource, SignalName
from vllm_opsctl.exporter.identity import identity_of

PartKind = Literal["target", "policy", "group policy", "metric alarm", "composite alarm"]

TYPES: Mapping[PartKind, str] = {
    "target": "AWS::ApplicationAutoScaling::ScalableTarget",
    "policy": "AWS::ApplicationAutoScaling::ScalingPolicy",
    "group policy": "AWS::AutoScaling::ScalingPolicy",
    "metric alarm": "AWS::CloudWatch::Alarm",
    "composite alarm": "AWS::CloudWatch::CompositeAlarm",
}

NAMESPACES: Mapping[ResourceKind, tuple[str, str, str]] = {
    "sagemaker-variant": (
        "sagemaker",
        "endpoint/{0}/variant/{1}",
        "sagemaker:variant:DesiredInstanceCount",
    ),
    "sagemaker-inference-component": (
        "sagemaker",
        "inference-component/{0}",
        "sagemaker:inference-component:DesiredCopyCount",
    ),
    "ecs-service": ("ecs", "service/{0}/{1}", "ecs:service:DesiredCount"),
}
"""
Service namespace, resource id and dimension; a group is no target of Application Auto Scaling.

Source:
    RegisterScalableTarget, Application Auto Scaling API reference (botocore 1.44's service model).
"""

ALARM_PREFIX = "Autoscaling"
"""Of alarms' names: other than that of the service's other alarms, so that neither deletes the other's."""

CEILING, STUCK, FLAPPING, WAKE = (
    f"{ALARM_PREFIX}{what}" for what in ("Ceiling", "Stuck", "Flapping", "Wake")
)

CEILING_MINUTES = 15

TRACKING_S = 180.0
"""Target tracking grows after three minutes above the target (AlarmHigh, 3 of 3)."""

_SHRINKING_S = 900.0
_LONGEST_MINUTES = 1440
"""Of an alarm with points of a minute: a day (PutMetricAlarm)."""

_SILENT = f"what is silent is not known to be overloaded; {SIDECARS_ALERT} tells that"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """
    One resource.

    Args:
        kind: What it is.
        id: Its id in the template.
        name: Its name in the account; of a target its resource id.
        was: What 0.1 called it; the same for most.
        properties: As CloudFormation has them.
        after: Ids of what must be there before.
    """

    kind: PartKind
    id: str
    name: str
    was: str
    properties: Mapping[str, Any]
    after: tuple[str, ...] = ()


def old_policy_prefix(service: str) -> str:
    """What the names of a service's policies began with in 0.1."""
    return f"opsctl-{service}-"


def place_of(resource: ScaledResource) -> dict[str, str]:
    """Namespace, id and dimension of a target of Application Auto Scaling."""
    namespace, pattern, dimension = NAMESPACES[resource.kind]
    return {
        "ServiceNamespace": namespace,
        "ResourceId": pattern.format(*resource.name.split("/")),
        "ScalableDimension": dimension,
    }


def parts_of(config: Config, resource: ScaledResource, model: str, topic: Any) -> list[Part]:
    """
    All of one resource's.

    Args:
        config: The whole configuration.
        resource: What is scaled.
        model: Served name, or a reference to the template's parameter.
        topic: ARN of tickets' topic, or a reference to it.
    """
    return list(_Writer(config, resource, model, topic).all())


class _Writer:
    def __init__(self, config: Config, resource: ScaledResource, model: str, topic: Any) -> None:
        self._settings = config.autoscaling
        self._service = config.service.name
        self._resource, self._model, self._topic = resource, model, topic
        self._math = FleetMath(config, resource, model)
        self._tags: Tags = tags_of(identity_of(config), model=model)

    def all(self) -> Iterator[Part]:
        before: tuple[str, ...] = ()
        if self._resource.kind != "auto-scaling-group":
            target = self._target()
            before = (target.id,)
            yield target
        for signal in self._settings.signals:
            yield self._tracking(signal, before)
        if self._resource.min == 0:
            policy = self._wake_policy(before)
            yield policy
            yield self._wake_alarm(policy.id)
        yield self._alarm(
            CEILING,
            "ticket",
            self._math.pressure(is_at_max=True),
            about=f"All {self._resource.max} replicas of {self._model} serve, and their load is over its "
            f"target: more are not allowed (autoscaling.resources, max of {self._resource.name}).",
            number="load over target; 1.5 asks for half as many replicas again",
            threshold=1,
            minutes=CEILING_MINUTES,
        )
        yield self._alarm(
            STUCK,
            "ticket",
            self._math.pressure(is_at_max=False),
            about=f"{self._model} has been over its target for longer than new replicas take, and fewer than "
            f"{self._resource.max} serve: capacity does not come (quota, no instances, a failing start).",
            number="load over target",
            threshold=1,
            minutes=self._stuck_minutes,
        )
        yield from self._flapping()

    # -- targets and policies ----------------------------------------------------------------------

    def _id(self, *words: str) -> str:
        return logical_id(*words, self._resource.kind, self._resource.name)

    def _target(self) -> Part:
        place = place_of(self._resource)
        bounds = {"MinCapacity": self._resource.min, "MaxCapacity": self._resource.max}
        return Part(
            kind="target",
            id=self._id("target"),
            name=place["ResourceId"],
            was=place["ResourceId"],
            properties={**place, **bounds},
        )

    def _tracking(self, signal: SignalName, before: tuple[str, ...]) -> Part:
        metric = {"Metrics": self._math.tracked(signal)}
        target = {"TargetValue": self._math.target(signal), "CustomizedMetricSpecification": metric}
        cooldown = math.ceil(self._settings.scale_out_s)
        if self._resource.kind == "auto-scaling-group":
            properties = {
                "AutoScalingGroupName": self._resource.name,
                "PolicyType": "TargetTrackingScaling",
                "EstimatedInstanceWarmup": cooldown,
                "TargetTrackingConfiguration": target,
            }
            return self._policy("group policy", signal, properties)
        tracking = {
            **target,
            "ScaleOutCooldown": cooldown,
            "ScaleInCooldown": math.ceil(self._settings.scale_in_s),
        }
        properties = {
            **place_of(self._resource),
            "PolicyType": "TargetTrackingScaling",
            "TargetTrackingScalingPolicyConfiguration": tracking,
        }
        return self._policy("policy", signal, properties, before)

    def _policy(
        self,
        kind: Literal["policy", "group policy"],
        signal: str,
        properties: Mapping[str, Any],
        after: tuple[str, ...] = (),
    ) -> Part:
        """A policy under its name, which CloudFormation does not take for a group's."""
        end = signal.replace("_", "-")
        name = scaling_policy_prefix(self._service) + end
        return Part(
            kind=kind,
            id=self._id(signal),
            name=name,
            was=old_policy_prefix(self._service) + end,
            properties={"PolicyName": name, **properties} if kind == "policy" else properties,
            after=after,
        )

    def _wake_policy(self, before: tuple[str, ...]) -> Part:
        """
        From 0 to 1, which target tracking cannot: 0 copies publish nothing.

        Source:
            Scale an endpoint to zero instances, SageMaker AI developer guide
            (endpoint-auto-scaling-zero-instances.html); its cooldown of 60 s would add a copy a minute until
            the first one serves.
        """
        step = {"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}
        properties = {
            **place_of(self._resource),
            "PolicyType": "StepScaling",
            "StepScalingPolicyConfiguration": {
                "AdjustmentType": "ChangeInCapacity",
                "MetricAggregationType": "Maximum",
                "Cooldown": math.ceil(self._settings.scale_out_s),
                "StepAdjustments": [step],
            },
        }
        return self._policy("policy", "wake", properties, before)

    # -- alarms ------------------------------------------------------------------------------------

    def _alarm_names(self, alert: str, way: str) -> tuple[str, str]:
        """The name of an alarm, and what 0.1 called it."""
        where = f"{self._resource.kind}:{self._resource.name.replace('/', ':')}"
        return (
            f"{alert} {way}/{alarm_part(self._service)}/{alarm_part(where)}/{self._model}",
            f"{alert} {way}/{self._service}/{where}/{self._model}",
        )

    def _wake_alarm(self, policy: str) -> Part:
        name, was = self._alarm_names(WAKE, "signal")
        component = {"Name": "InferenceComponentName", "Value": self._resource.name}
        return Part(
            kind="metric alarm",
            id=self._id("wake", "alarm"),
            name=name,
            was=was,
            properties={
                "AlarmName": sub(name),
                "AlarmDescription": sub(
                    f"A request found no copy of {self._model}, and got an error: a copy is started.\n"
                    "Missing data: notBreaching; nobody asked."
                ),
                "Namespace": "AWS/SageMaker",
                "MetricName": "NoCapacityInvocationFailures",
                "Dimensions": [component],
                "Statistic": "Sum",
                "Period": 60,
                "EvaluationPeriods": 1,
                "DatapointsToAlarm": 1,
                "ComparisonOperator": "GreaterThanOrEqualToThreshold",
                "Threshold": 1,
                "TreatMissingData": "notBreaching",
                "AlarmActions": [{"Ref": policy}],
                "Tags": self._tags,
            },
        )

    @property
    def _stuck_minutes(self) -> int:
        # what is added, and what is added to that once it serves, has had its time
        seconds = TRACKING_S + 2 * self._settings.scale_out_s
        return min(_LONGEST_MINUTES, max(CEILING_MINUTES, math.ceil(seconds / 60)))

    @property
    def _flapping_minutes(self) -> int:
        """Whole hours that two turns take at least, each as fast as cooldowns let it be."""
        turn_s = self._settings.scale_out_s + self._settings.scale_in_s + TRACKING_S + _SHRINKING_S
        return min(_LONGEST_MINUTES, 60 * math.ceil(2 * turn_s / 3600))

    def _alarm(
        self,
        alert: str,
        way: str,
        queries: list[dict[str, Any]],
        *,
        about: str,
        number: str,
        threshold: float,
        minutes: int,
        to_alarm: int | None = None,
        missing: MissingData = "notBreaching",
    ) -> Part:
        name, was = self._alarm_names(alert, way)
        lines = (about, f"The number is {number}.", f"Missing data: {missing}; {_SILENT}.")
        resource = metric_alarm(
            name=name,
            description="\n".join(lines),
            queries=queries,
            comparison="GreaterThanThreshold",
            threshold=threshold,
            periods=minutes,
            to_alarm=minutes if to_alarm is None else to_alarm,
            missing=missing,
            tags=self._tags,
        )
        told = {"AlarmActions": [self._topic], "OKActions": [self._topic]}
        return Part(
            kind="metric alarm",
            id=self._id(alert, way),
            name=name,
            was=was,
            properties={**resource["Properties"], **(told if way == "ticket" else {})},
        )

    def _flapping(self) -> Iterator[Part]:
        hours = self._flapping_minutes // 60
        both = []
        for word, comparison in (("grew", ">"), ("shrank", "<")):
            one = self._alarm(
                FLAPPING,
                word,
                self._math.changes(comparison),
                about=f"The fleet of {self._model} {word} at least twice within {hours} h.",
                number="1 in a minute in which it did",
                threshold=0,
                minutes=self._flapping_minutes,
                to_alarm=2,
            )
            both.append(one)
            yield one
        name, was = self._alarm_names(FLAPPING, "ticket")
        resource = composite_alarm(
            name=name,
            description=f"The fleet of {self._model} grew and shrank at least twice each within {hours} h: "
            "every turn pays a cold start. Lengthen autoscaling.scale_in_cooldown, lower the targets, or "
            "raise min. Rolling deployments look the same.",
            rule=" AND ".join(f'ALARM("{one.name}")' for one in both),
            topic=self._topic,
            suppressor=None,
            tags=self._tags,
        )
        yield Part(
            kind="composite alarm",
            id=self._id(FLAPPING, "ticket"),
            name=name,
            was=was,
            properties=resource["Properties"],
            after=tuple(one.id for one in both),
        )
