"""opsctl replay: a recording as a live endpoint."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from vllm_opsctl.cli.common import (
    listed,
    say,
)
from vllm_opsctl.errors import UsageError


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--port", type=click.IntRange(0, 65535), required=True, help="Where to listen; 0 picks."
)
@click.option("--speed", type=click.FloatRange(0.01, 1000), default=1.0, show_default=True)
@click.option("--loop", is_flag=True, help="Start again at the end.")
@click.option("--target", help="Which target, when the recording holds several.")
def replay(path: Path, port: int, speed: float, loop: bool, target: str | None) -> None:
    """Serve a recording or a bundle on 127.0.0.1 as if the vLLM of then were running now."""
    from vllm_opsctl.exporter.bundle import read_observations
    from vllm_opsctl.runbooks.replay import Replay

    observations, _ = read_observations(path)
    names = list(dict.fromkeys(observation.target for observation in observations))
    holds = f"{path} holds {listed(names)}"
    if target is None and len(names) > 1:
        raise UsageError(f"{holds}; choose one with --target")
    chosen = target or names[0]
    if chosen not in names:
        raise UsageError(f"--target {chosen!r}: {holds}")
    server = Replay(
        [o for o in observations if o.target == chosen], port=port, speed=speed, loop=loop
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    ends = "for ever" if loop else f"{server.seconds:.0f} s"
    say(f"{server.url}/metrics replays {chosen} {ends}", err=True)
    server.run()
