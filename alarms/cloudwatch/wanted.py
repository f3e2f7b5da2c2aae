"""What an account shall have: a template's resources as requests of AWS's APIs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vllm_opsctl.alarms.cloudwatch.composite import RuleError, parse_rule
from vllm_opsctl.alarms.cloudwatch.definitions import BOARD, COMPOSITE_ALARM, METRIC_ALARM, Resolver
from vllm_opsctl.alarms.cloudwatch.ownership import without_stack
from vllm_opsctl.alarms.cloudwatch.topics import KEY, TOPIC_IDS
from vllm_opsctl.alarms.prometheus.conventions import ALERT_PREFIX
from vllm_opsctl.alarms.resource_names import (
    alarm_part,
    key_alias,
    old_dashboard_name,
    topic_name,
)

Kind = Literal["key", "topic", "metric alarm", "composite alarm", "board"]

ORDER: tuple[Kind, ...] = ("key", "topic", "metric alarm", "composite alarm", "board")
"""What comes later refers to what comes before."""

_LEGAL = re.compile(r"[A-Za-z0-9_-]+")
"""What 0.1 could call dashboards, topics and keys: it took a service's name as it is."""


@dataclass(frozen=True, slots=True)
class Place:
    """
    Where things are made.

    Args:
        partition: ``aws``, ``aws-cn`` or ``aws-us-gov``.
        region: Such as ``eu-central-1``.
        account: Its twelve digits.
    """

    partition: str
    region: str
    account: str

    def topic_arn(self, name: str) -> str:
        """The ARN of a topic, whether it is there or not."""
        return f"arn:{self.partition}:sns:{self.region}:{self.account}:{name}"

    def alarm_arn(self, name: str) -> str:
        """The ARN of an alarm, whether it is there or not."""
        return f"arn:{self.partition}:cloudwatch:{self.region}:{self.account}:alarm:{name}"


@dataclass(frozen=True, slots=True)
class Item:
    """
    One thing of an account.

    Args:
        kind: What it is.
        name: Alarm's, topic's or board's name, or the key's alias.
        properties: As the API takes them, without name and tags.
        tags: By key.
        after: Alarms that must be there before, composites alone.
        was: What 0.1 called it; empty when its name is the same, or could not be.
    """

    kind: Kind
    name: str
    properties: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    after: frozenset[str] = frozenset()
    was: str = ""


def old_topic_name(service: str, way: str) -> str:
    """What 0.1 called a service's topic; empty when SNS refused that."""
    return f"{service}-{way}" if _LEGAL.fullmatch(service) else ""


def old_key_alias(service: str) -> str:
    """What 0.1 called the alias of a service's key; empty when KMS refused that."""
    return f"alias/opsctl-{service}" if _LEGAL.fullmatch(service) else ""


def old_board_name(service: str) -> str:
    """What 0.1 called a service's dashboard; empty when CloudWatch refused that."""
    return old_dashboard_name(service) if _LEGAL.fullmatch(service) else ""


def each_name(name: str, old: str) -> list[str]:
    """A name and what 0.1 called it, where that is another and could be."""
    return list(dict.fromkeys(filter(None, (name, old))))


def alarm_parts(service: str) -> frozenset[str]:
    """How names of a service's alarms have the service, now and in 0.1."""
    return frozenset((alarm_part(service), service))


def wanted(template: Mapping[str, Any], service: str, place: Place) -> list[Item]:
    """
    The resources of a template, in the order in which they can be made.

    Args:
        template: As CloudFormation reads it; without parameters.
        service: Name of the fleet.
        place: Where they are made.

    Raises:
        TemplateError: It refers to what it does not have.
    """
    resources: Mapping[str, Any] = template["Resources"]
    known = {
        "AWS::Partition": place.partition,
        "AWS::Region": place.region,
        "AWS::AccountId": place.account,
        KEY: key_alias(service),
        **{
            name: place.topic_arn(topic_name(service, way))
            for way, name in TOPIC_IDS.items()
            if name in resources
        },
    }
    resolver = Resolver(template, {}, known)
    found = [
        item
        for one in resources.values()
        if (item := _item(one["Type"], one["Properties"], resolver, service)) is not None
    ]
    policies = {
        one["Properties"]["Topics"][0]["Ref"]: resolver.resolved(
            one["Properties"]["PolicyDocument"]
        )
        for one in resources.values()
        if one["Type"] == "AWS::SNS::TopicPolicy"
    }
    for way, topic in TOPIC_IDS.items():
        if topic in resources:
            properties = resolver.resolved(resources[topic]["Properties"])
            tags = _tags(properties.pop("Tags"))
            properties["Policy"] = policies[topic]
            name, old = topic_name(service, way), old_topic_name(service, way)
            found.append(Item("topic", name, properties, tags, was=_if_other(old, name)))
    if KEY in resources:
        properties = resolver.resolved(resources[KEY]["Properties"])
        tags = _tags(properties.pop("Tags"))
        alias = key_alias(service)
        was = _if_other(old_key_alias(service), alias)
        found.append(Item("key", alias, properties, tags, was=was))
    return in_order(found)


def in_order(items: list[Item]) -> list[Item]:
    """Items so that each comes after those that it refers to."""
    found: list[Item] = []
    left = sorted(items, key=lambda item: ORDER.index(item.kind))
    names = {item.name for item in items if item.kind == "composite alarm"}
    while left:
        # rules of others may go in circles
        ready = next((item for item in left if not item.after & names), left[0])
        left.remove(ready)
        found.append(ready)
        if ready.kind == "composite alarm":
            names.discard(ready.name)
    return found


def _item(kind: str, resource: Mapping[str, Any], resolver: Resolver, service: str) -> Item | None:
    if kind == BOARD:
        name = resolver.text(resource["DashboardName"])
        text = resource["DashboardBody"]
        body = resolver.text({"Fn::Sub": without_stack(text["Fn::Sub"])})
        properties = {"DashboardBody": json.loads(body)}
        return Item("board", name, properties, was=_if_other(old_board_name(service), name))
    if kind not in (METRIC_ALARM, COMPOSITE_ALARM):
        return None
    properties = resolver.resolved(resource)
    tags = _tags(properties.pop("Tags"))
    name = properties.pop("AlarmName")
    was = _if_other(_old_alarm_name(name, service, tags), name)
    if kind == METRIC_ALARM:
        return Item("metric alarm", name, properties, tags, was=was)
    return Item("composite alarm", name, properties, tags, children(properties), was)


def _old_alarm_name(name: str, service: str, tags: Mapping[str, str]) -> str:
    """The name with service and objective as they are, however long."""
    alert, _, about, *model = name.split("/", 3)
    return "/".join([alert, service, tags.get("opsctl:objective", about), *model])


def _if_other(old: str, name: str) -> str:
    return old if old != name else ""


def children(composite: Mapping[str, Any]) -> frozenset[str]:
    """The alarms that a composite needs; none when its rule cannot be read."""
    try:
        found = {*parse_rule(composite["AlarmRule"]).alarms()}
    except RuleError:
        return frozenset()
    suppressor = composite.get("ActionsSuppressor")
    # as an ARN, when somebody gave it so
    return frozenset(found | ({suppressor.rpartition(":alarm:")[2]} if suppressor else set()))


def _tags(tags: list[dict[str, str]]) -> dict[str, str]:
    return {one["Key"]: one["Value"] for one in tags}


def service_in(alarm: str) -> str | None:
    """The service's part of an alarm's name that is built as ours are: ``LLMModelVanished page/chat/…``."""
    match = re.match(rf"{ALERT_PREFIX}[^/]*/([^/]+)/", alarm + "/")
    return match[1] if match else None
