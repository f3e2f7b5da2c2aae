"""A replay is the incident again: diagnosing it live gives the recording's verdict."""

from __future__ import annotations

import json
import time
from pathlib import Path

from commands import Opsctl
from loopback import answers, http_get, wait_for
from paths import RECORDINGS

WATCHED_S = 33.0
"""In every recording the incident is well under way by then."""

INCIDENTS = ("kv-preemption-thrash", "queue-overload", "engine-hung", "baseline")


def test_live_and_recorded_give_the_same_verdict(opsctl: Opsctl, tmp_path: Path) -> None:
    """
    Through one sidecar's flight recorder, at the recordings' own pace.

    A faster one would change rates, and how long a stall lasts.
    """
    targets = [
        {"name": name, "url": opsctl.start_replay(RECORDINGS / f"{name}.jsonl.gz")}
        for name in INCIDENTS
    ]
    (tmp_path / "opsctl.yaml").write_text(json.dumps({"targets": targets}))
    sidecar = opsctl.start_sidecar(cwd=tmp_path)
    wait_for(lambda: seconds_recorded(sidecar) > WATCHED_S, timeout_s=90, what="half a minute")

    for name in INCIDENTS:
        live = opsctl.run("diagnose", "--sidecar", sidecar, name, "--output", "json")
        recorded = opsctl.run(
            "diagnose", "--recording", str(RECORDINGS / f"{name}.jsonl.gz"), "--output", "json"
        )
        assert essence(live.stdout) == essence(recorded.stdout), live.stdout
        assert live.returncode == recorded.returncode


def seconds_recorded(sidecar: str) -> float:
    """How much of its targets the flight recorder holds, of the one it holds least of."""
    times: dict[str, list[float]] = {name: [] for name in INCIDENTS}
    for line in http_get(f"{sidecar}/api/v1/recording")[1].splitlines():
        observation = json.loads(line)
        if observation.get("kind", "metrics") == "metrics":
            times[observation["target"]].append(observation["t"])
    return min(seen[-1] - seen[0] if seen else 0.0 for seen in times.values())


def essence(text: str) -> list[tuple[str, list[str]]]:
    """Verdict and roots by target."""
    targets = json.loads(text)["targets"]
    return [(t["verdict"], [c["id"] for c in t["causes"] if c["role"] == "root"]) for t in targets]


def test_what_a_sidecar_recorded_diagnoses_like_the_sidecar(opsctl: Opsctl, tmp_path: Path) -> None:
    sidecar = opsctl.start_sidecar(
        opsctl.start_replay(RECORDINGS / "kv-preemption-thrash.jsonl.gz", "--speed", "2")
    )
    wait_for(
        lambda: opsctl.run("diagnose", "--sidecar", sidecar).returncode == 2,
        timeout_s=30,
        what="a critical verdict",
    )
    end = f"{time.time():.3f}"
    saved = tmp_path / "flight.jsonl"
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
