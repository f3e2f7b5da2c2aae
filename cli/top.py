"""opsctl top: what every target does, live in a terminal."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time

import click
from rich.console import Console

from vllm_opsctl.cli.common import (
    emit,
    load,
    resolve_targets,
    stopped_by_signals,
    text_or_json_option,
)
from vllm_opsctl.cli.screen import Page, full_screen, pressed_keys
from vllm_opsctl.cli.text import render_text
from vllm_opsctl.cli.top_model import SORTS, Fleet, Row, fleet_json
from vllm_opsctl.cli.top_source import live_source, sidecar_source
from vllm_opsctl.cli.top_view import Frame
from vllm_opsctl.errors import UsageError
from vllm_opsctl.runbooks.verdict import Verdict

REDRAW_S = 0.5
ONCE_S = 3.0
"""What one frame needs: enough pages for a verdict."""


@click.command(epilog="Keys: q quit, up and down or j and k select, s sort, d verdict.")
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--sidecar", metavar="URL", help="Read a sidecar's flight recorder instead.")
@click.option("--no-probe", is_flag=True, help="Send no canary completions (every 30 s).")
@click.option("--once", is_flag=True, help="Print one frame, for pipes.")
@text_or_json_option("Format of the frame of --once.")
@click.pass_context
def top(
    ctx: click.Context,
    targets: tuple[str, ...],
    sidecar: str | None,
    no_probe: bool,
    once: bool,
    output: str,
) -> int:
    """
    Watch what every target does, and its verdict.

    TARGET is a URL or a name of the configuration; all configured ones when none is named. Rates
    and latencies are those of the last 15 seconds.
    """
    if not once and output == "json":
        raise UsageError("--output json wants --once")
    if not once and not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise UsageError("opsctl top wants a terminal; --once prints one frame")
    loaded = load(ctx)
    if sidecar is not None:
        source = sidecar_source(sidecar, targets, loaded, probe=not no_probe and not once)
    else:
        chosen = resolve_targets(targets, loaded)
        source = live_source(chosen, loaded, probe=not no_probe and not once)
    with stopped_by_signals() as stop:
        source.start(stop)
        if once:
            stop.wait(ONCE_S)
            source.judge_all()
            _print_frame(source.fleet, output)
        else:
            _run(source.fleet, stop)
    return 0


def _print_frame(fleet: Fleet, output: str) -> None:
    rows = sorted(fleet.rows(), key=SORTS["worst"])
    if output == "json":
        emit(json.dumps(fleet_json(rows, fleet.total()), indent=2, ensure_ascii=False))
        return
    width = shutil.get_terminal_size((80, 24)).columns
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(Frame(rows, fleet.total(), "worst", 0, time.time(), keys=False))
    emit("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _run(fleet: Fleet, stop: threading.Event) -> None:
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
