"""opsctl slo status: budget left and burn now, per objective and model."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.text import Text

from vllm_opsctl.alarms.burn import ROWS
from vllm_opsctl.alarms.status import Standing, Status
from vllm_opsctl.alarms.status_timeline import SLOT_S
from vllm_opsctl.alarms.vocabulary import Source
from vllm_opsctl.cli.alarms import version_option
from vllm_opsctl.cli.common import emit, load, note, output_option, source_option
from vllm_opsctl.cli.diagnose import parse_time
from vllm_opsctl.cli.slo_text import (
    BAR,
    STATE_COLOURS,
    WIDE,
    Row,
    bar,
    cell,
    clock,
    columns,
    events,
    factor,
    known_text,
    objectives_table,
    share,
    span,
)
from vllm_opsctl.cli.text import wrapped
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.catalogue import Version
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.units import format_percent

SCHEMA_VERSION = 1

_HOUR_S = ROWS[0].long_s
_SHORT_S = ROWS[0].short_s

_CLOCK_SLACK_S = 60.0
"""A time given by people may be ahead of this machine's clock by so much."""

prometheus_option = click.option(
    "--prometheus", metavar="URL", help="Ask this Prometheus [default: alarms.prometheus_url]."
)
token_option = click.option(
    "--prometheus-token-env",
    "token_env",
    metavar="NAME",
    help="With --prometheus: environment variable that holds a bearer token.",
)


@click.command(
    epilog="Exit codes: 0 all within budget, 1 burning at a ticket's rate, 2 a budget exhausted or "
    "burning at a page's rate, 3 no data or unreachable, 64 usage or configuration."
)
@prometheus_option
@click.option("--sidecar", metavar="URL", help="Ask this sidecar what it counted since its start.")
@source_option
@version_option
@click.option(
    "--at",
    metavar="TIME",
    help="With --prometheus: ISO time (UTC), unix seconds, or -5m [default: now].",
)
@token_option
@output_option
@click.pass_context
def status(
    ctx: click.Context,
    prometheus: str | None,
    sidecar: str | None,
    source: Source,
    version: Version | None,
    at: str | None,
    token_env: str | None,
    output: str,
) -> int:
    """
    Tell the budget left and the burn rates now, the worst objective first.

    Budgets are of the rolling 30 days, or of as much of them as is known. Series that the rules of
    opsctl alarms build record are read where there are any, else the counters themselves.
    """
    if prometheus is not None and sidecar is not None:
        raise UsageError("--prometheus and --sidecar are both given; choose one")
    config = load(ctx).config
    if prometheus is None and sidecar is None:
        # thirty days are better than those since the sidecar's start
        prometheus = config.alarms.prometheus_url
        sidecar = config.alarms.sidecar_url if prometheus is None else None
    if sidecar is not None:
        for name, given in (("--at", at), ("--prometheus-token-env", token_env)):
            if given is not None:
                raise UsageError(f"{name} belongs to --prometheus; a sidecar tells about now")
        from vllm_opsctl.alarms.status_sidecar import status_from_sidecar

        found = status_from_sidecar(sidecar, config)
    elif prometheus is not None:
        found = _from_prometheus(config, prometheus, source, version, at, token_env)
    else:
        raise UsageError(
            "whom to ask? give --prometheus URL or --sidecar URL, or set alarms.prometheus_url or "
            "alarms.sidecar_url in opsctl.yaml"
        )
    for text in found.notes:
        note(text)
    if output == "json":
        emit(json.dumps(_json(found), indent=2, ensure_ascii=False))
    elif output == "markdown":
        emit("\n".join(_markdown(found)))
    else:
        emit("\n".join(_text(found, columns())))
    return found.exit_code


def token_of(name: str | None) -> str | None:
    """
    The bearer token that an environment variable holds.

    Raises:
        UsageError: It is not set.
    """
    token = os.environ.get(name) if name else None
    if name and not token:
        raise UsageError(f"--prometheus-token-env {name}: no such environment variable")
    return token


def time_of(at: str | None) -> float:
    """
    The moment that ``--at`` names; now without it.

    Raises:
        UsageError: It is no time, or in the future.
    """
    now = time.time()
    if at is None:
        return now
    t = parse_time(at, now)
    if t > now + _CLOCK_SLACK_S:
        raise UsageError(f"--at {at}: in the future; it is {clock(now)} UTC")
    return t


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """One line on stderr that tells which objective is asked for; silent when nobody watches."""
    is_shown = sys.stderr.isatty()

    def tell(name: str, done: int, total: int) -> None:
        if is_shown:
            text = f"\r\033[Kasking Prometheus: {name}, {done + 1} of {total}"
            click.echo(text, nl=False, err=True)

    try:
        yield tell
    finally:
        if is_shown:
            click.echo("\r\033[K", nl=False, err=True)


def _from_prometheus(
    config: Config,
    url: str,
    source: Source,
    version: Version | None,
    at: str | None,
    token_env: str | None,
) -> Status:
    from vllm_opsctl.alarms.status_prometheus import status_from_prometheus
    from vllm_opsctl.alarms.status_query import Prometheus

    if version is not None and source == "sidecar":
        raise UsageError("--vllm-version belongs to --from vllm; the sidecar reads every release")
    t = time_of(at)
    server = Prometheus(url, token=token_of(token_env))
    with progress() as tell:
        return status_from_prometheus(server, config, source, at=t, version=version, progress=tell)


def _text(found: Status, width: int) -> Iterator[str]:
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


def _markdown(found: Status) -> Iterator[str]:
    yield f"## Objectives: {found.state}\n"
    yield f"{_scope(found)}.\n"
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
            yield f"\n- `{one.objective.name}` ({one.state}): {one.reason}"


def _json(found: Status) -> dict[str, Any]:
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
