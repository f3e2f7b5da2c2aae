"""A sidecar that answers what nobody asked, and clocks that differ."""

from __future__ import annotations

import json
import threading
import time
from typing import cast

import pytest
from fake_vllm import page
from misbehaving import misbehaving, saying

from vllm_opsctl.cli import top_source
from vllm_opsctl.cli.observing import Sidecar
from vllm_opsctl.cli.top_model import Fleet
from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.sources.sidecar import SidecarSource


def answer(text: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


def recorded(target: str) -> str:
    return json.dumps({"t": 5.0, "target": target, "kind": "metrics", "text": page()}) + "\n"


def asked(url: str) -> list[Observation]:
    source = SidecarSource(url)
    return source.observations("chat-0", end=10.0, start=0.0, full_from=0.0, step_s=1.0)


def test_what_it_says_of_another_target_is_not_taken_for_the_asked_one() -> None:
    with (
        misbehaving(saying(answer(recorded("chat-0") + recorded("chat-1")))) as url,
        pytest.raises(BadPage, match="asked for chat-0, it answers with chat-1"),
    ):
        asked(url)


@pytest.mark.parametrize(
    ("ahead_s", "said"), [(5.0, ""), (3600.0, "60 min ahead of"), (-3600.0, "60 min behind")]
)
def test_a_clock_that_differs_is_told(
    caplog: pytest.LogCaptureFixture, ahead_s: float, said: str
) -> None:
    now = time.time() + ahead_s
    status = {"targets": [{"target": "chat-0", "url": "http://127.0.0.1:1"}], "now": now}
    with misbehaving(saying(answer(json.dumps(status)))) as url:
        SidecarSource(url).targets()

    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


def test_top_goes_on_after_an_answer_that_it_cannot_use() -> None:
    stop = threading.Event()

    class Source:
        asked = 0

        def now(self) -> float:
            return 10.0

        def since(self, target: str, start: float) -> list[Observation]:
            self.asked += 1
            if self.asked == 1:
                raise KeyError("chat-1")
            stop.set()
            return []

    fleet = Fleet(("chat-0", "chat-1"))
    top_source._poll(cast(Sidecar, Source()), fleet, ("chat-0", "chat-1"), stop)

    assert [row.error for row in fleet.rows()] == ["KeyError: 'chat-1'", None]
