"""Alertmanager's configuration: amtool accepts it, routes lead right, and SNS refuses no page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from built_alarms import FULL, built

from vllm_opsctl.alarms.alertmanager import INHIBITIONS, pager
from vllm_opsctl.alarms.burn import Clock
from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.config import Alarms
from vllm_opsctl.exporter.identity import Identity
from vllm_opsctl.exporter.yaml_text import read_yaml


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
        pager(Alarms.model_validate({**FULL, **changes}), Clock(), Identity("chat"))

    assert caught.value.problems[0].startswith(line)


def test_without_a_topic_there_is_no_configuration(tmp_path: Path) -> None:
    _, files = built(tmp_path, {})

    assert set(files) == {
        "rules.yaml",
        "rules_test.yaml",
        "rules_test.second-service",
        "prometheusrule.yaml",
    }


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
