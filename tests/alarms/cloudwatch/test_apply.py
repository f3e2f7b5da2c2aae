"""plan, apply and destroy: what is compared, what is ours, and accounts that emulators keep."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cloudwatch_fleet import body_of, config
from conftest import Opsctl, free_port
from hypothesis import given
from hypothesis import strategies as st
from real.emulated_aws import REGION, EmulatedAws, Emulator
from real.emulated_cloudwatch import EmulatedCloudWatch

from vllm_opsctl.alarms.cloudwatch.account import OWNER, SERVICE_TAG, STACK_TAG, Account, Pace
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


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedAws]:
    aws = EmulatedAws(tmp_path_factory.mktemp("moto"), free_port())
    aws.start()
    yield aws
    aws.stop()


@pytest.fixture
def ministack(part: Callable[[str], Path], tmp_path: Path) -> Iterator[EmulatedCloudWatch]:
    aws = EmulatedCloudWatch(part("ministack"), tmp_path, free_port())
    aws.start()
    yield aws
    aws.stop()


def account_of(aws: Emulator, monkeypatch: pytest.MonkeyPatch) -> Account:
    for name, value in aws.env.items():
        monkeypatch.setenv(name, value)
    return Account(REGION, pace=Pace(1000), reading=Pace(1000))


def put_all(account: Account, items: list[Item]) -> None:
    for change in plan(items, account.of_service("chat"), account, "chat").to_do:
        account.put(change.item, new=change.action == "create")


def test_metric_alarms_topics_and_key_are_read_as_they_were_put(
    moto: EmulatedAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moto knows no composites."""
    account = account_of(moto, monkeypatch)
    shall = [
        item
        for item in wanted(body_of(config()), "chat", account.place)
        if item.kind != "composite alarm"
    ]
    put_all(account, shall)

    again = plan(shall, account.of_service("chat"), account, "chat")
    assert [(c.item.name, c.differences) for c in again.to_do] == []
    by_hand = one("LLMSidecarsDown signal/chat/-")
    account.put(changed(by_hand, Threshold=3.0), new=False)
    (change,) = plan(shall, account.of_service("chat"), account, "chat").to_do
    assert [d.path for d in change.differences] == ["Threshold"]
    assert account.tags(by_hand)[SERVICE_TAG] == "chat"


def test_composites_are_read_as_they_were_put(
    ministack: EmulatedCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MiniStack knows them; it forgets their suppressors, and what metric alarms watch."""
    account = account_of(ministack, monkeypatch)
    shall = wanted(body_of(config()), "chat", account.place)
    put_all(account, shall)

    again = plan(shall, account.of_service("chat"), account, "chat")
    heads = {d.path.partition(".")[0] for change in again.to_do for d in change.differences}
    suppressor = "ActionsSuppressor"
    assert heads == {
        "Metrics",
        suppressor,
        f"{suppressor}WaitPeriod",
        f"{suppressor}ExtensionPeriod",
    }
    for change in plan([], account.of_service("chat"), account, "chat", everything=True).to_do:
        account.delete(change.item)
    assert list(account.of_service("chat")) == []


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


def test_an_account_is_filled_and_emptied_and_nothing_else_is_touched(
    ministack: EmulatedCloudWatch, opsctl: Opsctl, shop: str
) -> None:
    cloudwatch = ministack.client("cloudwatch")
    stranger = "LLMSLOWindow of a colleague/shop/x"
    cloudwatch.put_composite_alarm(AlarmName=stranger, AlarmRule="FALSE")
    env = dict(ministack.env)

    planned = opsctl.run("--config", shop, "alarms", "plan", "--check", env=env)
    assert planned.returncode == 1
    assert "+ topic shop-page" in planned.stdout
    refused = opsctl.run("--config", shop, "alarms", "apply", env=env)
    assert (refused.returncode, "--yes" in refused.stderr) == (64, True)
    assert len(cloudwatch.describe_alarms()["MetricAlarms"]) == 0

    applied = opsctl.run("--config", shop, "alarms", "apply", "--yes", env=env)
    assert applied.returncode == 0, applied.stderr
    last = applied.stdout.splitlines()[-1]
    total = last.rpartition(" of ")[2].rstrip(")")
    assert last == f"created board shop-slo ({total} of {total})"
    assert stranger in applied.stdout.replace("\n", " ")

    destroyed = opsctl.run("--config", shop, "alarms", "destroy", "--yes", env=env)
    assert destroyed.returncode == 0, destroyed.stderr
    left = cloudwatch.describe_alarms(AlarmTypes=["MetricAlarm", "CompositeAlarm"])
    assert [one["AlarmName"] for one in left["CompositeAlarms"]] == [stranger]
    assert left["MetricAlarms"] == []
    assert ministack.client("sns").list_topics()["Topics"] == []


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
