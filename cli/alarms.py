"""opsctl alarms: rules and an Alertmanager configuration from objectives and failure modes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_opsctl.cli.alarms_apply import apply, cloudwatch_drill, destroy, model_option, plan
from vllm_opsctl.cli.common import (
    EXIT_FINDINGS,
    checked,
    emit,
    load,
    mistakes_of,
    note,
    say,
)
from vllm_opsctl.cli.options import (
    duration_option,
    is_given,
    scale_of,
    source_option,
    text_or_json_option,
    version_option,
)
from vllm_opsctl.cli.paragraphs import wrapped
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.units import format_duration

if TYPE_CHECKING:
    from fractions import Fraction

    from vllm_opsctl.alarms.drill import Step, Way
    from vllm_opsctl.alarms.prometheus.conventions import Source
    from vllm_opsctl.alarms.sns_topic import Topic
    from vllm_opsctl.exporter.catalogue import Version
    from vllm_opsctl.exporter.config import Alarms


def _check_version(source: Source, version: Version | None) -> None:
    if version is not None and source == "sidecar":
        raise UsageError("--vllm-version belongs to --from vllm; the sidecar reads every release")


@click.group()
def alarms() -> None:
    """Turn objectives and failure modes into alarms."""


for command in (plan, apply, destroy):
    alarms.add_command(command)


@alarms.command()
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the files go.",
)
@click.option(
    "--to",
    "platform",
    type=click.Choice(["prometheus", "cloudwatch"]),
    default="prometheus",
    show_default=True,
    help="Rules for Prometheus and Alertmanager, or a CloudFormation template.",
)
@source_option
@version_option
@click.option(
    "--scale",
    metavar="FACTOR",
    default="1",
    callback=scale_of,
    help="For tests: shorten every window, e.g. 1/60; the output says so.",
)
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 when a file would change.")
@click.pass_context
def build(
    ctx: click.Context,
    out: Path,
    platform: str,
    source: Source,
    version: Version | None,
    scale: Fraction,
    check: bool,
) -> int:
    """
    Write rules, their unit tests, and an Alertmanager configuration.

    With --to cloudwatch: a CloudFormation template of alarms and their topics.
    """
    from vllm_opsctl.alarms.alertmanager import notices
    from vllm_opsctl.alarms.build import (
        build_files,
        differences,
        identity_notes,
        renamed,
        write,
    )
    from vllm_opsctl.alarms.burn import Clock
    from vllm_opsctl.alarms.rules import build_rules

    _check_version(source, version)
    loaded = load(ctx)
    config = loaded.config
    if platform == "cloudwatch":
        from vllm_opsctl.cli.alarms_cloudwatch import build_cloudwatch

        return build_cloudwatch(loaded, out, source, scale, check)
    with mistakes_of(loaded):
        rulebook = build_rules(config, source, version=version, clock=Clock(scale))
        files = build_files(config, rulebook)
    for text in (
        *rulebook.left_out,
        *identity_notes(config, rulebook, files),
        *rulebook.links.notices(),
        *notices(config.alarms),
    ):
        note(text)
    counts = f"{len(rulebook.alerts)} alerts of {len(rulebook.indicators)} objectives"
    names = renamed(out, files)
    changed = differences(out, files) if check else write(out, files)
    for text in names:
        note(text)
    if check:
        return checked(out, changed, counts)
    say(f"{out}: {counts}; {len(files)} files, {len(changed)} changed")
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
    Explain objectives that cannot be measured or cannot page, and rules that read another service's
    series; exits with 1 when there are any.

    What works, but not as one may think, is a note.
    """
    from vllm_opsctl.alarms.lint import lint as find_mistakes

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
        say(f"{click.style(kind, fg=colour, bold=True)} {origin}: {one.where}: {one.what}")
    of_objectives = [one for one in findings if "[" in one.where]
    failing = {
        one.where.partition(")")[0] for one in of_objectives if one.is_error or not one.is_measured
    }
    total = len(loaded.config.objectives)
    say(f"{origin}: {total - len(failing)} of {total} objectives are measured and can alert")
    return EXIT_FINDINGS if any(one.is_error for one in findings) else 0


_OF_A_DRILL = {
    "platform": "--to",
    "models": "--model",
    "alertmanager": "--alertmanager",
    "prometheus": "--prometheus",
    "way": "--notify",
    "listen": "--listen",
    "timeout": "--timeout",
    "source": "--from",
    "version": "--vllm-version",
}


@alarms.command("test")
@click.option(
    "--recording",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Send nothing; say which CloudWatch alarms would have gone off in this recording.",
)
@click.option(
    "--scale",
    metavar="FACTOR",
    default="1",
    callback=scale_of,
    help="With --recording: tell so much of a minute as one; with 1/60, a second is a minute.",
)
@click.option(
    "--to",
    "platform",
    type=click.Choice(["prometheus", "cloudwatch"]),
    default="prometheus",
    show_default=True,
    help="Whose alarms: the drill goes through Alertmanager, or through CloudWatch.",
)
@model_option
@click.option(
    "--alertmanager",
    metavar="URL",
    help="Takes the drill [default: alarms.alertmanager_url].",
)
@click.option(
    "--prometheus",
    metavar="URL",
    help="Are its rules ours? [default: alarms.prometheus_url; not asked when unset]",
)
@click.option(
    "--notify",
    "way",
    type=click.Choice(["page", "ticket"]),
    default="page",
    show_default=True,
    help="Which way is drilled.",
)
@click.option(
    "--listen/--no-listen",
    default=True,
    help="Subscribe an SQS queue for the time of the drill, to see it arrive "
    "(needs sns:Subscribe, sqs:CreateQueue and the like).  [default: listen]",
)
@duration_option("--timeout", default="2m", help_text="How long the delivery may take.")
@source_option
@version_option
@text_or_json_option("Format of the answer on stdout.")
@click.pass_context
def test_command(
    ctx: click.Context,
    recording: Path | None,
    scale: Fraction,
    platform: str,
    models: tuple[str, ...],
    alertmanager: str | None,
    prometheus: str | None,
    way: Way,
    listen: bool,
    timeout: float,
    source: Source,
    version: Version | None,
    output: str,
) -> int:
    """
    Send a drill through the whole chain and confirm that it arrives.

    Everybody who hears of pages (or tickets) gets one that says DRILL, and its end. Exits with 1 when a
    link is broken, and says which. With --recording nobody hears of anything.
    """
    from vllm_opsctl.alarms.drill import Drill
    from vllm_opsctl.alarms.pager_api import AlertmanagerApi, PrometheusApi
    from vllm_opsctl.alarms.rules import build_rules
    from vllm_opsctl.exporter.identity import identity_of

    _check_version(source, version)
    loaded = load(ctx)
    if recording is not None:
        from vllm_opsctl.cli.alarms_cloudwatch import on_recording

        sent = next((name for name in _OF_A_DRILL if is_given(ctx, name)), None)
        if sent is not None:
            raise UsageError(f"{_OF_A_DRILL[sent]} belongs to a drill; --recording sends nothing")
        return on_recording(loaded, recording, scale, output)
    if is_given(ctx, "scale"):
        raise UsageError("--scale belongs to --recording; a drill is as fast as the pager")
    if platform == "cloudwatch":
        _check_of_cloudwatch(ctx)
        steps = cloudwatch_drill(loaded, models, way=way, listen=listen, timeout_s=timeout).run()
        return _told(steps, way, output)
    if models:
        raise UsageError("--model belongs to --to cloudwatch")
    settings = loaded.config.alarms
    receiver, topic = _receiver(settings, way)
    with mistakes_of(loaded):
        rulebook = build_rules(loaded.config, source, version=version)
    asked = prometheus or settings.prometheus_url
    if asked is None:
        note(
            "neither --prometheus nor alarms.prometheus_url: whether the rules are loaded is not seen"
        )
    drill = Drill(
        way=way,
        identity=identity_of(loaded.config),
        rulebook=rulebook,
        alertmanager=AlertmanagerApi(alertmanager or settings.alertmanager_url),
        prometheus=PrometheusApi(asked) if asked is not None else None,
        receiver=receiver,
        topic=topic,
        listen=listen,
        timeout_s=timeout,
    )
    return _told(drill.run(), way, output)


def _check_of_cloudwatch(ctx: click.Context) -> None:
    for name in ("alertmanager", "prometheus", "source", "version"):
        if is_given(ctx, name):
            raise UsageError(f"{_OF_A_DRILL[name]} belongs to --to prometheus")


def _told(steps: Iterator[Step], way: Way, output: str) -> int:
    failed = _as_json(steps) if output == "json" else _as_text(steps, way)
    return EXIT_FINDINGS if failed else 0


def _receiver(settings: Alarms, way: Way) -> tuple[str, Topic | None]:
    """Integration and topic behind a way."""
    from vllm_opsctl.alarms.alertmanager import region_of
    from vllm_opsctl.alarms.sns_topic import Topic

    arn = settings.page_topic if way == "page" else settings.ticket_topic
    if arn is not None:
        region = settings.region or region_of(arn)
        return "sns", Topic(arn, region, settings.api_url)
    if way == "ticket" and settings.webhook is not None:
        return "webhook", None
    raise UsageError(f"alarms.{way}_topic is not set: there is nobody to send a {way} to")


def _as_json(steps: Iterable[Step]) -> bool:
    found = [asdict(step) for step in steps]
    failed = any(step["state"] == "failed" for step in found)
    emit(json.dumps({"arrives": not failed, "steps": found}, indent=2, ensure_ascii=False))
    return failed


_COLOURS = {"ok": "green", "failed": "red", "note": "yellow"}


def _as_text(steps: Iterator[Step], way: Way) -> bool:
    """Each link as soon as it is known; the last line is the answer."""
    seconds, failed = None, []
    for step in steps:
        mark = click.style(f"{step.state:6}", fg=_COLOURS[step.state], bold=step.state != "ok")
        lines = wrapped(step.text, indent=" " * 22, first=f"{'':8}{step.link:14}")
        say(f"{mark}  {lines[8:]}")
        if step.state == "failed":
            failed.append(step.link)
        seconds = step.seconds or seconds
    if failed:
        links = ", ".join(dict.fromkeys(failed))
        click.secho(f"A {way} does NOT arrive as it should: {links}", fg="red", bold=True)
    else:
        took = "" if seconds is None else f", {format_duration(seconds)} after the drill was taken"
        click.secho(f"A {way} arrives{took}.", fg="green", bold=True)
    return bool(failed)
