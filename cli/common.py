"""What several commands share: options, and how targets and the configuration are found."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vllm_opsctl.errors import ConfigError, UsageError
from vllm_opsctl.exporter.config import Target, clean_url, name_of
from vllm_opsctl.exporter.config_load import LoadedConfig, load_config
from vllm_opsctl.exporter.units import parse_duration

_Function = TypeVar("_Function", bound=Callable[..., Any])

output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "markdown"]),
    default="text",
    show_default=True,
    help="Format of the answer on stdout.",
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


def load(ctx: click.Context) -> LoadedConfig:
    """The configuration that the group's --config names, or the usual one."""
    return load_config(Path(ctx.obj) if ctx.obj else None, os.environ)


def resolve_targets(names: tuple[str, ...], loaded: LoadedConfig) -> list[Target]:
    """
    Targets by name (of the configuration) or URL; all of the configuration's when none is named.

    Raises:
        UsageError: None named and none configured, or a name that is neither.
    """
    configured = {target.name: target for target in loaded.config.targets}
    if not names:
        if not configured:
            raise UsageError(
                "no target: name one (opsctl diagnose http://HOST:8000), or list targets in "
                "opsctl.yaml (opsctl config init writes a starter)"
            )
        return list(configured.values())
    return [
        configured[name] if name in configured else _from_url(name, configured) for name in names
    ]


def _from_url(text: str, configured: dict[str, Target]) -> Target:
    if "//" not in text and ":" not in text and "." not in text and text != "localhost":
        known = f"; configured are {', '.join(configured)}" if configured else ""
        raise UsageError(f"target {text!r}: not a URL and not in the configuration{known}")
    try:
        url = clean_url(text)
    except ValueError as problem:
        raise UsageError(f"target: {problem}") from None
    same = [target for target in configured.values() if target.url == url]
    return same[0] if same else Target(name=name_of(url), url=url)


def require_targets(loaded: LoadedConfig) -> None:
    """
    Refuse a configuration without targets.

    Raises:
        ConfigError: It has none.
    """
    if not loaded.config.targets:
        origin = loaded.path or "opsctl.yaml"
        raise ConfigError(
            [f"{origin}: targets: none; list at least one, or set OPSCTL_TARGETS=http://HOST:8000"]
        )


class Progress:
    """One line on stderr that tells how far an observation is; silent when nobody watches."""

    def __init__(self, text: str, seconds: float) -> None:
        self._text = text
        self._seconds = seconds
        self._shown = sys.stderr.isatty()

    def update(self, elapsed: float, pages: int) -> None:
        """Show the elapsed seconds and pages read."""
        if self._shown:
            shown = f"{min(elapsed, self._seconds):.0f} of {self._seconds:.0f} s, {pages} pages"
            line = f"{self._text}: {shown}"
            click.echo(f"\r\033[K{line}", nl=False, err=True)

    def done(self) -> None:
        """Take the line away."""
        if self._shown:
            click.echo("\r\033[K", nl=False, err=True)
