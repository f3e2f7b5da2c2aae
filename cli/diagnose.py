"""opsctl diagnose: from the page to the root cause."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_opsctl.cli.common import (
    emit,
    listed,
    load,
    resolve_targets,
    say,
)
from vllm_opsctl.cli.options import (
    duration_option,
    is_given,
    output_option,
    parse_time,
    runbooks_option,
)
from vllm_opsctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_opsctl.cli.alarm_message import AlarmMessage
    from vllm_opsctl.cli.observing import Sidecar
    from vllm_opsctl.exporter.observation import Observation

SHORTEST_EVERY_S = 1.0
"""Each round sends a canary and may take a second of one core."""


@click.command(
    epilog="Exit codes: 0 healthy, 1 degraded, 2 critical, 3 unknown, 64 usage or unreadable input."
)
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--sidecar", metavar="URL", help="Use a sidecar's flight recorder.")
@click.option(
    "--recording",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Use a recording or a bundle.",
)
@click.option("--prometheus", metavar="URL", help="Use what a Prometheus has scraped.")
@click.option(
    "--tap",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Use the tap's pages, those of dead engines too.",
)
@click.option("--sagemaker", metavar="ENDPOINT", help="Use what AWS knows of a SageMaker endpoint.")
@click.option(
    "--alarm",
    "alarm_file",
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="Look where this page says, if configured, at its time: SNS's message; - reads stdin.",
)
@click.option(
    "--match",
    metavar="LABELS",
    default="",
    help="With --prometheus: which targets, e.g. '{job=\"vllm\"}' [default: alarms.match, else every vLLM].",
)
@click.option(
    "--prometheus-token-env",
    metavar="NAME",
    help="With --prometheus: environment variable that holds a bearer token.",
)
@duration_option("--for", "for_s", default="10s", help_text="How long to watch live targets.")
@click.option(
    "--at", metavar="TIME", help="End of the window: ISO time (UTC), unix seconds, or -5m."
)
@duration_option(
    "--window", default="60s", help_text="Length of the window; --sagemaker looks at 1h."
)
@click.option(
    "--no-probe",
    is_flag=True,
    help="Send no probes (canary completion, /tokenize, a prompt twice).",
)
@click.option("--watch", "is_watch", is_flag=True, help="Diagnose again and again until Ctrl-C.")
@duration_option("--every", default="15s", help_text="With --watch: time between two verdicts.")
@click.option(
    "--bundle",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also pack it for the ticket (.tar.gz).",
)
@click.option(
    "--log",
    "log_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also look for known lines at the end of a server's or gateway's log.",
)
@runbooks_option
@click.option("--show-features", is_flag=True, help="Print every number the verdict rests on.")
@output_option
@click.pass_context
def diagnose(
    ctx: click.Context,
    targets: tuple[str, ...],
    sidecar: str | None,
    recording: Path | None,
    prometheus: str | None,
    match: str,
    prometheus_token_env: str | None,
    tap: Path | None,
    sagemaker: str | None,
    alarm_file: str | None,
    for_s: float,
    at: str | None,
    window: float,
    no_probe: bool,
    is_watch: bool,
    every: float,
    bundle: Path | None,
    log_file: Path | None,
    runbook_dirs: tuple[Path, ...],
    show_features: bool,
    output: str,
) -> int:
    """
    Find the root cause.

    TARGET is a URL (http://HOST:8000) or a name of the configuration; all configured ones when none
    is named. Live targets are watched for a few seconds and sent a few small probes.
    """
    from vllm_opsctl.cli.doctor import Doctor, rendered
    from vllm_opsctl.cli.observing import (
        Sidecar,
        from_prometheus,
        from_tap,
        observe_live,
        read_log,
        wide_enough,
    )
    from vllm_opsctl.exporter import credentials
    from vllm_opsctl.exporter.bundle import (
        Asked,
        Scrubber,
        as_packed,
        read_observations,
        refuse_to_overwrite,
    )
    from vllm_opsctl.exporter.config_load import known_secrets
    from vllm_opsctl.runbooks.load import load_library, shipped_library

    given = {
        "--sidecar": sidecar,
        "--recording": recording,
        "--prometheus": prometheus,
        "--tap": tap,
        "--sagemaker": sagemaker,
    }
    chosen_sources = [name for name, value in given.items() if value is not None]
    alarm: AlarmMessage | None = None
    if alarm_file is not None:
        if chosen_sources or targets or match:
            raise UsageError("--alarm says where to look; leave the sources and targets to it")
        from vllm_opsctl.cli.alarm_message import (
            FOLLOWED,
            check_configured,
            read_alarm,
            read_message,
        )

        alarm = read_alarm(*read_message(alarm_file))
        sidecar, prometheus, sagemaker = alarm.sidecar, alarm.prometheus, alarm.sagemaker
        match, targets = alarm.match, alarm.targets
        chosen_sources = [f"--{name}" for name in FOLLOWED if getattr(alarm, name)]
        if at is None and chosen_sources:
            at = alarm.at()
    if len(chosen_sources) > 1:
        raise UsageError(f"{' and '.join(chosen_sources)} are both given; choose one")
    if at is not None and not chosen_sources:
        raise UsageError(
            "a live target has no past; --at wants --sidecar, --prometheus, --tap, --sagemaker or "
            "--recording"
        )
    if prometheus is None and (match or prometheus_token_env):
        raise UsageError(
            "--match and --prometheus-token-env belong to --prometheus URL; give it too"
        )
    if is_watch:
        past = next((n for n in chosen_sources if n not in ("--sidecar", "--recording")), None)
        if past is not None:
            raise UsageError(f"--watch follows what happens now; {past} is the past")
        _check_watch(every, at, recording, bundle, output)
    elif is_given(ctx, "every"):
        raise UsageError("--every is the pace of --watch; give both")
    if bundle is not None:
        refuse_to_overwrite(bundle)
    loaded = load(ctx)
    if alarm is not None:
        check_configured(alarm, loaded.config)
    library = load_library(runbook_dirs) if runbook_dirs else shipped_library()
    if not chosen_sources:
        window = max(window, for_s * 3)
    doctor = Doctor(library, loaded, window)

    if is_watch:
        from vllm_opsctl.cli.watch import follow, live_rounds, sidecar_rounds

        if sidecar is not None:
            source = Sidecar(sidecar, targets, loaded)
            rounds = sidecar_rounds(source, doctor, every_s=every, probe=not no_probe)
        else:
            chosen = resolve_targets(targets, loaded)
            rounds = live_rounds(chosen, doctor, for_s=for_s, every_s=every, probe=not no_probe)
        return follow(rounds, output=output, show_features=show_features)

    end: float | None = None
    now: float | None = None
    asked_before: Asked | None = None
    if recording is not None:
        observations, asked_before = read_observations(recording)
        newest = max(observation.t for observation in observations)
        end = parse_time(at, newest) if at else None
    elif sidecar is not None:
        end = parse_time(at, time.time()) if at else None
        source = Sidecar(sidecar, targets, loaded)
        observations = _from_sidecar(source, end, window, probe=not no_probe)
        now = source.now() if end is None else None
        targets = tuple(target.name for target in source.targets) if targets else ()
    elif prometheus is not None:
        end = parse_time(at, time.time()) if at else None
        observations = from_prometheus(
            prometheus,
            match or loaded.config.alarms.match or "",
            prometheus_token_env,
            end=end,
            window_s=window,
        )
        if not is_given(ctx, "window"):
            window = wide_enough(observations, window)
        now = time.time() if end is None else None
    elif tap is not None:
        end = parse_time(at, time.time()) if at else None
        observations = from_tap(tap, loaded, window_s=window)
    elif sagemaker is not None:
        from vllm_opsctl.cli.sagemaker import WINDOW_S, from_sagemaker, target_names

        end = parse_time(at, time.time()) if at else None
        window = window if is_given(ctx, "window") else WINDOW_S
        observations = from_sagemaker(sagemaker, loaded.config, end=end, window_s=window)
        targets = target_names(sagemaker, targets)
    else:
        chosen = resolve_targets(targets, loaded)
        observations = observe_live(chosen, for_s, probe=not no_probe)
        targets, now = (), time.time()
    if log_file is not None:
        observations = [*observations, *read_log(log_file, observations, targets, end)]
    asked = Asked(
        source=(chosen_sources[0].removeprefix("--") if chosen_sources else "scrape"),
        at=end,
        window_s=window,
        targets=_names(observations, targets),
        now=now,
    )
    if asked_before is not None:
        # a bundle is asked again what it was asked, but for what is asked anew
        asked = Asked(
            source=asked_before.source,
            at=end if at else asked_before.at,
            window_s=window if is_given(ctx, "window") else asked_before.window_s,
            targets=asked.targets if targets else _names(observations, asked_before.targets),
            now=None if at else asked_before.now,
        )
    if bundle is not None:
        secrets = known_secrets(loaded.config, os.environ)
        scrubber = Scrubber([*secrets, *credentials.read_so_far(os.environ)])
        observations = as_packed((o for o in observations if o.target in asked.targets), scrubber)
    verdict = doctor.verdict(observations, asked)
    if bundle is not None:
        from vllm_opsctl.cli.packing import pack

        pack(bundle, observations, asked, verdict, loaded, scrubber)
        say(f"{bundle} packed; opsctl diagnose --recording {bundle}", err=True)
    emit(rendered(verdict, output, show_features=show_features, alarm=alarm))
    return verdict.exit_code


def _check_watch(
    every: float, at: str | None, recording: Path | None, bundle: Path | None, output: str
) -> None:
    if recording is not None or at is not None:
        what = "--recording" if recording is not None else "--at"
        raise UsageError(f"--watch follows what happens now; {what} is the past")
    if bundle is not None:
        raise UsageError("--watch packs no bundle; run opsctl diagnose --bundle beside it")
    if output == "markdown":
        raise UsageError("--watch prints text or json, no markdown")
    if every < SHORTEST_EVERY_S:
        raise UsageError(f"--every {every:g}s is too often; {SHORTEST_EVERY_S:g}s is the least")


def _names(observations: Sequence[Observation], asked: Sequence[str]) -> tuple[str, ...]:
    """The targets to judge: those that were asked for, or all that were observed."""
    seen = dict.fromkeys(observation.target for observation in observations)
    missing = [name for name in asked if name not in seen]
    if missing:
        raise UsageError(f"no observations of {listed(missing)}; there are {listed([*seen])}")
    return tuple(asked or seen)


def _from_sidecar(
    source: Sidecar, end: float | None, window_s: float, *, probe: bool
) -> list[Observation]:
    observations = source.observations(end=end, window_s=window_s, probe=probe and end is None)
    if not any(observation.kind in ("metrics", "error") for observation in observations):
        when = "at that time" if end is not None else "yet"
        raise UsageError(f"--sidecar {source.url}: nothing recorded {when}")
    return observations
