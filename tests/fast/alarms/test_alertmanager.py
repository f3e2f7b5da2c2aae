"""Alertmanager's configuration: amtool accepts it, routes lead right, and SNS refuses no page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from built_alarms import FULL, built

from vllm_opsctl.alarms.alertmanager import INHIBITIONS, pager
from vllm_opsctl.alarms.build import build_files
from vllm_opsctl.alarms.burn import Clock
from vllm_opsctl.alarms.rules import build_rules
from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.config import Alarms, Config
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


LABELLED: dict[str, Any] = {
    "service": {"name": "chat"},
    "exporter": {"labels": {"cluster": "eu", "environment": "prod"}},
    "alarms": FULL,
}


def test_what_tells_fleets_apart_also_groups_mutes_and_is_told() -> None:
    """A cause in one environment must not mute another's page."""
    config = Config.model_validate(LABELLED)
    files = build_files(config, build_rules(config, "sidecar"))
    pager_file = read_yaml(files["alertmanager.yaml"])
    (page,) = (one for one in pager_file["receivers"] if one["name"] == "page")

    assert pager_file["route"]["group_by"] == ["service", "model", "cluster", "environment"]
    for one in pager_file["inhibit_rules"]:
        assert {"service", "cluster", "environment"} <= set(one["equal"])
    assert {"cluster", "environment"} <= page["sns_configs"][0]["attributes"].keys()
    assert "{{ with .Labels.cluster }}, cluster {{ . }}{{ end }}" in files["sns.tmpl"]


def test_the_operators_resource_takes_the_alerts_of_its_own_service() -> None:
    """The operator asks every resource about every alert: else two services page each other's topics."""
    config = Config.model_validate(LABELLED)
    files = build_files(config, build_rules(config, "sidecar"))
    resource = read_yaml(files["alertmanagerconfig.yaml"])

    assert resource["spec"]["route"]["matchers"] == [
        {"name": name, "value": value, "matchType": "="}
        for name, value in (("service", "chat"), ("cluster", "eu"), ("environment", "prod"))
    ]
    assert resource["metadata"]["name"] != "vllm-slo-chat", (
        "another cluster's would be the same object"
    )


def test_a_page_leads_to_the_fleets_own_series_and_board() -> None:
    config = Config.model_validate(
        {
            **LABELLED,
            "alarms": {
                "match": '{namespace="llm"}',
                "prometheus_url": "http://prometheus:9090",
                "dashboard_url": "http://grafana/d/opsctl-chat-incident",
            },
        }
    )
    burn = next(r for r in build_rules(config, "vllm").alerts if r.alert == "LLMSLOErrorBudgetBurn")

    assert burn.annotations["command"] == (
        "opsctl diagnose --prometheus http://prometheus:9090 "
        '--match \'{namespace="llm",model_name="{{ $labels.model }}"}\''
    )
    assert burn.annotations["dashboard_url"].endswith("&var-cluster=eu&var-environment=prod")
