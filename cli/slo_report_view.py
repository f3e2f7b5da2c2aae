"""How a report on objectives looks: text with charts for terminals, Markdown for the monthly report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from rich.table import Table

from vllm_opsctl.alarms.report import MOST, Account, Report
from vllm_opsctl.cli.paragraphs import wrapped
from vllm_opsctl.cli.slo_text import (
    BAR,
    WIDE,
    Row,
    as_text,
    bar,
    cell,
    chart,
    clock,
    events,
    factor,
    known_text,
    objectives_table,
    share,
    span,
)
from vllm_opsctl.exporter.plain_text import markdown
from vllm_opsctl.exporter.units import format_duration, format_percent

_WORTH_DRAWING = 0.01
"""Used less of its budget, an objective has no story to tell in a terminal."""


def _headline(found: Report) -> str:
    kept = sum(one.is_kept is True for one in found.accounts)
    counted = sum(one.is_kept is not None for one in found.accounts)
    return f"{found.service}, {found.period.label}: {kept} of {counted} objectives met"


def _scope(found: Report) -> str:
    period = found.period
    known = known_text([one.known.seconds for one in found.accounts], period.end - period.start)
    return f"{clock(period.start)} to {clock(period.end)} UTC; {known}; {found.source}"


def report_text(found: Report, width: int) -> Iterator[str]:
    """
    A report for a terminal.

    Args:
        found: What to show.
        width: Columns to fill.
    """
    is_met = all(one.is_kept is not False for one in found.accounts)
    yield click.style(_headline(found), fg="green" if is_met else "red", bold=True)
    yield click.style(wrapped(_scope(found), indent="  "), dim=True)
    yield ""
    yield _summary(found, width)
    for one in found.accounts:
        yield from _account_text(found, one, width)
    if found.without:
        yield ""
        yield click.style("Without a number", bold=True)
        for objective, reason in found.without:
            yield wrapped(f"{objective.name}: {reason}", indent="    ", first="  - ")


def _summary(found: Report, width: int) -> str:
    is_wide = width >= WIDE
    rows = []
    for one in found.accounts:
        counts = (events(one.known.count.total), events(one.known.count.bad))
        rest = (
            format_percent(one.objective.target),
            "-" if one.sli is None else format_percent(one.sli),
            *(counts if is_wide else ()),
            f"{bar(one.left, 20 if is_wide else 8)} {share(one.left):>6}",
            *((span(one.known.seconds),) if is_wide else ()),
        )
        rows.append(Row((_met(one),), one.objective.name, one.model, rest))
    counted, known = (("Events", "Bad"), ("Known",)) if is_wide else ((), ())
    headers = ("Target", "Good", *counted, BAR, *known)
    return objectives_table(("Met",), headers, rows, width)


def _met(one: Account) -> str:
    return {True: "yes", False: "NO", None: "-"}[one.is_kept]


def _account_text(found: Report, one: Account, width: int) -> Iterator[str]:
    yield ""
    yield click.style(wrapped(_title(one), indent="    ", first=""), bold=True)
    if (one.used or 0.0) < _WORTH_DRAWING:
        return
    yield from chart(
        one.remaining, start=found.period.start, end=found.period.end, width=min(width, 120)
    )
    if one.worst_days:
        days = [f"{day.date:%m-%d} {share(day.spent)}" for day in one.worst_days]
        yield wrapped(", ".join(days), indent="    ", first="  Worst days: ")
    if one.episodes:
        grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in ("  Episode (UTC)", "length", "bad events", "peak burn", "budget spent"):
            grid.add_column(name, justify="left" if "Episode" in name else "right", no_wrap=True)
        for episode in one.episodes[:MOST]:
            grid.add_row(
                f"  {clock(episode.start)}",
                format_duration(episode.length_s),
                events(episode.count.bad),
                factor(episode.peak),
                share(episode.spent),
            )
        yield as_text(grid, width)
        more = _more(one)
        if more:
            yield f"  {more}"


def _title(one: Account) -> str:
    model = f" of {one.model}" if one.model else ""
    return f"{one.objective.name}{model}: {share(one.used)} of the budget used"


def _more(one: Account) -> str | None:
    rest = one.episodes[MOST:]
    if not rest:
        return None
    spent = share(sum(episode.spent for episode in rest))
    return f"and {len(rest)} more, {spent} of the budget together"


def report_markdown(found: Report, plot: Path | None) -> Iterator[str]:
    """
    A report for a wiki or a ticket.

    Args:
        found: What to show.
        plot: Picture that lies beside it.
    """
    yield f"# {markdown(_headline(found))}\n"
    yield f"{markdown(_scope(found))}.\n"
    if plot is not None:
        yield f"![Error budget remaining]({plot.as_posix()})\n"
    yield "| met | objective | model | target | good | events | bad | budget left | known |"
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|"
    for one in found.accounts:
        sli = "-" if one.sli is None else format_percent(one.sli)
        yield (
            f"| {_met(one)} | `{one.objective.name}` | {cell(one.model)} | "
            f"{format_percent(one.objective.target)} | {sli} | {events(one.known.count.total)} | "
            f"{events(one.known.count.bad)} | {share(one.left)} | {span(one.known.seconds)} |"
        )
    for one in found.accounts:
        if one.worst_days:
            yield f"\n## {markdown(_title(one))}\n"
            yield "| worst day | bad events | budget spent |\n|---|--:|--:|"
            for day in one.worst_days:
                yield f"| {day.date} | {events(day.known.count.bad)} | {share(day.spent)} |"
        if one.episodes:
            yield "\n| episode (UTC) | length | bad events | peak burn | budget spent |"
            yield "|---|--:|--:|--:|--:|"
            for episode in one.episodes[:MOST]:
                yield (
                    f"| {clock(episode.start)} | {format_duration(episode.length_s)} | "
                    f"{events(episode.count.bad)} | {factor(episode.peak)} | {share(episode.spent)} |"
                )
            more = _more(one)
            if more:
                yield f"\n{more[0].upper()}{more[1:]}."
    if found.without:
        yield "\n## Without a number\n"
        for objective, reason in found.without:
            yield f"- `{objective.name}`: {markdown(reason)}"
