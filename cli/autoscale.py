"""opsctl autoscale: policies that scale replicas with their load, and what they would have done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_opsctl.cli.autoscale_apply import apply, destroy, plan
from vllm_opsctl.cli.autoscale_simulate import simulate
from vllm_opsctl.cli.common import (
    checked,
    load,
    mistakes_of,
    note,
    say,
)

if TYPE_CHECKING:
    from vllm_opsctl.alarms.autoscale.template import Scaling


@click.group()
def autoscale() -> None:
    """Scale replicas with their load on AWS, and try it on a recording first."""


for command in (plan, apply, destroy, simulate):
    autoscale.add_command(command)


def scaling(ctx: click.Context) -> Scaling:
    """
    What the configuration becomes; what may surprise is told on stderr.

    Raises:
        ConfigError: Something does not go with scaling.
    """
    from vllm_opsctl.alarms.autoscale.template import scaling_of

    loaded = load(ctx)
    with mistakes_of(loaded):
        found = scaling_of(loaded.config)
    for line in found.notes:
        note(line)
    return found


@autoscale.command(
    epilog="Exit codes: 0 written or up to date, 1 with --check when it would change, 64 usage or "
    "configuration."
)
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the template goes.",
)
@click.option(
    "--check", is_flag=True, help="Write nothing; exit with 1 when the file would change."
)
@click.pass_context
def build(ctx: click.Context, out: Path, check: bool) -> int:
    """Write a CloudFormation template of scaling policies, and of alarms on them."""
    from vllm_opsctl.alarms.autoscale.template import FILE, MARK, template_text
    from vllm_opsctl.alarms.cloudwatch.build import is_current, write_template

    found = scaling(ctx)
    text = template_text(found)
    policies = sum("policy" in part.kind for part in found.parts)
    alarms = sum("alarm" in part.kind for part in found.parts)
    counts = f"{policies} policies, {alarms} alarms"
    if check:
        return checked(out, [] if is_current(out, text, FILE) else [FILE], counts)
    changed = write_template(out, text, FILE, MARK)
    say(f"{out / FILE}: {counts}{'' if changed else '; unchanged'}")
    return 0
