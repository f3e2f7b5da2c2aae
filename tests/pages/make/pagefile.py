"""Write a page and its entry in expected.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PAGES = Path(__file__).resolve().parent.parent
EXPECTED = PAGES / "expected.yaml"
HEADER = (
    "# What each page says, by concept: the numbers that were fed when the page was made.\n"
    "# See README.md for the meaning of the keys; written by the scripts in make/.\n"
)


def version_key(name: str) -> tuple[int, tuple[int, ...], str]:
    """Order version pages newest first, special pages after them by name."""
    if not name.startswith("vllm-"):
        return (1, (), name)
    numbers = name.split("-")[1].split(".")
    return (0, tuple(-int(n) for n in numbers if n.isdigit()), name)


def load_expected() -> dict[str, Any]:
    return yaml.safe_load(EXPECTED.read_text()) if EXPECTED.exists() else {}


def store(name: str, text: str, entry: dict[str, Any]) -> None:
    (PAGES / name).write_text(text)
    expected = load_expected()
    expected[name] = entry
    ordered = {key: expected[key] for key in sorted(expected, key=version_key)}
    body = yaml.safe_dump(ordered, sort_keys=False, width=100, default_flow_style=None)
    EXPECTED.write_text(HEADER + body)
