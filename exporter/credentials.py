"""
Keys and tokens that become a header: read from where they are named, checked, and never shown.

A key that cannot be a header is refused before anything is asked, for whoever fails to send it may print it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.files import read_plain_text
from vllm_opsctl.exporter.limits import MAX_KEY_BYTES

_USUAL = re.compile(r"[A-Z_][A-Z0-9_]*")

_OF_AWS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_SENT_TO_AWS = ("AWS_ACCESS_KEY_ID", *_OF_AWS)

_read: set[str] = set()
"""The last net: messages hide them, whatever they came from."""

_MARK_OF_UTF8 = "\ufeff"


def as_header(text: str) -> str:
    """
    A secret without the white space around it, such as the line break of ``echo`` and ``kubectl``.

    Args:
        text: As it was read.

    Returns:
        The secret; empty where there was nothing but white space.

    Raises:
        ValueError: It cannot be sent as a header; says why, and shows nothing of it.
    """
    secret = text.removeprefix(_MARK_OF_UTF8).strip()
    if "\n" in secret or "\r" in secret:
        raise ValueError("has a line break inside; give one key, in one line")
    if any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in secret):
        raise ValueError("has a control character inside; give the key as text")
    if any(ord(c) > 0xFF for c in secret):
        raise ValueError("has a character that no HTTP header can have; give a key of ASCII")
    return secret


def from_variable(name: str, environment: Mapping[str, str]) -> str | None:
    """
    The secret that an environment variable holds.

    Returns:
        None where the variable is not set, or is empty.

    Raises:
        ValueError: As :func:`as_header`, with the variable's name.
    """
    try:
        return _remembered(as_header(environment.get(name, ""))) or None
    except ValueError as problem:
        raise ValueError(f"{called(name)} {problem}") from None


def called(name: str) -> str:
    """
    What to call a variable; one that is not written like one may be the secret itself.

    >>> called("CHAT_KEY"), called("hf_abc1")
    ('the variable CHAT_KEY', 'the variable that is named')
    """
    return f"the variable {name if _USUAL.fullmatch(name) else 'that is named'}"


def from_file(path: Path) -> str:
    """
    The secret that a file holds.

    Raises:
        InputFileError: Not there, not readable, no plain file, too large, or not UTF-8.
        ValueError: As :func:`as_header`, or the file is empty.
    """
    text = read_plain_text(path, MAX_KEY_BYTES, "file with one key")
    try:
        secret = as_header(text)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    if not secret:
        raise ValueError(f"{path}: empty; put the key into it")
    return _remembered(secret)


def _remembered(secret: str) -> str:
    _read.add(secret)
    return secret


def read_so_far(environment: Mapping[str, str]) -> frozenset[str]:
    """
    Secrets that this process has read, and those that boto3 finds for itself.

    Args:
        environment: Environment variables.
    """
    of_aws = (environment.get(name, "") for name in _OF_AWS)
    return frozenset((*_read, *of_aws)) - {""}


def check_of_aws(environment: Mapping[str, str]) -> None:
    """
    Refuse what boto3 would try to send, fail to, and print.

    Args:
        environment: Environment variables.

    Raises:
        UsageError: A variable holds what can be no header, or white space around it, which boto3 keeps.
    """
    for name in _SENT_TO_AWS:
        value = environment.get(name, "")
        try:
            is_bare = as_header(value) == value
        except ValueError as problem:
            raise UsageError(f"{name} {problem}") from None
        if not is_bare or not value.isascii():
            raise UsageError(f"{name} has white space around it, or is not ASCII; set it again")


def is_readable(path: Path) -> bool:
    """Whether a file of a secret is there and may be read; it may be mounted late, or another user's."""
    return os.access(path, os.R_OK)
