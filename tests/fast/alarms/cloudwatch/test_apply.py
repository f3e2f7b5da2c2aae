"""plan, apply and destroy: what is compared, what is ours, and accounts that emulators keep."""

from __future__ import annotations

import copy
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

from vllm_opsctl.alarms.cloudwatch.account import OWNER, SERVICE_TAG, STACK_TAG, Pace
from vllm_opsctl.alarms.cloudwatch.changes import Plan, plan
from vllm_opsctl.alarms.cloudwatch.wanted import ORDER, Item, Place, service_in, wanted
from vllm_opsctl.cli.alarms_apply import carry_out
from vllm_opsctl.errors import AwsError

PLACE = Place("aws", REGION, "123456789012")
SHALL = wanted(body_of(config()), "chat", PLACE)
(BOARD,) = (item for item in SHALL if item.kind == "board")
OURS = {**OWNER, SERVICE_TAG: "chat"}


@dataclass
class InMemory:
    """An account whose things are values; everything in it has the tags that it was put with."""

    items: list[Item] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def tags(self, item: Item) -> dict[str, str]:
        self.asked.append(item.name)
        return dict(item.tags)

    def plan(self, shall: list[Item], *, everything: bool = False) -> Plan:
        there = [copy.deepcopy(item) for item in self.items]
        return plan(shall, there, self, "chat", everything=everything)

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


def test_nothing_is_done_twice_and_no_tags_are_asked_for() -> None:
    account = InMemory(list(SHALL))
    found = account.plan(SHALL)

    assert not found.to_do
    assert {*actions(found)} == {"unchanged"}
    assert account.asked == []


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
    assert found.left == (STALE.name,)


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


def test_a_board_says_itself_whose_it_is() -> None:
    theirs = replace(BOARD, name="chat-mine", properties={"DashboardBody": {"widgets": []}})
    found = InMemory([BOARD, theirs]).plan([])

    assert actions(found) == {"delete": ["chat-slo"]}
    assert found.left == ("chat-mine",)


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
