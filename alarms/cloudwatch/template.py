"""The CloudFormation template: which alarms there are, for whom, and what there is no alarm for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_opsctl.alarms.alert_rules import AlertRule
from vllm_opsctl.alarms.alertmanager import region_of
from vllm_opsctl.alarms.burn import Notify
from vllm_opsctl.alarms.cloudwatch.models import AS_PARAMETER, MAX_LENGTH, PARAMETER, models_of
from vllm_opsctl.alarms.cloudwatch.promql import promql_alarms
from vllm_opsctl.alarms.cloudwatch.signals import not_covered, signals
from vllm_opsctl.alarms.cloudwatch.topics import topic_outputs, topic_resources
from vllm_opsctl.alarms.cloudwatch.writer import AlarmWriter
from vllm_opsctl.alarms.prometheus.conventions import BURN_ALERT, FLOOR_ALERT, SIDECARS_ALERT
from vllm_opsctl.alarms.rules import build_rules
from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.aws import sends_heartbeat
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.identity import identity_of

LONGEST_INTERVAL_S = 300.0
"""The shortest windows are five minutes; data that come more seldom leave them empty."""


@dataclass(frozen=True, slots=True)
class Template:
    """
    What a configuration becomes.

    Args:
        body: As CloudFormation reads it.
        left_out: What there is no alarm for, and why, one line each.
        notes: What was decided, or may surprise, one line each.
    """

    body: dict[str, Any]
    left_out: list[str]
    notes: list[str]

    def count(self, kind: str) -> int:
        """How many resources of a kind there are: ``Alarm``, ``CompositeAlarm`` or ``Dashboard``."""
        resources = self.body["Resources"].values()
        return sum(one["Type"] == f"AWS::CloudWatch::{kind}" for one in resources)

    @property
    def billed_metrics(self) -> int:
        """How many metrics all metric alarms read; each is billed as one alarm."""
        return sum(
            "MetricStat" in query
            for one in self.body["Resources"].values()
            for query in one["Properties"].get("Metrics", ())
        )

    @property
    def promql_alarms(self) -> int:
        """How many alarms ask PromQL."""
        return sum(
            "EvaluationCriteria" in one["Properties"] for one in self.body["Resources"].values()
        )


def build_template(config: Config, models: Sequence[str] = ()) -> Template:
    """
    Turn a configuration into alarms.

    Args:
        config: The whole of it.
        models: When targets name none: these, instead of a parameter.

    Raises:
        ConfigError: Something in it does not go with CloudWatch alarms.
    """
    _check(config)
    if config.exporter.cloudwatch.sink == "otlp":
        return _promql_template(config)
    found = models_of(config, models)
    rulebook = build_rules(config, "sidecar")
    writer = AlarmWriter(config, rulebook.links)
    for model in found.all:
        for rules in _by_objective(rulebook.alerts).values():
            one = rules[0].indicator
            assert one is not None
            if one.objective.model == model or (
                one.objective.model is None and model in found.fleet
            ):
                writer.objective(rules, model)
    for signal in signals(config.exporter.cloudwatch.interval):
        if signal.per == "model":
            for model in found.all:
                writer.signal(signal, model)
        else:
            # with one stack a model, each stack has its own: an alarm's name stands once in an account
            writer.signal(signal, AS_PARAMETER if found.are_a_parameter else None)
    parameters: dict[str, Any] = {}
    if found.are_a_parameter:
        parameters[PARAMETER] = {
            "Type": "String",
            "MinLength": 1,
            "MaxLength": MAX_LENGTH,
            "AllowedPattern": "[A-Za-z0-9_./:@+=-]+",
            "Description": "Served name of the model, as the dimension Model has it.",
        }
    body = _body(config, writer, parameters)
    measured = [line for line in rulebook.left_out if line.startswith("objective ")]
    notes = [*found.notes, *_notes(config), *rulebook.links.notices()]
    return Template(body, [*measured, *not_covered()], notes)


def _promql_template(config: Config) -> Template:
    """For metrics that arrive by OTLP; every alarm is of all models."""
    rulebook = build_rules(_by_service_alone(config), "sidecar")
    writer = AlarmWriter(config, rulebook.links)
    settings = config.exporter.cloudwatch
    heartbeat = sends_heartbeat(settings)
    alarms, left_out = promql_alarms(rulebook, identity_of(config), heartbeat=heartbeat)
    if heartbeat:
        (beats,) = (one for one in signals(settings.interval) if one.alert == SIDECARS_ALERT)
        writer.signal(beats, None)
    for alarm in alarms:
        writer.promql(alarm)
    notes = [
        "exporter.cloudwatch.sink is otlp: the alarms are PromQL; what they cost is in no price list we know",
        *rulebook.links.notices(),
    ]
    if not heartbeat:
        notes.append(
            f"metrics go by way of a collector: {SIDECARS_ALERT} is PromQL too, and ends after a day of "
            "silence"
        )
    return Template(_body(config, writer, {}), [*rulebook.left_out, *left_out], notes)


def _by_service_alone(config: Config) -> Config:
    """
    A configuration whose rules have the label ``service`` and no other of the identity.

    By OTLP all of these are attributes of the resource, and no series lacks them.
    """
    exporter = config.exporter.model_copy(update={"labels": {}})
    alarms = config.alarms.model_copy(update={"read_unlabelled": False})
    return config.model_copy(update={"exporter": exporter, "alarms": alarms})


def _body(config: Config, writer: AlarmWriter, parameters: dict[str, Any]) -> dict[str, Any]:
    """The template around its alarms; topics that are not configured are made."""
    ways: tuple[Notify, ...] = tuple(way for way in ("page", "ticket") if writer.arn(way) is None)
    body: dict[str, Any] = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"Alarms of the vLLM service {identity_of(config)}.",
    }
    if parameters:
        body["Parameters"] = parameters
    body["Resources"] = {**topic_resources(identity_of(config), ways), **writer.resources}
    if ways:
        body["Outputs"] = topic_outputs(ways)
    return body


def _check(config: Config) -> None:
    settings, alarms = config.exporter.cloudwatch, config.alarms
    problems = []
    if settings.per_target:
        problems.append(
            "exporter.cloudwatch.per_target: alarms watch the fleet's metrics, which are not published "
            "with it; set it to false"
        )
    if settings.interval > LONGEST_INTERVAL_S:
        problems.append(
            "exporter.cloudwatch.interval: data must come every 5 minutes at least, for the shortest "
            "windows of burn rates; set 60s"
        )
    for key, topic in (("page_topic", alarms.page_topic), ("ticket_topic", alarms.ticket_topic)):
        if topic is not None and settings.region not in (None, region_of(topic)):
            problems.append(
                f"alarms.{key}: alarms of {settings.region} (exporter.cloudwatch.region) cannot notify a "
                f"topic of {region_of(topic)}; name one of the same region, or none: then it is made"
            )
    if problems:
        raise ConfigError(problems)


def _notes(config: Config) -> Iterator[str]:
    if config.exporter.cloudwatch.sink == "off":
        yield (
            f"exporter.cloudwatch.sink is off: no metrics arrive, and {SIDECARS_ALERT} will page; set put "
            "or emf"
        )
    for key in ("page_topic", "ticket_topic"):
        if getattr(config.alarms, key) is not None:
            yield (
                f"alarms.{key} is used as it is: its policy must let cloudwatch.amazonaws.com publish, and "
                "its key, if it has one, must be a customer's that CloudWatch may use"
            )


def _by_objective(rules: list[AlertRule]) -> dict[str, list[AlertRule]]:
    found: dict[str, list[AlertRule]] = {}
    for rule in rules:
        if rule.alert in (BURN_ALERT, FLOOR_ALERT) and rule.indicator is not None:
            found.setdefault(rule.indicator.objective.name, []).append(rule)
    return found
