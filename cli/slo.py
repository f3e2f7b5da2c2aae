"""opsctl slo: what objectives can do, where they stand, and their exchange as OpenSLO."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_opsctl.cli.common import (
    emit,
    load,
    mistakes_of,
    note,
    say,
)
from vllm_opsctl.cli.options import source_option, text_or_json_option
from vllm_opsctl.cli.paragraphs import wrapped
from vllm_opsctl.cli.slo_report import report
from vllm_opsctl.cli.slo_status import status
from vllm_opsctl.errors import InputFileError, UsageError
from vllm_opsctl.exporter.files import read_plain_text
from vllm_opsctl.exporter.limits import MAX_CONFIG_BYTES
from vllm_opsctl.exporter.units import format_duration, format_number, format_percent
from vllm_opsctl.runbooks.names import nearest

if TYPE_CHECKING:
    from vllm_opsctl.alarms.explain import Explained, Window
    from vllm_opsctl.alarms.prometheus.conventions import Source
    from vllm_opsctl.exporter.config import Config, Objective


@click.group()
def slo() -> None:
    """Explain objectives, tell where they stand, report on them, exchange them as OpenSLO."""


slo.add_command(status)
slo.add_command(report)


@slo.command()
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the documents go [default: stdout].",
)
@click.pass_context
def export(ctx: click.Context, out: Path | None) -> None:
    """Write the configured objectives as OpenSLO v1 documents."""
    from vllm_opsctl.alarms.openslo import export_openslo

    loaded = load(ctx)
    with mistakes_of(loaded):
        text = export_openslo(loaded.config)
    if out is None:
        emit(text.rstrip("\n"))
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"--out {out}: {problem.strerror}") from None
    say(f"{out}: {len(loaded.config.objectives)} objectives")


@slo.command("import")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
def import_command(file: Path) -> None:
    """
    Print OpenSLO v1 documents as the objectives section of opsctl.yaml.

    Those of others are understood where their queries name metrics of vLLM's.
    """
    from vllm_opsctl.alarms.openslo_read import objectives_section, read_openslo

    try:
        text = read_plain_text(file, MAX_CONFIG_BYTES, "file of OpenSLO documents")
    except InputFileError as problem:
        hint = "; opsctl slo export writes one" if str(problem).endswith("no such file") else ""
        raise InputFileError(f"{problem}{hint}") from None
    found = read_openslo(text, str(file))
    for text in found.notes:
        note(text)
    emit(objectives_section(found.objectives).rstrip("\n"))


@slo.command()
@click.argument("name", metavar="OBJECTIVE")
@click.option(
    "--requests-per-day",
    type=click.FloatRange(min=0),
    metavar="N",
    help="Requests a day of the quietest model [default: plenty].",
)
@source_option
@text_or_json_option("Format of the answer on stdout.")
@click.pass_context
def explain(
    ctx: click.Context, name: str, requests_per_day: float | None, source: Source, output: str
) -> None:
    """Tell how soon an objective pages, what traffic that takes, and what cannot page."""
    from vllm_opsctl.alarms.explain import explain_objective

    config = load(ctx).config
    found = explain_objective(
        config, _named(config, name), requests_per_day=requests_per_day, source=source
    )
    if output == "json":
        data = asdict(found) | {"objective": found.objective.model_dump()}
        data["commands"] = [{"command": c, "what": what} for c, what in found.commands]
        emit(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        emit("\n".join(_text(found)))


def _named(config: Config, name: str) -> Objective:
    objectives = {objective.name: objective for objective in config.objectives}
    if name not in objectives:
        hint = nearest(name, objectives) or f"there are {', '.join(objectives) or 'none'}"
        raise UsageError(f"no objective {name!r}; {hint}")
    return objectives[name]


def _text(found: Explained) -> Iterator[str]:
    objective = found.objective
    longest = (
        "" if objective.threshold is None else f" within {format_duration(objective.threshold)}"
    )
    whom = "every model" if objective.model is None else objective.model
    headline = (
        f"{objective.name}: {objective.sli}{longest}, {format_percent(objective.target)} "
        f"over 30 days, {whom}"
    )
    yield click.style(wrapped(headline, indent="    ", first=""), bold=True)
    if found.not_measured is not None:
        yield wrapped(found.not_measured, indent="", first="Not measured: ")
    if found.moved is not None:
        yield wrapped(found.moved, indent="", first="Moved: ")
    yield from _budget(found)
    yield ""
    yield click.style(
        "Steady outage     pages after  ticket after  page needs events a day", bold=True
    )
    for outage in found.outages:
        needs = outage.page_needs_per_day
        yield (
            f"  {format_percent(outage.ratio) + ' bad':14}  {_after(outage.page_s):>11}  "
            f"{_after(outage.ticket_s):>12}  {'-' if needs is None else _up(needs):>23}"
        )
    known = (
        "plenty of traffic; --requests-per-day N computes for yours"
        if found.events_per_day is None
        else f"{format_number(found.events_per_day)} events a day"
    )
    if objective.sli == "inter_token_latency":
        known = "plenty of events: each gap between two tokens is one, many a request"
    yield wrapped(f"For {known}; evenly spread, after a spotless past.", indent="  ")
    yield ""
    yield click.style(
        "Window    does    above a share of bad  events a day to pass the guard", bold=True
    )
    for window in found.windows:
        yield from _window(window)
    yield ""
    yield click.style("What cannot page", bold=True)
    for text in found.blind:
        yield wrapped(text, indent="    ", first="  - ")
    yield ""
    yield click.style("Type", bold=True)
    for command, what in found.commands:
        yield f"  $ {command}"
        yield f"      {what}"


def _budget(found: Explained) -> Iterator[str]:
    budget = found.budget
    share = format_percent(budget.ratio)
    events = (
        f"30 x events a day x {share} bad events"
        if budget.bad_events is None
        else f"{format_number(budget.bad_events)} bad events"
    )
    outage = format_duration(budget.outage_minutes * 60)
    yield wrapped(
        f"{share} of 30 days: {outage} of total outage, or {events}.",
        indent="    ",
        first="Budget: ",
    )


def _window(window: Window) -> Iterator[str]:
    burn = "floor" if window.burn is None else f"{window.burn:g}x"
    if window.unreachable is not None:
        yield wrapped(
            f"unreachable: {window.unreachable}",
            indent=" " * 10,
            first=f"  {window.windows:8}",
        )
        return
    share = f"{format_percent(window.ratio)} ({burn})"
    yield f"  {window.windows:8}{window.notify:8}{share:>20}  {_up(window.needs_per_day):>30}"


def _after(seconds: float | None) -> str:
    return "never" if seconds is None else format_duration(seconds)


def _up(number: float) -> str:
    return format_number(float(-(-number // 1)))
