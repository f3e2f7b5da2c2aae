"""What an account shall have: a template's resources as requests of AWS's APIs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vllm_opsctl.alarms.cloudwatch.composite import RuleError, parse_rule
from vllm_opsctl.alarms.cloudwatch.definitions import BOARD, COMPOSITE_ALARM, METRIC_ALARM, Resolver
from vllm_opsctl.alarms.cloudwatch.topics import KEY, TOPIC_IDS

Kind = Literal["key", "topic", "metric alarm", "composite alarm", "board"]

ORDER: tuple[Kind, ...] = ("key", "topic", "metric alarm", "composite alarm", "board")
"""What comes later refers to what comes before."""

NAME_LENGTH = 256
"""Of a topic, of A-Z a-z 0-9 _ and - (CreateTopic, SNS API reference)."""


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
    """

    kind: Kind
    name: str
    properties: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    after: frozenset[str] = frozenset()


def topic_name(service: str, way: str) -> str:
    """The name of a service's topic: ``chat-page``."""
    return f"{service}-{way}"


def alias_of(service: str) -> str:
    """The alias of the key of a service's topics."""
    return f"alias/opsctl-{service}"


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
        KEY: alias_of(service),
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
        if (item := _item(one["Type"], resolver.resolved(one["Properties"]))) is not None
    ]
    policies = {
        one["Properties"]["Topics"][0]["Ref"]: resolver.resolved(
            one["Properties"]["PolicyDocument"]
        )
        for one in resources.values()
        if one["Type"] == "AWS::SNS::TopicPolicy"
    }
    for way, name in TOPIC_IDS.items():
        if name in resources:
            properties = resolver.resolved(resources[name]["Properties"])
            tags = _tags(properties.pop("Tags"))
            properties["Policy"] = policies[name]
            found.append(Item("topic", topic_name(service, way), properties, tags))
    if KEY in resources:
        properties = resolver.resolved(resources[KEY]["Properties"])
        tags = _tags(properties.pop("Tags"))
        found.append(Item("key", alias_of(service), properties, tags))
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


def _item(kind: str, properties: dict[str, Any]) -> Item | None:
    if kind == METRIC_ALARM:
        tags = _tags(properties.pop("Tags"))
        return Item("metric alarm", properties.pop("AlarmName"), properties, tags)
    if kind == COMPOSITE_ALARM:
        tags = _tags(properties.pop("Tags"))
        name = properties.pop("AlarmName")
        return Item("composite alarm", name, properties, tags, children(properties))
    if kind == BOARD:
        body = json.loads(properties["DashboardBody"])
        return Item("board", properties["DashboardName"], {"DashboardBody": body})
    return None


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
    """The service in the name of an alarm that is called as ours are: ``LLMModelVanished page/chat/…``."""
    match = re.match(r"LLM[^/]*/([^/]+)/", alarm + "/")
    return match[1] if match else None
