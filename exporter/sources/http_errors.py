"""What went wrong with an HTTP exchange, in words that name the fix."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl

import requests
import urllib3

from vllm_opsctl.errors import BadPage, SourceError, Unreachable
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.sources.deadline import causes

_SHOWN_CHARS = 40
"""Of an answer that is no HTTP."""

_TLS_RECORDS = ("\x15\x03", "\x16\x03")
"""How an alert and a handshake of TLS begin (RFC 8446, 5.1)."""

_NO_TLS = ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
"""OpenSSL's reasons where the other side speaks something else than TLS."""


def timed_out(url: str, timeout_s: float) -> Unreachable:
    """The deadline has passed."""
    return Unreachable("timeout", f"{url}: no whole answer within {timeout_s:g} s")


def named(url: str, problem: Exception, timeout_s: float) -> SourceError:
    """
    The error that says what happened.

    Args:
        url: That was asked.
        problem: As requests, urllib3, http.client or the system raised it.
        timeout_s: The exchange's deadline.
    """
    found = list(causes(problem))
    inner = [one for one in found if not isinstance(one, requests.RequestException)]
    told = (
        [_tls(url, one) for one in inner if isinstance(one, ssl.SSLError)]
        + [_not_http(url, one) for one in inner if isinstance(one, http.client.HTTPException)]
        + [_system(url, one, timeout_s) for one in inner if isinstance(one, OSError)]
    )
    error = next((one for one in told if one is not None), None)
    if error is not None:
        return error
    if any(isinstance(one, urllib3.exceptions.DecodeError) for one in found):
        return BadPage("truncated", f"{url}: the compressed answer is broken")
    if any(isinstance(one, urllib3.exceptions.TimeoutError) for one in found):
        return timed_out(url, timeout_s)
    if any(isinstance(one, urllib3.exceptions.ProtocolError) for one in found):
        return BadPage("truncated", f"{url}: the answer was cut off")
    if any(isinstance(one, urllib3.exceptions.InvalidHeader) for one in found):
        return BadPage("truncated", f"{url}: the answer's header gives two different lengths")
    if any(isinstance(one, requests.exceptions.InvalidHeader) for one in found):
        # what it says is the header's value
        return Unreachable("bad-header", f"{url}: a header that cannot be sent; is the key right?")
    # the innermost says it shortest
    return Unreachable("unreachable", f"{url}: {plain(str(found[-1]), _SHOWN_CHARS * 3)}")


def _tls(url: str, problem: ssl.SSLError) -> SourceError:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return Unreachable(
            "tls-untrusted",
            f"{url}: its certificate is not trusted ({problem.verify_message}); name the file of "
            "its CA in SSL_CERT_FILE (of a target: ca_file)",
        )
    reason = (problem.reason or "").upper().replace(" ", "_")
    if "X509" in str(problem):
        return Unreachable("tls", f"{url}: the file of trusted certificates holds none in PEM")
    if reason in _NO_TLS:
        return Unreachable("not-tls", f"{url}: no TLS is spoken there; write http://")
    if isinstance(problem, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Unreachable("reset", f"{url}: the connection was closed while TLS began")
    return Unreachable("tls", f"{url}: TLS failed ({plain(problem.reason or str(problem))})")


def _not_http(url: str, problem: http.client.HTTPException) -> SourceError | None:
    if isinstance(problem, http.client.RemoteDisconnected):
        return _closed(url)
    if isinstance(problem, http.client.BadStatusLine):
        # http.client keeps what a terminal would show: quoted, or as it is
        line = str(problem).strip("'")
        if line.startswith(_TLS_RECORDS):
            return Unreachable("tls-only", f"{url}: TLS is spoken there; write https://")
        if line.startswith("SSH-"):
            return BadPage("not-http", f"{url}: an SSH server answers there; is the port right?")
        shown = plain(line, _SHOWN_CHARS)
        return BadPage(
            "not-http", f"{url}: what answers is not HTTP (it begins {shown!r}); is the port right?"
        )
    if isinstance(problem, http.client.IncompleteRead):
        return BadPage("truncated", f"{url}: the answer was cut off")
    if isinstance(problem, http.client.LineTooLong) or "header" in str(problem):
        return BadPage(
            "header-too-large", f"{url}: the answer's header is too large; is this a vLLM server?"
        )
    return None


def _closed(url: str) -> Unreachable:
    hint = "; does it want https://?" if url.startswith("http://") else ""
    return Unreachable("reset", f"{url}: the connection was closed before an answer came{hint}")


def _system(url: str, problem: OSError, timeout_s: float) -> SourceError | None:
    if isinstance(problem, socket.gaierror):
        return Unreachable("no-such-host", f"{url}: the host name is not known")
    if isinstance(problem, ConnectionRefusedError):
        return Unreachable("refused", f"{url}: connection refused; nothing listens there")
    if isinstance(problem, TimeoutError):
        return timed_out(url, timeout_s)
    if isinstance(problem, ConnectionResetError | BrokenPipeError | ConnectionAbortedError):
        return _closed(url)
    if problem.errno in (errno.EMFILE, errno.ENFILE):
        return Unreachable(
            "no-descriptors", f"{url}: too many open files on this side; raise ulimit -n"
        )
    if problem.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return Unreachable("no-route", f"{url}: no route to that host")
    if isinstance(problem, FileNotFoundError) or "CA certificate" in str(problem):
        return Unreachable("tls", f"{url}: the file of trusted certificates cannot be read")
    return None
