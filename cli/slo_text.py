"""How budgets look in a terminal: bars, charts and tables that say the same without colour."""

from __future__ import annotations

import io
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from vllm_opsctl.alarms.status import State
from vllm_opsctl.exporter.plain_text import markdown
from vllm_opsctl.exporter.units import format_duration, format_number

WIDE = 110
"""Columns from which on tables say more."""

_WIDEST = 160
_GAP = 2

BAR = "Budget left"
"""Header of the column of bars."""

STATE_COLOURS: dict[State, str] = {
    "exhausted": "bold red",
    "burning fast": "bold red",
    "burning": "yellow",
    "no data": "magenta",
    "ok": "green",
    "not measured": "bright_black",
}

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_PARTS = " ▏▎▍▌▋▊▉█"


def columns() -> int:
    """Columns to fill: the terminal's; 80 when there is none, or less."""
    return max(80, min(shutil.get_terminal_size((80, 24)).columns, _WIDEST))


def as_text(content: RenderableType, width: int) -> str:
    """What rich draws, with colour codes; click takes them out where nobody wants them."""
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=True,
        color_system="standard",
        legacy_windows=False,
        highlight=False,
        # names of models are text, whatever is in them
        markup=False,
        emoji=False,
    )
    console.print(content)
    assert isinstance(console.file, io.StringIO)
    # a cell's blanks stand within its colour
    end = re.compile(r"(?: |\x1b\[[\d;]*m)+$", re.M)
    drawn = console.file.getvalue().rstrip("\n")
    return end.sub(lambda match: match[0].replace(" ", ""), drawn)


@dataclass(frozen=True, slots=True)
class Row:
    """
    One row of a table of objectives.

    Args:
        first: Cells before the names.
        objective: Its name.
        model: Its name.
        rest: Cells after the names.
    """

    first: tuple[str | Text, ...]
    objective: str
    model: str
    rest: tuple[str | Text, ...]


def objectives_table(
    first: Sequence[str], rest: Sequence[str], rows: Sequence[Row], width: int
) -> str:
    """
    A table of objectives; where both names do not fit, the model stands below the objective.

    Args:
        first: Headers before the names; may have several lines.
        rest: Headers after the names; all but that of the bar are of numbers.
        rows: Its rows.
        width: Columns to fill.
    """
    taken = 0
    for index, header in enumerate((*first, *rest)):
        cells = [(*row.first, *row.rest)[index] for row in rows]
        taken += max(len(line) for line in (*header.split("\n"), *map(str, cells))) + _GAP
    room = width - taken
    objective_width = max([9, *(len(row.objective) for row in rows)])
    is_stacked = objective_width + _GAP + max([5, *(len(row.model) for row in rows)]) > room
    grid = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for header in first:
        grid.add_column(header, no_wrap=True)
    for header in ("Objective, model",) if is_stacked else ("Objective", "Model"):
        grid.add_column(header, no_wrap=True)
    for header in rest:
        grid.add_column(header, justify="left" if header == BAR else "right", no_wrap=True)
    for row in rows:
        names = (
            (f"{clipped(row.objective, room)}\n  {clipped(row.model, room - 2)}",)
            if is_stacked
            else (row.objective, row.model)
        )
        grid.add_row(*row.first, *names, *row.rest)
    return as_text(grid, width)


def cell(text: str) -> str:
    """
    A name in a table of Markdown's.

    >>> cell("a|b")
    'a&#124;b'
    """
    return markdown(text).replace("\\|", "&#124;")


def clipped(text: str, room: int) -> str:
    """
    A name without its middle where it is too long: both ends tell models apart.

    >>> clipped("meta-llama/Llama-3.1-8B-Instruct", 20)
    'meta-llama…-Instruct'
    """
    if len(text) <= room:
        return text
    head = (room - 1) // 2 + 1
    tail = room - 1 - head
    return f"{text[:head]}…{text[len(text) - tail :]}"


def known_text(known: Sequence[float], period_s: float) -> str:
    """
    How much of a period is known, for all objectives together.

    Args:
        known: Seconds of each.
        period_s: Length of the period.

    >>> known_text([200000.0, 864000.0], 2592000.0)
    'of 30 days, 2.31 to 10 days are known'
    """
    # a scrape or two are missing at the edges of any period
    least, most = min(known), max(known)
    whole = span(period_s)
    if least >= 0.995 * period_s:
        return f"all of {whole} are known"
    if least >= 0.95 * most:
        return f"of {whole}, {span(most)} are known"
    low, high = span(least), span(most)
    if low.split()[1] == high.split()[1]:
        low = low.split()[0]
    return f"of {whole}, {low} to {high} are known"


def bar(left: float | None, width: int) -> str:
    """
    The budget that is left as a bar.

    >>> bar(0.5, 10), bar(-0.2, 10), bar(None, 10)
    ('█████░░░░░', '!!!!!!!!!!', '··········')
    """
    if left is None:
        return "·" * width
    if left <= 0:
        return "!" * width
    eighths = max(1, math.floor(min(left, 1.0) * width * 8 + 1e-9))
    full, part = divmod(eighths, 8)
    text = "█" * full + (_PARTS[part] if part else "")
    return text.ljust(width, "░")


def share(ratio: float | None) -> str:
    """
    A share of a budget, which may be below 0 or above 1; what is not quite all never reads as 100 %.

    >>> share(0.99996), share(-1.234), share(0.0456), share(None), share(1.0)
    ('99.9 %', '-123 %', '4.6 %', '-', '100 %')
    """
    if ratio is None:
        return "-"
    percent = ratio * 100
    if 99.95 <= percent < 100:
        return "99.9 %"
    return f"{percent:.0f} %" if abs(percent) >= 99.95 else f"{percent:.1f} %"


def factor(rate: float | None) -> str:
    """
    A burn rate.

    >>> factor(14.44), factor(0.0), factor(0.004), factor(1234.5), factor(None)
    ('14.4x', '0x', '<0.1x', '1234x', '-')
    """
    if rate is None:
        return "-"
    if rate == 0:
        return "0x"
    if rate < 0.05:
        return "<0.1x"
    return f"{rate:.0f}x" if rate >= 100 else f"{rate:.1f}x"


def events(number: float) -> str:
    """
    A number of events; rates make fractions of few.

    >>> events(3714.2), events(0.54), events(2.0)
    ('3,714', '0.5', '2')
    """
    return format_number(float(round(number)) if number >= 10 else round(number, 1))


def span(seconds: float) -> str:
    """
    A duration, in days where it has several.

    >>> span(2.3 * 86400), span(5400)
    ('2.3 days', '90 min')
    """
    if seconds >= 2 * 86400:
        return f"{float(f'{seconds / 86400:.3g}'):g} days"
    return format_duration(seconds)


def clock(t: float) -> str:
    """A time of the past, in UTC."""
    return f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M}"


def chart(
    points: Sequence[tuple[float, float]],
    *,
    start: float,
    end: float,
    width: int,
    height: int = 6,
) -> list[str]:
    """
    The budget that remains over time, as an area of characters; what is not known is left blank.

    Below the zero line there is no height: a column of "!" says that the budget is gone.

    Args:
        points: Unix seconds and share left, ascending.
        start: Unix seconds at the left edge.
        end: Unix seconds at the right edge.
        width: Columns, axis included.
        height: Lines of the area.
    """
    axis = 7
    room = width - axis
    lowest: list[float | None] = [None] * room
    for t, left in points:
        # a slot belongs to the column that it ends in
        column = min(room - 1, max(0, math.ceil((t - start) / (end - start) * room) - 1))
        lowest[column] = left if lowest[column] is None else min(lowest[column] or left, left)
    lines = []
    for row in range(height, 0, -1):
        # a label marks the upper edge of its line, the axis is zero
        label = {height: "100 %"}.get(row, "50 %" if row * 2 == height else "")
        cells = "".join(_cell(left, row, height) for left in lowest)
        lines.append(f"{label:>5} │{cells}".rstrip())
    lines.append(f"{'0 %':>5} └" + "─" * room)
    lines.append(" " * axis + _dates(start, end, room))
    return lines


def _cell(left: float | None, row: int, height: int) -> str:
    if left is None:
        return " "
    if left <= 0:
        return "!" if row == 1 else " "
    eighths = max(1, round(min(left, 1.0) * height * 8)) - (row - 1) * 8
    return _EIGHTHS[max(0, min(8, eighths))]


def _dates(start: float, end: float, room: int) -> str:
    """Days under the axis, each under its midnight."""
    text = [" "] * room
    days = (end - start) / 86400
    every = next(
        (n for n in (1, 2, 5, 7, 10, 15, 30, 60, 90) if days / n * 8 <= room), math.ceil(days)
    )
    midnight = math.ceil(start / 86400) * 86400
    free = 0
    while midnight < end:
        label = f"{datetime.fromtimestamp(midnight, UTC):%m-%d}"
        column = int((midnight - start) / (end - start) * room)
        if column >= free and column + len(label) <= room:
            text[column : column + len(label)] = label
            free = column + len(label) + 1
        midnight += every * 86400
    return "".join(text).rstrip()
