"""
Bounded HTTP: a whole answer within one deadline and one size, or a named error.

Nothing is followed: a key goes to the host that it was given for, not to one that an answer names.
"""

from __future__ import annotations

import http.client
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path

import requests
import urllib3

from vllm_opsctl.errors import BadPage, SourceError, UsageError
from vllm_opsctl.exporter.sources.deadline import Deadline, GuardedSession
from vllm_opsctl.exporter.sources.http_errors import named, timed_out

_CHUNK = 65536
_GZIP_MAGIC = b"\x1f\x8b"

CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables that name a file or folder of trusted certificates, in the order in which they count."""


@dataclass(frozen=True, slots=True)
class Answer:
    """
    An HTTP answer.

    Args:
        status: HTTP status.
        body: Decoded of any content coding.
        seconds: From the request to the last byte.
    """

    status: int
    body: bytes
    seconds: float


def new_session(api_key: str | None = None, ca_file: str | None = None) -> requests.Session:
    """
    A session to a server nearby.

    Args:
        api_key: Sent as vLLM wants it.
        ca_file: Trusted certificates; None for those of the environment, else those of requests.

    Raises:
        UsageError: The trusted certificates are not there.
    """
    session = GuardedSession()
    # the machine's proxy settings are for the internet, not for a pod's neighbour
    session.trust_env = False
    session.verify = _trusted(ca_file) or True
    # a server could fill our memory with them, and no vLLM sets any
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    if api_key:
        session.headers["Authorization"] = f"Bearer {api_key}"
    return session


def _trusted(ca_file: str | None) -> str | None:
    named = {"ca_file: ": ca_file, **{f"{name}=": os.environ.get(name) for name in CA_VARIABLES}}
    for name, path in named.items():
        if path:
            if not Path(path).exists():
                raise UsageError(f"{name}{path}: no such file")
            return path
    return None


def get(
    session: requests.Session,
    url: str,
    *,
    timeout_s: float,
    max_bytes: int,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    json: object = None,
    form: Mapping[str, str] | None = None,
) -> Answer:
    """
    Make one request.

    Args:
        session: One of :func:`new_session`; keeps the connection between calls.
        url: Where.
        timeout_s: Deadline for the whole exchange: name, connection, TLS, header, body, trailer.
        max_bytes: Bound on the decoded body.
        headers: Sent besides requests' own.
        method: HTTP method.
        json: Body, sent as JSON.
        form: Body, sent as a form.

    Raises:
        Unreachable: refused, unknown host, no TLS, reset, or not done within the deadline.
        BadPage: What answers is no HTTP, or the answer is too large or cut off.
    """
    started = time.monotonic()
    with Deadline(timeout_s) as deadline:
        try:
            with session.request(
                method,
                url,
                timeout=timeout_s,
                stream=True,
                headers=dict(headers or {}),
                json=json,
                data=form,
                allow_redirects=False,
            ) as response:
                body = _read(response, url, deadline, timeout_s, max_bytes)
                status = response.status_code
        except SourceError:
            raise
        except (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
            # urllib3 and idna on a host's name that is none
            ValueError,
        ) as problem:
            if deadline.is_over:
                raise timed_out(url, timeout_s) from problem
            raise named(url, problem, timeout_s) from problem
        if deadline.is_over:
            # an answer without a length ends where the connection does, also when we ended it
            raise timed_out(url, timeout_s)
    return Answer(status, _ungzip(body, url, max_bytes), time.monotonic() - started)


def _read(
    response: requests.Response, url: str, deadline: Deadline, timeout_s: float, max_bytes: int
) -> bytes:
    parts: list[bytes] = []
    size = 0
    # read1 returns what is there; read would wait for a whole chunk from a server that drips
    while chunk := response.raw.read1(_CHUNK, decode_content=True):
        size += len(chunk)
        if size > max_bytes:
            raise BadPage("too-large", f"{url}: the answer is larger than {max_bytes >> 20} MiB")
        parts.append(chunk)
        if deadline.is_over:
            raise timed_out(url, timeout_s)
    return b"".join(parts)


def _ungzip(body: bytes, url: str, max_bytes: int) -> bytes:
    """Undo gzip that the server did not declare (a file server in front, say)."""
    if not body.startswith(_GZIP_MAGIC):
        return body
    decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = decoder.decompress(body, max_bytes + 1)
    except zlib.error as problem:
        raise BadPage("truncated", f"{url}: the gzip answer is broken") from problem
    if len(plain) > max_bytes:
        raise BadPage("too-large", f"{url}: the answer is larger than {max_bytes >> 20} MiB")
    if not decoder.eof:
        raise BadPage("truncated", f"{url}: the gzip answer was cut off")
    return plain
