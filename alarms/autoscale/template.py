"""The CloudFormation template of scaling, and what a configuration has to be for it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_opsctl.alarms.alertmanager import region_of
from vllm_opsctl.alarms.autoscale.parts import TYPES, Part, parts_of
from vllm_opsctl.alarms.cloudwatch.build import InvalidTemplate, yaml_text
from vllm_opsctl.alarms.cloudwatch.models import AS_PARAMETER, MAX_LENGTH, PARAMETER, models_of
from vllm_opsctl.alarms.cloudwatch.validate import mistakes
from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.identity import Identity, identity_of

FILE = "autoscaling.yaml"
MARK = "written by opsctl autoscale build"

TOPIC_PARAMETER = "TicketTopic"

MODEL = rf"[A-Za-z0-9_./:@+=-]{{1,{MAX_LENGTH}}}"
"""Served names that dimensions and alarms' names can have."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """
    What a configuration becomes.

    Args:
        identity: The service and its free labels.
        parts: Every resource, what others need first.
        notes: What was decided, or may surprise, one line each.
        has_topic: Tickets' topic is configured.
        has_model: Every model's name is known.
        groups: Fewest and most instances of each group, which is bounded by its own.
    """

    identity: Identity
    parts: tuple[Part, ...]
    notes: tuple[str, ...]
    has_topic: bool
    has_model: bool
    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def service(self) -> str:
        """Name of the service."""
        return self.identity.service

    def body(self) -> dict[str, Any]:
        """The template as CloudFormation reads it."""
        found: dict[str, Any] = {
            "AWSTemplateFormatVersion": "2010-09-09",
            "Description": f"Scaling of the vLLM service {self.service} by its load.",
        }
        parameters = dict(_parameters(self))
        if parameters:
            found["Parameters"] = parameters
        found["Resources"] = {part.id: _resource(part) for part in self.parts}
        return found


def scaling_of(config: Config) -> Scaling:
    """
    Turn a configuration into policies and alarms.

    Raises:
        ConfigError: Something in it does not go with scaling on CloudWatch's metrics.
    """
    _check(config)
    topic: Any = config.alarms.ticket_topic or {"Ref": TOPIC_PARAMETER}
    models = _models(config)
    parts: list[Part] = []
    for resource, model in zip(config.autoscaling.resources, models, strict=True):
        parts += parts_of(config, resource, model, topic)
    return Scaling(
        identity_of(config),
        tuple(parts),
        tuple(_notes(config)),
        config.alarms.ticket_topic is not None,
        AS_PARAMETER not in models,
        {
            one.name: (one.min, one.max)
            for one in config.autoscaling.resources
            if one.kind == "auto-scaling-group"
        },
    )


def template_text(scaling: Scaling) -> str:
    """
    The file's text.

    Raises:
        InvalidTemplate: It is wrong; only a fault of opsctl can be the cause.
    """
    body = scaling.body()
    wrong = mistakes(body)
    if wrong:
        raise InvalidTemplate("; ".join(wrong))
    return f"# {MARK}\n{yaml_text(body)}"


def _models(config: Config) -> list[str]:
    """The model of each resource, in their order."""
    found: list[str] = []
    problems = []
    for index, resource in enumerate(config.autoscaling.resources):
        models = (resource.model,) if resource.model is not None else models_of(config).all
        place = f"autoscaling.resources[{index}].model"
        if len(models) != 1:
            problems.append(
                f"{place}: the service has the models {', '.join(models)}; name the one whose load scales "
                f"{resource.name}"
            )
        elif not re.fullmatch(MODEL, models[0]) and models[0] != AS_PARAMETER:
            problems.append(
                f"{place}: {models[0]!r} cannot be a dimension in CloudWatch; use up to {MAX_LENGTH} of "
                "A-Z a-z 0-9 _ . / : @ + = -"
            )
        elif models[0] in found:
            # dimensions are Service and Model: the load of both would be one number
            problems.append(
                f"{place}: {models[0]} scales another resource already, and the load of both would be one "
                "number; give each a service.name of its own, in a configuration of its own"
            )
        else:
            found.append(models[0])
    if problems:
        raise ConfigError(problems)
    return found


def _resource(part: Part) -> dict[str, Any]:
    after = {"DependsOn": list(part.after)} if part.after else {}
    return {"Type": TYPES[part.kind], **after, "Properties": dict(part.properties)}


def _parameters(scaling: Scaling) -> Iterator[tuple[str, dict[str, Any]]]:
    if not scaling.has_model:
        yield (
            PARAMETER,
            {
                "Type": "String",
                "MinLength": 1,
                "MaxLength": MAX_LENGTH,
                "AllowedPattern": "[A-Za-z0-9_./:@+=-]+",
                "Description": "Served name of the model, as the dimension Model has it.",
            },
        )
    if not scaling.has_topic:
        yield (
            TOPIC_PARAMETER,
            {
                "Type": "String",
                "AllowedPattern": "arn:aws[a-z-]*:sns:.*",
                "Description": "ARN of tickets' topic: the output TicketTopicArn of the alarms' stack.",
            },
        )


def _check(config: Config) -> None:
    settings, topic = config.exporter.cloudwatch, config.alarms.ticket_topic
    problems = []
    if not config.autoscaling.resources:
        problems.append(
            "autoscaling.resources: none; say what is scaled (kind, name, max_num_seqs, min, max)"
        )
    if settings.sink == "otlp":
        problems.append(
            "exporter.cloudwatch.sink: otlp sends no classic metrics, and Application Auto Scaling reads no "
            "others; set put or emf"
        )
    if settings.per_target:
        problems.append(
            "exporter.cloudwatch.per_target: scaling reads the fleet's metrics, which are not published with "
            "it; set it to false"
        )
    if settings.interval > 60 or 60 % settings.interval:
        problems.append(
            f"exporter.cloudwatch.interval: {settings.interval:g} s; target tracking judges every minute: "
            "set 60s, or a part of it such as 30s"
        )
    if topic is not None and settings.region not in (None, region_of(topic)):
        problems.append(
            f"alarms.ticket_topic: alarms of {settings.region} (exporter.cloudwatch.region) cannot notify a "
            f"topic of {region_of(topic)}; name one of the same region"
        )
    if problems:
        raise ConfigError(problems)


def _notes(config: Config) -> Iterator[str]:
    if config.exporter.cloudwatch.sink == "off":
        yield "exporter.cloudwatch.sink is off: no metrics arrive, and nothing is scaled; set put or emf"
    for one in config.autoscaling.resources:
        if one.kind == "auto-scaling-group":
            yield (
                f"{one.name}: a group's own MinSize and MaxSize bound it; set them to {one.min} and {one.max}"
            )
        if one.min == 0:
            yield (
                f"{one.name}: the endpoint's variant must have ManagedInstanceScaling.MinInstanceCount 0, or "
                "copies go and instances stay; requests that find no copy are answered with an error"
            )
