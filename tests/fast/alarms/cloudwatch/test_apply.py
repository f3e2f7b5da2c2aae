"""plan, apply and destroy: what is compared, what is ours, and accounts that emulators keep."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cloudwatch_fleet import body_of, config
from commands import Opsctl
from hypothesis import given
from hypothesis import strategies as st
from parts.emulated_aws import REGION

from vllm_opsctl.alarms.cloudwatch.account import Pace
from vllm_opsctl.alarms.cloudwatch.changes import Plan, plan
from vllm_opsctl.alarms.cloudwatch.ownership import (
    OWNER,
    SERVICE_TAG,
    STACK_TAG,
    Owner,
    board_mark,
)
from vllm_opsctl.alarms.cloudwatch.wanted import ORDER, Item, Place, service_in, wanted
from vllm_opsctl.cli.alarms_apply import carry_out
from vllm_opsctl.errors import AwsError
from vllm_opsctl.exporter.identity import Identity

PLACE = Place("aws", REGION, "123456789012")
SHALL = wanted(body_of(config()), "chat", PLACE)
(BOARD,) = (item for item in SHALL if item.kind == "board")
OURS = {**OWNER, SERVICE_TAG: "chat"}
CHAT = Owner(Identity("chat"), REGION)


@dataclass
class InMemory:
    """An account whose things are values; everything in it has the tags that it was put with."""

    items: list[Item] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    owner: Owner = CHAT

    def tags(self, item: Item) -> dict[str, str]:
        self.asked.append(item.name)
        return dict(item.tags)

    def plan(self, shall: list[Item], *, everything: bool = False) -> Plan:
        there = [copy.deepcopy(item) for item in self.items]
        return plan(shall, there, self, self.owner, everything=everything)

    def carry_out(self, found: Plan) -> None:
        for change in found.to_do:
            names = {item.name for item in self.items}
            self.items = [one for one in self.items if one.name != change.item.name]
            if change.action == "delete":
                children = {name for item in self.items for name in item.after}
                assert change.item.name not in children, "nothing needs what goes"
            else:
                assert change.item.after <= names, "what it needs is there"
                self.items.append(change.item)


def actions(found: Plan) -> dict[str, list[str]]:
    by: dict[str, list[str]] = {}
    for change in found.changes:
        by.setdefault(change.action, []).append(change.item.name)
    return by


def one(name: str) -> Item:
    (found,) = (item for item in SHALL if item.name == name)
    return found


def changed(item: Item, **properties: Any) -> Item:
    return replace(item, properties={**item.properties, **properties})


# -- what there shall be ---------------------------------------------------------------------------


def test_everything_of_the_template_is_wanted_once() -> None:
    body = body_of(config())
    kinds = [item.kind for item in SHALL]

    assert len({(item.kind, item.name) for item in SHALL}) == len(SHALL)
    # policies are parts of their topics
    assert len(SHALL) == len(body["Resources"]) - 2
    assert kinds == sorted(kinds, key=ORDER.index)


def test_no_function_of_cloudformation_is_left() -> None:
    assert not any(mark in repr(SHALL) for mark in ("Fn::", "'Ref'", "${"))


def test_topics_and_key_are_named_before_they_are_there() -> None:
    topic = PLACE.topic_arn("chat-page")

    assert one("LLMSidecarsDown page/chat/-").properties["AlarmActions"] == [topic]
    assert one("chat-page").properties["KmsMasterKeyId"] == "alias/opsctl-chat"
    (statement,) = one("chat-page").properties["Policy"]["Statement"]
    assert statement["Resource"] == topic
    assert statement["Condition"]["ArnLike"]["aws:SourceArn"].endswith(
        f"{REGION}:123456789012:alarm:*"
    )


@pytest.mark.parametrize(
    ("name", "service"),
    [
        ("LLMModelVanished page/chat/-/org/model", "chat"),
        ("LLMSidecarsDown page/chat/-", "chat"),
        ("LLMSLOWindow burn 14.4x 1h/shop/ttft/m", "shop"),
        ("LLM alarms of somebody", None),
        ("chat/LLM", None),
    ],
)
def test_an_alarms_name_tells_its_service(name: str, service: str | None) -> None:
    assert service_in(name) == service


# -- the comparison --------------------------------------------------------------------------------


def test_all_is_new_in_an_empty_account() -> None:
    assert actions(InMemory().plan(SHALL)) == {"create": [item.name for item in SHALL]}


def test_nothing_is_done_twice_and_one_thing_is_asked_for_its_tags() -> None:
    account = InMemory(list(SHALL))
    found = account.plan(SHALL)

    assert not found.to_do
    assert {*actions(found)} == {"unchanged"}
    assert account.asked == [SHALL[0].name]


@pytest.mark.parametrize(
    ("name", "by_hand", "path"),
    [
        ("LLMSidecarsDown signal/chat/-", {"Threshold": 7.0}, "Threshold"),
        ("LLMSidecarsDown signal/chat/-", {"AlarmDescription": "?"}, "AlarmDescription"),
        ("LLMSidecarsDown page/chat/-", {"ActionsEnabled": False}, "ActionsEnabled"),
        (
            "LLMSidecarsDown page/chat/-",
            {"InsufficientDataActions": ["arn"]},
            "InsufficientDataActions",
        ),
        ("LLMSidecarsDown page/chat/-", {"ActionsSuppressor": "a"}, "ActionsSuppressor"),
        ("chat-page", {"DisplayName": "no"}, "DisplayName"),
        ("alias/opsctl-chat", {"EnableKeyRotation": False}, "EnableKeyRotation"),
    ],
)
def test_what_a_hand_changed_is_seen_and_mended(
    name: str, by_hand: Mapping[str, Any], path: str
) -> None:
    shall = one(name)
    account = InMemory([item if item is not shall else changed(item, **by_hand) for item in SHALL])
    found = account.plan(SHALL)

    (change,) = found.to_do
    assert (change.action, change.item) == ("change", shall)
    (difference,) = change.differences
    assert (difference.path, difference.is_) == (path, by_hand[path])
    account.carry_out(found)
    assert not account.plan(SHALL).to_do


def test_a_part_of_a_query_is_named() -> None:
    shall = one("LLMSLOWindow burn 14.4x 1h/chat/ttft/tiny")
    queries = copy.deepcopy(shall.properties["Metrics"])
    queries[0]["MetricStat"]["Period"] = 60
    queries[0]["MetricStat"]["Metric"]["Dimensions"].reverse()
    there = [item if item is not shall else changed(item, Metrics=queries) for item in SHALL]
    (change,) = InMemory(there).plan(SHALL).to_do

    assert [(d.path, d.is_, d.shall) for d in change.differences] == [
        ("Metrics.good.Period", 60, 3600)
    ]


def test_a_query_that_is_missing_is_told_in_one_line() -> None:
    shall = one("LLMSLOWindow burn 14.4x 1h/chat/ttft/tiny")
    there = [item if item is not shall else changed(item, Metrics=[]) for item in SHALL]
    (change,) = InMemory(there).plan(SHALL).to_do
    texts = {d.path: d.shall for d in change.differences}

    assert texts["Metrics.bad"] == "Sum of vLLM BadEvents in 3600 s"
    assert texts["Metrics.number"].startswith("IF(FILL(bad, 0) >= 5")


def test_what_the_api_adds_is_no_difference() -> None:
    added = {"AlarmArn": "arn", "StateValue": "OK", "OKActions": [], "Dimensions": []}
    there = [item if item.kind != "metric alarm" else changed(item, **added) for item in SHALL]

    assert not InMemory(there).plan(SHALL).to_do


# -- whose it is -----------------------------------------------------------------------------------

STALE = Item("metric alarm", "LLMSLOWindow burn 1x 3d/chat/gone/tiny", {"Threshold": 1.0}, OURS)


def test_what_is_no_longer_wanted_goes() -> None:
    assert actions(InMemory([*SHALL, STALE]).plan(SHALL))["delete"] == [STALE.name]


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"managed-by": "terraform"},
        {**OWNER, SERVICE_TAG: "shop"},
        {**OURS, STACK_TAG: "alarms"},
    ],
)
def test_what_is_somebody_elses_stays(tags: Mapping[str, str]) -> None:
    found = InMemory([*SHALL, replace(STALE, tags=tags)]).plan(SHALL)

    assert not found.to_do
    assert [one.name for one in found.left] == [STALE.name]


@pytest.mark.parametrize(
    ("tags", "why"),
    [({}, "not made by opsctl"), ({**OURS, STACK_TAG: "alarms"}, "CloudFormation stack alarms")],
)
def test_what_is_in_the_way_and_somebody_elses_is_told(tags: Mapping[str, str], why: str) -> None:
    shall = one("chat-page")
    theirs = replace(changed(shall, DisplayName="theirs"), tags=tags)
    found = InMemory([item if item is not shall else theirs for item in SHALL]).plan(SHALL)

    assert not found.to_do
    (change,) = found.foreign
    assert (change.item.name, why in change.why) == ("chat-page", True)


def in_the_way(tags: Mapping[str, str], owner: Owner = CHAT) -> Plan:
    """What is planned where a topic of the service's name has these tags, and nothing else differs."""
    shall = one("chat-page")
    theirs = replace(shall, tags=tags)
    account = InMemory([item if item is not shall else theirs for item in SHALL], owner=owner)
    return account.plan(SHALL)


EU = Owner(Identity("chat", (("cluster", "eu"), ("environment", "prod"))), REGION)


def test_what_belongs_to_another_service_is_refused_by_name() -> None:
    shall = one("LLMSidecarsDown signal/chat/-")
    theirs = replace(changed(shall, Threshold=9.0), tags={**OWNER, SERVICE_TAG: "shop"})
    found = InMemory([item if item is not shall else theirs for item in SHALL]).plan(SHALL)

    (change,) = found.foreign
    assert change.why == "belongs to service shop; rename or delete it there"


@pytest.mark.parametrize("owner", [CHAT, EU])
def test_another_environment_of_the_service_is_refused_though_nothing_would_change(
    owner: Owner,
) -> None:
    staging = {**OURS, "opsctl:environment": "staging"}
    account = InMemory([replace(item, tags={**item.tags, **staging}) for item in SHALL])
    account.owner = owner
    found = account.plan(SHALL)

    assert {change.item.kind for change in found.foreign} >= {"topic", "key", "metric alarm"}
    assert {change.why.partition(";")[0] for change in found.foreign} == {
        "belongs to chat (environment staging)"
    }
    emptied = account.plan([], everything=True)
    assert {change.item.kind for change in emptied.to_do} <= {"board"}


@pytest.mark.parametrize(
    ("tags", "missing"),
    [
        ({}, ["opsctl:cluster", "opsctl:environment"]),
        ({"opsctl:cluster": "eu"}, ["opsctl:environment"]),
        ({"opsctl:cluster": "eu", "opsctl:environment": "prod"}, []),
    ],
)
def test_what_has_fewer_labels_is_ours_and_gets_them(
    tags: Mapping[str, str], missing: list[str]
) -> None:
    labelled = config(exporter={"cloudwatch": {"sink": "put"}, "labels": dict(EU.identity.free)})
    shall = [item for item in wanted(body_of(labelled), "chat", PLACE) if item.kind != "board"]
    there = [
        replace(old, tags={**old.tags, **tags})
        for item in shall
        for old in SHALL
        if old.name == item.name
    ]
    found = InMemory(there, owner=EU).plan(shall)

    assert not found.foreign
    paths = {tuple(d.path for d in change.differences) for change in found.changes}
    assert paths == {tuple(f"Tags.{name}" for name in missing)}
    assert {change.action for change in found.changes} == {"change" if missing else "unchanged"}


# -- boards, which are global -----------------------------------------------------------------------


def heading(text: str) -> Item:
    """The board with another heading."""
    body = copy.deepcopy(BOARD.properties["DashboardBody"])
    body["widgets"][0]["properties"]["markdown"] = text
    return replace(BOARD, properties={"DashboardBody": body})


def made_by(identity: Identity, region: str = REGION, stack: str | None = None) -> Item:
    return heading(f"# {identity.service}: objectives\n{board_mark(identity, region, stack)}")


def by_release_0_1(service: str = "chat", region: str = REGION) -> Item:
    """The board as 0.1 wrote it."""
    found = heading(f"# {service}: objectives\nIs a promise … (written by opsctl)")
    body = json.loads(json.dumps(found.properties["DashboardBody"]).replace(REGION, region))
    return replace(found, name=f"{service}-slo", properties={"DashboardBody": body})


def test_a_board_says_itself_whose_it_is() -> None:
    found = InMemory([BOARD]).plan([])

    assert actions(found) == {"delete": ["chat-eu-central-1-slo"]}
    text = BOARD.properties["DashboardBody"]["widgets"][0]["properties"]["markdown"]
    assert text.endswith("(written by opsctl for service chat in eu-central-1)")


@pytest.mark.parametrize(
    ("board", "why"),
    [
        (heading("# Our own board"), "not made by opsctl"),
        (heading("# chat: objectives"), "not made by opsctl"),
        (made_by(Identity("chat-eu")), "belongs to service chat-eu;"),
        (made_by(Identity("chat"), "us-east-1"), "belongs to service chat in us-east-1"),
        (
            made_by(Identity("chat"), stack="alarms"),
            "belongs to the CloudFormation stack alarms",
        ),
        (
            made_by(Identity("chat", (("environment", "staging"),))),
            "belongs to chat (environment staging);",
        ),
        (
            replace(by_release_0_1("chat-eu-central-1"), name=BOARD.name),
            "belongs to service chat-eu-central-1, by its name in 0.1",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_board_of_somebody_else_is_refused_and_never_deleted(board: Item, why: str) -> None:
    found = InMemory([item if item is not BOARD else board for item in SHALL]).plan(SHALL)

    (change,) = found.foreign
    assert (change.item.name, why in change.why) == (BOARD.name, True)
    emptied = InMemory([board]).plan([], everything=True)
    assert not emptied.to_do
    assert why in emptied.left[0].why


def test_a_stacks_board_that_is_the_same_is_no_difference() -> None:
    text = json.dumps(BOARD.properties["DashboardBody"])
    stacks = json.loads(text.replace("in eu-central-1)", "in eu-central-1, stack alarms)"))
    there = [
        item if item is not BOARD else replace(BOARD, properties={"DashboardBody": stacks})
        for item in SHALL
    ]

    assert not InMemory(there).plan(SHALL).to_do
    assert not InMemory(there).plan(SHALL).foreign


def test_0_1s_board_gets_its_new_name_and_nothing_is_left() -> None:
    account = InMemory([*(item for item in SHALL if item is not BOARD), by_release_0_1()])
    found = account.plan(SHALL)

    created, deleted = found.to_do
    assert (created.action, created.item, created.was) == ("create", BOARD, "chat-slo")
    assert (deleted.action, deleted.item.name) == ("delete", "chat-slo")
    assert deleted.why == "renamed to chat-eu-central-1-slo"
    account.carry_out(found)
    assert not account.plan(SHALL).to_do
    both = InMemory([*SHALL, by_release_0_1()])
    assert actions(both.plan(SHALL))["delete"] == ["chat-slo"], "an apply that was interrupted"
    boards = {c.item.name for c in both.plan([], everything=True).to_do if c.item.kind == "board"}
    assert boards == {"chat-slo", "chat-eu-central-1-slo"}


STACKS = {**OURS, STACK_TAG: "alarms"}


@pytest.mark.parametrize(
    ("old", "tags", "why"),
    [
        (by_release_0_1(region="us-east-1"), OURS, "belongs to service chat in us-east-1"),
        (by_release_0_1(), STACKS, "belongs to the CloudFormation stack alarms"),
        (replace(by_release_0_1("chat-eu"), name="chat-slo"), OURS, "belongs to service chat-eu"),
        (replace(made_by(Identity("x")), name="chat-slo"), OURS, "belongs to service x"),
        (replace(heading("# Ours"), name="chat-slo"), OURS, "not made by opsctl"),
    ],
)
def test_0_1s_name_is_left_to_whom_its_board_belongs(
    old: Item, tags: Mapping[str, str], why: str
) -> None:
    class Tagged(InMemory):
        def tags(self, item: Item) -> dict[str, str]:
            return dict(tags)

    account = Tagged([*(item for item in SHALL if item is not BOARD), old])
    found = account.plan(SHALL)

    (change,) = [one for one in found.to_do if one.item.kind == "board"]
    assert (change.action, change.item.name, change.was) == ("create", BOARD.name, "")
    (left,) = [one for one in found.left if one.name == "chat-slo"]
    assert why in left.why


def test_0_1s_names_of_a_long_service_are_renamed_and_its_topics_stay_for_their_subscribers() -> (
    None
):
    long = config(service={"name": "c" * 70})
    shall = wanted(body_of(long), "c" * 70, PLACE)
    old = [replace(item, name=item.was, was="") for item in shall if item.kind != "board"]
    account = InMemory(old, owner=Owner(Identity("c" * 70), REGION))
    found = account.plan(shall)

    alarms = [item for item in shall if "alarm" in item.kind]
    assert {c.was for c in found.to_do if c.action == "create"} >= {item.was for item in alarms}
    assert {c.item.name for c in found.to_do if c.action == "delete"} == {i.was for i in alarms}
    assert [one.name for one in found.left] == [
        f"{'c' * 70}-ticket",
        f"{'c' * 70}-page",
        f"alias/opsctl-{'c' * 70}",
    ]
    assert "move its subscriptions there" in found.left[0].why
    everything = account.plan([], everything=True)
    assert {c.item.name for c in everything.to_do} == {item.name for item in old}


def test_topics_stay_until_everything_goes() -> None:
    account = InMemory(list(SHALL))

    kinds = {change.item.kind for change in account.plan([]).to_do}
    assert kinds == {"metric alarm", "composite alarm", "board"}
    everything = account.plan([], everything=True)
    assert {change.action for change in everything.changes} == {"delete"}
    assert len(everything.changes) == len(SHALL)
    account.carry_out(everything)
    assert account.items == []


@given(st.sets(st.integers(0, len(SHALL) - 1)), st.sets(st.integers(0, len(SHALL) - 1)))
def test_from_anything_one_apply_is_enough(there: set[int], wanted_too: set[int]) -> None:
    account = InMemory([SHALL[index] for index in sorted(there)])
    shall = [
        item
        for index, item in enumerate(SHALL)
        if item.kind in ("key", "topic", "metric alarm") or index in wanted_too
    ]
    names = {item.name for item in shall}
    shall = [item for item in shall if item.after <= names]
    account.carry_out(account.plan(shall))

    assert not account.plan(shall).to_do


# -- requests --------------------------------------------------------------------------------------


def test_requests_are_a_third_of_a_second_apart() -> None:
    now, at = [100.0], []

    def sleep(seconds: float) -> None:
        now[0] += seconds

    pace = Pace(3.0, lambda: now[0], sleep)
    for took in (0.0, 0.0, 5.0, 0.0, 0.1):
        pace.wait()
        at.append(now[0])
        now[0] += took

    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert gaps == pytest.approx([1 / 3, 1 / 3, 5.0, 1 / 3])


CONFIG = """
service: {name: shop}
targets: [{name: shop-0, url: "http://shop-0:8000", models: [tiny]}]
objectives: [{name: availability, sli: availability, target: 99.9%}]
exporter: {cloudwatch: {sink: put, region: eu-central-1}}
"""


@pytest.fixture
def shop(tmp_path: Path) -> str:
    path = tmp_path / "opsctl.yaml"
    path.write_text(CONFIG)
    return str(path)


def test_models_that_no_target_names_are_asked_for(opsctl: Opsctl, tmp_path: Path) -> None:
    path = tmp_path / "opsctl.yaml"
    path.write_text(CONFIG.replace(", models: [tiny]", ""))
    ran = opsctl.run("--config", str(path), "alarms", "plan")

    assert ran.returncode == 64
    assert "--model" in ran.stderr


def test_without_credentials_it_is_said(opsctl: Opsctl, shop: str, tmp_path: Path) -> None:
    env = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }
    ran = opsctl.run("--config", shop, "alarms", "plan", env=env)

    assert ran.returncode == 3
    assert "no AWS credentials" in ran.stderr


def test_an_interrupted_apply_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    class Throttled(InMemory):
        def put(self, item: Item, *, new: bool) -> None:
            if len(self.items) == 2:
                raise AwsError("cloudwatch:PutMetricAlarm: throttled")
            self.items.append(item)

        def delete(self, item: Item) -> None:
            self.items.remove(item)

    account = Throttled()
    with pytest.raises(AwsError) as told:
        carry_out(account, account.plan(SHALL))

    assert f"topic {SHALL[2].name}: cloudwatch:PutMetricAlarm: throttled" in str(told.value)
    assert f"2 of {len(SHALL)} changes were made" in str(told.value)
    assert capsys.readouterr().out.count("created") == 2
