"""opsctl exporter: run the sidecar, alone or together with the engine."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

import click

from vllm_opsctl.cli.common import (
    load,
    require_targets,
    resolve_targets,
    say,
)
from vllm_opsctl.errors import EXIT_INTERNAL, OpsError, UsageError

if TYPE_CHECKING:
    from vllm_opsctl.exporter.config import Config
    from vllm_opsctl.exporter.server import Overview, SidecarView
    from vllm_opsctl.exporter.sidecar import Sidecar


LAST_LINES_S = 0.5
"""What the log's reader has not taken by then is lost with the sidecar."""


@click.group()
def exporter() -> None:
    """Run the sidecar exporter."""


@exporter.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--listen", metavar="HOST:PORT", help="Overrides exporter.listen [127.0.0.1:9836].")
@click.pass_context
def run(ctx: click.Context, targets: tuple[str, ...], listen: str | None) -> None:
    """
    Poll vLLM servers and expose their metrics until SIGTERM.

    TARGET is a name of the configuration or a URL; all configured ones when none is named.
    """
    from vllm_opsctl.exporter.background_log import log_in_background
    from vllm_opsctl.exporter.retold import forget_what_was_told, is_told_already

    try:
        sidecar, warnings = _sidecar(ctx, targets, listen)
    except Exception as problem:
        # under supervise it is started again and again, and says so once
        if is_told_already(problem):
            ctx.exit(problem.exit_code if isinstance(problem, OpsError) else EXIT_INTERNAL)
        raise
    forget_what_was_told()
    for warning in warnings:
        say(f"Warning: {warning}", err=True)
    many = len(sidecar.config.targets)
    say(
        f"{sidecar.url}/metrics, {many} target{'' if many == 1 else 's'}; stops on SIGTERM",
        err=True,
    )
    background = log_in_background(sys.stderr)
    sidecar.run()
    background.drain(LAST_LINES_S)


def _sidecar(
    ctx: click.Context, targets: tuple[str, ...], listen: str | None
) -> tuple[Sidecar, list[str]]:
    """What is to run, listening already, and what its configuration is warned of."""
    from vllm_opsctl.exporter.config_load import LoadedConfig, threshold_warnings
    from vllm_opsctl.exporter.sidecar import Sidecar

    loaded = load(ctx)
    settings = loaded.config
    if targets:
        chosen = tuple(resolve_targets(targets, loaded, tap_only=True))
        settings = settings.model_copy(update={"targets": chosen})
    if listen is not None:
        settings = _with_listen(settings, listen)
    require_targets(LoadedConfig(settings, loaded.path))
    return Sidecar(settings, os.environ, _overview()), list(threshold_warnings(settings))


def _overview() -> Overview:
    """The page's first part, imported when somebody looks: a sidecar that nobody asks stays small."""
    lock = threading.Lock()
    made: list[Overview] = []

    def overview(view: SidecarView) -> str:
        with lock:
            if not made:
                from vllm_opsctl.cli.overview import Overview as Made

                made.append(Made())
        return made[0](view)

    return overview


class _WithCommand(click.Command):
    """A command that takes another one after ``--``, as its argument ``command``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what stands before ``--`` and keep what stands behind it as it is."""
        split = args.index("--") if "--" in args else len(args)
        ours, command = args[:split], tuple(args[split + 1 :])
        # checked first: an option of a command without -- would be called an unknown one of ours
        helped = ctx.resilient_parsing or set(ctx.help_option_names) & set(ours)
        if not command and not helped:
            raise click.UsageError(
                f"no COMMAND; write it after --, e.g. {ctx.command_path} -- vllm serve MODEL", ctx
            )
        rest = super().parse_args(ctx, ours)
        ctx.params["command"] = command
        return rest


@exporter.command(cls=_WithCommand)
@click.argument("targets", nargs=-1, metavar="[TARGET]... -- COMMAND...")
@click.option("--listen", metavar="HOST:PORT", help="Overrides exporter.listen [127.0.0.1:9836].")
@click.pass_context
def supervise(
    ctx: click.Context, targets: tuple[str, ...], listen: str | None, command: tuple[str, ...]
) -> int:
    """
    Run an engine and the sidecar together, for containers with one entry point.

    COMMAND is the engine, e.g. vllm serve MODEL. It gets the signals, and its exit status is this
    command's: 128 + N when signal N ended it, 127 when there is no such program, 126 when it cannot
    be executed. The sidecar is started again when it ends, or cannot start yet; whatever becomes of
    it, the engine goes on.

    TARGET is as in opsctl exporter run; none is needed where the engine has the tap.
    """
    from vllm_opsctl.exporter.supervise import Program, with_tap
    from vllm_opsctl.exporter.supervise import supervise as run_both

    try:
        tap_dir = load(ctx).config.exporter.tap.dir
    except Exception:
        # whatever it is, the sidecar will meet and tell it; the engine must not depend on it
        tap_dir = None
    engine_environment, sidecar_environment = with_tap(os.environ, tap_dir)
    verbose = ctx.find_root().params["verbose"]
    sidecar = (
        # -P: what lies in the working directory is not opsctl
        *(sys.executable, "-P", "-m", "vllm_opsctl"),
        *(["-" + "v" * verbose] if verbose else []),
        *(["--config", ctx.obj] if ctx.obj else []),
        *("exporter", "run"),
        *(["--listen", listen] if listen is not None else []),
        *("--", *targets),
    )
    mistake = _mistake_of(targets, listen)
    if mistake is not None:
        # waiting does not mend it: say so now, and do not try
        say(f"opsctl: the sidecar cannot run: {mistake}; the engine goes on without it", err=True)
    return run_both(
        Program(command, engine_environment),
        Program(sidecar, sidecar_environment) if mistake is None else None,
    )


def _mistake_of(targets: tuple[str, ...], listen: str | None) -> str | None:
    """What cannot be understood of the sidecar's arguments, whatever its configuration says."""
    from vllm_opsctl.exporter.config import Config, split_listen
    from vllm_opsctl.exporter.config_load import LoadedConfig

    try:
        if listen is not None:
            split_listen(listen)
    except ValueError as problem:
        return f"--listen: {problem}"
    try:
        # names may come into the configuration later, addresses are what they are
        urls = tuple(target for target in targets if "://" in target)
        if urls:
            resolve_targets(urls, LoadedConfig(Config(), None), tap_only=True)
    except (UsageError, ValueError) as problem:
        return str(problem)
    return None


def _with_listen(settings: Config, listen: str) -> Config:
    from vllm_opsctl.exporter.config import split_listen

    try:
        split_listen(listen)
    except ValueError as problem:
        raise click.BadParameter(str(problem), param_hint="--listen") from None
    return settings.model_copy(
        update={"exporter": settings.exporter.model_copy(update={"listen": listen})}
    )
