"""How opsctl slo status looks: a table for terminals, Markdown for tickets, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from rich.text import Text

from vllm_opsctl.alarms.burn import ROWS
from vllm_opsctl.alarms.status import Standing, Status
from vllm_opsctl.alarms.status_timeline import SLOT_S
from vllm_opsctl.cli.paragraphs import wrapped
from vllm_opsctl.cli.slo_text import (
    BAR,
    STATE_COLOURS,
    WIDE,
    Row,
    bar,
    cell,
    clock,
    events,
    factor,
    known_text,
    objectives_table,
    share,
    span,
)
from vllm_opsctl.exporter.plain_text import markdown
from vllm_opsctl.exporter.units import format_percent

SCHEMA_VERSION = 1

_HOUR_S = ROWS[0].long_s
_SHORT_S = ROWS[0].short_s


def status_text(found: Status, width: int) -> Iterator[str]:
    """For a terminal; the first line is the answer."""
    yield _headline(found)
    yield click.style(wrapped(_scope(found), indent="  "), dim=True)
    shown = [one for one in found.standings if one.reason is None]
    if shown:
        yield ""
        yield _table(shown, width)
    without = [one for one in found.standings if one.reason is not None]
    if without:
        yield ""
        yield click.style("Without a number", bold=True)
        for one in without:
            yield wrapped(
                f"{one.objective.name} ({one.state}): {one.reason}", indent="    ", first="  - "
            )


def _headline(found: Status) -> str:
    counts = {
        state: sum(one.state == state for one in found.standings)
        for state in dict.fromkeys(one.state for one in found.standings)
    }
    tally = ", ".join(f"{count} {state}" for state, count in counts.items())
    n = len(found.standings)
    label = click.style(
        found.state.upper(),
        fg=STATE_COLOURS[found.state].removeprefix("bold "),
        bold=True,
    )
    return f"{label} {n} budget{'' if n == 1 else 's'}: {tally}"


def _scope(found: Status) -> str:
    parts = [f"{found.source}, {clock(found.at)} UTC"]
    shown = [one for one in found.standings if one.reason is None]
    since = [one.since for one in shown if one.since is not None]
    if not since:
        return "; ".join([*parts, "nothing is known"])
    if found.is_since_start:
        parts.append(f"counted since its start, {clock(min(since))} UTC")
    known = [one.known.seconds for one in shown]
    if max(known) > found.period_s:
        parts.append(f"{span(max(known))} are counted")
    else:
        text = known_text(known, found.period_s)
        parts.append(f"{text}, budgets are of those" if text.startswith("of") else text)
    recorded = max((b.known_s for one in shown for b in one.burns), default=0.0)
    if recorded < _HOUR_S - SLOT_S:
        parts.append(f"burn rates are over the last {span(recorded)}, more is not known")
    return "; ".join(parts)


def _table(standings: list[Standing], width: int) -> str:
    is_wide = width >= WIDE
    counted = ("Target", "Good", "Events", "Bad") if is_wide else ()
    known = ("Known",) if is_wide else ()
    rows = []
    for one in standings:
        colour = STATE_COLOURS[one.state]
        counts = (
            format_percent(one.objective.target),
            "-" if one.sli is None else format_percent(one.sli),
            events(one.known.count.total),
            events(one.known.count.bad),
        )
        filled = bar(one.left, 20 if is_wide else 8)
        rest: tuple[str | Text, ...] = (
            *(counts if is_wide else ()),
            Text.assemble((filled, colour), f" {share(one.left):>6}"),
            _burn(one, _HOUR_S),
            _burn(one, _SHORT_S),
            _gone(one),
            *((span(one.known.seconds),) if is_wide else ()),
        )
        state = Text(one.state, style=colour)
        rows.append(Row((state,), one.objective.name, one.model or "-", rest))
    headers = (*counted, BAR, "Burn\n1 h", "Burn\n5 min", "Gone\nin", *known)
    return objectives_table(("State",), headers, rows, width)


def _burn(one: Standing, window_s: float) -> str:
    burn = one.burn(window_s)
    return factor(burn.rate if burn is not None else None)


def _gone(one: Standing) -> str:
    if one.gone_in_s is None:
        return "-"
    return "gone" if one.gone_in_s == 0 else span(one.gone_in_s)


def status_markdown(found: Status) -> Iterator[str]:
    """For a ticket."""
    yield f"## Objectives: {found.state}\n"
    yield f"{markdown(_scope(found))}.\n"
    shown = [one for one in found.standings if one.reason is None]
    if shown:
        yield (
            "| state | objective | model | target | good | events | bad | budget left | burn 1 h | "
            "burn 5 min | gone in | known |"
        )
        yield "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
        for one in shown:
            sli = "-" if one.sli is None else format_percent(one.sli)
            yield (
                f"| {one.state} | `{one.objective.name}` | {cell(one.model or '-')} | "
                f"{format_percent(one.objective.target)} | {sli} | {events(one.known.count.total)} | "
                f"{events(one.known.count.bad)} | {share(one.left)} | {_burn(one, _HOUR_S)} | "
                f"{_burn(one, _SHORT_S)} | {_gone(one)} | {span(one.known.seconds)} |"
            )
    for one in found.standings:
        if one.reason is not None:
            yield f"\n- `{one.objective.name}` ({one.state}): {markdown(one.reason)}"


def status_json(found: Status) -> dict[str, Any]:
    """For programs."""
    return {
        "schema_version": SCHEMA_VERSION,
        "state": found.state,
        "at": found.at,
        "source": found.source,
        "period_s": found.period_s,
        "known_s": found.known_s,
        "objectives": [_standing_json(one) for one in found.standings],
        "notes": list(found.notes),
    }


def _standing_json(one: Standing) -> dict[str, Any]:
    return {
        "objective": one.objective.name,
        "model": one.model,
        "state": one.state,
        "target": one.objective.target,
        "sli": one.sli,
        "events": one.known.count.total,
        "bad": one.known.count.bad,
        "budget_used": one.used,
        "budget_left": one.left,
        "burn": [
            {
                "window_s": burn.window_s,
                "known_s": burn.known_s,
                "events": burn.count.total,
                "bad": burn.count.bad,
                "rate": burn.rate,
            }
            for burn in one.burns
        ],
        "gone_in_s": one.gone_in_s,
        "known_s": one.known.seconds,
        "since": one.since,
        "reason": one.reason,
    }
