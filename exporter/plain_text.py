"""
Text from outside, made harmless: what a name, a log or a message says is shown, never obeyed.

A terminal obeys escape sequences, a reader is misled by characters that turn the direction of a line,
and a line break starts a line that nobody wrote. All of them are shown by their code instead.
"""

from __future__ import annotations

import re
import unicodedata


def plain(text: str, limit: int | None = None) -> str:
    r"""
    One line without control, format, bidi, line and surrogate characters: each is shown by its code.

    What comes out is printable in the sense of :meth:`str.isprintable`.

    Args:
        text: From outside.
        limit: Longest result, the mark of a cut included; None for all of it.

    >>> plain("m\x1b[2J\n\u202egnp"), plain("x" * 9, limit=4)
    ('m\\x1b[2J\\x0a\\u202egnp', 'xxx…')
    """
    if limit is not None:
        # a text of megabytes is not looked at as a whole
        text = text[: limit + 1]
    if not text.isprintable():
        text = "".join(map(_shown, text))
    return f"{text[: limit - 1]}…" if limit is not None and len(text) > limit else text


def plain_lines(text: str) -> str:
    r"""
    The same for a text of several lines: its own line breaks and tabs stay.

    >>> plain_lines("a\n\tb\r\x1b[2J")
    'a\n\tb\\x0d\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" else _shown(c) for c in text)


_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
"""Select Graphic Rendition (ECMA-48, 8.3.117): colours and weights, all that our own answers use."""


def styled_lines(text: str) -> str:
    r"""
    The same for an answer of ours: its colours stay, too.

    >>> styled_lines("\x1b[31mCRITICAL\x1b[0m on chat-0\x1b[2J")
    '\x1b[31mCRITICAL\x1b[0m on chat-0\\x1b[2J'
    """
    if "\x1b" not in text:
        return plain_lines(text)
    return "".join(
        part if index % 2 else plain_lines(part) for index, part in enumerate(_COLOUR.split(text))
    )


_MARKDOWN = re.compile(
    r"[\\`*<>\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.|&(?=[#\w])"
)
"""What Markdown, GitHub's included, would take for markup within a line; ``://`` and ``www.`` make links."""


def markdown(text: str) -> str:
    r"""
    A text from outside within a line of Markdown: shown as it is, no markup, no link, no line of its own.

    >>> markdown("m<script>[x](http://evil.example) of kv_cache")
    'm\\<script\\>\\[x\\](http\\://evil.example) of kv_cache'
    """
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", plain(text))


def code_span(text: str) -> str:
    """
    A text from outside as code in Markdown.

    Source:
        GitHub Flavored Markdown, 6.3: a span ends with as many backticks as it began with.
    """
    shown = plain(text).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if unicodedata.category(character) == "Zs":
        # a blank of another width
        return " "
    number = ord(character)
    if number <= 0xFF:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"
