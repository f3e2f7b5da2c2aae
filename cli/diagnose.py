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
from urllib.parse import urlsplit

import click

from vllm_opsctl.cli.common import (
    Progress,
    duration_option,
    emit,
    load,
    output_option,
    resolve_targets,
    runbooks_option,
)
from vllm_opsctl.cli.text import render_markdown, render_text
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.config import Target, clean_url
from vllm_opsctl.exporter.config_load import LoadedConfig, api_key
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.recording import LATEST_T, read_recording
from vllm_opsctl.exporter.units import parse_duration
from vllm_opsctl.runbooks.diagnosis import diagnose_target
from vllm_opsctl.runbooks.evidence import history_of
from vllm_opsctl.runbooks.load import load_library, shipped_library
from vllm_opsctl.runbooks.observe import observe, probe_once
from vllm_opsctl.runbooks.verdict import Verdict

LIVE_INTERVAL_S = 0.5

_CLOCK_SLACK_S = 30.0
"""The sidecar's clock may run ahead of this machine's."""


@click.command(
    epilog="Exit codes: 0 healthy, 1 degraded, 2 critical, 3 unknown, 64 usage or unreadable input."
)
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--sidecar", metavar="URL", help="Use a sidecar's flight recorder.")
@click.option(
    "--recording", metavar="FILE", type=click.Path(path_type=Path), help="Use a recording."
)
@duration_option("--for", "for_s", default="10s", help_text="How long to watch live targets.")
@click.option(
    "--at", metavar="TIME", help="End of the window: ISO time (UTC), unix seconds, or -5m."
)
@duration_option("--window", default="60s", help_text="Length of the window.")
@click.option("--no-probe", is_flag=True, help="Send no canary completion.")
@runbooks_option
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
        end = parse_time(at, newest) if at else None
    elif sidecar is not None:
        source = "sidecar"
        end = parse_time(at, time.time()) if at else None
        observations = _from_sidecar(
            sidecar, targets, loaded, end=end, window_s=window, probe=not no_probe and at is None
        )
    else:
        if at is not None:
            raise UsageError(
                "a live target has no past; --at wants --sidecar URL or --recording FILE"
            )
        source = "scrape"
        end = None
        observations = _live(resolve_targets(targets, loaded), for_s, probe=not no_probe)
        window = max(window, for_s * 3)
    names = _names(observations, targets if source != "scrape" else ())
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
        emit(json.dumps(verdict.to_json(), indent=2, ensure_ascii=False))
    elif output == "markdown":
        emit(render_markdown(verdict, show_features=show_features))
    else:
        emit(render_text(verdict, show_features=show_features))
    return verdict.exit_code


def _names(observations: Sequence[Observation], asked: tuple[str, ...]) -> list[str]:
    """The targets to judge: those that were asked for, or all that were observed."""
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
    url: str,
    asked: tuple[str, ...],
    loaded: LoadedConfig,
    *,
    end: float | None,
    window_s: float,
    probe: bool,
) -> list[Observation]:
    from vllm_opsctl.exporter.sources.sidecar import SidecarSource

    try:
        base = clean_url(url)
    except ValueError as problem:
        raise UsageError(f"--sidecar: {problem}") from None
    sidecar = SidecarSource(base)
    known = {target.name: target for target in sidecar.targets()}
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise UsageError(f"--sidecar {base}: no {', '.join(unknown)}; it has {', '.join(known)}")
    wanted = [target for name, target in known.items() if not asked or name in asked]
    configured = {target.name: target for target in loaded.config.targets}
    observations: list[Observation] = []
    probes = []
    if probe:
        # canaries wait up to ten seconds; the recordings are fetched meanwhile
        for target in wanted:
            if is_local(target.url) and not is_local(base):
                continue
            key = api_key(configured.get(target.name, target), os.environ)
            thread = threading.Thread(
                target=probe_once, args=(target, key, observations.append), daemon=True
            )
            thread.start()
            probes.append(thread)
    progress = Progress("reading the sidecar", len(wanted), unit="targets")
    newest = end if end is not None else time.time() + _CLOCK_SLACK_S
    for index, target in enumerate(wanted):
        progress.update(index, len(observations))
        history = history_of(newest - _CLOCK_SLACK_S - window_s)
        observations += sidecar.observations(target.name, end=newest, **history)
    for thread in probes:
        thread.join()
    progress.done()
    if not any(observation.kind in ("metrics", "error") for observation in observations):
        when = "at that time" if end is not None else "yet"
        raise UsageError(f"--sidecar {base}: nothing recorded {when}")
    return sorted(observations, key=lambda observation: observation.t)


def is_local(url: str) -> bool:
    """Whether a URL means the machine that uses it."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")  # noqa: S104


def parse_time(text: str, now: float) -> float:
    """
    Read ``--at``.

    Args:
        text: Unix seconds, an ISO time (UTC unless it says otherwise), or a duration back from now.
        now: Unix seconds of the newest observation.

    Raises:
        UsageError: None of these.
    """
    wrong = UsageError(
        f"--at {text!r}: not a time; write 2026-11-23T03:14:00 (UTC), 1795461240 or -5m"
    )
    if text.startswith("-"):
        if re.fullmatch(r"-[\d.]+", text):
            raise wrong
        try:
            return now - parse_duration(text[1:])
        except ValueError:
            raise wrong from None
    try:
        t = float(text)
    except ValueError:
        try:
            parsed = datetime.fromisoformat(text)
        except ValueError:
            raise wrong from None
        t = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    if not 0 <= t < LATEST_T:
        raise wrong
    return t
