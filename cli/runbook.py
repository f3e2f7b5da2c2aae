"""opsctl runbook: what diagnosis knows."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import click

from vllm_opsctl.cli.common import runbooks_option
from vllm_opsctl.cli.text import wrapped
from vllm_opsctl.errors import UsageError
from vllm_opsctl.runbooks.load import load_library
from vllm_opsctl.runbooks.model import Action


@click.group()
def runbook() -> None:
    """List and show what diagnosis knows."""


@runbook.command("list")
@runbooks_option
def list_modes(runbook_dirs: tuple[Path, ...]) -> None:
    """List the failure modes."""
    for mode in load_library(runbook_dirs).modes.values():
        click.echo(f"{mode.id:28} {mode.severity:9} {mode.title}")


@runbook.command()
@click.argument("id_", metavar="ID")
@runbooks_option
def show(id_: str, runbook_dirs: tuple[Path, ...]) -> None:
    """Show one failure mode: how it shows, what it is mistaken for, what to do."""
    modes = load_library(runbook_dirs).modes
    if id_ not in modes:
        near = difflib.get_close_matches(id_, modes, n=1)
        hint = f"did you mean {near[0]}?" if near else "opsctl runbook list names them"
        raise UsageError(f"no failure mode {id_!r}; {hint}")
    mode = modes[id_]
    click.secho(f"{mode.id} - {mode.title}", bold=True)
    click.echo(wrapped(f"Users say: {mode.users}", indent=""))
    click.echo(f"Severity: {mode.severity}")
    sections = {
        "It is this when": [clause.when for clause in mode.signature.require],
        "It is likelier when": [clause.when for clause in mode.signature.support],
        "It is not this when": [clause.when for clause in mode.signature.rule_out],
        "It looks like": list(mode.discriminators),
        "It causes": list(mode.causes),
        "Do": [_action(action) for action in mode.actions],
        "Sources": list(mode.sources),
    }
    for title, lines in sections.items():
        if lines:
            click.secho(f"\n{title}", bold=True)
            for line in lines:
                click.echo(wrapped(line, indent="  ", first="  - "))


def _action(action: Action) -> str:
    """An action without a diagnosis: its numbers stand as their names."""
    text = f"{action.kind}: {re.sub(r'[{}]', '', action.text)}"
    return f"{text} $ {action.command}" if action.command else text
