"""A real vLLM is overloaded while a real Prometheus scrapes it; afterwards the past names the root."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Opsctl
from load.generator import start_load
from load.scenarios import MODEL_SIZE, SCENARIOS
from load.verdicts import roots, until_a_root
from loopback import reserve_port
from parts.engine import RealVllm
from parts.prometheus import RealPrometheus
from paths import TESTS

pytestmark = pytest.mark.flaky(reruns=2, reruns_delay=60)
"""On a machine that stands still for seconds healthy load is an overload too, and has no onset: once more."""

SCENARIO = SCENARIOS["queue-overload"]

DIAGNOSE_AFTER_S = 19.0
"""Seconds into the incident at which on-call looks."""

ENDLESS_S = 600.0
"""Longer than any look takes."""


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm | None]:
    """The scenario's server; None without a vLLM."""
    from parts.engine import find_python

    python = find_python()
    if python is None:
        yield None
        return
    folder = tmp_path_factory.mktemp("model")
    script = TESTS / "parts" / "tiny_model.py"
    size = [part for name, value in MODEL_SIZE.items() for part in (f"--{name}", str(value))]
    subprocess.run([python, script, str(folder), *size], check=True, capture_output=True)
    log = tmp_path_factory.mktemp("logs") / "vllm.log"
    server = RealVllm(python, folder, SCENARIO.flags, log_file=log)
    server.start()
    yield server
    server.stop()


def test_the_past_says_of_an_overload_what_the_sidecar_said_live(
    part: Callable[[str], Path], vllm: RealVllm | None, opsctl: Opsctl, tmp_path: Path
) -> None:
    part("vllm")
    binary = part("prometheus")
    assert vllm is not None
    address = vllm.url.removeprefix("http://")
    prometheus = RealPrometheus(binary, tmp_path, reserve_port(), scrape={"vllm": [address]})
    prometheus.start()
    sidecar = opsctl.start_sidecar(vllm.url)
    later = ("diagnose", "--prometheus", prometheus.url, "--match", '{job="vllm"}')
    healthy, incident = SCENARIO.phases
    # the overload lasts until both were asked, however slow the machine is
    phases = (healthy, replace(incident, duration_s=ENDLESS_S))
    try:
        with start_load(vllm.url, vllm.model, phases, drain=False) as load:
            load.wait_phase("incident")
            time.sleep(DIAGNOSE_AFTER_S)
            said = until_a_root(
                lambda: opsctl.run("diagnose", "--sidecar", sidecar, "--no-probe", "-o", "json")
            )
            (live,) = said["targets"]
            then = opsctl.run(*later, "--at", str(live["window"]["end"]), "-o", "json")
            before = opsctl.run(*later, "--at", str(live["window"]["onset"] - 2), "-o", "json")
            load.stop()
    finally:
        prometheus.stop()

    (past,) = json.loads(then.stdout)["targets"]
    assert roots(live) == roots(past) == ["queue-overload"]
    assert live["verdict"] == past["verdict"] == "critical"
    assert (past["target"], past["window"]["source"]) == (address, "prometheus")
    # one scrape a second, and the onset is where the live verdict saw it
    assert past["window"]["onset"] == pytest.approx(live["window"]["onset"], abs=3.0)
    assert json.loads(before.stdout)["targets"][0]["causes"] == []
