"""``opsctl alarms test --to cloudwatch``: a drill arrives, each broken link is named; by MiniStack."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cloudwatch_fleet import body_of, config
from commands import Opsctl
from parts.emulated_aws import REGION
from parts.emulated_cloudwatch import EmulatedCloudWatch
from ports import reserve_port

from vllm_opsctl.alarms.cloudwatch.account import Account, Pace
from vllm_opsctl.alarms.cloudwatch.wanted import Item, wanted

CONFIG = """
service: {name: chat}
targets: [{name: chat-0, url: "http://chat-0:8000", models: [tiny]}]
objectives:
  - {name: availability, sli: availability, target: 99.9%}
  - {name: ttft, sli: time_to_first_token, threshold: 1s, target: 95%}
exporter: {cloudwatch: {sink: put, region: eu-central-1}}
"""


@dataclass
class Site:
    """An account with the alarms of CONFIG in it, and the command."""

    aws: EmulatedCloudWatch
    account: Account
    items: list[Item]
    opsctl: Opsctl
    file: Path

    def topic(self, way: str) -> str:
        return self.account.place.topic_arn(f"chat-{way}")

    def subscribe(self, way: str) -> None:
        queue = self.aws.client("sqs").create_queue(QueueName=f"on-call-{way}")["QueueUrl"]
        arn = self.aws.client("sqs").get_queue_attributes(
            QueueUrl=queue, AttributeNames=["QueueArn"]
        )
        self.aws.client("sns").subscribe(
            TopicArn=self.topic(way), Protocol="sqs", Endpoint=arn["Attributes"]["QueueArn"]
        )

    def drill(self, *options: str) -> tuple[int, list[dict[str, Any]]]:
        """Exit code and links."""
        command = ("alarms", "test", "--to", "cloudwatch", "-o", "json", *options)
        ran = self.opsctl.run("--config", str(self.file), *command, env=dict(self.aws.env))
        return ran.returncode, json.loads(ran.stdout)["steps"]

    def alarms(self) -> set[str]:
        return {item.name for item in self.account.of_service("chat") if "alarm" in item.kind}


@pytest.fixture
def site(
    part: Callable[[str], Path],
    opsctl: Opsctl,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    aws = EmulatedCloudWatch(part("ministack"), tmp_path, reserve_port())
    aws.start()
    for name, value in aws.env.items():
        monkeypatch.setenv(name, value)
    account = Account(REGION, pace=Pace(1000), reading=Pace(1000))
    items = wanted(body_of(config()), "chat", account.place)
    for item in items:
        account.put(item, new=True)
    file = tmp_path / "opsctl.yaml"
    file.write_text(CONFIG)
    yield Site(aws, account, items, opsctl, file)
    aws.stop()


def failed(steps: list[dict[str, Any]]) -> dict[str, str]:
    return {step["link"]: step["text"] for step in steps if step["state"] == "failed"}


def test_a_drill_arrives_and_leaves_nothing_behind(site: Site) -> None:
    site.subscribe("page")
    before = site.alarms()
    code, steps = site.drill()

    assert (code, failed(steps)) == (0, {})
    assert [step["link"] for step in steps] == ["alarms", "subscribers", "CloudWatch", "delivery"]
    assert "LLMDrill page/chat/" in steps[-1]["text"]
    assert site.alarms() == before
    queues = site.aws.client("sqs").list_queues().get("QueueUrls", [])
    assert [url.rpartition("/")[2] for url in queues] == ["on-call-page"]
    subscriptions = site.aws.client("sns").list_subscriptions_by_topic(TopicArn=site.topic("page"))
    assert len(subscriptions["Subscriptions"]) == 1


def test_a_topic_that_nobody_hears_is_named(site: Site) -> None:
    site.subscribe("page")
    code, steps = site.drill("--notify", "ticket")

    assert code == 1
    assert "nobody hears of chat-ticket" in failed(steps)["subscribers"]


def test_an_alarm_that_is_gone_and_one_that_is_mute_are_named(site: Site) -> None:
    site.subscribe("page")
    gone = next(i for i in site.items if i.name.startswith("LLMSidecarsDown page"))
    site.account.delete(gone)
    cloudwatch = site.aws.client("cloudwatch")
    mute = "LLMModelVanished page/chat/-/tiny"
    cloudwatch.disable_alarm_actions(AlarmNames=[mute])
    code, steps = site.drill()

    assert code == 1
    texts = [step["text"] for step in steps if step["link"] == "alarms"]
    assert any("1 of 5 that notify are not there: LLMSidecarsDown page/chat/-" in t for t in texts)
    assert any(f"actions of {mute} are disabled" in text for text in texts)


def test_another_environments_subscribers_hear_of_no_drill(site: Site) -> None:
    site.subscribe("page")
    labels = "exporter: {labels: {environment: staging}, cloudwatch:"
    site.file.write_text(CONFIG.replace("exporter: {cloudwatch:", labels))
    for item in site.items:
        if "alarm" in item.kind:
            tags = {**item.tags, "opsctl:environment": "prod"}
            site.account.put(replace(item, tags=tags), new=False)
    code, steps = site.drill()

    assert (code, [step["link"] for step in steps]) == (1, ["alarms"])
    assert "belongs to chat (environment prod)" in steps[0]["text"]


def test_a_drill_of_a_service_with_a_dot(site: Site) -> None:
    site.file.write_text(CONFIG.replace("name: chat}", "name: chat.v2}"))
    dotted = config(service={"name": "chat.v2"})
    for item in wanted(body_of(dotted), "chat.v2", site.account.place):
        site.account.put(item, new=True)
    before = {item.name for item in site.account.of_service("chat.v2")} | site.alarms()
    code, steps = site.drill()

    assert "LLMDrill page/chat.v2/" in " ".join(step["text"] for step in steps)
    assert "nobody hears of chat-v2-" in failed(steps)["subscribers"]
    after = {item.name for item in site.account.of_service("chat.v2")} | site.alarms()
    assert (code, after) == (1, before)


def test_an_account_without_alarms_pages_nobody(site: Site) -> None:
    for item in reversed(site.items):
        site.account.delete(item)
    code, steps = site.drill()

    assert code == 1
    assert "nobody hears of a page" in failed(steps)["topic"]


def test_options_of_prometheus_are_refused(site: Site) -> None:
    ran = site.opsctl.run(
        *("--config", str(site.file), "alarms", "test", "--to", "cloudwatch"),
        *("--alertmanager", "http://127.0.0.1:1"),
    )

    assert ran.returncode == 64
    assert "--alertmanager belongs to --to prometheus" in ran.stderr
