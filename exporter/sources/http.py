"""
Bounded HTTP: a whole answer within one deadline and one size, or a named error.

requests alone has a timeout per read; a server that drips one byte a second would hold it for ever.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import requests
import urllib3

from vllm_opsctl.errors import BadPage, Unreachable

_CHUNK = 65536
_GZIP_MAGIC = b"\x1f\x8b"


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


def new_session(api_key: str | None = None) -> requests.Session:
    """A session to a server nearby; an API key is sent as vLLM wants it."""
    session = requests.Session()
    # the machine's proxy settings are for the internet, not for a pod's neighbour
    session.trust_env = False
    if api_key:
        session.headers["Authorization"] = f"Bearer {api_key}"
    return session


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
        session: Keeps the connection between calls.
        url: Where.
        timeout_s: Deadline for the whole answer.
        max_bytes: Bound on the decoded body.
        headers: Sent besides requests' own.
        method: HTTP method.
        json: Body, sent as JSON.
        form: Body, sent as a form.

    Raises:
        Unreachable: refused, unknown host, reset, or not done within the deadline.
        BadPage: The body is too large or cut off.
    """
    started = time.monotonic()
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
            body = _read(response, url, started, timeout_s, max_bytes)
            return Answer(response.status_code, body, time.monotonic() - started)
    except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError) as problem:
        raise _timed_out(url, timeout_s) from problem
    except requests.exceptions.ConnectionError as problem:
        raise _connection_error(url, problem, timeout_s) from problem
    except urllib3.exceptions.DecodeError as problem:
        raise BadPage("truncated", f"{url}: the compressed answer is broken") from problem
    except urllib3.exceptions.ProtocolError as problem:
        raise BadPage("truncated", f"{url}: the answer was cut off") from problem
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as problem:
        raise Unreachable("unreachable", f"{url}: {problem}") from problem


def _read(
    response: requests.Response, url: str, started: float, timeout_s: float, max_bytes: int
) -> bytes:
    parts: list[bytes] = []
    size = 0
    # read1 returns what is there; read would wait for a whole chunk from a server that drips
    while chunk := response.raw.read1(_CHUNK, decode_content=True):
        size += len(chunk)
        if size > max_bytes:
            raise BadPage("too-large", f"{url}: the answer is larger than {max_bytes >> 20} MiB")
        parts.append(chunk)
        if time.monotonic() - started > timeout_s:
            raise _timed_out(url, timeout_s)
    return _ungzip(b"".join(parts), url, max_bytes)


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


def _timed_out(url: str, timeout_s: float) -> Unreachable:
    return Unreachable("timeout", f"{url}: no whole answer within {timeout_s:g} s")


def _connection_error(url: str, problem: Exception, timeout_s: float) -> Unreachable:
    text = str(problem).lower()
    if "refused" in text:
        return Unreachable("refused", f"{url}: connection refused; nothing listens there")
    if "name or service not known" in text or "failed to resolve" in text or "resolution" in text:
        return Unreachable("no-such-host", f"{url}: the host name is not known")
    if "timed out" in text:
        return _timed_out(url, timeout_s)
    if "reset" in text or "aborted" in text or "remote end closed" in text:
        return Unreachable("reset", f"{url}: the connection was closed before an answer came")
    return Unreachable("unreachable", f"{url}: {problem}")
