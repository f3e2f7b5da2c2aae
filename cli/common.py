"""
What several commands share: how targets and the configuration are found, and how answers are told.

Importing it imports nothing heavy, for it stands at the top of every command's module.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_opsctl.errors import ConfigError, InputFileError, UsageError
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS
from vllm_opsctl.exporter.plain_text import plain, plain_lines, styled_lines

if TYPE_CHECKING:
    from vllm_opsctl.exporter.config import Target
    from vllm_opsctl.exporter.config_load import LoadedConfig

_MAX_LISTED = 20

EXIT_FINDINGS = 1
"""Something would change or differs, an objective does not do what it promises, a drill did not arrive."""


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print what may hold a name that somebody else chose, without what a terminal would obey."""
    click.echo(styled_lines(text), err=err, nl=nl)


def note(text: str) -> None:
    """Tell on stderr what is worth knowing and no mistake."""
    click.echo(f"{click.style('Note:', fg='yellow', bold=True)} {plain_lines(text)}", err=True)


@contextmanager
def mistakes_of(loaded: LoadedConfig) -> Iterator[None]:
    """
    Put the configuration's name before mistakes that are found in it later.

    Raises:
        ConfigError: The mistakes.
    """
    try:
        yield
    except ConfigError as problem:
        origin = loaded.path or "(defaults)"
        raise ConfigError([f"{origin}: {line}" for line in problem.problems]) from None


def load(ctx: click.Context) -> LoadedConfig:
    """The configuration that the group's --config names, or the usual one."""
    from vllm_opsctl.exporter.config_load import load_config

    return load_config(Path(ctx.obj) if ctx.obj else None, os.environ)


def resolve_targets(
    names: tuple[str, ...], loaded: LoadedConfig, *, tap_only: bool = False
) -> list[Target]:
    """
    Targets by name (of the configuration) or URL; all of the configuration's when none is named.

    Args:
        names: As given.
        loaded: The configuration.
        tap_only: Targets without an address will do: their tap pages are read.

    Raises:
        UsageError: None named and none configured, a name that is neither, or one without an address.
    """
    found = _resolved(names, loaded)
    for target in found:
        if target.is_tap_only and not tap_only:
            raise UsageError(
                f"{target.name} has no address, only tap pages; opsctl diagnose --tap DIR reads "
                "them, and so does the sidecar"
            )
    return found


def _resolved(names: tuple[str, ...], loaded: LoadedConfig) -> list[Target]:
    configured = {target.name: target for target in loaded.config.targets}
    if not names:
        if not configured:
            raise UsageError(
                "no target: name one (opsctl diagnose http://HOST:8000), or list targets in "
                "opsctl.yaml (opsctl config init writes a starter)"
            )
        return list(configured.values())
    found: dict[str, Target] = {}
    for name in names:
        target = configured[name] if name in configured else _from_url(name, configured)
        same = found.setdefault(target.name, target)
        if same.url != target.url:
            raise UsageError(
                f"{same.url} and {target.url} would both be called {target.name}; "
                "name them in opsctl.yaml"
            )
    return list(found.values())


def _from_url(text: str, configured: dict[str, Target]) -> Target:
    from vllm_opsctl.exporter.config import Target, clean_url, name_of

    if "//" not in text and ":" not in text and "." not in text and text != "localhost":
        known = f"; configured are {', '.join(configured)}" if configured else ""
        raise UsageError(f"target {text!r}: not a URL and not in the configuration{known}")
    try:
        url = clean_url(text)
    except ValueError as problem:
        raise UsageError(f"target: {problem}") from None
    same = [target for target in configured.values() if target.url == url]
    return same[0] if same else Target(name=name_of(url), url=url)


def read_given(path: str, max_bytes: int, wanted: str) -> tuple[str, str]:
    """
    Read a text that is given as a file or on stdin, bounded.

    Args:
        path: A plain file; ``-`` is stdin.
        max_bytes: More is refused, and not read.
        wanted: What should be there, for messages.

    Returns:
        The text, and what to call its origin.

    Raises:
        InputFileError: It cannot be read, is too large, or not UTF-8.
    """
    from vllm_opsctl.exporter.files import read_plain

    if path != "-":
        origin, data = plain(path, MAX_NAME_CHARS), read_plain(Path(path), max_bytes, wanted)
    else:
        origin = "<stdin>"
        try:
            data = sys.stdin.buffer.read(max_bytes + 1)
        except (AttributeError, OSError, ValueError):
            raise InputFileError(f"{origin}: cannot be read; give a {wanted}") from None
        if len(data) > max_bytes:
            raise InputFileError(f"{origin}: larger than {max_bytes >> 20} MiB; give a {wanted}")
    try:
        return data.decode("utf-8-sig"), origin
    except UnicodeDecodeError:
        raise InputFileError(f"{origin}: not text; give a {wanted}") from None


def require_targets(loaded: LoadedConfig) -> None:
    """
    Refuse a configuration without anything to read: neither targets nor a folder of tap pages.

    Raises:
        ConfigError: It has none.
    """
    if not loaded.config.targets and loaded.config.exporter.tap.dir is None:
        origin = loaded.path or "opsctl.yaml"
        raise ConfigError(
            [f"{origin}: targets: none; list at least one, or set OPSCTL_TARGETS=http://HOST:8000"]
        )


def checked(out: Path, changed: Sequence[str], counts: str) -> int:
    """
    Say whether a folder has what a build would write: the exit code of ``--check``.

    Args:
        out: The folder.
        changed: Files that would change.
        counts: What it holds.
    """
    if changed:
        click.echo(f"{out}: not up to date: {', '.join(changed)}", err=True)
        return EXIT_FINDINGS
    click.echo(f"{out}: up to date, {counts}")
    return 0


def listed(names: Sequence[str]) -> str:
    """
    Names for a message, which stays a line however many there are.

    >>> listed(["chat-0", "chat-1"]), listed(["chat"] * 30)[-23:]
    ('chat-0, chat-1', 'chat, chat and 10 more')
    """
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(plain(name, MAX_NAME_CHARS) for name in names[:_MAX_LISTED]) + more


def emit(text: str) -> bool:
    """
    Print the answer, without what a terminal would obey.

    A reader that has gone (head, less) changes nothing of the exit code.

    Returns:
        Whether somebody still reads.
    """
    try:
        click.echo(styled_lines(text))
        # none where it was closed (>&-)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # nothing more can be written, not even what Python flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, instead of ending the process."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


class Progress:
    """
    One line on stderr that tells how far something is; silent when nobody watches.

    Args:
        text: What is going on.
        total: How much there is to do.
        unit: Of what.
        quiet: Show nothing at all.
    """

    def __init__(self, text: str, total: float, unit: str = "s", *, quiet: bool = False) -> None:
        self._text = text
        self._total = total
        self._unit = unit
        self._shown = sys.stderr.isatty() and not quiet

    def update(self, done: float, pages: int) -> None:
        """Show how much is done, and the pages read."""
        if self._shown:
            shown = f"{min(done, self._total):.0f} of {self._total:.0f} {self._unit}, {pages} pages"
            click.echo(f"\r\033[K{self._text}: {shown}", nl=False, err=True)

    def done(self) -> None:
        """Take the line away."""
        if self._shown:
            click.echo("\r\033[K", nl=False, err=True)
