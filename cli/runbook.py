"""opsctl runbook: what diagnosis knows, as lists, pages and a schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_opsctl.cli.common import say
from vllm_opsctl.cli.options import runbooks_option
from vllm_opsctl.cli.paragraphs import wrapped
from vllm_opsctl.errors import RunbookError, UsageError
from vllm_opsctl.runbooks.names import nearest

if TYPE_CHECKING:
    from vllm_opsctl.runbooks.model import Action, FailureMode


@click.group()
def runbook() -> None:
    """List, show, check and publish what diagnosis knows."""


@runbook.command("list")
@runbooks_option
def list_modes(runbook_dirs: tuple[Path, ...]) -> None:
    """List the failure modes by subject."""
    from vllm_opsctl.runbooks.load import load_library
    from vllm_opsctl.runbooks.pages import AREAS

    modes = load_library(runbook_dirs).modes.values()
    for area, title in AREAS.items():
        click.secho(title, bold=True)
        for mode in modes:
            if mode.area == area:
                text = f"{mode.severity:9}{mode.title}"
                say(wrapped(text, indent="", first=f"  {mode.id:28} "))


@runbook.command()
@click.argument("id_", metavar="ID")
@runbooks_option
def show(id_: str, runbook_dirs: tuple[Path, ...]) -> None:
    """Show one failure mode: how it shows, what it is mistaken for, what to do."""
    from vllm_opsctl.runbooks.load import load_library

    library = load_library(runbook_dirs)
    if id_ not in library.modes:
        hint = nearest(id_, library.modes) or "opsctl runbook list names them"
        raise UsageError(f"no failure mode {id_!r}; {hint}")
    show_mode(library.modes[id_])


def show_mode(mode: FailureMode) -> None:
    """Print a failure mode for a terminal."""
    click.secho(f"{mode.id} - {mode.title}", bold=True)
    say(wrapped(f"Users say: {mode.users}", indent=""))
    say(f"Severity: {mode.severity}")
    for need in mode.needs:
        say(wrapped(f"Needs ({need.kind}): {need.what}", indent=""))
    signature = mode.signature
    sections = {
        "Check first": [_action(a) for a in mode.actions if a.kind == "check"],
        "Do now": [_action(a) for a in mode.actions if a.kind == "mitigate"],
        "Fix later": [_action(a) for a in mode.actions if a.kind == "fix"],
        "It is this when": [clause.when for clause in signature.require],
        "It is likelier when": [clause.when for clause in signature.support],
        "It is not this when": [clause.when for clause in signature.rule_out],
        "It looks like": [f"{id_}: {text}" for id_, text in mode.discriminators.items()],
        "Metrics cannot tell it from": [f"{t.id}; {t.apart_by}" for t in mode.twins],
        "It causes": list(mode.causes),
        "Sources": list(mode.sources),
    }
    for title, lines in sections.items():
        if lines:
            click.secho(f"\n{title}", bold=True)
            for line in lines:
                say(wrapped(line, indent="    ", first="  - "))


def _action(action: Action) -> str:
    from vllm_opsctl.runbooks.pages import plain

    text = plain(action.text).replace("`", "")
    if action.helps_when and action.seen_by:
        text += f" Helps when {action.helps_when}; look for: {action.seen_by}."
    return f"{text} $ {action.command}" if action.command else text


@runbook.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def validate(folder: Path) -> None:
    """Check the failure modes of a directory, together with the shipped ones."""
    from vllm_opsctl.runbooks.load import load_library, shipped_library

    own = load_library([folder]).modes
    shipped = shipped_library().modes
    changed = [id_ for id_, mode in own.items() if shipped.get(id_) != mode]
    if not changed:
        raise RunbookError(f"{folder}: no failure mode in it; it wants *.yaml files")
    for id_ in changed:
        say(f"{id_}: ok{', replaces the shipped one' if id_ in shipped else ''}")


@runbook.command()
def schema() -> None:
    """Print the JSON schema of a failure-mode file, for editors and checks."""
    from vllm_opsctl.runbooks.model import FailureMode

    data = FailureMode.model_json_schema()
    data["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    say(json.dumps(data, indent=2))


@runbook.command()
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the pages go; pages of failure modes that are no more are removed.",
)
@click.option("--check", is_flag=True, help="Write nothing; fail when a page would change.")
@runbooks_option
def build(out: Path, check: bool, runbook_dirs: tuple[Path, ...]) -> None:
    """Write one Markdown page a failure mode, and an index."""
    from vllm_opsctl.dashboards.boards import panels_by_mode
    from vllm_opsctl.exporter.files import plain_text_of
    from vllm_opsctl.runbooks.load import load_library
    from vllm_opsctl.runbooks.pages import build_pages

    pages = build_pages(load_library(runbook_dirs), panels_by_mode())
    there = {path.name: path for path in out.glob("*.md")} if out.is_dir() else {}
    stale = [path for name, path in there.items() if name not in pages]
    changed = [
        name
        for name, text in pages.items()
        if name not in there or plain_text_of(there[name]) != text
    ]
    if check:
        if changed or stale:
            names = ", ".join(sorted([*changed, *(path.name for path in stale)]))
            raise RunbookError(f"{out}: not up to date: {names}; opsctl runbook build --out {out}")
        say(f"{len(pages)} pages are up to date")
        return
    foreign = [path for path in stale if "opsctl runbook build" not in (plain_text_of(path) or "")]
    if foreign:
        raise UsageError(f"{foreign[0]}: not a page of opsctl's; choose a directory of its own")
    out.mkdir(parents=True, exist_ok=True)
    for name in changed:
        (out / name).write_text(pages[name], encoding="utf-8")
    for path in stale:
        path.unlink()
    say(f"{len(pages)} pages in {out}, {len(changed)} written, {len(stale)} removed")
