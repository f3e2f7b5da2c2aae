"""opsctl record: live targets to a file."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_opsctl.cli.common import (
    Progress,
    load,
    resolve_targets,
    say,
)
from vllm_opsctl.cli.options import duration_option

if TYPE_CHECKING:
    from vllm_opsctl.exporter.observation import Observation


@click.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option(
    "-o",
    "--output",
    "path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write, .jsonl or .jsonl.gz.",
)
@duration_option("--for", "for_s", default="60s", help_text="How long.")
@duration_option("--interval", default="1s", help_text="Between two reads.")
@click.option("--no-probe", is_flag=True, help="Send no canary completion.")
@click.pass_context
def record(
    ctx: click.Context,
    targets: tuple[str, ...],
    path: Path,
    for_s: float,
    interval: float,
    no_probe: bool,
) -> None:
    """
    Record live targets; Ctrl-C ends it early and keeps what was recorded.

    The file diagnoses and replays like the live target did.
    """
    from vllm_opsctl.exporter.recording import RecordingWriter
    from vllm_opsctl.runbooks.observe import observe

    chosen = resolve_targets(targets, load(ctx))
    started = time.monotonic()
    pages = 0
    progress = Progress("recording", for_s)
    stop = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: stop.set())
    with RecordingWriter(path) as writer:

        def keep(observation: Observation) -> None:
            nonlocal pages
            writer.write(observation)
            pages += observation.kind == "metrics"
            progress.update(time.monotonic() - started, pages)

        observe(
            chosen,
            for_s=for_s,
            interval_s=interval,
            probe=not no_probe,
            environment=os.environ,
            on_observation=keep,
            stop=stop,
        )
    signal.signal(signal.SIGINT, previous)
    progress.done()
    say(f"{path}: {pages} pages of {len(chosen)} target(s); opsctl diagnose --recording {path}")
    if pages == 0:
        ctx.exit(3)
