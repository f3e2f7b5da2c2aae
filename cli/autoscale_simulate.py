"""opsctl autoscale simulate: the configured policy on the load of a recording."""

from __future__ import annotations

import json
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
from vllm_opsctl.cli.options import scale_of, seconds_of, text_or_json_option

if TYPE_CHECKING:
    from fractions import Fraction


def _cold_start(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    return None if value is None else seconds_of(ctx, param, value)


@click.command(
    epilog="Exit codes: 0 simulated, 64 usage, configuration or an unreadable recording."
)
@click.argument("recording", type=click.Path(path_type=Path))
@click.option(
    "--scale",
    "--time-scale",
    metavar="FACTOR",
    default="1",
    callback=scale_of,
    help="Tell so much of a minute as one, as alarms test does; with 1/60, the load of a second lasts a "
    "minute.",
)
@click.option(
    "--load",
    "times",
    metavar="FACTOR",
    type=click.FloatRange(min=0, min_open=True, max=10_000),
    default=1.0,
    show_default=True,
    help="Multiply the recorded load; a recording is usually of one replica of many.",
)
@click.option(
    "--replicas",
    metavar="N",
    type=click.IntRange(min=0),
    help="Replicas at the beginning [default: the fewest, one at least].",
)
@click.option(
    "--cold-start",
    metavar="DURATION",
    callback=_cold_start,
    help="What if it were so long [default: autoscaling.cold_start].",
)
@click.option("--resource", metavar="NAME", help="Which one, where several are scaled.")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw it as .png or .svg (needs vllm-opsctl[report]).",
)
@text_or_json_option("Format of the answer on stdout.")
@click.pass_context
def simulate(
    ctx: click.Context,
    recording: Path,
    scale: Fraction,
    times: float,
    replicas: int | None,
    cold_start: float | None,
    resource: str | None,
    out: Path | None,
    output: str,
) -> None:
    """
    Replay the load of a recording against the configured policy, beside fleets of a fixed size.

    Tells replicas and who was served in time, minute by minute, and what was assumed. AWS is not asked.
    """
    from vllm_opsctl.alarms.autoscale.trial import try_policy
    from vllm_opsctl.cli.autoscale_text import trial_json, trial_text
    from vllm_opsctl.cli.slo_text import columns
    from vllm_opsctl.exporter.bundle import read_observations

    if out is not None:
        from vllm_opsctl.alarms.report_plot import check_plot

        check_plot(out, "--out")
    loaded = load(ctx)
    observations, _ = read_observations(recording)
    with mistakes_of(loaded):
        trial = try_policy(
            loaded.config,
            observations,
            scale=scale,
            name=resource,
            start=replicas,
            cold_start_s=cold_start,
            times=times,
        )
    if out is not None:
        from vllm_opsctl.alarms.autoscale.plot import write_trial

        write_trial(trial, recording.name, out)
        say(f"{out} written", err=True)
    for line in trial.notes:
        note(line)
    if output == "json":
        emit(json.dumps(trial_json(trial, recording), indent=2, ensure_ascii=False))
    else:
        emit("\n".join(trial_text(trial, recording, columns())))
