"""The sidecar's HTTP surface, a WSGI application."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from html import escape
from typing import Any, Protocol
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.door import is_known_host, is_loopback
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS
from vllm_opsctl.exporter.observation import Observation, thinned
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.recording import format_recording
from vllm_opsctl.exporter.status import POLICY, status_json, status_page
from vllm_opsctl.exporter.target_state import Snapshot

Headers = list[tuple[str, str]]
StartResponse = Callable[[str, Headers], object]


class SidecarView(Protocol):
    """What the server asks the sidecar."""

    config: Config

    def now(self) -> float:
        """Unix seconds."""

    def snapshots(self) -> list[Snapshot]:
        """All targets, in the configuration's order."""

    def observations(
        self, target: str | None, start: float | None, end: float | None
    ) -> Iterator[Observation]:
        """The flight recorder's observations."""


Overview = Callable[[SidecarView], str]
"""What stands first on the page for people, as HTML: objectives and verdicts are no matter of this layer."""

SAME_PAGE_S = 0.2
"""Clients that ask for /metrics within so long get the same page."""

RECORDINGS_AT_ONCE = 3
"""Slow readers of recordings hold a thread each; the rest of the server must not wait for them."""

log = logging.getLogger(__name__)


class _BadRequest(Exception):
    """A query that cannot be answered."""


class _Released:
    """A body that gives its place back when it was sent or its reader has gone."""

    def __init__(self, body: Iterator[bytes], places: threading.BoundedSemaphore) -> None:
        self._body = body
        self._places = places

    def __iter__(self) -> Iterator[bytes]:
        return self._body

    def close(self) -> None:
        """Called by the WSGI server in any case."""
        self._places.release()


class Application:
    """
    The WSGI application.

    Args:
        sidecar: Where the answers come from.
        registry: What /metrics shows.
        overview: What stands first on the page.
        host: What the sidecar listens on; None to answer whatever host a client names.
    """

    def __init__(
        self,
        sidecar: SidecarView,
        registry: CollectorRegistry,
        overview: Overview | None = None,
        *,
        host: str | None = None,
    ) -> None:
        self._sidecar = sidecar
        self._overview = overview
        self._registry = registry
        self._host = host if host is not None and is_loopback(host) else None
        self._pages: dict[str, tuple[float, bytes]] = {}
        self._rendering = threading.Lock()
        self._recordings = threading.BoundedSemaphore(RECORDINGS_AT_ONCE)
        self._routes: dict[
            str, Callable[[dict[str, Any]], tuple[str, Headers, Iterable[bytes]]]
        ] = {
            "/": self._page,
            "/metrics": self._metrics,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/api/v1/status": self._status,
            "/api/v1/recording": self._recording,
        }

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path = environ.get("PATH_INFO") or "/"
        route = self._routes.get(path if path == "/" else path.rstrip("/"))
        named = environ.get("HTTP_HOST")
        if self._host is not None and named and not is_known_host(named, self._host):
            answer = _text(
                "403 Forbidden", "a name that this sidecar does not have; use localhost\n"
            )
        elif environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            answer = _text("405 Method Not Allowed", "only GET here\n")
        elif route is None:
            answer = _text("404 Not Found", "not here; try " + " ".join(self._routes) + "\n")
        else:
            try:
                answer = route(environ)
            except _BadRequest as problem:
                answer = _text("400 Bad Request", f"{problem}\n")
        status, headers, body = answer
        # what a text repeats of a request is no page, whatever a browser thinks of it
        start_response(status, [*headers, ("X-Content-Type-Options", "nosniff")])
        if environ["REQUEST_METHOD"] == "HEAD":
            if isinstance(body, _Released):
                body.close()
            return []
        return body

    def _page(self, environ: dict[str, Any]) -> tuple[str, Headers, Iterable[bytes]]:
        sidecar = self._sidecar
        html = status_page(sidecar.config, sidecar.snapshots(), sidecar.now(), self._first())
        headers = [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Security-Policy", POLICY),
            # a runbook's server need not learn where this sidecar is
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ]
        return "200 OK", headers, [html.encode()]

    def _first(self) -> str:
        """The overview; a fault in it costs no more than itself."""
        if self._overview is None:
            return ""
        try:
            return self._overview(self._sidecar)
        except Exception as problem:
            log.exception("the page's overview failed")
            return (
                '<p class="bad">Objectives and verdict are missing for a fault of the sidecar itself: '
                f"{escape(repr(problem))}</p>\n"
            )

    def _metrics(self, environ: dict[str, Any]) -> tuple[str, Headers, Iterable[bytes]]:
        encoder, content_type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
        # many clients at once are given one page: to render it costs as much as to read a target
        with self._rendering:
            made, body = self._pages.get(content_type, (-math.inf, b""))
            if time.monotonic() - made > SAME_PAGE_S:
                body = encoder(self._registry)
                self._pages[content_type] = time.monotonic(), body
        return "200 OK", [("Content-Type", content_type)], [body]

    def _livez(self, environ: dict[str, Any]) -> tuple[str, Headers, Iterable[bytes]]:
        return _text("200 OK", "ok\n")

    def _readyz(self, environ: dict[str, Any]) -> tuple[str, Headers, Iterable[bytes]]:
        asked = _argument(environ, "target")
        snapshots = [s for s in self._sidecar.snapshots() if asked in (None, s.target.name)]
        if not snapshots:
            return _text("404 Not Found", f"no target {_shown(asked)}\n")
        lines = [f"{s.target.name}: {'ready' if s.ready else s.not_ready}\n" for s in snapshots]
        ready = all(snapshot.ready for snapshot in snapshots)
        return _text("200 OK" if ready else "503 Service Unavailable", "".join(lines))

    def _status(self, environ: dict[str, Any]) -> tuple[str, Headers, Iterable[bytes]]:
        sidecar = self._sidecar
        body = json.dumps(status_json(sidecar.config, sidecar.snapshots(), sidecar.now()), indent=1)
        return "200 OK", [("Content-Type", "application/json")], [body.encode() + b"\n"]

    def _recording(self, environ: dict[str, Any]) -> tuple[str, Headers, Iterable[bytes]]:
        target = _argument(environ, "target")
        known = [snapshot.target.name for snapshot in self._sidecar.snapshots()]
        if target is not None and target not in known:
            return _text(
                "404 Not Found", f"no target {_shown(target)}; there are {', '.join(known)}\n"
            )
        start, end = _number(environ, "start"), _number(environ, "end")
        full_from, step_s = _number(environ, "full_from"), _number(environ, "step_s")
        observations = self._sidecar.observations(target, start, end)
        if full_from is not None and step_s is not None:
            if target is None:
                raise _BadRequest("full_from and step_s want a target")
            observations = thinned(
                observations, start=start or 0.0, full_from=full_from, step_s=step_s
            )
        if not self._recordings.acquire(blocking=False):
            return _text("503 Service Unavailable", "other recordings are being sent; try again\n")
        headers = [("Content-Type", "application/x-ndjson")]
        zipped = "gzip" in environ.get("HTTP_ACCEPT_ENCODING", "")
        if zipped:
            headers.append(("Content-Encoding", "gzip"))
        lines = format_recording(observations)
        body = _gzipped(lines) if zipped else (_bytes(line) for line in lines)
        return "200 OK", headers, _Released(body, self._recordings)


def _text(status: str, text: str) -> tuple[str, Headers, Iterable[bytes]]:
    return status, [("Content-Type", "text/plain; charset=utf-8")], [text.encode()]


def _shown(asked: str | None) -> str:
    """What a client asked for, in a text for it."""
    return repr(plain(asked or "", MAX_NAME_CHARS))


def _argument(environ: dict[str, Any], name: str) -> str | None:
    values = parse_qs(environ.get("QUERY_STRING", "")).get(name)
    return values[-1] if values else None


def _number(environ: dict[str, Any], name: str) -> float | None:
    text = _argument(environ, name)
    try:
        return float(text) if text is not None else None
    except ValueError:
        raise _BadRequest(f"{name}={_shown(text)} is not unix seconds") from None


def _bytes(line: str) -> bytes:
    """Half of a surrogate pair, which JSON may hold, has no bytes."""
    return line.encode(errors="backslashreplace")


def _gzipped(lines: Iterable[str]) -> Iterator[bytes]:
    compressor = zlib.compressobj(3, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    for line in lines:
        data = compressor.compress(_bytes(line))
        if data:
            yield data
    yield compressor.flush()
