"""Options of several commands, and how values are read. They import little, for every --help has them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.units import parse_duration

if TYPE_CHECKING:
    from fractions import Fraction

    from vllm_opsctl.exporter.catalogue import Version

_Function = TypeVar("_Function", bound=Callable[..., Any])

output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "markdown"]),
    default="text",
    show_default=True,
    help="Format of the answer on stdout.",
)


source_option = click.option(
    "--from",
    "source",
    type=click.Choice(["sidecar", "vllm"]),
    default="sidecar",
    show_default=True,
    help="Whose metrics the rules read: the sidecar's, or vLLM's own.",
)


def text_or_json_option(help_text: str) -> Callable[[_Function], _Function]:
    """An --output without Markdown."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help=help_text,
    )


def _version(ctx: click.Context, param: click.Parameter, value: str | None) -> Version | None:
    if value is None:
        return None
    from vllm_opsctl.exporter.catalogue import parse_version

    version = parse_version(value)
    if len(version) < 2:
        raise click.BadParameter(f"{value!r} is no release; write it like 0.32.0", ctx, param)
    return version


version_option = click.option(
    "--vllm-version",
    "version",
    metavar="VERSION",
    callback=_version,
    help="With --from vllm: the release whose metrics there are [default: the newest known].",
)


def seconds_of(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """
    Callback of options that take a duration such as 500ms, 10s or 30m.

    Raises:
        click.BadParameter: Not a duration, or not above 0.
    """
    try:
        seconds = parse_duration(value)
    except ValueError as problem:
        raise click.BadParameter(str(problem), ctx, param) from None
    if seconds <= 0:
        raise click.BadParameter(f"{value!r} is not above 0", ctx, param)
    return seconds


def duration_option(*names: str, default: str, help_text: str) -> Callable[[_Function], _Function]:
    """An option that takes a duration and gives seconds."""
    return click.option(
        *names,
        callback=seconds_of,
        metavar="DURATION",
        default=default,
        show_default=True,
        help=help_text,
    )


runbooks_option = click.option(
    "--runbooks",
    "runbook_dirs",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="More failure modes; an id of yours replaces ours.",
)


def scale_of(ctx: click.Context, param: click.Parameter, value: str) -> Fraction:
    """
    Callback of options that take a factor such as 1/60.

    Raises:
        click.BadParameter: Not a factor.
    """
    from vllm_opsctl.alarms.burn import parse_scale

    try:
        return parse_scale(value)
    except ValueError as problem:
        raise click.BadParameter(str(problem), ctx, param) from None


def token_of(name: str | None, option: str) -> str | None:
    """
    The token in an environment variable; None for none.

    Args:
        name: The variable.
        option: That named it, for messages.

    Raises:
        UsageError: There is no such variable, it is empty, or what it holds can be no header.
    """
    from vllm_opsctl.exporter import credentials

    if name is None:
        return None
    try:
        token = credentials.from_variable(name, os.environ)
    except ValueError as problem:
        raise UsageError(f"{option}: {problem}") from None
    if token is None:
        # a name that is none may be the token itself
        shown = f" {name}" if credentials.called(name).endswith(name) else ""
        raise UsageError(f"{option}{shown}: no such environment variable, or an empty one")
    return token


def is_given(ctx: click.Context, name: str) -> bool:
    """Whether an option was given, rather than left at its default."""
    return ctx.get_parameter_source(name) is not ParameterSource.DEFAULT


def parse_time(text: str, now: float) -> float:
    """
    Read ``--at``.

    Args:
        text: Unix seconds, an ISO time (UTC unless it says otherwise), or a duration back from now.
        now: Unix seconds of the newest observation.

    Raises:
        UsageError: None of these.
    """
    from vllm_opsctl.exporter.recording import LATEST_T

    wrong = UsageError(
        f"--at {text!r}: not a time; write 2026-11-23T03:14:00 (UTC), 1795461240 or -5m"
    )
    if text.startswith("-"):
        if re.fullmatch(r"-[\d.]+", text):
            raise wrong
        try:
            t = now - parse_duration(text[1:])
        except ValueError:
            raise wrong from None
        if not 0 <= t < LATEST_T:
            raise wrong
        return t
    try:
        t = float(text)
    except ValueError:
        try:
            parsed = datetime.fromisoformat(text)
        except ValueError:
            raise wrong from None
        t = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    if not 0 <= t < LATEST_T:
        raise wrong
    return t
