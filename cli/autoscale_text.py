"""How a trial of a policy looks in a terminal, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from vllm_opsctl.alarms.autoscale.simulation import Minute, Run
from vllm_opsctl.alarms.autoscale.trial import Trial
from vllm_opsctl.cli.paragraphs import wrapped
from vllm_opsctl.cli.slo_text import as_text
from vllm_opsctl.exporter.units import format_duration, format_number, format_percent

SCHEMA_VERSION = 1

_AXIS = 7
_WIDEST = 120
_MOST_ROWS = 8
_SHARE_ROWS = 4
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_MOST_DECISIONS = 12


def trial_text(trial: Trial, recording: Path, width: int) -> Iterator[str]:
    """
    A trial for a terminal; the first line is the answer.

    Args:
        trial: What to show.
        recording: Where the load is from.
        width: Columns to fill.
    """
    room = min(width, _WIDEST)
    is_kept = _is_kept(trial, trial.scaled)
    yield click.style(
        wrapped(_headline(trial), indent="  ", first=""),
        fg="green" if is_kept else "red",
        bold=True,
    )
    yield click.style(wrapped(_scope(trial, recording), indent="  "), dim=True)
    yield ""
    yield _table(trial, width)
    minutes = trial.scaled.minutes
    yield ""
    yield click.style("Replicas (█ serve, ░ start)", bold=True)
    yield from _replicas(minutes, trial.policy.most, room)
    yield from _minutes_axis(len(minutes), room)
    yield ""
    title = f"Arrived in the minute, and {_promise(trial)} (! none)"
    yield click.style(title, bold=True)
    yield from _shares(minutes, room)
    yield from _minutes_axis(len(minutes), room)
    yield ""
    yield click.style("Decisions", bold=True)
    yield from _decisions(trial.scaled)
    yield ""
    yield click.style("Assumes", bold=True)
    for line in trial.assumptions:
        yield wrapped(line, indent="    ", first="  - ")


def _promise(trial: Trial) -> str:
    what = "first token" if trial.objective.sli == "time_to_first_token" else "slot"
    return f"{what} within {format_duration(trial.limit_s)}"


def _is_kept(trial: Trial, run: Run) -> bool:
    return run.share is None or run.share >= trial.objective.target


def _headline(trial: Trial) -> str:
    run = trial.scaled
    share = "no request came" if run.share is None else f"{format_percent(run.share)} in time"
    verdict = "kept" if _is_kept(trial, run) else "MISSED"
    saved = 1 - run.replica_hours / trial.most.replica_hours
    return (
        f"{trial.objective.name} {verdict}: {share} of {format_percent(trial.objective.target)} promised, "
        f"with {format_percent(max(0.0, saved))} fewer replica-hours than {trial.policy.most} all the time"
    )


def _scope(trial: Trial, recording: Path) -> str:
    scenario = trial.scenario
    told = format_duration(scenario.told_s)
    scale = (
        f", 1 s of it told as {format_duration(scenario.told_per_s)}" if trial.scale != 1 else ""
    )
    times = f", {scenario.times:g} times its load" if scenario.times != 1 else ""
    return (
        f"{trial.service}, {trial.resource.kind} {trial.resource.name}; {recording}{times}: {told}{scale}; "
        f"cold start {format_duration(scenario.cold_start_s)}"
    )


def _table(trial: Trial, width: int) -> str:
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    grid.add_column("Fleet", no_wrap=True)
    for header in ("replica-hours", "in time", "requests", "refused", "longest wait"):
        grid.add_column(header, justify="right", no_wrap=True)
    for name, run in _runs(trial):
        grid.add_row(
            name,
            f"{run.replica_hours:.2f}",
            "-" if run.share is None else format_percent(run.share),
            format_number(float(round(run.arrived))),
            format_number(float(round(run.refused))),
            format_duration(run.longest_wait_s),
        )
    return as_text(grid, width)


def _runs(trial: Trial) -> Iterator[tuple[str, Run]]:
    policy = trial.policy
    yield f"policy, {policy.least} to {policy.most}", trial.scaled
    yield f"always {trial.fewest_replicas}", trial.fewest
    if policy.most > trial.fewest_replicas:
        yield f"always {policy.most}", trial.most


def _decisions(run: Run) -> Iterator[str]:
    if not run.decisions:
        yield "  none"
    for one in run.decisions[:_MOST_DECISIONS]:
        yield f"  {one.t / 60:5.0f} min  {one.before} -> {one.after}"
    if len(run.decisions) > _MOST_DECISIONS:
        yield f"  … and {len(run.decisions) - _MOST_DECISIONS} more"


# -- charts ----------------------------------------------------------------------------------------


def _columns(
    minutes: Sequence[Minute], room: int, read: Callable[[Sequence[Minute]], float | None]
) -> list[float | None]:
    """One number for each column, of the minutes that it stands for."""
    found = []
    for column in range(room):
        start = column * len(minutes) // room
        stop = max(start + 1, (column + 1) * len(minutes) // room)
        found.append(read(minutes[start:stop]))
    return found


def _replicas(minutes: Sequence[Minute], most: int, width: int) -> Iterator[str]:
    room = width - _AXIS
    ready = _columns(minutes, room, lambda some: float(min(one.ready for one in some)))
    desired = _columns(minutes, room, lambda some: float(max(one.desired for one in some)))
    # a row of a large fleet is several replicas, and drawn from the first of them on
    each = math.ceil(most / _MOST_ROWS)
    for row in range(math.ceil(most / each), 0, -1):
        below = (row - 1) * each
        cells = "".join(
            "█" if (r or 0) > below else "░" if (d or 0) > below else " "
            for r, d in zip(ready, desired, strict=True)
        )
        yield f"{row * each:>5} │{cells}".rstrip()


def _shares(minutes: Sequence[Minute], width: int) -> Iterator[str]:
    def worst(some: Sequence[Minute]) -> float | None:
        return min((one.share for one in some if one.share is not None), default=None)

    shares = _columns(minutes, width - _AXIS, worst)
    for row in range(_SHARE_ROWS, 0, -1):
        label = {_SHARE_ROWS: "100 %", _SHARE_ROWS // 2: "50 %"}.get(row, "")
        cells = "".join(_cell(share, row) for share in shares)
        yield f"{label:>5} │{cells}".rstrip()


def _cell(share: float | None, row: int) -> str:
    if share is None:
        return " "
    eighths = round(share * _SHARE_ROWS * 8)
    if eighths == 0:
        return "!" if row == 1 else " "
    return _EIGHTHS[max(0, min(8, eighths - (row - 1) * 8))]


def _minutes_axis(number: int, width: int) -> Iterator[str]:
    room = width - _AXIS
    yield f"{'0':>5} └" + "─" * room
    every = next(
        (n for n in (5, 10, 15, 30, 60, 120, 240, 480, 1440) if number / n * 8 <= room),
        1440 * (1 + number // 10000),
    )
    text = [" "] * room
    for minute in range(0, number, every):
        label = f"{minute} min" if minute == 0 else str(minute)
        column = minute * room // number
        if column + len(label) <= room:
            text[column : column + len(label)] = label
    yield " " * _AXIS + "".join(text).rstrip()


# -- JSON ------------------------------------------------------------------------------------------


def trial_json(trial: Trial, recording: Path) -> dict[str, Any]:
    """A trial for programs; times are told seconds."""
    scenario, server = trial.scenario, trial.scenario.load.server
    return {
        "schema_version": SCHEMA_VERSION,
        "recording": str(recording),
        "service": trial.service,
        "resource": {"kind": trial.resource.kind, "name": trial.resource.name},
        "objective": {
            "name": trial.objective.name,
            "sli": trial.objective.sli,
            "threshold_s": trial.limit_s,
            "target": trial.objective.target,
            "is_kept": _is_kept(trial, trial.scaled),
        },
        "scale": str(trial.scale),
        "load_factor": scenario.times,
        "told_s": scenario.told_s,
        "cold_start_s": scenario.cold_start_s,
        "replicas_at_start": trial.start,
        "server": {
            "slots": server.slots,
            "alone_s": server.alone_s,
            "full_s": server.full_s,
            "most_per_s": server.most_per_s,
            "first_token_s": server.first_token_s,
            "kv_percent_per_request": server.kv_percent,
            "is_saturated": server.is_saturated,
        },
        "policy": {**_run_json(trial.scaled), "min": trial.policy.least, "max": trial.policy.most},
        "always_min": {**_run_json(trial.fewest), "replicas": trial.fewest_replicas},
        "always_max": {**_run_json(trial.most), "replicas": trial.policy.most},
        "decisions": [
            {"t_s": one.t, "before": one.before, "after": one.after}
            for one in trial.scaled.decisions
        ],
        "minutes": [
            {
                "desired": one.desired,
                "ready": one.ready,
                "arrivals_per_s": one.arrivals,
                "demand_percent": one.demand,
                "waiting": one.waiting,
                "share_in_time": one.share,
            }
            for one in trial.scaled.minutes
        ],
        "assumptions": list(trial.assumptions),
        "notes": list(trial.notes),
    }


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "replica_hours": run.replica_hours,
        "share_in_time": run.share,
        "arrived": run.arrived,
        "finished": run.finished,
        "refused": run.refused,
        "in_system_at_end": run.in_system,
        "longest_wait_s": run.longest_wait_s,
    }
