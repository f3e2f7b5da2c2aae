"""Paragraphs as wide as the terminal."""

from __future__ import annotations

import shutil
import textwrap

MAX_WIDTH = 100


def width() -> int:
    """Columns to fill: the terminal's, 80 when there is none, never more than reads well."""
    return min(shutil.get_terminal_size((80, 24)).columns, MAX_WIDTH)


def wrapped(text: str, *, indent: str, first: str | None = None) -> str:
    """Wrap a paragraph to the terminal."""
    return textwrap.fill(
        text,
        width(),
        initial_indent=indent if first is None else first,
        subsequent_indent=indent if first is None else " " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
