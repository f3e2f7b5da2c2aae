"""The parts that tests want besides Python: which are here, and the command that brings the rest."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from parts.engine import REPOSITORY, find_python

REQUIRE_VARIABLE = "OPSCTL_REQUIRE_PARTS"
"""Set (in CI) to make a missing part a failure instead of a skipped test."""

COMMAND = "make real-parts"


@dataclass(frozen=True)
class Part:
    """One part and how to find it."""

    name: str
    find: Callable[[], str | None]


def _vllm() -> str | None:
    python = find_python()
    return str(python) if python is not None else None


def _ministack() -> str | None:
    binary = REPOSITORY / "build/real/ministack/bin/ministack"
    return str(binary) if binary.is_file() else None


PARTS: dict[str, Part] = {
    "vllm": Part("a real vLLM on the CPU", _vllm),
    "prometheus": Part("Prometheus", lambda: shutil.which("prometheus")),
    "promtool": Part("promtool", lambda: shutil.which("promtool")),
    "alertmanager": Part("Alertmanager", lambda: shutil.which("prometheus-alertmanager")),
    "amtool": Part("amtool", lambda: shutil.which("amtool")),
    "ministack": Part("MiniStack", _ministack),
    "chromium": Part("Chromium", lambda: shutil.which("chromium")),
}


def missing_parts() -> list[str]:
    """Names of the parts that are not here."""
    return [part.name for part in PARTS.values() if part.find() is None]


def parts_are_required() -> bool:
    """Whether a missing part is a failure."""
    return bool(os.environ.get(REQUIRE_VARIABLE))


def find_part(name: str) -> Path | None:
    """Where a part is."""
    found = PARTS[name].find()
    return Path(found) if found is not None else None
