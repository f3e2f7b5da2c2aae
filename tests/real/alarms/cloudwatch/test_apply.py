"""plan, apply and destroy on accounts that emulators keep."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cloudwatch_fleet import body_of, config
from commands import Opsctl
from parts.emulated_aws import REGION, EmulatedAws, Emulator
from parts.emulated_cloudwatch import EmulatedCloudWatch
from ports import reserve_port

from vllm_opsctl.alarms.cloudwatch.account import Account, Pace
from vllm_opsctl.alarms.cloudwatch.changes import plan
from vllm_opsctl.alarms.cloudwatch.ownership import SERVICE_TAG, STACK_TAG, Owner, board_mark
from vllm_opsctl.alarms.cloudwatch.wanted import Item, Place, wanted
from vllm_opsctl.alarms.resource_names import topic_name
from vllm_opsctl.exporter.identity import Identity

CHAT = Owner(Identity("chat"), REGION)
PLACE = Place("aws", REGION, "123456789012")
SHALL = wanted(body_of(config()), "chat", PLACE)


def one(name: str) -> Item:
    (found,) = (item for item in SHALL if item.name == name)
    return found


def changed(item: Item, **properties: Any) -> Item:
    return replace(item, properties={**item.properties, **properties})


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedAws]:
    aws = EmulatedAws(tmp_path_factory.mktemp("moto"), reserve_port())
    aws.start()
    yield aws
    aws.stop()


@pytest.fixture
def ministack(part: Callable[[str], Path], tmp_path: Path) -> Iterator[EmulatedCloudWatch]:
    aws = EmulatedCloudWatch(part("ministack"), tmp_path, reserve_port())
    aws.start()
    yield aws
    aws.stop()


def account_of(aws: Emulator, monkeypatch: pytest.MonkeyPatch) -> Account:
    for name, value in aws.env.items():
        monkeypatch.setenv(name, value)
    return Account(REGION, pace=Pace(1000), reading=Pace(1000))


def put_all(account: Account, items: list[Item]) -> None:
    for change in plan(items, account.of_service("chat"), account, CHAT).to_do:
        account.put(change.item, new=change.action == "create")


def delete_all(account: Account) -> None:
    for change in plan([], account.of_service("chat"), account, CHAT, everything=True).to_do:
        account.delete(change.item)


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

    again = plan(shall, account.of_service("chat"), account, CHAT)
    assert [(c.item.name, c.differences) for c in again.to_do] == []
    by_hand = one("LLMSidecarsDown signal/chat/-")
    account.put(changed(by_hand, Threshold=3.0), new=False)
    (change,) = plan(shall, account.of_service("chat"), account, CHAT).to_do
    assert [d.path for d in change.differences] == ["Threshold"]
    assert account.tags(by_hand)[SERVICE_TAG] == "chat"
    # Moto is shared
    delete_all(account)


def test_composites_are_read_as_they_were_put(
    ministack: EmulatedCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MiniStack knows them; it forgets their suppressors, and what metric alarms watch."""
    account = account_of(ministack, monkeypatch)
    shall = wanted(body_of(config()), "chat", account.place)
    put_all(account, shall)

    again = plan(shall, account.of_service("chat"), account, CHAT)
    heads = {d.path.partition(".")[0] for change in again.to_do for d in change.differences}
    suppressor = "ActionsSuppressor"
    assert heads == {
        "Metrics",
        suppressor,
        f"{suppressor}WaitPeriod",
        f"{suppressor}ExtensionPeriod",
    }
    delete_all(account)
    assert list(account.of_service("chat")) == []


def test_what_lacks_labels_is_tagged_with_them(
    moto: EmulatedAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alarms, topics and key, as they were put by a configuration without labels."""
    account = account_of(moto, monkeypatch)
    settings = {"sink": "put", "region": REGION}
    kinds = ("metric alarm", "topic", "key")
    plain, labelled = (
        [item for item in wanted(body_of(one), "tagged", account.place) if item.kind in kinds]
        for one in (
            config(service={"name": "tagged"}, exporter={"cloudwatch": settings}),
            config(
                service={"name": "tagged"},
                exporter={"cloudwatch": settings, "labels": {"cluster": "eu"}},
            ),
        )
    )
    for item in plain:
        account.put(item, new=True)
    owner = Owner(Identity("tagged", (("cluster", "eu"),)), REGION)
    found = plan(labelled, account.of_service("tagged"), account, owner)
    assert len(found.to_do) == len(labelled)
    for change in found.to_do:
        account.put(change.item, new=False)

    assert not plan(labelled, account.of_service("tagged"), account, owner).to_do
    without = Owner(Identity("tagged"), REGION)
    foreign = plan(plain, account.of_service("tagged"), account, without).foreign
    assert len(foreign) == len(plain)
    assert foreign[0].why.startswith("belongs to tagged (cluster eu);")


# -- dashboards, which all regions share -----------------------------------------------------------


def boards(aws: Emulator) -> set[str]:
    entries = aws.client("cloudwatch").list_dashboards()["DashboardEntries"]
    return {one["DashboardName"] for one in entries}


def board_of(service: str, region: str = REGION) -> Item:
    items = wanted(
        body_of(config(service={"name": service})),
        service,
        Place("aws", region, "123456789012"),
    )
    (found,) = (item for item in items if item.kind == "board")
    return found


def put_board(aws: Emulator, name: str, body: dict[str, Any]) -> None:
    cloudwatch = aws.client("cloudwatch")
    cloudwatch.put_dashboard(DashboardName=name, DashboardBody=json.dumps(body))


def heading(item: Item, text: str) -> dict[str, Any]:
    body: dict[str, Any] = copy.deepcopy(dict(item.properties["DashboardBody"]))
    body["widgets"][0]["properties"]["markdown"] = text
    return body


@pytest.fixture(params=["moto", "ministack"])
def boards_only(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Emulator, Account]]:
    aws: Emulator = request.getfixturevalue(request.param)
    yield aws, account_of(aws, monkeypatch)
    names = sorted(boards(aws))
    if names:
        aws.client("cloudwatch").delete_dashboards(DashboardNames=names)


def test_a_services_board_is_its_own_in_its_region_alone(
    boards_only: tuple[Emulator, Account],
) -> None:
    aws, account = boards_only
    others = [board_of("chat-eu"), board_of("chat", "us-east-1"), board_of("cha")]
    old_of_other = "chat-eu-slo"
    put_board(aws, old_of_other, heading(others[0], "# chat-eu: objectives\n(written by opsctl)"))
    for item in (board_of("chat"), *others):
        account.put(item, new=True)
    before = boards(aws)
    there = [item.name for item in account.of_service("chat") if item.kind == "board"]
    assert there == ["chat-eu-central-1-slo"]

    emptied = plan([], account.of_service("chat"), account, CHAT, everything=True)
    for change in emptied.to_do:
        account.delete(change.item)
    assert boards(aws) == before - {"chat-eu-central-1-slo"}
    assert before >= {"chat-us-east-1-slo", "chat-eu-eu-central-1-slo", old_of_other}


def old_board() -> dict[str, Any]:
    return heading(board_of("chat"), "# chat: objectives\nA text (written by opsctl)")


def test_0_1s_board_is_renamed(boards_only: tuple[Emulator, Account]) -> None:
    aws, account = boards_only
    put_board(aws, "chat-slo", old_board())
    renamed = plan([board_of("chat")], account.of_service("chat"), account, CHAT)
    assert [(c.action, c.item.name, c.was) for c in renamed.to_do] == [
        ("create", "chat-eu-central-1-slo", "chat-slo"),
        ("delete", "chat-slo", ""),
    ]

    for change in renamed.to_do:
        if change.action == "delete":
            account.delete(change.item)
        else:
            account.put(change.item, new=True)
    assert boards(aws) == {"chat-eu-central-1-slo"}


def test_0_1s_board_of_a_stack_is_left(moto: EmulatedAws, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its alarms say so. MiniStack refuses tags that begin with aws:, as AWS does to anyone else."""
    account = account_of(moto, monkeypatch)
    body = old_board()
    put_board(moto, "chat-slo", body)
    alarms = next(w["properties"] for w in body["widgets"] if w["type"] == "alarm")["alarms"]
    stacks = replace(
        one("LLMSidecarsDown signal/chat/-"),
        name=alarms[0].partition(":alarm:")[2],
        tags={"managed-by": "opsctl", SERVICE_TAG: "chat", STACK_TAG: "alarms"},
    )
    account.put(stacks, new=True)
    found = plan([board_of("chat")], account.of_service("chat"), account, CHAT)

    (created,) = [change for change in found.to_do if change.item.kind == "board"]
    assert (created.action, created.was) == ("create", "")
    assert {one.why for one in found.left if one.name in ("chat-slo", stacks.name)} == {
        "belongs to the CloudFormation stack alarms; deploy the template there, or delete the stack"
    }


def test_another_board_of_the_name_is_refused(boards_only: tuple[Emulator, Account]) -> None:
    aws, account = boards_only
    shall = [board_of("chat")]
    for text, why in (
        ("# Ours", "not made by opsctl"),
        (
            f"# chat: objectives\n{board_mark(CHAT.identity, REGION, 'alarms')}",
            "belongs to the CloudFormation stack alarms",
        ),
        (
            "# chat-eu-central-1: objectives\nA text (written by opsctl)",
            "belongs to service chat-eu-central-1",
        ),
    ):
        body = heading(shall[0], text)
        body["widgets"].pop()
        put_board(aws, shall[0].name, body)
        (change,) = plan(shall, account.of_service("chat"), account, CHAT).foreign
        assert why in change.why


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
    assert last == f"created board shop-eu-central-1-slo ({total} of {total})"
    assert stranger in applied.stdout.replace("\n", " ")

    destroyed = opsctl.run("--config", shop, "alarms", "destroy", "--yes", env=env)
    assert destroyed.returncode == 0, destroyed.stderr
    left = cloudwatch.describe_alarms(AlarmTypes=["MetricAlarm", "CompositeAlarm"])
    assert [one["AlarmName"] for one in left["CompositeAlarms"]] == [stranger]
    assert left["MetricAlarms"] == []
    assert ministack.client("sns").list_topics()["Topics"] == []


UPGRADED = CONFIG.replace("name: shop}", "name: chat.v2}")


def test_a_service_with_a_dot_is_applied_and_destroyed(
    ministack: EmulatedCloudWatch, opsctl: Opsctl, tmp_path: Path
) -> None:
    path = tmp_path / "opsctl.yaml"
    path.write_text(UPGRADED)
    env = dict(ministack.env)
    built = opsctl.run(
        *("--config", str(path), "alarms", "build", "--to", "cloudwatch"),
        *("--out", str(tmp_path / "out")),
    )
    assert built.returncode == 0, built.stderr

    applied = opsctl.run("--config", str(path), "alarms", "apply", "--yes", env=env)
    assert applied.returncode == 0, applied.stderr
    assert boards(ministack) == {f"{legal_name('chat.v2')}-eu-central-1-slo"}
    topics = ministack.client("sns").list_topics()["Topics"]
    assert {one["TopicArn"].rpartition(":")[2] for one in topics} == {
        f"{legal_name('chat.v2')}-{way}" for way in ("page", "ticket")
    }
    destroyed = opsctl.run("--config", str(path), "alarms", "destroy", "--yes", env=env)
    assert destroyed.returncode == 0, destroyed.stderr
    assert boards(ministack) == set()


def legal_name(service: str) -> str:
    return topic_name(service, "page").removesuffix("-page")


def test_the_command_renames_0_1s_board_and_says_so(
    ministack: EmulatedCloudWatch, opsctl: Opsctl, shop: str
) -> None:
    env = dict(ministack.env)
    board = board_of("shop")
    put_board(
        ministack, "shop-slo", heading(board, "# shop: objectives\nA text (written by opsctl)")
    )

    planned = opsctl.run("--config", shop, "alarms", "plan", env=env)
    assert "+ board shop-eu-central-1-slo\n    name: shop-slo -> shop-eu-central-1-slo\n" in (
        planned.stdout
    )
    assert "- board shop-slo\n    renamed to shop-eu-central-1-slo\n" in planned.stdout
    answer = opsctl.run("--config", shop, "alarms", "plan", "-o", "json", env=env)
    was = {one["name"]: one["was"] for one in json.loads(answer.stdout)["changes"]}
    assert was["shop-eu-central-1-slo"] == "shop-slo"
    assert {was[name] for name in was if name != "shop-eu-central-1-slo"} == {None}

    applied = opsctl.run("--config", shop, "alarms", "apply", "--yes", env=env)
    assert applied.returncode == 0, applied.stderr
    assert boards(ministack) == {"shop-eu-central-1-slo"}


def test_another_environment_of_the_service_is_refused(
    ministack: EmulatedCloudWatch, opsctl: Opsctl, tmp_path: Path
) -> None:
    def of(environment: str) -> str:
        path = tmp_path / f"{environment}.yaml"
        labels = f"exporter: {{labels: {{environment: {environment}}}, cloudwatch:"
        path.write_text(CONFIG.replace("exporter: {cloudwatch:", labels))
        return str(path)

    env = dict(ministack.env)
    first = opsctl.run("--config", of("staging"), "alarms", "apply", "--yes", env=env)
    assert first.returncode == 0, first.stderr
    refused = opsctl.run("--config", of("prod"), "alarms", "apply", "--yes", env=env)
    assert refused.returncode == 1
    assert "belongs to shop (environment staging); give one of the two a service.name" in (
        " ".join(refused.stdout.split())
    )
    left = opsctl.run("--config", of("prod"), "alarms", "destroy", "--yes", env=env)
    assert (left.returncode, "0 to delete" in left.stdout) == (0, True)
    assert boards(ministack) == {"shop-eu-central-1-slo"}
