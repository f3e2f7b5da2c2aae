"""How plan, apply and destroy look, whatever they change: a line a thing, what differs below it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from vllm_opsctl.alarms.differences import Action, Difference
from vllm_opsctl.cli.paragraphs import width, wrapped
from vllm_opsctl.errors import UsageError

MARKS: dict[Action, tuple[str, str]] = {
    "create": ("+", "green"),
    "change": ("~", "yellow"),
    "delete": ("-", "red"),
    "foreign": ("!", "magenta"),
}

DONE: dict[Action, str] = {"create": "created", "change": "changed", "delete": "deleted"}

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@dataclass(frozen=True, slots=True)
class Planned:
    """
    One thing of a plan.

    Args:
        action: What is to be done.
        title: What it is, and its name.
        differences: Of a change.
        why: Why it is left alone, or what else is to be said.
    """

    action: Action
    title: str
    differences: Sequence[Difference] = ()
    why: str = ""


def plan_text(things: Sequence[Planned], notes: Sequence[str] = ()) -> str:
    """
    A plan as text; its last line counts.

    Args:
        things: Unchanged ones are counted only; what is in the way stands last.
        notes: What else was seen.
    """
    lines = []
    shown = [one for one in things if one.action != "unchanged"]
    for one in sorted(shown, key=lambda one: one.action == "foreign"):
        mark, colour = MARKS[one.action]
        lines.append(click.style(f"{mark} {one.title}", fg=colour, bold=True))
        lines += [_difference(difference) for difference in one.differences]
        if one.why:
            lines.append(wrapped(one.why, indent="    "))
    lines += [wrapped(text, indent="") for text in notes]
    counts = Counter(one.action for one in things)
    foreign = f", {counts['foreign']} somebody else's" if counts["foreign"] else ""
    lines.append(
        f"{counts['create']} to create, {counts['change']} to change, {counts['delete']} to delete, "
        f"{counts['unchanged']} unchanged{foreign}"
    )
    return "\n".join(lines)


def _difference(one: Difference) -> str:
    text = f"{one.path}: {_shown(one.is_)} -> {_shown(one.shall)}"
    # a short line keeps its spaces
    return f"    {text}" if len(text) + 4 <= width() else wrapped(text, indent="    ")


def _shown(value: Any) -> str:
    if value in (None, [], ""):
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def differences_json(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    """Differences for programs."""
    return [{"path": one.path, "is": one.is_, "shall": one.shall} for one in differences]


def renamed(was: str, name: str) -> list[Difference]:
    """The line of a new name; nothing where there was no other one."""
    return [Difference("name", was, name)] if was else []


def confirm(yes: bool, question: str) -> None:
    """
    Ask, unless it was said already.

    Raises:
        UsageError: Nobody can be asked.
        click.Abort: The answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("--yes is needed where nobody can be asked; nothing was changed")
    click.confirm(question, abort=True)


def refuse_foreign() -> None:
    """Say that nothing was changed, because of what is somebody else's."""
    click.secho("Nothing was changed: see the lines with !", fg="red", bold=True, err=True)
