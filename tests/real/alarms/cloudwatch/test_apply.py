"""plan, apply and destroy on accounts that emulators keep."""

from __future__ import annotations

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

from vllm_opsctl.alarms.cloudwatch.account import SERVICE_TAG, Account, Pace
from vllm_opsctl.alarms.cloudwatch.changes import plan
from vllm_opsctl.alarms.cloudwatch.wanted import Item, Place, wanted

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
