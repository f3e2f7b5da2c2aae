"""amtool accepts the Alertmanager configuration and renders its templates."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from built_alarms import FULL, built

from vllm_opsctl.cli.alarm_message import read_alarm
from vllm_opsctl.exporter.yaml_text import read_yaml


def amtool(binary: Path, folder: Path, *arguments: str) -> str:
    answer = subprocess.run(
        [binary, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.parametrize(
    "without", [(), ("ticket_topic",), ("webhook", "deadman_url"), ("api_url",)]
)
def test_amtool_accepts_it(
    part: Callable[[str], Path], tmp_path: Path, without: tuple[str, ...]
) -> None:
    binary = part("amtool")
    built(tmp_path, {key: value for key, value in FULL.items() if key not in without})

    assert "SUCCESS" in amtool(binary, tmp_path, "check-config", "alertmanager.yaml")


def test_every_alert_reaches_who_it_is_for(part: Callable[[str], Path], tmp_path: Path) -> None:
    binary = part("amtool")
    rulebook, _ = built(tmp_path, FULL)
    receivers = {
        "page": "page",
        "ticket": "ticket",
        "pager": "pager-failures",
        "deadman": "deadman",
    }
    labels = {tuple(sorted(rule.labels.items())) for rule in rulebook.alerts}
    assert {dict(one)["notify"] for one in labels} == set(receivers)
    for one in labels:
        pairs = [f"{name}={value}" for name, value in one]
        answer = amtool(
            binary, tmp_path, "config", "routes", "test", "--config.file=alertmanager.yaml", *pairs
        )
        assert answer.strip() == receivers[dict(one)["notify"]]


def alert_of(
    labels: dict[str, str], status: str = "firing", since: str = "10:00"
) -> dict[str, Any]:
    return {
        "status": status,
        "labels": labels,
        "annotations": {"summary": "s", "description": "d", "command": "opsctl diagnose"},
        "startsAt": f"2026-11-24T{since}:00Z",
    }


def data_of(*alerts: dict[str, Any]) -> dict[str, Any]:
    """What Alertmanager makes a notification of."""
    common = set.intersection(*(set(alert["labels"].items()) for alert in alerts))
    return {
        "status": "firing" if any(a["status"] == "firing" for a in alerts) else "resolved",
        "alerts": alerts,
        "commonLabels": dict(common),
        "commonAnnotations": {},
        "groupLabels": {},
        "externalURL": "",
        "receiver": "page",
    }


@dataclass(frozen=True)
class Page:
    """A notification as SNS gets it."""

    subject: str
    message: str
    attributes: dict[str, str]


def rendered(binary: Path, folder: Path, data: dict[str, Any]) -> Page:
    """By the template file; the operator's resource, which has it inlined, says the same."""
    _, files = built(folder, FULL)
    (folder / "data.json").write_text(json.dumps(data))
    sns = read_yaml(files["alertmanager.yaml"])["receivers"][0]["sns_configs"][0]
    resource = read_yaml(files["alertmanagerconfig.yaml"])
    inlined = resource["spec"]["receivers"][0]["snsConfigs"][0]

    def render(text: str) -> str:
        arguments = (f"--template.text={text}", "--template.data=data.json")
        return amtool(
            binary, folder, "template", "render", "--template.glob=sns.tmpl", *arguments
        ).removesuffix("\n")

    subject, message = render(sns["subject"]), render(sns["message"])
    assert (render(inlined["subject"]), render(inlined["message"])) == (subject, message)
    attributes = {name: render(text) for name, text in sns["attributes"].items()}
    return Page(subject, message, attributes)


@pytest.mark.parametrize(
    "labels",
    [
        {"alertname": "LLMSLOErrorBudgetBurn", "objective": "o" * 200, "model": "m" * 300},
        {"alertname": "LLMModelVanished", "model": "größe/模型" * 30},
        {"alertname": "LLMTargetDown", "target": "chat-0"},
        {"alertname": "A"},
    ],
)
def test_no_subject_and_no_attribute_is_one_that_sns_refuses(
    part: Callable[[str], Path], tmp_path: Path, labels: dict[str, str]
) -> None:
    """SNS refuses subjects of 100 characters, other than ASCII ones, and empty attributes."""
    binary = part("amtool")
    page = rendered(binary, tmp_path, data_of(alert_of(labels)))

    assert 0 < len(page.subject) < 100
    assert page.subject.isascii()
    assert labels["alertname"] in page.subject
    assert all(page.attributes.values())
    assert "Diagnose: opsctl diagnose" in page.message


def test_one_fault_that_burns_several_objectives_is_one_page_about_what_fires(
    part: Callable[[str], Path], tmp_path: Path
) -> None:
    burn = {"alertname": "LLMSLOErrorBudgetBurn", "model": "m", "severity": "critical"}
    page = rendered(
        part("amtool"),
        tmp_path,
        data_of(
            alert_of({**burn, "objective": "e2e"}, "resolved", since="09:00"),
            alert_of({**burn, "objective": "queue-time"}, since="09:30"),
            alert_of({**burn, "objective": "ttft"}, since="10:00"),
        ),
    )
    read = read_alarm(page.message, "-")

    assert page.subject == "[FIRING:2] LLMSLOErrorBudgetBurn - m"
    assert page.attributes["objective"] == "none"
    assert page.attributes["model"] == "m"
    assert re.findall("^[A-Z]+ critical|09:..|10:..", page.message, re.MULTILINE) == [
        *("FIRING critical", "09:30"),
        *("FIRING critical", "10:00"),
        *("RESOLVED critical", "09:00"),
    ]
    assert read.since == datetime(2026, 11, 24, 9, 30, tzinfo=UTC).timestamp()


def test_an_end_names_what_has_ended(part: Callable[[str], Path], tmp_path: Path) -> None:
    burn = {"alertname": "LLMSLOErrorBudgetBurn", "model": "m", "objective": "ttft"}
    page = rendered(part("amtool"), tmp_path, data_of(alert_of(burn, "resolved")))

    assert page.subject == "[RESOLVED:1] LLMSLOErrorBudgetBurn ttft m"
    assert page.attributes["objective"] == "ttft"
    assert page.message.startswith("RESOLVED")


def test_the_board_of_a_page_opens_where_it_began(
    part: Callable[[str], Path], tmp_path: Path
) -> None:
    """Rules know no time, Alertmanager does: an hour before the alert, to now."""
    built(tmp_path, FULL)
    alert = {
        "status": "firing",
        "labels": {"severity": "critical"},
        "annotations": {"dashboard_url": "https://grafana.example.com/d/x?var-model=chat"},
        "startsAt": "2026-11-26T04:00:00Z",
    }
    page = {"status": "firing", "alerts": [alert], "commonLabels": {}}
    (tmp_path / "page.json").write_text(json.dumps(page))
    given = {
        "glob": str(tmp_path / "sns.tmpl"),
        "text": '{{ template "llm.sns.message" . }}',
        "data": str(tmp_path / "page.json"),
    }

    text = amtool(
        part("amtool"),
        tmp_path,
        *("template", "render"),
        *(f"--template.{name}={value}" for name, value in given.items()),
    )

    three_o_clock_ms = 1795662000000
    board = f"https://grafana.example.com/d/x?var-model=chat&from={three_o_clock_ms}&to=now"
    assert f"Board: {board}\n" in text
