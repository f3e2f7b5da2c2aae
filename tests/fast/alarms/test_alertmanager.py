"""Alertmanager's configuration: amtool accepts it, routes lead right, and SNS refuses no page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vllm_opsctl.alarms.alertmanager import INHIBITIONS, pager
from vllm_opsctl.alarms.build import build_files
from vllm_opsctl.alarms.burn import Clock
from vllm_opsctl.alarms.rules import Rulebook, build_rules
from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.config import Alarms, Config
from vllm_opsctl.exporter.yaml_text import read_yaml

PAGE = "arn:aws:sns:eu-central-1:123456789012:llm-page"
TICKET = "arn:aws:sns:eu-central-1:123456789012:llm-ticket.fifo"
FULL: dict[str, Any] = {
    "page_topic": PAGE,
    "ticket_topic": TICKET,
    "webhook": "http://127.0.0.1:8080/hook",
    "deadman_url": "http://127.0.0.1:8080/ping",
    "api_url": "http://127.0.0.1:5055",
}


def built(folder: Path, alarms: dict[str, Any]) -> tuple[Rulebook, dict[str, str]]:
    config = Config.model_validate({"alarms": alarms})
    rulebook = build_rules(config, "sidecar")
    files = build_files(config, rulebook)
    for name, text in files.items():
        (folder / name).write_text(text)
    return rulebook, files


def test_a_ticket_never_mutes_a_page() -> None:
    for one in INHIBITIONS:
        source, target = dict(one.source), dict(one.target)
        if source.get("notify") == "ticket":
            assert target.get("notify") == "ticket"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"ticket_topic": None, "webhook": None}, "alarms.ticket_topic: tickets have no receiver"),
        (
            {"region": "us-east-1"},
            "alarms.region: us-east-1 is not the region of alarms.page_topic",
        ),
    ],
)
def test_receivers_that_do_not_fit_are_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pager(Alarms.model_validate({**FULL, **changes}), Clock())

    assert caught.value.problems[0].startswith(line)


def test_without_a_topic_there_is_no_configuration(tmp_path: Path) -> None:
    _, files = built(tmp_path, {})

    assert set(files) == {"rules.yaml", "rules_test.yaml", "prometheusrule.yaml"}


def test_the_resources_say_what_the_files_say(tmp_path: Path) -> None:
    _, files = built(tmp_path, FULL)
    rules = read_yaml(files["rules.yaml"])
    resource = read_yaml(files["prometheusrule.yaml"])
    config = read_yaml(files["alertmanager.yaml"])
    other = read_yaml(files["alertmanagerconfig.yaml"])["spec"]

    assert resource["spec"]["groups"] == rules["groups"]
    assert other["route"]["groupBy"] == config["route"]["group_by"]
    assert len(other["inhibitRules"]) == len(config["inhibit_rules"])
    assert [r["name"] for r in other["receivers"]] == [r["name"] for r in config["receivers"]]
