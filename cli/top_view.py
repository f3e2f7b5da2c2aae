"""How `opsctl top` looks: a table that fits the terminal, the selected target's course below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from vllm_opsctl.cli.top_model import Point, Row
from vllm_opsctl.exporter.units import format_duration, format_number, format_percent

STYLES = {"healthy": "green", "degraded": "yellow", "critical": "bold red", "unknown": "magenta"}
_BARS = "▁▂▃▄▅▆▇█"
_GAP = 1
_DETAIL_LINES = 7
_WIDE = 120
"""From here on causes and a course stand in the table."""


def _count(value: float) -> str:
    return f"{value:.1f}" if value < 100 and value != int(value) else format_number(value)


@dataclass(frozen=True)
class Column:
    """One number of a row."""

    title: str
    width: int
    number: str
    show: Callable[[float], str]

    def of(self, point: Point | None) -> str:
        """The number as text; a dash when it is missing."""
        value = getattr(point, self.number) if point is not None else None
        return "-" if value is None else self.show(value).replace(" ", "")


COLUMNS = (
    Column("req/s", 6, "requests_per_s", _count),
    Column("tok/s", 7, "tokens_per_s", _count),
    Column("run", 4, "running", format_number),
    Column("wait", 5, "waiting", format_number),
    Column("KV", 6, "kv_usage", format_percent),
    Column("hits", 6, "hit_ratio", format_percent),
    Column("TTFT", 7, "ttft_s", format_duration),
    Column("ITL", 7, "itl_s", format_duration),
)


@dataclass(frozen=True)
class Frame:
    """
    One picture.

    Args:
        rows: Sorted.
        total: The whole fleet.
        sort: Name of the order.
        selected: Index of the selected row.
        now: Unix seconds.
        keys: Show the course of the selected row and the keys; for a live screen.
    """

    rows: Sequence[Row]
    total: Point | None
    sort: str
    selected: int
    now: float
    keys: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Fit to the size of the terminal as it is now."""
        width = options.max_width
        lines = [self._title(), self._header(width)]
        first, count = 0, len(self.rows)
        if self.keys:
            room = max(1, options.size.height - len(lines) - 1 - _DETAIL_LINES - 1)
            count = min(count, room)
            first = min(max(0, self.selected - count + 1), len(self.rows) - count)
        for index in range(first, first + count):
            lines.append(self._row(index, width))
        lines.append(self._fleet(width))
        if self.keys:
            lines += self._course(width)
            spare = options.size.height - len(lines) - 1
            lines += [Text("")] * max(0, spare)
            lines.append(Text("q quit  ↑↓ select  s sort  d verdict", style="dim"))
        for line in lines:
            line.truncate(width, overflow="ellipsis")
            line.no_wrap = True
            yield line

    def _title(self) -> Text:
        clock = datetime.fromtimestamp(self.now, UTC).strftime("%H:%M:%S UTC")
        many = "" if len(self.rows) == 1 else "s"
        return Text(f"opsctl top  {clock}  {len(self.rows)} target{many}, by {self.sort}")

    def _widths(self, width: int) -> tuple[int, int, int]:
        """Of the name, the causes and the course."""
        fixed = 9 + sum(column.width + _GAP for column in COLUMNS)
        longest = max((len(row.target) for row in self.rows), default=8)
        if width < _WIDE:
            return max(8, width - fixed - _GAP), 0, 0
        name = min(max(longest, 8), 32)
        left = width - fixed - name - 3 * _GAP
        causes = min(30, left)
        return name, causes, max(0, min(60, left - causes))

    def _header(self, width: int) -> Text:
        name, causes, course = self._widths(width)
        text = f"{'TARGET':{name}} {'VERDICT':8} "
        text += "".join(f"{column.title:>{column.width}} " for column in COLUMNS)
        if causes:
            text += f"{'CAUSE':{causes}} "
        if course:
            text += "tok/s, last minutes"[:course]
        return Text(text, style="bold")

    def _row(self, index: int, width: int) -> Text:
        row = self.rows[index]
        name, causes, course = self._widths(width)
        text = Text(f"{_shortened(row.target, name):{name}} ")
        text.append(f"{row.health or '-':8} ", style=STYLES.get(row.health or "", ""))
        if row.error is not None:
            text.append(row.error if row.is_outdated else f"unreachable: {row.error}")
        else:
            text.append("".join(f"{c.of(row.point):>{c.width}} " for c in COLUMNS))
            if causes:
                text.append(f"{_cut(', '.join(row.roots) or '-', causes):{causes}} ")
            if course:
                text.append(sparkline([point.tokens_per_s for point in row.past], course))
        if self.keys and index == self.selected:
            text.pad_right(max(0, width - len(text)))
            text.stylize("reverse")
        return text

    def _fleet(self, width: int) -> Text:
        name, _, _ = self._widths(width)
        text = f"{'FLEET':{name}} {'':8} "
        return Text(
            text + "".join(f"{c.of(self.total):>{c.width}} " for c in COLUMNS), style="bold"
        )

    def _course(self, width: int) -> list[Text]:
        """What the selected target did over the last minutes, and its verdict in one line."""
        if not self.rows:
            return []
        row = self.rows[self.selected]
        lines = [Text(""), Text(self._sentence(row))]
        for column in COLUMNS:
            if column.title in ("tok/s", "wait", "KV", "TTFT"):
                values = [getattr(point, column.number) for point in row.past]
                line = Text(f"{column.title:>6} {column.of(row.point):>8} ")
                whole = 1.0 if column.show is format_percent else None
                line.append(sparkline(values, width - 17, highest=whole))
                lines.append(line)
        return lines

    @staticmethod
    def _sentence(row: Row) -> str:
        if row.verdict is None:
            return f"{row.target}: no verdict yet"
        roots = ", ".join(row.roots)
        said = f"{roots}: {row.verdict.summary}" if roots else row.verdict.summary
        return f"{row.target}: {said}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _shortened(name: str, width: int) -> str:
    """A name without its middle: replicas differ at the end."""
    if len(name) <= width:
        return name
    kept = width - 1
    return f"{name[: kept // 2]}…{name[-(kept - kept // 2) :]}"


def sparkline(values: Sequence[float | None], width: int, *, highest: float | None = None) -> str:
    """
    The newest values as bars from 0 upwards; a gap where a value is missing.

    Args:
        values: Oldest first.
        width: How many of them at most.
        highest: What a whole bar means; None for their maximum.

    >>> sparkline([0.0, 1.0, None, 7.0], 10)
    '▁▂ █'
    """
    shown = list(values)[-max(0, width) :] if width > 0 else []
    if highest is None:
        highest = max((value for value in shown if value is not None), default=0.0)
    scale = (len(_BARS) - 1) / highest if highest > 0 else 0.0
    return "".join(" " if value is None else _BARS[round(value * scale)] for value in shown)
