"""What opsctl top shows: one frame for pipes, or a screen that obeys keys."""

from __future__ import annotations

import json
import shutil
import threading
import time

from rich.console import Console

from vllm_opsctl.cli.common import emit
from vllm_opsctl.cli.screen import Page, full_screen, pressed_keys
from vllm_opsctl.cli.text import render_text
from vllm_opsctl.cli.top_model import SORTS, Fleet, Row, fleet_json
from vllm_opsctl.cli.top_view import Frame
from vllm_opsctl.runbooks.verdict import Verdict

REDRAW_S = 0.5


def print_frame(fleet: Fleet, output: str) -> None:
    """One frame as text without colour, or as JSON."""
    rows = sorted(fleet.rows(), key=SORTS["worst"])
    if output == "json":
        emit(json.dumps(fleet_json(rows, fleet.total()), indent=2, ensure_ascii=False))
        return
    width = shutil.get_terminal_size((80, 24)).columns
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(Frame(rows, fleet.total(), "worst", 0, time.time(), keys=False))
    emit("\n".join(line.rstrip() for line in captured.get().splitlines()))


def run(fleet: Fleet, stop: threading.Event) -> None:
    """Draw and obey keys until q or a signal."""
    screen = _Screen(fleet)
    with pressed_keys() as next_key, full_screen() as draw:
        while not stop.is_set():
            draw(screen.picture())
            key = next_key(REDRAW_S)
            if key == "q":
                break
            screen.obey(key)


class _Screen:
    """What is shown: the order, the selected target, and whether its verdict is open."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._sort = "worst"
        self._selected: str | None = None
        self._is_open = False

    def _rows(self) -> list[Row]:
        return sorted(self._fleet.rows(), key=SORTS[self._sort])

    def _index(self, rows: list[Row]) -> int:
        """Where the selected target stands now; the first row until one is selected."""
        names = [row.target for row in rows]
        return names.index(self._selected) if self._selected in names else 0

    def picture(self) -> Frame | Page:
        """What to draw now."""
        rows = self._rows()
        index = self._index(rows)
        verdict = rows[index].verdict
        if self._is_open and verdict is not None:
            return Page(
                render_text(Verdict((verdict,)), show_features=False), ["", "d back  q quit"]
            )
        return Frame(rows, self._fleet.total(), self._sort, index, time.time())

    def obey(self, key: str | None) -> None:
        """Do what a key asks for."""
        if key in ("up", "down"):
            rows = self._rows()
            step = 1 if key == "down" else -1
            index = min(max(0, self._index(rows) + step), len(rows) - 1)
            self._selected = rows[index].target
        elif key == "s":
            orders = list(SORTS)
            self._sort = orders[(orders.index(self._sort) + 1) % len(orders)]
        elif key == "d":
            self._is_open = not self._is_open
