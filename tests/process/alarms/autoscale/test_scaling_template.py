"""AWS's own linter accepts what the scaling template becomes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cloudwatch_fleet import config

from vllm_opsctl.alarms.autoscale.template import scaling_of, template_text
from vllm_opsctl.exporter.config import Config

TOPIC = "arn:aws:sns:eu-central-1:123456789012:llm-ticket"
ECS = {"kind": "ecs-service", "name": "llm/chat", "max_num_seqs": 64, "min": 1, "max": 4}
KINDS: dict[str, dict[str, Any]] = {
    "ecs-service": ECS,
    "sagemaker-variant": {**ECS, "kind": "sagemaker-variant", "name": "chat/AllTraffic"},
    "sagemaker-inference-component": {
        **ECS,
        "kind": "sagemaker-inference-component",
        "name": "chat",
        "min": 0,
    },
    "auto-scaling-group": {**ECS, "kind": "auto-scaling-group", "name": "chat"},
}


def scaled(resource: dict[str, Any] | None = None, **more: Any) -> Config:
    """One scaled resource; keys of ``more`` go to the section."""
    section = {"cold_start": "6m", "resources": [ECS if resource is None else resource], **more}
    return config(autoscaling=section, alarms={"ticket_topic": TOPIC})


@pytest.mark.parametrize("kind", KINDS)
def test_cfn_lint_is_content(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "autoscaling.yaml"
    path.write_text(template_text(scaling_of(scaled(KINDS[kind]))), encoding="utf-8")

    answer = subprocess.run(
        [Path(sys.executable).parent / "cfn-lint", path],
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode == 0, answer.stdout
