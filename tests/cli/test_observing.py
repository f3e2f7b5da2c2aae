"""Observing many live targets: the pace, the limits of the process, one look at the host."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import PAGES, RECORDINGS, Opsctl

from vllm_opsctl.cli.observing import LIVE_INTERVAL_S, allow_open_files, live_interval_s
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.runbooks import observe as observing
from vllm_opsctl.runbooks.observe import observe
from vllm_opsctl.runbooks.onset import MIN_SAMPLES


def test_few_targets_are_read_at_the_usual_pace_and_many_less_often() -> None:
    assert live_interval_s(1, 10.0) == live_interval_s(50, 10.0) == LIVE_INTERVAL_S
    assert live_interval_s(200, 10.0) == 1.0


@pytest.mark.parametrize("targets", [200, 1000, 10_000])
def test_however_many_there_are_enough_pages_are_read(targets: int) -> None:
    assert 5.0 / live_interval_s(targets, 5.0) >= MIN_SAMPLES


class FakeBusyServer(BaseHTTPRequestHandler):
    """Answers with a page, late."""

    def do_GET(self) -> None:
        """The page."""
        time.sleep(0.2)
        self.send_response(200)
        self.end_headers()
        self.wfile.write((PAGES / "vllm-0.33.0-v1.logger.prom").read_bytes())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def busy_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeBusyServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("at_least", "pages"), [(0, 3), (5, 5)])
def test_pages_that_come_late_are_waited_for(busy_server: str, at_least: int, pages: int) -> None:
    seen: list[Observation] = []
    observe(
        [Target(name="chat", url=busy_server)],
        for_s=0.5,
        interval_s=0.1,
        probe=False,
        environment=os.environ,
        on_observation=seen.append,
        stop=threading.Event(),
        at_least=at_least,
    )

    # a slow machine reads fewer of those that nobody waits for
    found = [o.kind for o in seen].count("metrics")
    assert found == pages if at_least else found <= pages


@pytest.fixture
def few_files() -> Iterator[tuple[int, int]]:
    """A process that may open few files and ask for more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = (256, before[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, few)
    yield few
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_many_targets_may_open_files_enough(few_files: tuple[int, int]) -> None:
    allow_open_files(200)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    assert soft == min(few_files[0] + 600, few_files[1])
    assert hard == few_files[1]


def test_the_host_of_several_targets_is_looked_at_once(
    opsctl: Opsctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = opsctl.start_replay(RECORDINGS / "baseline.jsonl.gz")
    looked: list[str] = []

    def look(target: str) -> Observation:
        looked.append(target)
        return Observation(1.0, target, "host", {"load_per_core": 0.1})

    monkeypatch.setattr(observing, "look_at_host", look)
    seen: list[Observation] = []
    observe(
        [Target(name=f"chat-{index}", url=url) for index in range(3)],
        for_s=0.5,
        interval_s=0.5,
        probe=True,
        environment=os.environ,
        on_observation=seen.append,
        stop=threading.Event(),
    )

    assert looked == ["chat-0"]
    assert {o.target for o in seen if o.kind == "host"} == {"chat-0", "chat-1", "chat-2"}
