"""A fake of vLLM's HTTP surface whose every route a test can make hostile; what was asked is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

from loopback import serving


@dataclass(frozen=True, slots=True)
class Reply:
    """What a route answers."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked."""

    path: str
    headers: Mapping[str, str]


Route = Reply | Callable[[BaseHTTPRequestHandler], "Reply | None"]
"""A reply, or what makes one; None when it has answered by itself."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        """Clients that go in the middle of an answer are what is tested."""


@dataclass(slots=True)
class FakeVllm:
    """
    A running one.

    Args:
        url: Base URL.
        routes: By path, without query; changed while it runs.
        received: Every request, oldest first.
    """

    url: str
    routes: dict[str, Route]
    received: list[Request] = field(default_factory=list)


@contextmanager
def fake_vllm(**routes: Route) -> Iterator[FakeVllm]:
    """
    Serve on the loopback: a healthy vLLM but for the routes given.

    Args:
        routes: By the path's name: ``metrics``, ``version``, ``v1_models`` (underscore for slash), ….
    """
    moving = count(1)
    healthy: dict[str, Route] = {
        "/metrics": lambda _: Reply(page(tokens=100.0 * next(moving)).encode()),
        "/health": Reply(),
        "/version": as_json({"version": "0.32.0"}),
        "/v1/models": as_json({"data": [{"id": "m", "max_model_len": 2048}]}),
        "/v1/completions": as_json({"choices": [{"text": "x"}], "usage": {"completion_tokens": 1}}),
    }
    given = {f"/{name.replace('_', '/')}": route for name, route in routes.items()}
    running = FakeVllm("", {**healthy, **given})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            running.received.append(Request(self.path, dict(self.headers)))
            route = running.routes.get(self.path.partition("?")[0], Reply(status=404))
            reply = route if isinstance(route, Reply) else route(self)
            if reply is None:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.do_GET()

        def log_message(self, format: str, *_: object) -> None:
            """Say nothing."""

    with serving(_Server(("127.0.0.1", 0), Handler)) as url:
        running.url = url
        yield running


def as_json(data: object) -> Reply:
    """A reply of JSON."""
    return Reply(json.dumps(data).encode(), headers={"Content-Type": "application/json"})


def page(model: str = "m", engine: str = "0", *, running: str = "1", tokens: float = 100.0) -> str:
    """A small metrics page of one engine."""
    labels = f'engine="{engine}",model_name="{model}"'
    return (
        "# TYPE vllm:num_requests_running gauge\n"
        f"vllm:num_requests_running{{{labels}}} {running}\n"
        "# TYPE vllm:num_requests_waiting gauge\n"
        f"vllm:num_requests_waiting{{{labels}}} 0\n"
        "# TYPE vllm:kv_cache_usage_perc gauge\n"
        f"vllm:kv_cache_usage_perc{{{labels}}} 0.5\n"
        "# TYPE vllm:generation_tokens counter\n"
        f"vllm:generation_tokens_total{{{labels}}} {tokens}\n"
        "# TYPE vllm:prompt_tokens counter\n"
        f"vllm:prompt_tokens_total{{{labels}}} {tokens}\n"
        "# TYPE vllm:request_success counter\n"
        f'vllm:request_success_total{{finished_reason="stop",{labels}}} {tokens}\n'
    )
