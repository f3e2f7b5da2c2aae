"""The terminal as a whole screen, through rich: drawn in place, given back at the end."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.text import Text


@contextmanager
def full_screen(console: Console | None = None) -> Iterator[Callable[[RenderableType], None]]:
    """Gives a function that draws the screen anew; without flicker, for only text is replaced."""
    with Live(Text(""), console=console or Console(), screen=True, auto_refresh=False) as live:

        def draw(content: RenderableType) -> None:
            live.update(content, refresh=True)

        yield draw


_KEYS = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"k": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"j": "down",
}


@contextmanager
def pressed_keys() -> Iterator[Callable[[float], str | None]]:
    """Gives a function that waits some seconds for a key of stdin, a terminal: its name or None."""
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)

    def next_key(seconds: float) -> str | None:
        try:
            if not select.select([stdin], [], [], seconds)[0]:
                return None
            pressed = os.read(stdin, 1)
            if pressed == b"\x1b" and select.select([stdin], [], [], 0)[0]:
                pressed += os.read(stdin, 2)
        except OSError:
            pressed = b""
        # a terminal that has gone reads as nothing, or not at all
        return _KEYS.get(pressed, pressed[:1].decode(errors="replace").lower()) or "q"

    tty.setcbreak(stdin)
    try:
        yield next_key
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


class Page:
    """
    Text from its beginning, as much as fits, and lines that always stand at the bottom.

    Args:
        text: May hold colour codes.
        foot: The last lines.
    """

    def __init__(self, text: str, foot: Sequence[str]) -> None:
        self._lines = text.splitlines()
        self._foot = foot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Cut to the terminal's size as it is now."""
        room = max(1, options.size.height - len(self._foot))
        lines = self._lines
        if len(lines) > room:
            hidden = len(lines) - room + 1
            lines = [*lines[: room - 1], f"… {hidden} more lines on a higher terminal"]
        lines = lines + [""] * (room - len(lines))
        for line in (*lines, *self._foot):
            text = Text.from_ansi(line)
            text.truncate(options.max_width, overflow="ellipsis")
            yield text
