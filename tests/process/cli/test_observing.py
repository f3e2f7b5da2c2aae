"""Live targets are observed: one look at the host, and servers that answer late."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from commands import Opsctl
from loopback import serving
from paths import PAGES, RECORDINGS

from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.runbooks import observe as observing
from vllm_opsctl.runbooks.observe import observe


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
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), FakeBusyServer)) as url:
        yield url


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
