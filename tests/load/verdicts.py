"""What `opsctl diagnose` says of real trouble, asked as on-call asks: again, until it names a root."""

from __future__ import annotations

import json
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

from loopback import wait_for

PATIENCE_S = 120.0
"""A slow machine is in trouble late, and no verdict names a root in the first seconds of a fault."""


def roots(target: Any) -> list[str]:
    """The root causes in the verdict on a target."""
    return [cause["id"] for cause in target["causes"] if cause["role"] == "root"]


def until_a_root(diagnose: Callable[[], CompletedProcess[str]]) -> dict[str, Any]:
    """
    The first verdict on one target that names a root.

    Args:
        diagnose: Runs ``opsctl diagnose … -o json``; called until then.
    """
    said: dict[str, Any] = {}

    def found() -> bool:
        ran = diagnose()
        assert ran.stdout, ran.stderr
        said.update(json.loads(ran.stdout))
        (target,) = said["targets"]
        return roots(target) != []

    wait_for(found, timeout_s=PATIENCE_S, what="a root", said=lambda: json.dumps(said, indent=1))
    return said
