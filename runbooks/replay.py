"""
Replays a recording as a live vLLM endpoint: /metrics, /health, /version and /v1/models.

While the recording says that nothing listened, nothing listens; while it says that reads timed out,
they hang. What was not recorded is not invented: a replay does not generate.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vllm_opsctl.errors import BadPage, InputFileError, ServeError
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.observation import Observation

_TICK_S = 0.05
_HANG_S = 30.0
_START_TIME = re.compile(r"^(process_start_time_seconds )(\S+)", re.MULTILINE)
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class _Moment:
    """What the endpoint says at one time of the recording."""

    offset_s: float
    page: str | None
    reason: str | None


class _Server(ThreadingHTTPServer):
    """A server whose clients may hang up."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that has gone; anything else is a fault and is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # socketserver's own


class Replay:
    """
    A replay of one target.

    Args:
        observations: Of one target, in order.
        port: Where to listen; 0 picks a free one.
        speed: How many recorded seconds pass in one second.
        loop: Start again at the end instead of stopping.
        host: Address to listen on.

    Raises:
        InputFileError: The recording holds no page.
        ServeError: The port cannot be listened on.
    """

    def __init__(
        self,
        observations: Sequence[Observation],
        *,
        port: int,
        speed: float = 1.0,
        loop: bool = False,
        host: str = "127.0.0.1",
    ) -> None:
        self._moments = _moments(observations)
        if not any(moment.page is not None for moment in self._moments):
            raise InputFileError("the recording holds no metrics page; there is nothing to replay")
        # the last moment lasts as long as its predecessors did on average
        offsets = [moment.offset_s for moment in self._moments]
        self._end_s = offsets[-1] + (offsets[-1] / (len(offsets) - 1) if len(offsets) > 1 else 60.0)
        self._facts: dict[str, Any] = {}
        for observation in observations:
            if observation.kind == "facts":
                self._facts.update(observation.data)
        self._speed = speed
        self._loop = loop
        # bound and not listening: nobody else gets the port while the recording says that nothing listens
        self._place = _bound(host, port)
        self._address: tuple[str, int] = (host, self._place.getsockname()[1])
        self._server: ThreadingHTTPServer | None = None
        self._stop = threading.Event()
        self._started = 0.0
        self._wall_started = time.time()
        self._first_t = observations[0].t
        self._open()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{self._address[0]}:{self._address[1]}"

    @property
    def seconds(self) -> float:
        """How long one pass takes."""
        return self._end_s / self._speed

    def run(self) -> None:
        """Serve until the recording ends or :meth:`stop`."""
        self._begin()
        while not self._stop.is_set():
            if self._offset() >= self._end_s:
                if not self._loop:
                    break
                self._begin()
            listening = self.moment().reason != "refused"
            if listening and self._server is None:
                self._open()
            elif not listening and self._server is not None:
                self._close()
            self._stop.wait(_TICK_S)
        if self._server is not None:
            self._close()
        self._place.close()

    def stop(self) -> None:
        """End :meth:`run`."""
        self._stop.set()

    def moment(self) -> _Moment:
        """What the endpoint says now."""
        offset = self._offset()
        current = self._moments[0]
        for moment in self._moments:
            if moment.offset_s > offset:
                break
            current = moment
        return current

    def as_of_now(self, page: str) -> str:
        """A page with its process's start time moved to where it lies in this replay."""

        def moved(match: re.Match[str]) -> str:
            recorded = float(match[2]) - self._first_t
            return f"{match[1]}{self._wall_started + recorded / self._speed}"

        return _START_TIME.sub(moved, page)

    def facts(self) -> dict[str, Any]:
        """Version and models, as recorded or as the first page names them."""
        facts = dict(self._facts)
        if "models" not in facts:
            page = next(m.page for m in self._moments if m.page is not None)
            try:
                engines = read_page(page, t=0.0, target="replay").engines
            except BadPage:
                engines = ()
            names = dict.fromkeys(engine.key.model for engine in engines)
            facts["models"] = {"data": [{"id": name} for name in names]}
        return facts

    def _begin(self) -> None:
        self._started = time.monotonic()
        self._wall_started = time.time()

    def _offset(self) -> float:
        if self._started == 0.0:
            return 0.0
        return (time.monotonic() - self._started) * self._speed

    def _open(self) -> None:
        try:
            self._server = _Server(self._address, _handler(self))
        except OSError as problem:
            raise _not_to_be_had(*self._address, problem) from problem
        self._server.daemon_threads = True
        threading.Thread(
            target=self._server.serve_forever, args=(_TICK_S,), name="replay", daemon=True
        ).start()

    def _close(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server = None


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address that the server can share, since both allow the address's reuse (socket(7))."""
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((host, port))
    except OSError as problem:
        place.close()
        raise _not_to_be_had(host, port, problem) from problem
    return place


def _not_to_be_had(host: str, port: int, problem: OSError) -> ServeError:
    return ServeError(
        f"--port: cannot listen on {host}:{port} ({problem.strerror}); choose another"
    )


def _moments(observations: Sequence[Observation]) -> list[_Moment]:
    reads = [o for o in observations if o.kind in ("metrics", "error")]
    if not reads:
        return []
    first = reads[0].t
    return [
        _Moment(
            max(0.0, o.t - first),
            o.text if o.kind == "metrics" else None,
            str(o.data.get("reason")) if o.kind == "error" else None,
        )
        for o in reads
    ]


def _handler(replay: Replay) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers from the recording."""

        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            moment = replay.moment()
            if moment.reason == "timeout":
                time.sleep(_HANG_S)
            if moment.page is None and moment.reason not in (None, "timeout"):
                self.close_connection = True
                return
            facts = replay.facts()
            if self.path == "/metrics" and moment.page is not None:
                self._answer(200, _CONTENT_TYPE, replay.as_of_now(moment.page).encode())
            elif self.path == "/health":
                self._answer(200, "text/plain", b"")
            elif self.path == "/version" and "version" in facts:
                self._answer_json({"version": facts["version"]})
            elif self.path == "/v1/models":
                self._answer_json({"object": "list", **facts["models"]})
            else:
                self._answer(404, "text/plain", b"not recorded\n")

        def do_POST(self) -> None:
            self.close_connection = True
            self._answer(501, "text/plain", b"a replay does not generate\n")

        def _answer_json(self, data: object) -> None:
            self._answer(200, "application/json", json.dumps(data).encode())

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    return Handler
