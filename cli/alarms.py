"""opsctl alarms: rules and an Alertmanager configuration from objectives and failure modes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import click

from vllm_opsctl.alarms import alertmanager
from vllm_opsctl.alarms.build import build_files, differences, write
from vllm_opsctl.alarms.burn import Clock, parse_scale
from vllm_opsctl.alarms.lint import lint as find_mistakes
from vllm_opsctl.alarms.rules import build_rules
from vllm_opsctl.alarms.vocabulary import Source
from vllm_opsctl.cli.common import load, mistakes_of, note, source_option
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.catalogue import Version, parse_version

EXIT_FINDINGS = 1
"""A file would change, or an objective does not do what it promises."""


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


def _check_version(source: Source, version: Version | None) -> None:
    if version is not None and source == "sidecar":
        raise UsageError("--vllm-version belongs to --from vllm; the sidecar reads every release")


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
@source_option
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
    _check_version(source, version)
    loaded = load(ctx)
    config = loaded.config
    with mistakes_of(loaded):
        rulebook = build_rules(config, source, version=version, clock=Clock(scale))
        files = build_files(config, rulebook)
    for text in (
        *rulebook.left_out,
        *rulebook.links.notices(),
        *alertmanager.notices(config.alarms),
    ):
        note(text)
    counts = f"{len(rulebook.alerts)} alerts of {len(rulebook.indicators)} objectives"
    if check:
        changed = differences(out, files)
        if changed:
            click.echo(f"{out}: not up to date: {', '.join(changed)}", err=True)
            return EXIT_FINDINGS
        click.echo(f"{out}: up to date, {counts}")
        return 0
    changed = write(out, files)
    click.echo(f"{out}: {counts}; {len(files)} files, {len(changed)} changed")
    return 0


@alarms.command()
@source_option
@version_option
@click.option(
    "--requests-per-day",
    type=click.FloatRange(min=0),
    metavar="N",
    help="Requests a day of the quietest model: is that enough for the targets?",
)
@click.option(
    "--prometheus", metavar="URL", help="Ask this Prometheus what is there, and how much."
)
@click.pass_context
def lint(
    ctx: click.Context,
    source: Source,
    version: Version | None,
    requests_per_day: float | None,
    prometheus: str | None,
) -> int:
    """
    Explain objectives that cannot be measured or cannot page; exits with 1 when there are.

    What works, but not as one may think, is a note.
    """
    _check_version(source, version)
    if prometheus is not None and requests_per_day is not None:
        raise UsageError("--prometheus knows the requests per day; give one of the two")
    loaded = load(ctx)
    origin = loaded.path or "(defaults)"
    findings = find_mistakes(
        loaded.config,
        source,
        version=version,
        requests_per_day=requests_per_day,
        prometheus=prometheus,
    )
    for one in findings:
        kind, colour = ("Wrong:", "red") if one.is_error else ("Note:", "yellow")
        click.echo(f"{click.style(kind, fg=colour, bold=True)} {origin}: {one.where}: {one.what}")
    wrong = {one.where.partition(")")[0] for one in findings if one.is_error and "[" in one.where}
    total = len(loaded.config.objectives)
    click.echo(f"{origin}: {total - len(wrong)} of {total} objectives are measured and can alert")
    return EXIT_FINDINGS if wrong else 0
