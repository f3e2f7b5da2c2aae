"""CloudWatch's PromQL alarms of a fleet that sends by OTLP, and their queries."""

from __future__ import annotations

import re
from typing import Any

from cloudwatch_fleet import body_of, config

from vllm_opsctl.exporter.config import Config

AWS = {"cloudwatch": {"sink": "otlp", "region": "eu-central-1"}}


OTLP = config(exporter=AWS)


def alarms(one: Config = OTLP) -> dict[str, dict[str, Any]]:
    """Properties of every PromQL alarm by name."""
    return {
        properties["AlarmName"]: properties
        for resource in body_of(one)["Resources"].values()
        if "EvaluationCriteria" in (properties := resource["Properties"])
    }


def query_of(name: str, one: Config = OTLP) -> str:
    found: str = alarms(one)[name]["EvaluationCriteria"]["PromQLCriteria"]["Query"]
    return found


def as_prometheus(query: str) -> str:
    """Without the matcher that older Prometheus cannot read; it is in every selector."""
    return re.sub(r'"@resource\.service\.name"="chat"(, )?', "", query)


QUERIES = {name: as_prometheus(query_of(name)) for name in alarms()}
