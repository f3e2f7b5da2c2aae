"""A configuration and the rules that are built from it."""

from __future__ import annotations

from typing import Any

from vllm_opsctl.alarms.burn import Clock, parse_scale
from vllm_opsctl.alarms.prometheus.conventions import Source
from vllm_opsctl.alarms.rules import Rulebook, build_rules
from vllm_opsctl.exporter.catalogue import parse_version
from vllm_opsctl.exporter.config import Config


def book(
    source: Source,
    settings: dict[str, Any] | None = None,
    version: str | None = None,
    scale: str = "1",
) -> tuple[Config, Rulebook]:
    config = Config.model_validate(settings or {})
    release = parse_version(version) if version else None
    return config, build_rules(config, source, version=release, clock=Clock(parse_scale(scale)))
