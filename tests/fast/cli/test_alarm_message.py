"""`opsctl diagnose --alarm`: the page as it arrived says where and when to look."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from commands import Opsctl
from sns_message import TEXT, notification

from vllm_opsctl.cli.alarm_message import read_alarm
from vllm_opsctl.errors import InputFileError

SINCE = datetime(2026, 11, 25, 3, 14, tzinfo=UTC).timestamp()


def cloudwatch(**changes: Any) -> str:
    """CloudWatch's message for a composite alarm."""
    alarm = {
        "AlarmName": "LLMSLOErrorBudgetBurn page/shop/ttft/meta-llama/Llama-3",
        "AlarmDescription": TEXT.partition("Since")[0],
        "NewStateValue": "ALARM",
        "StateChangeTime": "2026-11-25T03:14:00.000+0000",
    }
    return json.dumps(alarm | changes)


def test_alertmanagers_page_in_sns_says_everything() -> None:
    found = read_alarm(
        notification(TEXT, service="shop", objective="ttft", model="tiny", severity="critical"), "-"
    )

    assert (found.name, found.service) == ("LLMSLOErrorBudgetBurn", "shop")
    assert (found.objective, found.model, found.since) == ("ttft", "tiny", SINCE)
    assert (found.sidecar, found.targets) == ("http://127.0.0.1:9836", ("chat-0",))
    assert found.runbook == "https://runbooks.example.com/vllm/engine-dead"


def test_none_is_not_an_objective() -> None:
    found = read_alarm(notification(TEXT, service="shop", objective="none", model="none"), "-")

    assert (found.objective, found.model) == (None, None)


@pytest.mark.parametrize("wrap", [notification, lambda text: text])
def test_cloudwatchs_message_is_read_alone_and_in_sns(wrap: Any) -> None:
    found = read_alarm(wrap(cloudwatch()), "-")

    assert (found.service, found.objective) == ("shop", "ttft")
    assert (found.model, found.since) == ("meta-llama/Llama-3", SINCE)
    assert found.sidecar == "http://127.0.0.1:9836"


def test_what_an_alarm_is_not_about_is_not_made_up() -> None:
    found = read_alarm(
        cloudwatch(AlarmName="LLMHeartbeatMissing page/shop/-", StateChangeTime=3), "-"
    )

    assert (found.service, found.objective, found.model, found.since) == ("shop", None, None, None)


def test_the_plain_text_of_a_page_is_enough() -> None:
    found = read_alarm(TEXT, "-")

    assert (found.since, found.service) == (SINCE, None)


def test_a_prometheus_and_its_labels_are_followed() -> None:
    text = "Diagnose: opsctl diagnose --prometheus http://p:9090 --match '{model_name=\"m\"}'\n"
    found = read_alarm(text, "-")

    assert (found.prometheus, found.match) == ("http://p:9090", '{model_name="m"}')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no line 'Diagnose: opsctl diagnose"),
        ('{"Type": "Notification", "Message": 3}', "no line 'Diagnose: opsctl diagnose"),
        ("[1]", "no line 'Diagnose: opsctl diagnose"),
        ("Diagnose: rm -rf /", "is no opsctl diagnose command"),
        ("Diagnose: opsctl diagnose 'http://x", "is no opsctl diagnose command"),
        ("Diagnose: opsctl diagnose --bundle /etc/passwd http://x", "--bundle in"),
        (cloudwatch(AlarmDescription=None), "no line 'Diagnose: opsctl diagnose"),
    ],
)
def test_what_is_no_page_of_ours_is_a_clear_error(text: str, words: str) -> None:
    with pytest.raises(InputFileError, match=words) as caught:
        read_alarm(text, "page.json")

    assert "page.json" in str(caught.value)


def test_an_alarm_and_a_source_are_one_too_many(opsctl: Opsctl, tmp_path: Path) -> None:
    (tmp_path / "page").write_text(TEXT)
    ran = opsctl.run("diagnose", "--alarm", str(tmp_path / "page"), "http://x:1")

    assert ran.returncode == 64
    assert "--alarm says where to look" in ran.stderr


def test_a_message_that_is_no_text_is_a_clear_error(opsctl: Opsctl, tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(b"\xff\xfe\x00")
    ran = opsctl.run("diagnose", "--alarm", str(tmp_path / "page"))

    assert ran.returncode == 64
    assert "not text" in ran.stderr
