"""The host is looked at by its own tools."""

from __future__ import annotations

import os
import threading

import pytest
from commands import Opsctl
from paths import RECORDINGS

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
