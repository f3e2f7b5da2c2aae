"""AWS's own linter accepts the alarms' template."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cloudwatch_fleet import config, text_of

from vllm_opsctl.exporter.config import Config

LINKS = {
    "runbook_url": "https://runbooks.example.com/vllm",
    "dashboard_url": "https://grafana.example.com/d/opsctl-chat-incident",
    "sidecar_url": "http://sidecar.internal:9836",
}
BARE = Config()


@pytest.mark.parametrize(
    "one",
    [
        BARE,
        config(),
        config(alarms=LINKS),
        config(
            alarms={
                "page_topic": "arn:aws:sns:eu-central-1:123456789012:p",
                "ticket_topic": "arn:aws:sns:eu-central-1:123456789012:t",
            }
        ),
        config(
            service={"name": "chat.v2:" + "x" * 120},
            exporter={"cloudwatch": {"sink": "put"}, "labels": {"cluster": "eu (blue), 1"}},
        ),
    ],
)
def test_cfn_lint_is_content(one: Config, tmp_path: Path) -> None:
    path = tmp_path / "cloudwatch.yaml"
    path.write_text(text_of(one), encoding="utf-8")

    answer = subprocess.run(
        [Path(sys.executable).parent / "cfn-lint", path],
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode == 0, answer.stdout
