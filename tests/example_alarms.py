"""
Rebuilds alarms/generated, the alarms of the starter configuration; a test compares, `make alarms` runs it.

The starter names no topics and no links, for they are different everywhere: the example's are set here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GENERATED = ROOT / "alarms" / "generated"
STARTER = ROOT / "cli" / "templates" / "opsctl.yaml"

EXAMPLE = {
    "OPSCTL_ALARMS__PAGE_TOPIC": "arn:aws:sns:eu-central-1:123456789012:llm-page",
    "OPSCTL_ALARMS__TICKET_TOPIC": "arn:aws:sns:eu-central-1:123456789012:llm-ticket",
    "OPSCTL_ALARMS__WEBHOOK": "http://alerts.internal:8080/hook",
    "OPSCTL_ALARMS__DEADMAN_URL": "http://deadman.internal:8080/ping",
    "OPSCTL_ALARMS__RUNBOOK_URL": "https://runbooks.example.com/vllm",
    "OPSCTL_ALARMS__DASHBOARD_URL": "https://grafana.example.com/d/opsctl-chat-incident",
    "OPSCTL_ALARMS__SIDECAR_URL": "http://sidecar.internal:9836",
}

CLOUDWATCH_EXAMPLE = {name: text for name, text in EXAMPLE.items() if not name.endswith("_TOPIC")}
"""The template's topics are made, not configured."""

AUTOSCALING_EXAMPLE = {
    "OPSCTL_EXPORTER__CLOUDWATCH__SINK": "put",
    "OPSCTL_AUTOSCALING__COLD_START": "6m",
    "OPSCTL_AUTOSCALING__RESOURCES": """
    - {kind: ecs-service, name: llm/chat, model: chat, max_num_seqs: 64, min: 1, max: 4}
    - {kind: sagemaker-variant, name: code/AllTraffic, model: code, max_num_seqs: 128, min: 1, max: 3}
    - {kind: sagemaker-inference-component, name: draft, model: draft, max_num_seqs: 64, min: 0, max: 2}
    - {kind: auto-scaling-group, name: embed, model: embed, max_num_seqs: 256, engines: 2, min: 2, max: 8}
    """,
}
"""One resource of each kind; tickets' topic is the template's parameter."""


def build(
    out: Path, *arguments: str, example: dict[str, str] = EXAMPLE, command: str = "alarms"
) -> int:
    """Build the example into a folder: the exit code of `opsctl alarms build`, or of another command."""
    from vllm_opsctl.cli.main import run

    for name in EXAMPLE:
        os.environ.pop(name, None)
    os.environ.update(example)
    return run(["--config", str(STARTER), command, "build", "--out", str(out), *arguments])


if __name__ == "__main__":
    sys.exit(
        build(GENERATED)
        or build(GENERATED, "--to", "cloudwatch", example=CLOUDWATCH_EXAMPLE)
        or build(GENERATED, example=AUTOSCALING_EXAMPLE, command="autoscale")
    )
