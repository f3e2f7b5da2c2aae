"""Every service that a configuration accepts has names that AWS accepts, and no two share one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from cloudwatch_fleet import body_of, config
from hypothesis import example, given
from hypothesis import strategies as st
from scaled_fleet import RESOURCES, TOPIC, scaled

from vllm_opsctl.alarms.autoscale.template import scaling_of
from vllm_opsctl.alarms.cloudwatch.definitions import Resolver
from vllm_opsctl.alarms.cloudwatch.ownership import (
    board_maker,
    board_mark,
    maker_of,
    owner_tags,
    tag_value,
)
from vllm_opsctl.alarms.cloudwatch.validate import MAX_NAME, mistakes
from vllm_opsctl.alarms.cloudwatch.wanted import Place, wanted
from vllm_opsctl.alarms.resource_names import (
    alarm_part,
    dashboard_name,
    key_alias,
    scaling_policy_prefix,
    topic_display_name,
    topic_name,
)
from vllm_opsctl.exporter.identity import Identity

SERVICES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}", fullmatch=True)
REGION = "eu-central-1"

NAMES: Mapping[str, tuple[Any, str]] = {
    "topic": (lambda service: topic_name(service, "page"), r"[A-Za-z0-9_-]{1,256}"),
    "alias": (key_alias, r"alias/[A-Za-z0-9/_-]{1,250}"),
    "dashboard": (lambda service: dashboard_name(service, REGION), r"[A-Za-z0-9_-]{1,255}"),
    "policy": (lambda service: f"{scaling_policy_prefix(service)}demand", r"[A-Za-z0-9_-]{1,256}"),
    "alarm": (alarm_part, r"[A-Za-z0-9_.:-]{1,48}"),
}
"""By kind: how it is made, and what AWS takes; an alarm's part is what the other parts leave of 255."""


@pytest.mark.parametrize("kind", NAMES)
@given(one=SERVICES, other=SERVICES)
@example(one="chat.v2", other="chat-v2")
@example(one="chat.v2", other="chat:v2")
@example(one="Chat", other="chat")
@example(one="c" * 128, other="c" * 127 + "d")
@example(one="chat-", other="chat")
def test_names_are_legal_and_of_one_service_alone(kind: str, one: str, other: str) -> None:
    name_of, legal = NAMES[kind]

    assert re.fullmatch(legal, name_of(one))
    assert (name_of(one) == name_of(other)) is (one == other)


@given(service=SERVICES)
def test_a_topics_mails_have_a_sender(service: str) -> None:
    assert len(topic_display_name(service, "ticket")) <= 100


LABELS = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=128),
    max_size=4,
)


@given(service=SERVICES, labels=LABELS, stack=st.none() | st.just("alarms-1"))
@example(service="chat", labels={"cluster": "eu (blue), in us-east-1, stack x)"}, stack=None)
def test_a_boards_heading_tells_all_that_its_maker_is(
    service: str, labels: dict[str, str], stack: str | None
) -> None:
    identity = Identity(service, tuple(sorted(labels.items())))
    mark = board_mark(identity, REGION, stack)
    maker = board_maker({"widgets": [{"properties": {"markdown": f"# A heading\nx {mark}"}}]})

    assert maker is not None
    assert maker.tags.items() >= owner_tags(identity).items()
    assert maker.tags.get("aws:cloudformation:stack-name") == stack
    assert maker.region == REGION


@given(labels=LABELS)
def test_tags_are_legal_and_name_the_labels(labels: dict[str, str]) -> None:
    tags = owner_tags(Identity("chat", tuple(sorted(labels.items()))))

    assert all(re.fullmatch(r"[A-Za-z0-9 _.:/=+@-]{1,256}", value) for value in tags.values())
    assert dict(maker_of(tags).free) == {key: tag_value(value) for key, value in labels.items()}


# -- templates -------------------------------------------------------------------------------------

LONG = {
    "targets": [{"name": "a", "url": "http://a:8000", "models": ["m" * 100]}],
    "objectives": [
        {"name": "o" * 128, "sli": "availability", "target": "99.9%"},
        {"name": "o" * 127 + "p", "sli": "e2e_latency", "threshold": "1s", "target": "95%"},
    ],
}


@pytest.mark.parametrize("service", ["chat.v2", "chat:v2", "Chat_", "s" * 128])
@pytest.mark.parametrize("more", [{}, LONG], ids=["short", "long"])
def test_every_service_has_a_template(service: str, more: dict[str, Any]) -> None:
    body = body_of(config(service={"name": service}, **more))
    names = [
        Resolver(body, {}).text(one["Properties"]["AlarmName"])
        for one in body["Resources"].values()
        if "AlarmName" in one["Properties"]
    ]

    assert mistakes(body) == []
    assert max(map(len, names)) <= MAX_NAME
    assert {name.split("/")[1] for name in names} == {alarm_part(service)}
    items = wanted(body, service, Place("aws", REGION, "123456789012"))
    assert {tag for one in items for key, tag in one.tags.items() if key == "opsctl:service"} == {
        service
    }


@pytest.mark.parametrize("service", ["chat.v2", "s" * 128])
def test_every_service_is_scaled(service: str) -> None:
    resource = {**RESOURCES[1], "name": f"{'e' * 63}/{'v' * 63}", "model": "m" * 100}
    one = scaled([{**resource}])
    scaling = scaling_of(
        one.model_copy(update={"service": one.service.model_copy(update={"name": service})})
    )

    assert mistakes(scaling.body()) == []
    assert max(len(part.name) for part in scaling.parts if "alarm" in part.kind) <= MAX_NAME
    for part in scaling.parts:
        if "policy" in part.kind:
            assert re.fullmatch(r"[A-Za-z0-9_-]+", part.name)


def test_free_labels_are_tags_of_everything() -> None:
    labelled = config(
        exporter={"cloudwatch": {"sink": "put"}, "labels": {"cluster": "eu, blue"}},
        alarms={"ticket_topic": TOPIC},
    )
    for one in body_of(labelled)["Resources"].values():
        if "Tags" in one["Properties"]:
            tags = {tag["Key"]: tag["Value"] for tag in one["Properties"]["Tags"]}
            assert tags["opsctl:cluster"] == tag_value("eu, blue")
