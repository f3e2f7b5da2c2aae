"""One question to the HTTP API of a Prometheus or an Alertmanager."""

from __future__ import annotations

from typing import Any

from vllm_opsctl.errors import BadPage, UsageError
from vllm_opsctl.exporter.config import clean_url
from vllm_opsctl.exporter.json_text import read_json
from vllm_opsctl.exporter.redaction import shown_url
from vllm_opsctl.exporter.sources.http import Answer, get, new_session

_TIMEOUT_S = 30.0
_MAX_BYTES = 2**26


def ask(
    url: str,
    path: str,
    *,
    option: str,
    body: object = None,
) -> Answer:
    """
    Ask once.

    Args:
        url: Base URL of the server.
        path: Below it, with a leading slash.
        option: Where the URL came from, for messages.
        body: Sent as JSON.

    Raises:
        UsageError: The URL is none.
        Unreachable: Nothing answers.
        BadPage: The answer is cut off or too large.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{option} {shown_url(url)}: not a URL; write http://HOST:PORT")
    try:
        base = clean_url(url)
    except ValueError as problem:
        raise UsageError(f"{option}: {problem}") from None
    return get(
        new_session(),
        f"{base}{path}",
        timeout_s=_TIMEOUT_S,
        max_bytes=_MAX_BYTES,
        method="GET" if body is None else "POST",
        json=body,
    )


def ask_json(url: str, path: str, *, option: str, what: str) -> Any:
    """
    Ask for JSON.

    Args:
        url: Base URL of the server.
        path: Below it.
        option: Where the URL came from.
        what: What should answer, such as ``Prometheus``.

    Raises:
        UsageError: The URL is none.
        Unreachable: Nothing answers.
        BadPage: What answers is something else.
    """
    answer = ask(url, path, option=option)
    try:
        return read_json(answer.body)
    except ValueError:
        raise not_a(what, url, answer.status) from None


def not_a(what: str, url: str, status: int) -> BadPage:
    """The error of an answer that such a server does not give."""
    article = "an" if what[0] in "AEIOU" else "a"
    return BadPage(
        f"not-{what.lower()}",
        f"{shown_url(url)}: HTTP {status}, but not what {article} {what} answers",
    )
