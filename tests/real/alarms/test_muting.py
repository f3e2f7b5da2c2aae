"""What mutes what: the alerts' labels, as promtool proves them, in a real Alertmanager."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from loopback import http_get, wait_for
from parts.alertmanager import RealAlertmanager
from ports import reserve_port

from vllm_opsctl.alarms.alertmanager import INHIBITIONS
from vllm_opsctl.alarms.build import build_files
from vllm_opsctl.alarms.made_up import own_service
from vllm_opsctl.alarms.pager_api import AlertmanagerApi
from vllm_opsctl.alarms.prometheus.conventions import Source
from vllm_opsctl.alarms.rule_tests import unit_tests
from vllm_opsctl.alarms.rules import Rulebook, build_rules
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.yaml_text import read_yaml

TOPIC = "arn:aws:sns:eu-central-1:123456789012:llm-page"
CONFIG = Config.model_validate(
    {
        "objectives": [{"name": "availability", "sli": "availability", "target": "99.9%"}],
        "alarms": {
            "page_topic": TOPIC,
            "ticket_topic": TOPIC,
            "api_url": "http://127.0.0.1:1",
        },
    }
)
NO_ACCOUNT = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
BURN = "LLMSLOErrorBudgetBurn"
CAUSES = [one for one in INHIBITIONS if dict(one.source).get("role") == "cause"]


def _unit_tests(rulebook: Rulebook) -> list[dict[str, Any]]:
    own = own_service(rulebook)
    assert own is not None
    tests: list[dict[str, Any]] = unit_tests(own, None)["tests"]
    return tests


def fired(rulebook: Rulebook, alert: str) -> list[dict[str, str]]:
    """The labels of an alert that fires, as its unit test (which promtool runs) checks them."""
    found = []
    for test in _unit_tests(rulebook):
        if test["name"].startswith(f"{alert}: fires after"):
            check = test["promql_expr_test"][-1]
            assert check["exp_samples"] == [{"labels": "{}", "value": 1}]
            labels = dict(re.findall(r'(\w+)="([^"]*)"', check["expr"]))
            assert labels.pop("alertstate") == "firing"
            found.append(labels)
        for one in test.get("alert_rule_test", ()):
            if one["alertname"] == alert:
                found += [expected["exp_labels"] for expected in one["exp_alerts"]]
    return [
        {**rule.labels, **labels, "alertname": alert}
        for rule in rulebook.alerts
        for labels in found
        if rule.alert == alert and labels.get("window") in (None, rule.labels.get("window"))
    ]


@pytest.mark.parametrize("source", ["sidecar", "vllm"])
def test_every_cause_has_the_labels_by_which_it_mutes(source: Source) -> None:
    """Alertmanager holds a missing label for an empty one, and no symptom has an empty model."""
    rulebook = build_rules(CONFIG, source)
    causes = [rule.alert for rule in rulebook.alerts if rule.labels["role"] == "cause"]
    wanted = {name for one in CAUSES for name in one.equal}

    assert wanted == {"service", "model"}
    for alert in causes:
        for labels in fired(rulebook, alert):
            assert wanted <= labels.keys(), alert
    assert "LLMCrashLoop" in causes


@pytest.fixture(scope="module")
def alertmanager(
    part: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AlertmanagerApi]:
    """One that was configured by a build; whom it would page is not there."""
    folder = tmp_path_factory.mktemp("alertmanager")
    for name, text in build_files(CONFIG, build_rules(CONFIG, "sidecar")).items():
        (folder / name).write_text(text)
    config = folder / "alertmanager.yaml"
    assert read_yaml(config.read_text())["inhibit_rules"]
    running = RealAlertmanager(part("alertmanager"), config, folder, reserve_port(), NO_ACCOUNT)
    running.start()
    yield AlertmanagerApi(running.url)
    running.stop()


@pytest.mark.parametrize("source", ["sidecar", "vllm"])
def test_a_crash_loop_mutes_the_burns_of_its_model_and_of_no_other(
    alertmanager: AlertmanagerApi, source: Source
) -> None:
    rulebook = build_rules(CONFIG, source)

    def post(labels: Mapping[str, str]) -> None:
        # one service a source: the two do not meet
        alertmanager.post({"labels": {**labels, "service": source}})

    def inhibited(model: str) -> list[bool]:
        held = alertmanager.held(alertname=BURN, service=source, model=model)
        return [one.inhibited for one in held if "page" in one.receivers]

    for burn in fired(rulebook, BURN):
        post(burn)
        post({**burn, "model": "org/other"})
    (loop,) = {tuple(sorted(labels.items())) for labels in fired(rulebook, "LLMCrashLoop")}
    post(dict(loop))

    wait_for(lambda: len(inhibited("org/chat-8b")) == 3, timeout_s=20, what="the burn alerts")
    wait_for(lambda: all(inhibited("org/chat-8b")), timeout_s=20, what="the muting")
    assert not all(inhibited("org/other"))


def test_a_fault_that_burns_several_objectives_is_one_group(alertmanager: AlertmanagerApi) -> None:
    burn = {"alertname": BURN, "service": "grouped", "model": "m", "notify": "page"}
    for objective in ("e2e", "queue-time", "ttft"):
        alertmanager.post({"labels": {**burn, "objective": objective}})

    def groups() -> list[list[str]]:
        _, text = http_get(f'{alertmanager.url}/api/v2/alerts/groups?filter=service="grouped"')
        return [[a["labels"]["objective"] for a in group["alerts"]] for group in json.loads(text)]

    wait_for(lambda: sum(map(len, groups())) == 3, timeout_s=20, what="the burn alerts")
    assert len(groups()) == 1
