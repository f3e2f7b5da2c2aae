"""Drills: a page goes from the rules to a subscriber, and a broken link is named. Real servers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Opsctl
from loopback import wait_for
from parts.paging import Paging, paging
from parts.prometheus import RealPrometheus
from ports import reserve_port

from vllm_opsctl.alarms.pager_api import AlertmanagerApi
from vllm_opsctl.exporter.yaml_text import read_yaml

SETTINGS: dict[str, Any] = {
    "service": {"name": "shop"},
    "objectives": [{"name": "availability", "sli": "availability", "target": "99.9%"}],
}


@pytest.fixture(scope="module")
def chain(
    part: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Paging]:
    """Prometheus, Alertmanager and an emulated SNS; nothing is scraped but the watchdog fires."""
    folder = tmp_path_factory.mktemp("chain")
    with paging(folder, part, Opsctl(), SETTINGS, scale="1/60", scrape={}) as running:
        api = AlertmanagerApi(running.alertmanager.url)
        wait_for(lambda: bool(api.held(alertname="LLMWatchdog")), timeout_s=60, what="the watchdog")
        yield running


class Drills:
    """Runs drills on a chain."""

    def __init__(self, chain: Paging, opsctl: Opsctl, folder: Path) -> None:
        self.chain, self._opsctl, self._folder = chain, opsctl, folder

    def run(
        self, *arguments: str, env: dict[str, str] | None = None, **alarms: Any
    ) -> subprocess.CompletedProcess[str]:
        """One drill; keys of ``alarms`` replace those of the chain."""
        settings = read_yaml(self.chain.config.read_text())
        settings["alarms"] |= alarms
        config = self._folder / "opsctl.yaml"
        config.write_text(yaml.safe_dump(settings))
        every = {**self.chain.aws.env, **(env or {})}
        command = ("--config", str(config), "alarms", "test", "--timeout", "20s", *arguments)
        return self._opsctl.run(*command, env=every)

    def failed(self, *arguments: str, **alarms: Any) -> dict[str, str]:
        """The failed links of a drill, with what is said of them."""
        ran = self.run(*arguments, "-o", "json", **alarms)
        found = json.loads(ran.stdout)
        failed = {s["link"]: s["text"] for s in found["steps"] if s["state"] == "failed"}
        assert (ran.returncode, found["arrives"]) == (int(bool(failed)), not failed)
        return failed


@pytest.fixture
def drills(chain: Paging, opsctl: Opsctl, tmp_path: Path) -> Drills:
    """Drills on the chain."""
    return Drills(chain, opsctl, tmp_path)


def queues(chain: Paging) -> list[str]:
    answer = chain.aws.client("sqs").list_queues(QueueNamePrefix="opsctl-drill")
    urls: list[str] = answer.get("QueueUrls", [])
    return urls


def test_a_drill_arrives_and_says_that_it_is_one(drills: Drills) -> None:
    ran = drills.run()
    heard = drills.chain.on_call.receive(within_s=20)
    after = drills.chain.on_call.receive(within_s=20)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1].startswith("A page arrives")
    assert heard is not None
    assert "LLMDrill drill-nothing-is-wrong" in heard.subject
    assert "DRILL" in heard.message
    assert "nothing is wrong" in heard.message
    assert heard.attributes["severity"] == "critical"
    assert after is not None, "whoever hears of the drill hears of its end"
    assert after.subject.startswith("[RESOLVED:1] LLMDrill")


def test_it_leaves_nothing_behind(drills: Drills) -> None:
    drills.run()
    chain = drills.chain
    topic = read_yaml(chain.config.read_text())["alarms"]["page_topic"]
    sns = chain.aws.client("sns")

    assert queues(chain) == []
    assert len(sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]) == 1


def test_every_link_is_shown(drills: Drills) -> None:
    found = json.loads(drills.run("-o", "json").stdout)
    links = {step["link"]: step["state"] for step in found["steps"]}

    assert links.pop("rules") == "note", "they are scaled, and it says so"
    assert set(links.values()) == {"ok"}
    assert list(links) == ["alerting", "watchdog", "subscribers", "Alertmanager", "delivery"]
    assert found["steps"][-1]["seconds"] > 0


def test_rules_of_0_1_that_were_left_loaded_are_named(
    drills: Drills, part: Callable[[str], Path], tmp_path: Path
) -> None:
    """The same alerts in groups of other names: each would page twice."""
    now = drills.chain.rules / "rules.yaml"
    old = tmp_path / "old.yaml"
    old.write_text(now.read_text().replace("@shop", ""))
    folder = tmp_path / "prometheus"
    server = RealPrometheus(part("prometheus"), folder, reserve_port(), rules=[now, old])
    server.start()
    try:
        failed = drills.failed("--prometheus", server.url, "--no-listen")
    finally:
        server.stop()

    assert "alerts of shop are loaded twice, in the groups" in failed["rules"]
    assert "llm-companions, llm-companions@shop" in failed["rules"]


def test_without_listening_alertmanagers_own_counter_confirms(drills: Drills) -> None:
    ran = drills.run("--no-listen")

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "whether anybody got it was not looked at" in " ".join(ran.stdout.split())


def test_a_ticket_goes_its_own_way(drills: Drills) -> None:
    failed = drills.failed("--notify", "ticket")

    assert list(failed) == ["subscribers"], "the ticket's topic has no subscriber"
    assert "nobody hears of llm-ticket" in failed["subscribers"]


def test_a_topic_that_alertmanager_does_not_know_is_named(drills: Drills) -> None:
    other = drills.chain.aws.topic("other")
    failed = drills.failed("--timeout", "4s", page_topic=other)

    assert set(failed) == {"receiver", "subscribers", "delivery"}
    assert other in failed["receiver"]
    assert "--timeout" in failed["delivery"]


def test_a_topic_that_is_gone_is_a_clear_error(drills: Drills) -> None:
    gone = "arn:aws:sns:eu-central-1:123456789012:gone"
    ran = drills.run(page_topic=gone)

    assert ran.returncode == 3
    assert "sns:ListSubscriptionsByTopic is refused: NotFound" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_silence_that_mutes_pages_is_found(drills: Drills, part: Callable[[str], Path]) -> None:
    amtool = [str(part("amtool")), f"--alertmanager.url={drills.chain.alertmanager.url}", "silence"]
    add = [*amtool, "add", "-a", "test", "-c", "maintenance", "severity=critical"]
    silence = subprocess.run(add, capture_output=True, text=True, check=True).stdout.strip()
    try:
        failed = drills.failed("--timeout", "4s")
    finally:
        subprocess.run([*amtool, "expire", silence], check=True)

    assert f"amtool silence expire {silence}" in failed["route"]
    assert "nothing arrived" in failed["delivery"]


def test_rules_that_are_not_loaded_are_named(drills: Drills, opsctl: Opsctl) -> None:
    settings = read_yaml(drills.chain.config.read_text())
    settings["objectives"].append(
        {"name": "ttft", "sli": "time_to_first_token", "threshold": "1s", "target": "95%"}
    )
    config = drills.chain.config.with_name("more.yaml")
    config.write_text(yaml.safe_dump(settings))
    ran = opsctl.run(
        "--config", str(config), "alarms", "test", "-o", "json", env=dict(drills.chain.aws.env)
    )

    assert ran.returncode == 1
    (text,) = [s["text"] for s in json.loads(ran.stdout)["steps"] if s["state"] == "failed"]
    assert "LLMSLOHardFloor" in text
    assert "rule_files" in text


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"window": "1h"}, {"window": "2h"}),
        ({"window": "2h"}, {"window": "6h"}),
        ({"alertname": "LLMSLOHardFloor"}, {"window": "1h"}),
    ],
)
def test_one_burn_is_one_page(
    drills: Drills, first: dict[str, str], second: dict[str, str]
) -> None:
    """Or the pager rings again each time that the same burn has lasted long enough for a slower row."""
    api = AlertmanagerApi(drills.chain.alertmanager.url)
    burn = {"alertname": "LLMSLOErrorBudgetBurn", "role": "symptom", "notify": "page"}
    where = {"service": "shop", "model": f"of-{'-'.join(first.values())}", "objective": "ttft"}
    told, again, other = ({**burn, **where, **one} for one in (first, second, second))
    other["objective"] = "e2e"
    for labels in (told, again, other):
        api.post({"labels": labels})

    def muted(labels: dict[str, str]) -> list[bool]:
        return [alert.inhibited for alert in api.held(**labels)]

    wait_for(lambda: muted(again) == [True], timeout_s=20, what="the inhibition")
    assert muted(told) == [False]
    assert muted(other) == [False], "another objective's burn is another page"


@pytest.mark.parametrize(
    ("option", "code", "words"),
    [
        ("--alertmanager=127.0.0.1:9093", 64, "not a URL; write http://HOST:PORT"),
        ("--alertmanager=http://127.0.0.1:1", 3, "nothing listens there"),
        ("--prometheus=http://127.0.0.1:1", 3, "nothing listens there"),
    ],
)
def test_servers_that_are_not_there_are_clear_errors(
    drills: Drills, option: str, code: int, words: str
) -> None:
    ran = drills.run(option)

    assert ran.returncode == code
    assert words in " ".join(ran.stderr.split())


def test_a_prometheus_is_no_alertmanager(drills: Drills) -> None:
    ran = drills.run(f"--alertmanager={drills.chain.prometheus.url}")

    assert ran.returncode == 3
    assert "not what an Alertmanager answers" in " ".join(ran.stderr.split())


def test_without_credentials_the_error_names_the_variables(drills: Drills) -> None:
    none = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "1"}
    none |= {"AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_CONFIG_FILE": "/nonexistent"}
    ran = drills.run(env=none)

    assert ran.returncode == 3
    assert "AWS_ACCESS_KEY_ID" in ran.stderr


def test_without_a_topic_there_is_nobody_to_page(opsctl: Opsctl, tmp_path: Path) -> None:
    ran = opsctl.run("alarms", "test", cwd=tmp_path)

    assert ran.returncode == 64
    assert "alarms.page_topic is not set" in ran.stderr
