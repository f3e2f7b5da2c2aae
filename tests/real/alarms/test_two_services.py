"""Two services in one real Prometheus, alike but for their identity: the one that fails pages alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from commands import Opsctl
from loopback import http_get, serving, wait_for
from parts.prometheus import RealPrometheus
from ports import reserve_port

MODEL = "org/chat-8b"
PER_SECOND = 20.0

CONFIG = """
service: {{name: {service}}}
targets:
- {{name: chat-0, url: "{url}"}}
objectives:
- {{name: availability, sli: availability, target: 99.9%}}
exporter:
  poll_interval: 250ms
  labels: {labels}
"""

Labels = dict[str, str]


class FakeVllm(BaseHTTPRequestHandler):
    """A page of vLLM's with what availability is counted by; it fails when the test says so."""

    began: float
    failing_since: list[float]

    def do_GET(self) -> None:
        """Only /metrics is here."""
        now = time.monotonic()
        failed = PER_SECOND * (now - self.failing_since[0]) if self.failing_since else 0.0
        good = PER_SECOND * (now - self.began) - failed
        http = 'http_requests_total{handler="/v1/chat/completions",method="POST",status='
        engine = f'{{model_name="{MODEL}",engine="0"}}'
        page = [
            f'{http}"2xx"}} {good}',
            # born with the first failure, as vLLM's is
            *([f'{http}"5xx"}} {failed}'] if failed else []),
            f"vllm:num_requests_running{engine} 4",
            f"vllm:num_requests_waiting{engine} 0",
            f"vllm:iteration_tokens_total_count{engine} {100 * now}",
            f"vllm:iteration_tokens_total_sum{engine} {3000 * now}",
            f'vllm:iteration_tokens_total_bucket{{model_name="{MODEL}",engine="0",le="+Inf"}} {100 * now}',
            "",
        ]
        body = "\n".join(page).encode() if self.path == "/metrics" else b""
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Fleet:
    """
    A service: a fake vLLM, and a real sidecar that reads it.

    Args:
        opsctl: Starts the sidecar.
        folder: For its configuration and rules.
        service: Its name.
        labels: Its free labels.
        stack: Stops what is started.
    """

    def __init__(
        self, opsctl: Opsctl, folder: Path, service: str, labels: Labels, stack: ExitStack
    ) -> None:
        self.labels = {"service": service, **labels}
        self._failing_since: list[float] = []
        shared = {"began": time.monotonic(), "failing_since": self._failing_since}
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (FakeVllm,), shared))
        url = stack.enter_context(serving(server))
        folder.mkdir()
        (folder / "opsctl.yaml").write_text(
            CONFIG.format(service=service, url=url, labels=json.dumps(labels))
        )
        built = opsctl.run("alarms", "build", "--out", "rules", "--scale", "1/60", cwd=folder)
        assert built.returncode == 0, built.stderr
        self.rules = folder / "rules" / "rules.yaml"
        self.sidecar = opsctl.start_sidecar(cwd=folder)

    def break_(self) -> None:
        """Every request fails from now on."""
        self._failing_since.append(time.monotonic())


class Asked:
    """What a Prometheus says of its rules and alerts."""

    def __init__(self, url: str) -> None:
        self._url = url

    def _get(self, path: str) -> Any:
        return json.loads(http_get(f"{self._url}/api/v1/{path}")[1])["data"]

    def vector(self, query: str) -> list[Labels]:
        """The labels of a query's samples."""
        return [row["metric"] for row in self._get(f"query?query={quote(query)}")["result"]]

    def errors(self) -> list[str]:
        """Rules that cannot be evaluated."""
        return [
            f"{rule['name']}: {rule['lastError']}"
            for group in self._get("rules")["groups"]
            for rule in group["rules"]
            if rule.get("lastError")
        ]

    def fired(self, fleet: Fleet, notify: str) -> set[str]:
        """Alerts of a fleet that fire now."""
        return {
            one["alertname"]
            for one in self.vector(f'ALERTS{{alertstate="firing",notify="{notify}"}}')
            if fleet.labels.items() <= one.items()
        }


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def prometheus_of(
    part: Callable[[str], Path], folder: Path, fleets: list[Fleet], stack: ExitStack
) -> Asked:
    server = RealPrometheus(
        part("prometheus"),
        folder,
        reserve_port(),
        scrape={"opsctl": [fleet.sidecar.removeprefix("http://") for fleet in fleets]},
        job_settings={"honor_labels": True},
        rules=[fleet.rules for fleet in fleets],
    )
    server.start()
    stack.callback(server.stop)
    return Asked(server.url)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(("chat", {}), ("code", {}), id="two services"),
        pytest.param(
            ("chat", {"cluster": "eu"}),
            ("chat", {"cluster": "us"}),
            id="two clusters of one service",
        ),
        pytest.param(("chat", {}), ("chat-eu", {}), id="one name begins with the other"),
    ],
)
def test_the_service_that_fails_pages_and_it_alone(
    part: Callable[[str], Path],
    opsctl: Opsctl,
    tmp_path: Path,
    stack: ExitStack,
    one: tuple[str, Labels],
    other: tuple[str, Labels],
) -> None:
    fails = Fleet(opsctl, tmp_path / "one", *one, stack)
    serves = Fleet(opsctl, tmp_path / "other", *other, stack)
    asked = prometheus_of(part, tmp_path, [fails, serves], stack)
    recorded = 'llm_slo:error:ratio_rate1h{objective="availability"}'
    wait_for(lambda: len(asked.vector(recorded)) == 2, timeout_s=60, what="both are recorded")

    fails.break_()
    wait_for(
        lambda: "LLMSLOErrorBudgetBurn" in asked.fired(fails, "page"),
        timeout_s=60,
        what="the page",
        said=lambda: "\n".join(asked.errors()),
    )

    ever = "count by (alertname, service, cluster) (count_over_time(ALERTS[5m]))"
    others = [row for row in asked.vector(ever) if serves.labels.items() <= row.items()]
    assert [row["alertname"] for row in others] == ["LLMWatchdog"]
    assert asked.errors() == []
    (read,) = (
        row for row in asked.vector("opsctl_target_up") if fails.labels.items() <= row.items()
    )
    assert read["target"] == "chat-0"

    serves.break_()
    wait_for(
        lambda: "LLMSLOErrorBudgetBurn" in asked.fired(serves, "page"),
        timeout_s=60,
        what="the other's page",
    )
