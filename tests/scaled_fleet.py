"""A configuration that scales one resource of each kind, and the plan for an account."""

from __future__ import annotations

from typing import Any

from cloudwatch_fleet import config
from parts.emulated_aws import REGION

from vllm_opsctl.alarms.autoscale.account import ScalingAccount
from vllm_opsctl.alarms.autoscale.changes import (
    ScalingPlan,
    plan,
)
from vllm_opsctl.alarms.autoscale.template import scaling_of
from vllm_opsctl.alarms.cloudwatch.account import Pace
from vllm_opsctl.exporter.config import Config

ACCOUNT = f"{REGION}:123456789012"


TOPIC = f"arn:aws:sns:{ACCOUNT}:llm-ticket"


RESOURCES: list[dict[str, Any]] = [
    {"kind": "ecs-service", "name": "llm/chat", "model": "a", "min": 1, "max": 4},
    {"kind": "sagemaker-variant", "name": "code/AllTraffic", "model": "b", "min": 1, "max": 3},
    {"kind": "sagemaker-inference-component", "name": "draft", "model": "c", "min": 0, "max": 2},
    {"kind": "auto-scaling-group", "name": "embed", "model": "d", "min": 1, "max": 8},
]


ECS = RESOURCES[:1]


def scaled(resources: list[dict[str, Any]] | None = None, **section: Any) -> Config:
    chosen = RESOURCES if resources is None else resources
    entries = [{"max_num_seqs": 64, **one} for one in chosen]
    return config(
        autoscaling={"cold_start": "6m", "resources": entries, **section},
        alarms={"ticket_topic": TOPIC},
    )


def account_of() -> ScalingAccount:
    return ScalingAccount(REGION, pace=Pace(sleep=lambda _: None))


def planned(one: Config, model: str | None = None) -> ScalingPlan:
    return plan(account_of(), scaling_of(one), model)
