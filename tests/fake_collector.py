"""A server that decodes OTLP's own messages: no collector can be had here, nor CloudWatch's endpoint."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bad_answers import Answer
from loopback import serving
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)


@dataclass
class FakeCollector:
    """What was received; answers are taken from ``answers`` first, then everything is taken."""

    received: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    url: str = ""

    def metrics(self) -> dict[str, Any]:
        """The newest request's metrics by name."""
        (resource,) = self.received[-1].resource_metrics
        (scope,) = resource.scope_metrics
        return {metric.name: metric for metric in scope.metrics}

    def times(self) -> list[float]:
        """Of the first point of every request, Unix seconds."""
        return [
            request.resource_metrics[0]
            .scope_metrics[0]
            .metrics[0]
            .gauge.data_points[0]
            .time_unix_nano
            / 1e9
            for request in self.received
        ]


@contextmanager
def fake_collector() -> Iterator[FakeCollector]:
    """One on the loopback."""
    fake = FakeCollector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = fake.answers.pop(0) if fake.answers else None
            if answer is not None and answer(self):
                return
            fake.headers.append(dict(self.headers))
            fake.received.append(ExportMetricsServiceRequest.FromString(gzip.decompress(body)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with serving(server) as url:
        fake.url = f"{url}/v1/metrics"
        yield fake
