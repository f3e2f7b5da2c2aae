"""Unit tests."""

from __future__ import annotations

from typing import Any

from vllm_opsctl.alarms.rules import Rulebook


def unit_tests(rulebook: Rulebook) -> dict[str, Any]:
    return {"rule_files": ["rules.yaml"], "tests": []}
