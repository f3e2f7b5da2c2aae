"""
What may be shown of a URL and of a text that has URLs in it: never credentials, never a query's values.

Whoever mistypes a URL mistypes it with the password in it, so a text that is no URL is treated like one.
"""

from __future__ import annotations

import functools
import html
import json
import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, quote, urlsplit

from vllm_opsctl.exporter.limits import MAX_NAME_CHARS
from vllm_opsctl.exporter.plain_text import plain

HIDDEN = "***"

MIN_SECRET_CHARS = 4
"""A shorter secret would hide parts of ordinary words."""

_MIN_LITERAL_CHARS = 12

_SCHEME = re.compile(r"^[A-Za-z][\w+.-]*:/+|^https?:|^[A-Za-z]{2,6}/{2,}|^/+")
"""The beginning of a URL, and of one in which the colon or a slash is missing."""

# lengths are bounded, for a text from outside may be made to be searched for long
_USERINFO = re.compile(r"(\b[A-Za-z][\w+.-]{0,20}:/{1,3})[^\s'\"<>]{0,512}@")
_BARE_USERINFO = re.compile(
    r"(?<![^\s'\"(=,])(?:\w{0,20}/{1,2})?[^\s'\"(=,:/@]{1,128}:[^\s'\"/@][^\s'\"@]{0,512}@"
)
_BARE_QUERY = re.compile(
    r"(\b[A-Za-z][\w+.-]{0,20}://[^\s'\"<>?]{1,512}\?)[^\s'\"<>=&]+(?=[\s'\"<>]|$)"
)
_QUERY = re.compile(r"([?&][\w.~%\[\]-]+=)[^&#\s'\"]+")


def shown_url(text: str) -> str:
    """
    A URL, or what was meant to be one, as it may be shown: in one line, without credentials.

    >>> shown_url("http://me:pw@h:1/m?token=abc"), shown_url("admin:pw@h:8000")
    ('http://***@h:1/m?token=***', '***@h:8000')
    >>> shown_url("htp://me:p@s/s?w@h"), shown_url("ftp://h/m?t=a@b")
    ('htp://***', 'ftp://***')
    """
    found = _SCHEME.match(text)
    scheme = found[0] if found is not None else ""
    rest = text[len(scheme) :]
    before, at, host = rest.rpartition("@")
    if at and ("?" in before or "#" in before):
        # nobody can tell whether what stands behind the @ is a host or the end of a secret
        return plain(f"{scheme}{HIDDEN}", MAX_NAME_CHARS)
    where, mark, query = host.partition("?")
    where, sharp, _ = where.partition("#")
    query = _hidden_query(query.partition("#")[0]) if mark else ""
    shown = (
        f"{scheme}{HIDDEN + '@' if at else ''}{where}{mark}{query}{'#' + HIDDEN if sharp else ''}"
    )
    return plain(shown, MAX_NAME_CHARS)


def _hidden_query(query: str) -> str:
    parts = (part.partition("=") for part in query.split("&"))
    return "&".join(f"{name}={HIDDEN}" if equals else HIDDEN for name, equals, _ in parts)


@functools.cache
def _spellings(secret: str) -> tuple[str, ...]:
    """A secret as it is, and as JSON, HTML, URLs and our own messages write it."""
    in_json = json.dumps(secret)[1:-1]
    return tuple(
        dict.fromkeys(
            (
                secret,
                in_json,
                in_json.replace("/", "\\/"),
                json.dumps(secret, ensure_ascii=False)[1:-1],
                html.escape(secret),
                quote(secret, safe="", errors="replace"),
                quote(secret, errors="replace"),
                plain(secret),
            )
        )
    )


def without_secrets(text: str, secrets: Iterable[str] = ()) -> str:
    """
    A text without known secrets, and its URLs without credentials and query values.

    Args:
        text: Any.
        secrets: Hidden wherever they occur, also as JSON, HTML and URLs write them.

    >>> without_secrets("http://me:pw@h:1/m?token=abc&x=1 says sk-1234", ["sk-1234"])
    'http://***@h:1/m?token=***&x=*** says ***'
    """
    # the longest first: one secret may be the beginning of another
    for written in _written(secrets, MIN_SECRET_CHARS):
        text = text.replace(written, HIDDEN)
    if "@" in text:
        text = _BARE_USERINFO.sub(f"{HIDDEN}@", _USERINFO.sub(rf"\1{HIDDEN}@", text))
    if "?" in text or "&" in text:
        text = _BARE_QUERY.sub(rf"\1{HIDDEN}", _QUERY.sub(rf"\1{HIDDEN}", text))
    return text


def without_literally(data: bytes, secrets: Iterable[str]) -> bytes:
    """
    An answer without secrets that its server repeats; nothing else of it changes.

    Args:
        data: The answer.
        secrets: Those that a word could be are left alone, for they may be anything of the answer's own.

    >>> without_literally(b"x sk-0123456789 EMPTY", ["sk-0123456789", "EMPTY"])
    b'x *** EMPTY'
    """
    for written in _written(secrets, _MIN_LITERAL_CHARS):
        for encoding in ("utf-8", "latin-1"):
            data = data.replace(written.encode(encoding, "replace"), HIDDEN.encode())
    return data


def _written(secrets: Iterable[str], least: int) -> list[str]:
    """All spellings of the secrets that have so many characters, the longest first."""
    found = {
        written for secret in secrets if len(secret) >= least for written in _spellings(secret)
    }
    return sorted(found, key=len, reverse=True)


def secrets_of_url(url: str) -> list[str]:
    """
    What of a URL or a path may be a secret: the values of its query, as written and as meant.

    >>> secrets_of_url("/metrics?token=a%20b&x")
    ['a%20b', 'x', 'a b']
    """
    try:
        query = urlsplit(url).query
    except ValueError:
        return []
    written = [part.rpartition("=")[2] for part in query.split("&")]
    meant = [value for _, value in parse_qsl(query)]
    return [value for value in dict.fromkeys((*written, *meant)) if value]


def host_alone(text: str) -> str:
    """
    A URL whose path may be the secret (a webhook, a dead-man's switch): scheme and host.

    >>> host_alone("https://hc-ping.com/3f1c"), host_alone("http://h:1"), host_alone("T0/B1/x")
    ('https://hc-ping.com/***', 'http://h:1', '***')
    """
    shown = shown_url(text)
    found = _SCHEME.match(shown)
    if found is None:
        return HIDDEN
    host, _, path = shown[found.end() :].partition("/")
    host = host.partition("?")[0].partition("#")[0]
    return f"{found[0]}{host}{'' if not path and shown.endswith(host) else '/' + HIDDEN}"
