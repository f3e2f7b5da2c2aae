"""A replay is the incident again: diagnosing it live gives the recording's verdict."""

from __future__ import annotations

import json
import time

import pytest
from commands import Opsctl
from loopback import answers, http_get, wait_for
from paths import RECORDINGS


@pytest.mark.parametrize(
    "name", ["kv-preemption-thrash", "queue-overload", "engine-hung", "baseline"]
)
def test_live_and_recorded_give_the_same_verdict(opsctl: Opsctl, name: str) -> None:
    """Through the sidecar's flight recorder, at the recording's own pace."""
    sidecar = opsctl.start_sidecar(opsctl.start_replay(RECORDINGS / f"{name}.jsonl.gz"))
    started = time.monotonic()
    while time.monotonic() - started < 34:
        time.sleep(0.5)
    live = opsctl.run("diagnose", "--sidecar", sidecar, "--output", "json")
    recorded = opsctl.run(
        "diagnose", "--recording", str(RECORDINGS / f"{name}.jsonl.gz"), "--output", "json"
    )

    def essence(text: str) -> list[tuple[str, list[str]]]:
        targets = json.loads(text)["targets"]
        return [
            (t["verdict"], [c["id"] for c in t["causes"] if c["role"] == "root"]) for t in targets
        ]

    assert essence(live.stdout) == essence(recorded.stdout), live.stdout
    assert live.returncode == recorded.returncode


def test_what_a_sidecar_recorded_diagnoses_like_the_sidecar(
    opsctl: Opsctl, tmp_path: object
) -> None:
    sidecar = opsctl.start_sidecar(
        opsctl.start_replay(RECORDINGS / "kv-preemption-thrash.jsonl.gz", "--speed", "2")
    )
    wait_for(
        lambda: opsctl.run("diagnose", "--sidecar", sidecar).returncode == 2,
        timeout_s=30,
        what="a critical verdict",
    )
    end = f"{time.time():.3f}"
    saved = RECORDINGS.__class__(str(tmp_path)) / "flight.jsonl"
    saved.write_text(http_get(f"{sidecar}/api/v1/recording?end={end}")[1])
    live = opsctl.run("diagnose", "--sidecar", sidecar, "--at", end, "--output", "json")
    again = opsctl.run("diagnose", "--recording", str(saved), "--at", end, "--output", "json")

    def without_source(text: str) -> object:
        data = json.loads(text)
        for target in data["targets"]:
            target["window"].pop("source")
        return data

    assert without_source(live.stdout) == without_source(again.stdout)


def test_while_nothing_listened_nothing_listens(opsctl: Opsctl) -> None:
    url = opsctl.start_replay(RECORDINGS / "process-restart.jsonl.gz", "--speed", "4")

    wait_for(lambda: not answers(f"{url}/health"), timeout_s=20, what="the death")
    wait_for(lambda: answers(f"{url}/health"), timeout_s=20, what="the restart")


def test_a_replay_does_not_pretend_to_generate(opsctl: Opsctl) -> None:
    url = opsctl.start_replay(RECORDINGS / "baseline.jsonl.gz")
    models = json.loads(http_get(f"{url}/v1/models")[1])

    assert [model["id"] for model in models["data"]] == ["tiny"]
    assert http_get(f"{url}/nothing")[0] == 404
