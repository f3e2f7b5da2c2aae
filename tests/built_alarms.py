"""Alarms that a configuration of every receiver becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_opsctl.alarms.build import build_files
from vllm_opsctl.alarms.rules import Rulebook, build_rules
from vllm_opsctl.exporter.config import Config

PAGE = "arn:aws:sns:eu-central-1:123456789012:llm-page"


TICKET = "arn:aws:sns:eu-central-1:123456789012:llm-ticket.fifo"


FULL: dict[str, Any] = {
    "page_topic": PAGE,
    "ticket_topic": TICKET,
    "webhook": "http://127.0.0.1:8080/hook",
    "deadman_url": "http://127.0.0.1:8080/ping",
    "api_url": "http://127.0.0.1:5055",
}


def built(folder: Path, alarms: dict[str, Any]) -> tuple[Rulebook, dict[str, str]]:
    config = Config.model_validate({"alarms": alarms})
    rulebook = build_rules(config, "sidecar")
    files = build_files(config, rulebook)
    for name, text in files.items():
        (folder / name).write_text(text)
    return rulebook, files
