"""
Colours that colour-blind people tell apart, and which series has which.

Source:
    Okabe and Ito, Color universal design (2008). Grafana's own palette is not one of these.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

from vllm_opsctl.dashboards.model import Panel

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
GRAVE, WARNING, GOOD = "#d55e00", "#e69f00", "#009e73"

_LETTERS = string.digits + string.ascii_lowercase
_LAST_LETTERS = [
    rf"^\S*[{_LETTERS[first :: len(COLOURS)]}](:\d+)?( |$)" for first in range(len(COLOURS))
]
"""Of a legend's first word, before a port; each colour has those of every seventh letter."""


def overrides(panel: Panel, queries: Sequence[str]) -> list[dict[str, Any]]:
    """
    Each of several queries its colour, and its series shades of it; else each name.

    Values that are known have a colour of their own, a word of ours the first one. Other names have that of
    their last letter, so that a replica has the same one on every panel.

    Args:
        panel: What is drawn.
        queries: Their letters.
    """
    known = [f"(^| ){re.escape(value)}( |$)" for line in panel.lines for value in line.values]
    if len(queries) > 1 or not (known or panel.lines[0].label.startswith("{")):
        return [
            _override({"id": "byFrameRefID", "options": query}, index)
            for index, query in enumerate(queries)
        ]
    return [
        _override({"id": "byRegexp", "options": f"/{pattern}/"}, index)
        for index, pattern in enumerate(known or _LAST_LETTERS)
    ]


def _override(matcher: dict[str, str], index: int) -> dict[str, Any]:
    return {"matcher": matcher, "properties": [{"id": "color", "value": shades(index)}]}


def shades(index: int) -> dict[str, str]:
    """Shades of one of the colours, which start again after the last; -1 is grey."""
    return {"mode": "shades", "fixedColor": COLOURS[index % len(COLOURS)]}
