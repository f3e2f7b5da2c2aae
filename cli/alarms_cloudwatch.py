"""opsctl alarms for CloudWatch: the template, and its alarms on a recording."""

from __future__ import annotations

import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import click

from vllm_opsctl.alarms.cloudwatch.build import (
    FILE,
    INLINE_BYTES,
    is_current,
    renamed,
    template_text,
    write_template,
)
from vllm_opsctl.alarms.cloudwatch.rehearsal import Rehearsal, rehearse
from vllm_opsctl.alarms.prometheus.conventions import Source
from vllm_opsctl.cli.common import (
    checked,
    emit,
    mistakes_of,
    note,
    say,
)
from vllm_opsctl.cli.paragraphs import wrapped
from vllm_opsctl.dashboards.cloudwatch import service_template
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.bundle import read_observations
from vllm_opsctl.exporter.config_load import LoadedConfig
from vllm_opsctl.exporter.units import format_duration


def build_cloudwatch(
    loaded: LoadedConfig, out: Path, source: Source, scale: Fraction, check: bool
) -> int:
    """
    Write the template, or with ``check`` say whether it would change.

    Raises:
        UsageError: An option that is for Prometheus.
        ConfigError: Something does not go with CloudWatch alarms.
    """
    if source != "sidecar":
        raise UsageError(
            "--from vllm is for --to prometheus; what CloudWatch has, the sidecar sent"
        )
    if scale != 1:
        raise UsageError(
            "--scale is for --to prometheus; CloudWatch's periods are whole minutes and stay as they are"
        )
    with mistakes_of(loaded):
        template = service_template(loaded.config)
        text = template_text(template)
    for line in (*template.left_out, *template.notes):
        note(line)
    size = len(text.encode())
    if size > INLINE_BYTES:
        note(
            f"{size} bytes are more than CloudFormation takes inline: aws cloudformation deploy wants "
            "--s3-bucket"
        )
    counts = (
        f"{template.count('Alarm')} metric alarms on {template.billed_metrics} metrics, "
        f"{template.count('CompositeAlarm')} composites, {template.count('Dashboard')} board"
    )
    names = renamed(out, template)
    changed = not is_current(out, text) if check else write_template(out, text)
    for line in names:
        note(line)
    if check:
        return checked(out, [FILE] if changed else [], counts)
    say(f"{out / FILE}: {counts}{'' if changed else '; unchanged'}")
    return 0


def on_recording(loaded: LoadedConfig, path: Path, scale: Fraction, output: str) -> int:
    """
    Say which alarms of the configuration's template would have gone off in a recording.

    Raises:
        InputFileError: The recording cannot be read, or holds no page.
        ConfigError: Something does not go with CloudWatch alarms.
        UsageError: The alarms are PromQL.
    """
    if loaded.config.exporter.cloudwatch.sink == "otlp":
        raise UsageError(
            "exporter.cloudwatch.sink is otlp: its alarms are PromQL, which is not evaluated here; "
            "opsctl alarms build --to prometheus writes the same rules with unit tests for promtool"
        )
    observations, _ = read_observations(path)
    with mistakes_of(loaded):
        text = template_text(service_template(loaded.config))
    found = rehearse(loaded.config, text, observations, scale=scale)
    if found.strangers:
        note(
            f"no alarm is for {', '.join(found.strangers)}, which is in the recording; targets' and "
            "objectives' models say whom they are for"
        )
    if output == "json":
        alarms = [{**asdict(one), "notify": one.notify} for one in found.notified]
        answer = {
            "recording": str(path),
            "seconds": found.seconds,
            "scale": str(scale),
            "models": found.models,
            "alarms": alarms,
        }
        emit(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        emit(_as_text(found, scale))
    return 0


_COLOURS = {"page": "red", "ticket": "yellow"}


def _as_text(found: Rehearsal, scale: Fraction) -> str:
    lines = []
    for one in found.notified:
        way = click.style(f"{one.notify:6}", fg=_COLOURS[one.notify], bold=True)
        name = one.alarm.replace(f" {one.notify}/", "/", 1)
        lines.append(f"{one.after_s:8.1f} s  {way}  {name}")
        lines.append(wrapped(one.description.partition("\n")[0], indent=" " * 20))
    pages = sum(one.notify == "page" for one in found.notified)
    told = f", {60 * float(scale):g} s of it told as a minute" if scale != 1 else ""
    lines.append(
        f"{_number(pages, 'page')} and {_number(len(found.notified) - pages, 'ticket')} in "
        f"{format_duration(round(found.seconds))}{told}"
    )
    return "\n".join(lines)


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
