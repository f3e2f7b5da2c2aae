"""A real vLLM is overloaded while a real Prometheus scrapes it; afterwards the past names the root."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import Opsctl
from load.capacity import overloading
from load.generator import start_load
from load.scenarios import SCENARIOS, Scenario
from load.stalls import MachineWatch, play
from load.verdicts import PATIENCE_S, roots, until_a_root
from loopback import wait_for
from parts.engine import RealVllm
from parts.prometheus import RealPrometheus
from parts.shared import Servers
from ports import reserve_port

SCENARIO = SCENARIOS["queue-overload"]

ENDLESS_S = 600.0
"""Longer than any look takes."""


def test_the_past_says_of_an_overload_what_the_sidecar_said_live(
    part: Callable[[str], Path],
    servers: Servers,
    opsctl: Opsctl,
    tmp_path_factory: pytest.TempPathFactory,
    measured: Callable[[str], None],
) -> None:
    vllm, binary = servers.get(SCENARIO.server), part("prometheus")

    def attempt(watch: MachineWatch) -> None:
        opsctl.stop_all()
        scenario = overloading(SCENARIO, vllm)
        address = vllm.url.removeprefix("http://")
        folder, port = tmp_path_factory.mktemp("prometheus"), reserve_port()
        prometheus = RealPrometheus(binary, folder, port, scrape={"vllm": [address]})
        prometheus.start()
        try:
            live, then, before = asked(scenario, vllm, prometheus, opsctl, watch)
        finally:
            prometheus.stop()
        assert_the_past_is_as_live(address, live, then, before)

    play("overload in a Prometheus", attempt, measured)


def asked(
    scenario: Scenario,
    vllm: RealVllm,
    prometheus: RealPrometheus,
    opsctl: Opsctl,
    watch: MachineWatch,
) -> tuple[Any, Any, Any]:
    """The verdicts live, of the same moment from Prometheus, and of just before the onset."""
    sidecar = opsctl.start_sidecar(vllm.url)
    later = ("diagnose", "--prometheus", prometheus.url, "--match", '{job="vllm"}', "-o", "json")

    def past(at: float) -> Any:
        (target,) = json.loads(opsctl.run(*later, "--at", str(at)).stdout)["targets"]
        return target

    healthy, incident = scenario.phases
    # the overload lasts until both were asked, however slow the machine is
    phases = (healthy, replace(incident, duration_s=ENDLESS_S))
    load = start_load(vllm.url, vllm.model, phases, drain=False)
    with load, watch.during(load):
        load.wait_phase("incident")
        live: Any = None
        then: Any = None

        def both_name_a_root() -> bool:
            nonlocal live, then
            said = until_a_root(
                lambda: opsctl.run("diagnose", "--sidecar", sidecar, "--no-probe", "-o", "json")
            )
            (live,) = said["targets"]
            then = past(live["window"]["end"])
            return roots(then) != []

        # with a page a second less is known early on
        wait_for(
            both_name_a_root,
            timeout_s=PATIENCE_S,
            what="a root of the past",
            said=lambda: str(then),
        )
        return live, then, past(live["window"]["onset"] - 2)


def assert_the_past_is_as_live(address: str, live: Any, past: Any, before: Any) -> None:
    assert roots(live) == roots(past) == ["queue-overload"]
    assert live["verdict"] == past["verdict"] == "critical"
    assert (past["target"], past["window"]["source"]) == (address, "prometheus")
    # one scrape a second, and the onset is where the live verdict saw it
    assert past["window"]["onset"] == pytest.approx(live["window"]["onset"], abs=3.0)
    assert before["causes"] == []
