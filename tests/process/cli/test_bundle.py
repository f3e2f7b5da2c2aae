"""Bundles of live targets."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest
import yaml
from bundle_members import members
from commands import Opsctl
from loopback import http_get
from paths import RECORDINGS
from ports import reserve_port

from vllm_opsctl.exporter.bundle import MANIFEST, RECORDING

THRASH = RECORDINGS / "kv-preemption-thrash.jsonl.gz"


@pytest.fixture
def thrash(opsctl: Opsctl, tmp_path: Path) -> Path:
    """A bundle of a recorded incident."""
    path = tmp_path / "incident.tar.gz"
    opsctl.run("diagnose", "--recording", str(THRASH), "--bundle", str(path))
    return path


def test_a_bundle_holds_what_a_ticket_wants(thrash: Path) -> None:
    found = members(thrash)
    manifest = json.loads(found[MANIFEST])

    assert set(found) == {
        MANIFEST,
        RECORDING,
        "verdict.json",
        "verdict.md",
        "verdict.txt",
        "config.yaml",
    }
    assert found["verdict.txt"].startswith(b"CRITICAL kv-preemption-thrash")
    assert found["verdict.md"].startswith(b"## CRITICAL")
    assert yaml.safe_load(found["config.yaml"])["service"] == {"name": "vllm"}
    assert manifest["command"].startswith("opsctl diagnose --recording")
    assert manifest["sha256"] == {
        name: hashlib.sha256(data).hexdigest() for name, data in found.items() if name != MANIFEST
    }


def test_a_bundle_of_live_targets_gives_the_verdict_that_was_given_live(
    opsctl: Opsctl, tmp_path: Path
) -> None:
    path = tmp_path / "live.tar.gz"
    replay = opsctl.start_replay(THRASH)
    dead = f"http://127.0.0.1:{reserve_port()}"
    live = opsctl.run("diagnose", replay, dead, "--for", "3s", "--bundle", str(path), "-o", "json")
    again = opsctl.run("diagnose", "--recording", str(path), "-o", "json")

    assert json.loads(live.stdout)["targets"][0]["window"]["source"] == "scrape"
    assert again.stdout == live.stdout


def test_a_bundle_replays_like_its_recording(opsctl: Opsctl, thrash: Path) -> None:
    status, page = http_get(f"{opsctl.start_replay(thrash)}/metrics")

    assert status == 200
    assert "vllm:num_requests_running" in page


def test_no_secret_gets_into_a_bundle(opsctl: Opsctl, tmp_path: Path) -> None:
    """Keys by value, credentials in URLs, and query values that a path or an argument carries."""
    dead = f"http://127.0.0.1:{reserve_port()}"
    (tmp_path / "opsctl.yaml").write_text(
        f"targets: [{{name: a, url: '{dead}', api_key_env: KEY, "
        "metrics_path: '/metrics?token=tok-5150'}]\n"
        "alarms: {runbook_url: 'https://me:pass-0815@wiki/vllm'}\n"
    )
    path = tmp_path / "incident.tar.gz"
    shown = opsctl.run(
        "diagnose", "a", f"{dead}/gw?sig=sig-4711", "--bundle", str(path),
        cwd=tmp_path, env={"KEY": "hunter2-long"},
    )  # fmt: skip
    found = members(path)
    recorded = gzip.decompress(found[RECORDING]).decode()
    everything = recorded + "".join(d.decode(errors="replace") for d in found.values())

    assert shown.returncode == 3
    assert "api_key_env: KEY" in everything
    assert "/metrics?token=***" in everything
    for secret in ("hunter2-long", "tok-5150", "pass-0815", "sig-4711"):
        assert secret not in everything
