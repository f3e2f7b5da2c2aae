"""
Whose something in an AWS account is: its tags say so, and a dashboard's heading.

Names alone prove nothing: another service's may be derived to the same, and a person may choose any.

Source:
    Tag, CloudWatch API reference: values of up to 256 letters, digits, spaces and _ . : / = + - @.
    PutDashboard takes tags in new releases of boto3 only, so a dashboard's heading is what counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_opsctl.alarms.differences import Difference
from vllm_opsctl.alarms.resource_names import legal_name
from vllm_opsctl.exporter.identity import Identity

OWNER = {"managed-by": "opsctl"}
STACK_TAG = "aws:cloudformation:stack-name"

_TAG_CHARACTER = "[A-Za-z0-9 _.:/=+@-]"
_TAG = "opsctl:"
SERVICE_TAG = f"{_TAG}service"
_FACTS = frozenset(f"{_TAG}{fact}" for fact in ("service", "objective", "model", "notify"))
"""Tags that say what a resource is about; the others under ``opsctl:`` are free labels."""

STACK_REFERENCE = "${AWS::StackName}"


@dataclass(frozen=True, slots=True)
class Owner:
    """
    Who plans and changes.

    Args:
        identity: The service and its free labels.
        region: Such as ``eu-central-1``.
    """

    identity: Identity
    region: str


def tag_value(text: str) -> str:
    """
    A text as the value of a tag: as it is where that is legal, and different for different texts.

    >>> tag_value("eu west"), tag_value("blue (new)")
    ('eu west', 'blue -new-796229c5')
    """
    if re.fullmatch(rf"{_TAG_CHARACTER}{{1,256}}", text) and text == text.strip():
        return text
    # spaces around a value may be lost
    return legal_name(text, illegal=rf"^ |(?!{_TAG_CHARACTER}).", longest=256)


def owner_tags(identity: Identity) -> dict[str, str]:
    """
    The tags of everything that opsctl makes for a service.

    >>> owner_tags(Identity("chat", (("cluster", "eu"),)))
    {'managed-by': 'opsctl', 'opsctl:service': 'chat', 'opsctl:cluster': 'eu'}
    """
    return {**OWNER, **{f"{_TAG}{name}": tag_value(v) for name, v in identity.labels().items()}}


def maker_of(tags: Mapping[str, str]) -> Identity:
    """Whom tags of opsctl name, with free labels as tags have them."""
    free = sorted(
        (key.removeprefix(_TAG), value)
        for key, value in tags.items()
        if key.startswith(_TAG) and key not in _FACTS
    )
    return Identity(tags.get(SERVICE_TAG, ""), tuple(free))


def other_maker(tags: Mapping[str, str], identity: Identity) -> str:
    """
    Why something belongs to another service, or to this one under other free labels.

    What has no free labels is of a release or configuration without them, and belongs to this service.

    Returns:
        A sentence with the way out; empty when it does not.
    """
    if not OWNER.items() <= tags.items():
        return ""
    made_for = maker_of(tags)
    if made_for.service != identity.service:
        return f"belongs to service {made_for.service}; rename or delete it there"
    if {*made_for.free} <= {(name, tag_value(value)) for name, value in identity.free}:
        return ""
    keys = ", ".join(f"{_TAG}{name}" for name, _ in made_for.free)
    return (
        f"belongs to {made_for}; give one of the two a service.name of its own, or, if only exporter.labels "
        f"changed, remove the tags {keys}"
    )


def not_ours(tags: Mapping[str, str], identity: Identity) -> str:
    """Why something must not be changed, by its tags; empty when this service owns it."""
    if STACK_TAG in tags:
        return (
            f"belongs to the CloudFormation stack {tags[STACK_TAG]}; deploy the template there, or delete "
            "the stack"
        )
    if not OWNER.items() <= tags.items():
        return "not made by opsctl; rename or delete it, or choose another service.name"
    return other_maker(tags, identity)


def missing_tags(tags: Mapping[str, str], identity: Identity) -> Iterator[Difference]:
    """Tags of free labels that something of this service lacks."""
    for key, value in owner_tags(identity).items():
        if tags.get(key) != value:
            yield Difference(f"Tags.{key}", tags.get(key), value)


# -- dashboards ------------------------------------------------------------------------------------

_MARK = re.compile(
    r"\(written by opsctl for service (?P<service>[A-Za-z0-9_.:-]+)(?: \((?P<labels>[^()]*)\))?"
    r" in (?P<region>[a-z0-9-]+)(?:, stack (?P<stack>[A-Za-z0-9-]+))?\)"
)
_OLD_MARK = "(written by opsctl)"
_OLD_TITLE = re.compile(r"# ([A-Za-z0-9_.:-]+): objectives\n")
_STACK_PART = re.compile(r", stack [A-Za-z0-9-]+\)")


@dataclass(frozen=True, slots=True)
class BoardMaker:
    """
    Who wrote a dashboard.

    Args:
        tags: What its tags would be.
        region: Where its alarms and metrics are; empty when in several regions.
        alarm: ARN of the first alarm on it, where only alarms know about stacks; None otherwise.
    """

    tags: Mapping[str, str]
    region: str
    alarm: str | None = None


def board_mark(identity: Identity, region: str, stack: str | None = None) -> str:
    """
    What a dashboard's heading says about its maker.

    Args:
        identity: The service and its free labels.
        region: Its region, or a reference to it.
        stack: The CloudFormation stack, or a reference to it; None without one.

    >>> board_mark(Identity("chat", (("cluster", "eu"),)), "eu-central-1", "alarms")
    '(written by opsctl for service chat (cluster eu) in eu-central-1, stack alarms)'
    """
    free = tuple((name, tag_value(value)) for name, value in identity.free)
    where = region if stack is None else f"{region}, stack {stack}"
    return f"(written by opsctl for service {Identity(identity.service, free)} in {where})"


def board_maker(body: Mapping[str, Any]) -> BoardMaker | None:
    """Who wrote a dashboard; None when its heading names nobody."""
    for heading in _texts(body):
        match = _MARK.search(heading)
        if match is not None:
            pairs = [pair.partition(" ") for pair in (match["labels"] or "").split(", ") if pair]
            free = tuple((name, value) for name, _, value in pairs)
            tags = owner_tags(Identity(match["service"], free))
            return BoardMaker(
                {**tags, STACK_TAG: match["stack"]} if match["stack"] else tags, match["region"]
            )
        title = _OLD_TITLE.match(heading)
        if title is not None and _OLD_MARK in heading:
            return _old_board_maker(body, title[1])
    return None


def _old_board_maker(body: Mapping[str, Any], service: str) -> BoardMaker:
    """Of a dashboard by 0.1, which names neither region nor stack."""
    properties = [one.get("properties", {}) for one in body.get("widgets", ())]
    alarms = [str(arn) for one in properties for arn in one.get("alarms", ())]
    regions = {one["region"] for one in properties if "region" in one}
    regions |= {arn.split(":")[3] for arn in alarms if arn.count(":") > 3}
    region = regions.pop() if len(regions) == 1 else ""
    return BoardMaker(owner_tags(Identity(service)), region, alarms[0] if alarms else None)


def without_stack(text: str) -> str:
    """
    A dashboard's text, or its template's, as it would be without a stack.

    >>> without_stack("(written by opsctl for service chat in eu-central-1, stack alarms)")
    '(written by opsctl for service chat in eu-central-1)'
    """
    text = text.replace(f", stack {STACK_REFERENCE}", "")
    return _MARK.sub(lambda match: _STACK_PART.sub(")", match[0]), text)


def _texts(body: Mapping[str, Any]) -> Iterator[str]:
    for one in body.get("widgets", ()):
        yield str(one.get("properties", {}).get("markdown", ""))
