"""opsctl dashboards: boards for Grafana from objectives and the catalogue of metrics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_opsctl.cli.common import (
    checked,
    load,
    note,
    say,
)
from vllm_opsctl.cli.dashboards_annotate import annotate
from vllm_opsctl.cli.dashboards_push import diff, draw, push
from vllm_opsctl.cli.options import source_option, version_option

if TYPE_CHECKING:
    from vllm_opsctl.alarms.prometheus.conventions import Source
    from vllm_opsctl.exporter.catalogue import Version


@click.group()
def dashboards() -> None:
    """Draw objectives and engines on boards."""


dashboards.add_command(annotate)
dashboards.add_command(diff)
dashboards.add_command(push)


@dashboards.command()
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the files go.",
)
@source_option
@version_option
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 when a file would change.")
@click.pass_context
def build(
    ctx: click.Context, out: Path, source: Source, version: Version | None, check: bool
) -> int:
    """
    Write boards for Grafana 10 to 13, provisioning files and ConfigMaps.

    They read the recordings of opsctl alarms build, and metrics. The board of all services has a folder of
    its own, DIR/fleet: a Grafana takes it once, whichever service it is from. CloudWatch's twin of the SLO
    board is in the template of opsctl alarms build --to cloudwatch.
    """
    config = load(ctx).config
    drawn = draw(config, source, version)
    # draw has told where grafanalib is missing
    from vllm_opsctl.dashboards.build import (
        board_files,
        changed_files,
        renamed,
        write_boards,
    )
    from vllm_opsctl.dashboards.grafana import panels_of

    service = config.service.name
    files = board_files(config, drawn)
    panels = sum(1 for one in drawn for _ in panels_of(one.body))
    counts = f"{len(drawn)} boards, {panels} panels"
    names = renamed(out, files, service)
    changed = changed_files(out, files, service) if check else write_boards(out, files, service)
    for text in names:
        note(text)
    if check:
        return checked(out, changed, counts)
    say(f"{out}: {counts}; {len(files)} files, {len(changed)} changed")
    return 0
