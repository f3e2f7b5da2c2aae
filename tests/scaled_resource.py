"""A configuration that scales one resource, of any kind."""

from __future__ import annotations

from typing import Any

from cloudwatch_fleet import config

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
