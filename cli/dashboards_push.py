"""opsctl dashboards diff and push: the boards of a configuration in a Grafana."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vllm_opsctl.cli.common import (
    EXIT_FINDINGS,
    emit,
    load,
    note,
    say,
)
from vllm_opsctl.cli.options import source_option, text_or_json_option, token_of, version_option
from vllm_opsctl.cli.paragraphs import width, wrapped
from vllm_opsctl.cli.plan_view import DONE, MARKS
from vllm_opsctl.errors import SourceError, UsageError

if TYPE_CHECKING:
    from vllm_opsctl.alarms.prometheus.conventions import Source
    from vllm_opsctl.dashboards.board_diff import Difference
    from vllm_opsctl.dashboards.grafana import Drawn
    from vllm_opsctl.dashboards.grafana_api import GrafanaApi
    from vllm_opsctl.dashboards.push import Change, Plan
    from vllm_opsctl.exporter.catalogue import Version
    from vllm_opsctl.exporter.config import Config

_Function = TypeVar("_Function", bound=Callable[..., Any])

_COLOURS = {"+": "green", "~": "yellow", "-": "red"}

_SHOWN = 300
"""Characters of a value; a query of a board is rarely longer."""

url_option = click.option(
    "--url", metavar="URL", required=True, help="Grafana's base URL, with its path if it has one."
)

folder_option = click.option(
    "--folder",
    metavar="NAME",
    help="Title of the folder of the service's boards, at the root [default: vLLM SERVICE].",
)

fleet_option = click.option(
    "--fleet/--no-fleet",
    default=True,
    help="The board of all services, too.  [default: fleet]",
)

output_option = text_or_json_option("Format of the answer on stdout.")


def token_option(*, required: bool) -> Callable[[_Function], _Function]:
    """``--token-env``."""
    return click.option(
        "--token-env",
        metavar="VAR",
        required=required,
        help="Environment variable with the token of a service account.",
    )


def draw(config: Config, source: Source, version: Version | None) -> list[Drawn]:
    """
    The boards of a configuration; what they leave out is told.

    Raises:
        UsageError: A version that nothing is read of, or no grafanalib.
    """
    if version is not None and source == "sidecar":
        raise UsageError("--vllm-version belongs to --from vllm; the sidecar reads every release")
    try:
        from vllm_opsctl.dashboards.build import draw_boards
    except ModuleNotFoundError as problem:
        if problem.name != "grafanalib":
            raise
        raise UsageError(
            "grafanalib is not installed; pip install 'vllm-opsctl[dashboards]' brings it"
        ) from None
    drawn = draw_boards(config, source, version)
    for line in (line for one in drawn for line in one.left_out):
        note(line)
    if config.alarms.runbook_url is None:
        note("alarms.runbook_url is not set: no panel links to its failure modes' pages")
    return drawn


@click.command()
@url_option
@token_option(required=False)
@folder_option
@fleet_option
@source_option
@version_option
@click.option("--check", is_flag=True, help="Exit with 1 when something differs.")
@output_option
@click.pass_context
def diff(
    ctx: click.Context,
    url: str,
    token_env: str | None,
    folder: str | None,
    fleet: bool,
    source: Source,
    version: Version | None,
    check: bool,
    output: str,
) -> int:
    """
    Say what push would change in a Grafana; nothing is.

    Boards are compared panel by panel; what Grafana adds by itself is no difference.
    """
    _, found = _planned(ctx, url, token_env, folder, fleet, source, version)
    _show(found, output)
    return EXIT_FINDINGS if check and (found.to_do or found.foreign) else 0


@click.command()
@url_option
@token_option(required=True)
@folder_option
@fleet_option
@source_option
@version_option
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@output_option
@click.pass_context
def push(
    ctx: click.Context,
    url: str,
    token_env: str,
    folder: str | None,
    fleet: bool,
    source: Source,
    version: Version | None,
    dry_run: bool,
    output: str,
) -> int:
    """
    Make the boards of a Grafana as the configuration says.

    Writes the boards that differ and makes their folder; nothing is deleted. A board that opsctl did not
    write, that is another service's, or that Grafana has from a file, is told and left alone; the exit code
    is 1 then.
    """
    grafana, found = _planned(ctx, url, token_env, folder, fleet, source, version)
    _show(found, output)
    if not dry_run:
        _carry_out(grafana, found, quiet=output == "json")
    return EXIT_FINDINGS if found.foreign else 0


def _planned(
    ctx: click.Context,
    url: str,
    token_env: str | None,
    folder: str | None,
    fleet: bool,
    source: Source,
    version: Version | None,
) -> tuple[GrafanaApi, Plan]:
    from vllm_opsctl.alarms.resource_names import board_folder
    from vllm_opsctl.dashboards.grafana_api import GrafanaApi
    from vllm_opsctl.dashboards.push import plan as compare

    grafana = GrafanaApi(url, token_of(token_env, "--token-env"))
    config = load(ctx).config
    service = config.service.name
    grafana.check()
    drawn = [one for one in draw(config, source, version) if fleet or not one.of_all_services]
    title = board_folder(service) if folder is None else folder
    return grafana, compare(grafana, drawn, title, service)


def _carry_out(grafana: GrafanaApi, found: Plan, *, quiet: bool) -> None:
    from vllm_opsctl.dashboards.push import carry_out

    done = 0
    total = len(found.to_do)
    try:
        for change in carry_out(grafana, found):
            done += 1
            if not quiet:
                say(f"{DONE[change.action]} board {change.title} ({done} of {total})")
    except SourceError as problem:
        raise SourceError(
            problem.reason,
            f"board {found.to_do[done].title}: {problem}\n{done} of {total} boards were written; push again "
            "when this is mended, the rest is done then",
        ) from None


# -- what is shown ---------------------------------------------------------------------------------


def _show(found: Plan, output: str) -> None:
    if output == "json":
        emit(json.dumps(_as_json(found), indent=2, ensure_ascii=False))
    else:
        emit(_as_text(found))


def _as_text(found: Plan) -> str:
    lines = []
    for folder in found.new_folders:
        lines.append(click.style(f"+ folder {folder.title}", fg="green", bold=True))
    for change in (*found.to_do, *found.foreign):
        mark, colour = MARKS[change.action]
        title = f"{mark} board {change.title} ({change.uid})"
        lines.append(click.style(title, fg=colour, bold=True))
        lines += [_difference(one) for one in change.differences]
        if change.why:
            lines.append(wrapped(change.why, indent="    "))
    lines += [wrapped(one, indent="", first="Left alone: ") for one in found.notes]
    counts = {
        action: sum(change.action == action for change in found.changes)
        for action in ("create", "change", "unchanged")
    }
    lines.append(
        f"{counts['create']} to create, {counts['change']} to change, {counts['unchanged']} unchanged"
        + (f", {len(found.foreign)} left alone" if found.foreign else "")
    )
    return "\n".join(lines)


def _difference(one: Difference) -> str:
    """On a line if it fits; else what is and what shall be stand below each other."""
    start = f"    {one.mark} "
    if one.mark != "~":
        value = one.is_ if one.mark == "-" else one.shall
        text = one.path if value is None else f"{one.path}: {_shown(value)}"
    else:
        text = f"{one.path}: {_shown(one.is_)} -> {_shown(one.shall)}"
    if one.mark == "~" and len(start) + len(text) > width():
        lines = [wrapped(f"{one.path}:", indent="      ", first=start)]
        for word, value in (("is   ", one.is_), ("shall", one.shall)):
            lines.append(wrapped(_shown(value), indent="", first=f"      {word} "))
        shown = "\n".join(lines)
    else:
        shown = wrapped(text, indent="", first=start)
    return shown.replace(one.mark, click.style(one.mark, fg=_COLOURS[one.mark]), 1)


def _shown(value: Any) -> str:
    if value in (None, [], ""):
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _as_json(found: Plan) -> dict[str, Any]:
    return {
        "folder": {
            "title": found.folder.title,
            "uid": found.folder.uid,
            "new": found.folder in found.new_folders,
        },
        "new_folders": [one.title for one in found.new_folders],
        "changes": [_change(change) for change in found.changes if change.action != "unchanged"],
        "unchanged": sum(change.action == "unchanged" for change in found.changes),
        "left_alone": list(found.notes),
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "action": change.action,
        "uid": change.uid,
        "title": change.title,
        "folder": change.folder.title,
        "why": change.why or None,
        "differences": [
            {"mark": one.mark, "path": one.path, "is": one.is_, "shall": one.shall}
            for one in change.differences
        ],
    }
