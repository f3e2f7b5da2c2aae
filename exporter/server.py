"""The sidecar's HTTP surface, a WSGI application."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.recording import format_recording
from vllm_opsctl.exporter.status import status_json, status_page
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


class _BadRequest(Exception):
    pass


class Application:
    """
    The WSGI application.

    Args:
        sidecar: Where the answers come from.
        registry: What /metrics shows.
    """

    def __init__(self, sidecar: SidecarView, registry: CollectorRegistry) -> None:
        self._sidecar = sidecar
        self._registry = registry
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
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            answer = _text("405 Method Not Allowed", "only GET here\n")
        elif route is None:
            answer = _text("404 Not Found", "not here; try " + " ".join(self._routes) + "\n")
        else:
            try:
                answer = route(environ)
            except _BadRequest as problem:
                answer = _text("400 Bad Request", f"{problem}\n")
        status, headers, body = answer
        start_response(status, headers)
        return body if environ["REQUEST_METHOD"] == "GET" else []

    def _page(self, environ: dict[str, Any]) -> tuple[str, Headers, Iterable[bytes]]:
        sidecar = self._sidecar
        html = status_page(sidecar.config, sidecar.snapshots(), sidecar.now())
        return "200 OK", [("Content-Type", "text/html; charset=utf-8")], [html.encode()]

    def _metrics(self, environ: dict[str, Any]) -> tuple[str, Headers, Iterable[bytes]]:
        encoder, content_type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
        return "200 OK", [("Content-Type", content_type)], [encoder(self._registry)]

    def _livez(self, environ: dict[str, Any]) -> tuple[str, Headers, Iterable[bytes]]:
        return _text("200 OK", "ok\n")

    def _readyz(self, environ: dict[str, Any]) -> tuple[str, Headers, Iterable[bytes]]:
        asked = _argument(environ, "target")
        snapshots = [s for s in self._sidecar.snapshots() if asked in (None, s.target.name)]
        if not snapshots:
            return _text("404 Not Found", f"no target {asked!r}\n")
        lines = [f"{s.target.name}: {'ready' if s.ready else s.not_ready}\n" for s in snapshots]
        ready = all(snapshot.ready for snapshot in snapshots)
        return _text("200 OK" if ready else "503 Service Unavailable", "".join(lines))

    def _status(self, environ: dict[str, Any]) -> tuple[str, Headers, Iterable[bytes]]:
        body = json.dumps(status_json(self._sidecar.config, self._sidecar.snapshots()), indent=1)
        return "200 OK", [("Content-Type", "application/json")], [body.encode() + b"\n"]

    def _recording(self, environ: dict[str, Any]) -> tuple[str, Headers, Iterable[bytes]]:
        target = _argument(environ, "target")
        known = [snapshot.target.name for snapshot in self._sidecar.snapshots()]
        if target is not None and target not in known:
            return _text("404 Not Found", f"no target {target!r}; there are {', '.join(known)}\n")
        start, end = _number(environ, "start"), _number(environ, "end")
        lines = format_recording(self._sidecar.observations(target, start, end))
        headers = [("Content-Type", "application/x-ndjson")]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            return "200 OK", [*headers, ("Content-Encoding", "gzip")], _gzipped(lines)
        return "200 OK", headers, (line.encode() for line in lines)


def _text(status: str, text: str) -> tuple[str, Headers, Iterable[bytes]]:
    return status, [("Content-Type", "text/plain; charset=utf-8")], [text.encode()]


def _argument(environ: dict[str, Any], name: str) -> str | None:
    values = parse_qs(environ.get("QUERY_STRING", "")).get(name)
    return values[-1] if values else None


def _number(environ: dict[str, Any], name: str) -> float | None:
    text = _argument(environ, name)
    try:
        return float(text) if text is not None else None
    except ValueError:
        raise _BadRequest(f"{name}={text!r} is not unix seconds") from None


def _gzipped(lines: Iterable[str]) -> Iterator[bytes]:
    compressor = zlib.compressobj(3, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    for line in lines:
        data = compressor.compress(line.encode())
        if data:
            yield data
    yield compressor.flush()
