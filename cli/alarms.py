"""opsctl alarms: rules and an Alertmanager configuration from objectives and failure modes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import click

from vllm_opsctl.alarms import alertmanager
from vllm_opsctl.alarms.build import build_files, differences, write
from vllm_opsctl.alarms.burn import Clock, parse_scale
from vllm_opsctl.alarms.rules import build_rules
from vllm_opsctl.alarms.vocabulary import Source
from vllm_opsctl.cli.common import load
from vllm_opsctl.errors import ConfigError, UsageError
from vllm_opsctl.exporter.catalogue import Version, parse_version

EXIT_DIFFERS = 1


def _version(ctx: click.Context, param: click.Parameter, value: str | None) -> Version | None:
    if value is None:
        return None
    version = parse_version(value)
    if len(version) < 2:
        raise click.BadParameter(f"{value!r} is no release; write it like 0.32.0", ctx, param)
    return version


def _scale(ctx: click.Context, param: click.Parameter, value: str) -> Fraction:
    try:
        return parse_scale(value)
    except ValueError as problem:
        raise click.BadParameter(str(problem), ctx, param) from None


from_option = click.option(
    "--from",
    "source",
    type=click.Choice(["sidecar", "vllm"]),
    default="sidecar",
    show_default=True,
    help="Whose metrics the rules read: the sidecar's, or vLLM's own.",
)
version_option = click.option(
    "--vllm-version",
    "version",
    metavar="VERSION",
    callback=_version,
    help="With --from vllm: the release whose metrics there are [default: the newest known].",
)


@click.group()
def alarms() -> None:
    """Turn objectives and failure modes into alarms."""


@alarms.command()
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the files go.",
)
@from_option
@version_option
@click.option(
    "--scale",
    metavar="FACTOR",
    default="1",
    callback=_scale,
    help="For tests: shorten every window, e.g. 1/60; the output says so.",
)
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 when a file would change.")
@click.pass_context
def build(
    ctx: click.Context,
    out: Path,
    source: Source,
    version: Version | None,
    scale: Fraction,
    check: bool,
) -> int:
    """Write rules, their unit tests, and an Alertmanager configuration."""
    if version is not None and source == "sidecar":
        raise UsageError("--vllm-version belongs to --from vllm; the sidecar reads every release")
    loaded = load(ctx)
    config = loaded.config
    origin = str(loaded.path or "(defaults)")
    try:
        rulebook = build_rules(config, source, version=version, clock=Clock(scale))
        files = build_files(config, rulebook)
    except ConfigError as problem:
        raise ConfigError([f"{origin}: {line}" for line in problem.problems]) from None
    for note in (
        *rulebook.left_out,
        *rulebook.links.notices(),
        *alertmanager.notices(config.alarms),
    ):
        click.echo(f"{click.style('Note:', fg='yellow', bold=True)} {note}", err=True)
    counts = f"{len(rulebook.alerts)} alerts of {len(rulebook.indicators)} objectives"
    if check:
        changed = differences(out, files)
        if changed:
            click.echo(f"{out}: not up to date: {', '.join(changed)}", err=True)
            return EXIT_DIFFERS
        click.echo(f"{out}: up to date, {counts}")
        return 0
    changed = write(out, files)
    click.echo(f"{out}: {counts}; {len(files)} files, {len(changed)} changed")
    return 0
