"""Tap pages of servers that live, end in order or are killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tap.fakes import (
    FakeEngine,
)

from vllm_opsctl.exporter.config import Objective, Target
from vllm_opsctl.exporter.engine import EngineSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.sources.tap import (
    TapFolder,
    TapServer,
    assigned,
    how_it_ended,
    read_folder,
)
from vllm_opsctl.exporter.sources.tap_text import Bounds

BOUNDS = Bounds([Objective(name="ttft", sli="time_to_first_token", threshold=0.18, target=0.95)])


def sample_of(observation: Observation) -> EngineSample:
    page = read_page(observation.text, t=observation.t, target="chat")
    assert page.problems == ()
    return page.engines[0]


def test_a_target_here_is_the_server_of_its_port(tmp_path: Path) -> None:
    with FakeEngine(tmp_path, port=8001), FakeEngine(tmp_path, port=8002):
        servers = TapFolder(tmp_path, BOUNDS).servers()
        targets = [
            Target(name="b", url="http://127.0.0.1:8002"),
            Target(name="remote", url="http://chat-7:8001"),
        ]
        found = assigned(servers, targets)

    assert {name: [server.port for server in own] for name, own in found.items()} == {
        "b": [8002],
        "fake-llama:8001": [8001],
    }


def test_one_target_and_one_server_belong_together(tmp_path: Path) -> None:
    """A pod: the sidecar knows its engine by another address than the engine itself."""
    with FakeEngine(tmp_path, port=8001):
        servers = TapFolder(tmp_path, BOUNDS).servers()
        found = assigned(servers, [Target(name="chat-0", url="http://chat-0.chat:80")])

    assert list(found) == ["chat-0"]


def test_a_killed_server_leaves_its_last_seconds_and_how_it_ended(tmp_path: Path) -> None:
    with FakeEngine(tmp_path, running=5, waiting=2) as engine:
        engine.kill()
    found = read_folder(TapFolder(tmp_path, BOUNDS), [], full_s=60, step_s=10)
    errors = [o for o in found if o.kind == "error"]
    pages = [o for o in found if o.kind == "metrics"]

    assert {o.target for o in found} == {"fake-llama:8000"}
    assert sample_of(pages[-1]).gauges["requests_running"] == 5
    assert [o.data["reason"] for o in errors] == ["died", "died"]
    assert f"process {engine.pid} is gone without a word" in errors[0].data["detail"]
    assert "with 5 requests running and 2 waiting" in errors[0].data["detail"]


@pytest.mark.parametrize(
    ("idle_s", "expected", "words"),
    [
        (60.0, "ended", "ended in order, idle"),
        # vLLM's API process ends in order when its engine core dies between two requests
        (0.5, "died", "ended in order, within seconds of its last step"),
    ],
)
def test_a_server_that_ended_in_order_has_died_if_it_had_just_worked(
    tmp_path: Path, idle_s: float, expected: str, words: str
) -> None:
    with FakeEngine(tmp_path, running=0) as engine:
        engine.stop()
        (server,) = TapFolder(tmp_path, BOUNDS).servers()
    (page,) = server.pages
    stepped = page.slots[-1]["second"]
    closed = replace(page, header={**page.header, "touched": stepped + idle_s})

    reason, detail = how_it_ended(TapServer((closed,)))
    assert reason == expected
    assert words in detail
