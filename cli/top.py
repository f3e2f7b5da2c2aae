"""opsctl top: what every target does, live in a terminal."""

from __future__ import annotations

import sys

import click

from vllm_opsctl.cli.common import load, resolve_targets, stopped_by_signals
from vllm_opsctl.cli.options import text_or_json_option
from vllm_opsctl.errors import UsageError

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
    from vllm_opsctl.cli.top_screen import print_frame, run
    from vllm_opsctl.cli.top_source import live_source, sidecar_source

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
            print_frame(source.fleet, output)
        else:
            run(source.fleet, stop)
    return 0
