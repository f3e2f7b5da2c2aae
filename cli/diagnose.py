"""opsctl diagnose: from the page to the root cause."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from vllm_opsctl.cli.common import (
    Progress,
    load,
    output_option,
    resolve_targets,
    seconds_of,
)
from vllm_opsctl.cli.text import render_markdown, render_text
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.config import Target, clean_url
from vllm_opsctl.exporter.config_load import LoadedConfig
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.recording import read_recording
from vllm_opsctl.exporter.units import parse_duration
from vllm_opsctl.runbooks.diagnosis import diagnose_target
from vllm_opsctl.runbooks.evidence import HISTORY_S
from vllm_opsctl.runbooks.load import load_library, shipped_library
from vllm_opsctl.runbooks.observe import observe, probe_once
from vllm_opsctl.runbooks.verdict import Verdict

LIVE_INTERVAL_S = 0.5


@click.command(
    epilog="Exit codes: 0 healthy, 1 degraded, 2 critical, 3 unknown, 64 usage or unreadable input."
)
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--sidecar", metavar="URL", help="Use a sidecar's flight recorder.")
@click.option(
    "--recording", metavar="FILE", type=click.Path(path_type=Path), help="Use a recording."
)
@click.option(
    "--for",
    "for_s",
    callback=seconds_of,
    metavar="DURATION",
    default="10s",
    show_default=True,
    help="How long to watch live.",
)
@click.option("--at", metavar="TIME", help="End of the window: ISO time, unix seconds, or -5m.")
@click.option(
    "--window",
    callback=seconds_of,
    metavar="DURATION",
    default="60s",
    show_default=True,
    help="Length of the window.",
)
@click.option("--no-probe", is_flag=True, help="Send no canary completion.")
@click.option(
    "--runbooks",
    "runbook_dirs",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="More failure modes; an id of yours replaces ours.",
)
@click.option("--show-features", is_flag=True, help="Print every number the verdict rests on.")
@output_option
@click.pass_context
def diagnose(
    ctx: click.Context,
    targets: tuple[str, ...],
    sidecar: str | None,
    recording: Path | None,
    for_s: float,
    at: str | None,
    window: float,
    no_probe: bool,
    runbook_dirs: tuple[Path, ...],
    show_features: bool,
    output: str,
) -> int:
    """
    Find the root cause.

    TARGET is a URL (http://HOST:8000) or a name of the configuration; all configured ones when none
    is named. Live targets are watched for a few seconds and sent one canary completion.
    """
    if sidecar is not None and recording is not None:
        raise UsageError("--sidecar and --recording are both given; choose one")
    loaded = load(ctx)
    library = load_library(runbook_dirs) if runbook_dirs else shipped_library()
    if recording is not None:
        source = "recording"
        observations = read_recording(recording)
        newest = max(observation.t for observation in observations)
        end = _parse_time(at, newest) if at else None
    elif sidecar is not None:
        source = "sidecar"
        end = _parse_time(at, time.time()) if at else None
        observations = _from_sidecar(sidecar, targets, end, probe=not no_probe and at is None)
    else:
        if at is not None:
            raise UsageError(
                "a live target has no past; --at wants --sidecar URL or --recording FILE"
            )
        source = "scrape"
        end = None
        observations = _live(resolve_targets(targets, loaded), for_s, probe=not no_probe)
        window = max(window, for_s * 3)
    names = _names(observations, targets if source != "scrape" else (), loaded)
    verdict = Verdict(
        tuple(
            diagnose_target(
                name,
                [o for o in observations if o.target == name],
                library,
                source=source,
                at=end,
                window_s=window,
                runbook_url=loaded.config.alarms.runbook_url,
            )
            for name in names
        )
    )
    if output == "json":
        click.echo(json.dumps(verdict.to_json(), indent=2, ensure_ascii=False))
    elif output == "markdown":
        click.echo(render_markdown(verdict, show_features=show_features))
    else:
        click.echo(render_text(verdict, show_features=show_features))
    return verdict.exit_code


def _names(
    observations: Sequence[Observation], asked: tuple[str, ...], loaded: LoadedConfig
) -> list[str]:
    seen = list(dict.fromkeys(observation.target for observation in observations))
    if not asked:
        return seen
    missing = [name for name in asked if name not in seen]
    if missing:
        raise UsageError(f"no observations of {', '.join(missing)}; there are {', '.join(seen)}")
    return list(asked)


def _live(targets: list[Target], for_s: float, *, probe: bool) -> list[Observation]:
    observations: list[Observation] = []
    what = targets[0].name if len(targets) == 1 else f"{len(targets)} targets"
    progress = Progress(f"watching {what}", for_s)
    started = time.monotonic()

    def keep(observation: Observation) -> None:
        observations.append(observation)
        pages = sum(o.kind == "metrics" for o in observations)
        progress.update(time.monotonic() - started, pages)

    observe(
        targets,
        for_s=for_s,
        interval_s=LIVE_INTERVAL_S,
        probe=probe,
        environment=os.environ,
        on_observation=keep,
        stop=threading.Event(),
    )
    progress.done()
    return sorted(observations, key=lambda observation: observation.t)


def _from_sidecar(
    url: str, asked: tuple[str, ...], end: float | None, *, probe: bool
) -> list[Observation]:
    from vllm_opsctl.exporter.sources.sidecar import read_sidecar

    try:
        base = clean_url(url)
    except ValueError as problem:
        raise UsageError(f"--sidecar: {problem}") from None
    start = end - HISTORY_S if end is not None else None
    observations, known = read_sidecar(base, start=start, end=end)
    if not observations:
        raise UsageError(f"--sidecar {base}: nothing recorded {'at that time' if end else 'yet'}")
    if probe:
        threads = [
            threading.Thread(
                target=probe_once, args=(target, None, observations.append), daemon=True
            )
            for target in known
            if not asked or target.name in asked
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return observations


def _parse_time(text: str, now: float) -> float:
    """
    Read ``--at``.

    Args:
        text: Unix seconds, an ISO time (UTC unless it says otherwise), or a duration back from now.
        now: Unix seconds of the newest observation.

    Raises:
        UsageError: None of these.
    """
    if re.fullmatch(r"-\D*\d.*[a-z]", text):
        try:
            return now - parse_duration(text[1:])
        except ValueError:
            pass
    try:
        return float(text)
    except ValueError:
        pass
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--at {text!r}: not a time; write 2026-11-23T03:14:00, 1795461240 or -5m"
        ) from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
