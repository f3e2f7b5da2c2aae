"""
How much of a load its server can serve: an overload is one on every machine, however fast.

The rates of the scenarios are those of two slow cores. Where a server serves more, the rates follow it.
"""

from __future__ import annotations

from dataclasses import replace

from parts.engine import RealVllm

from load.generator import start_load
from load.phase import Phase
from load.scenarios import Scenario

MEASURED_S = 5.0


def finished_per_s(vllm: RealVllm, phase: Phase, clients: int) -> float:
    """
    Requests that a server finishes a second while its slots are taken.

    Args:
        vllm: The server; it has nothing else to do.
        phase: The kind of requests.
        clients: How many send one after the other.
    """
    closed = replace(
        phase,
        name="capacity",
        duration_s=MEASURED_S,
        arrivals_per_s=None,
        concurrency=clients,
    )
    with start_load(vllm.url, vllm.model, [closed]) as load:
        seen = load.wait()
    return seen.total.outcome("ok") / (seen.started["end"] - seen.started["capacity"])


def overloading(scenario: Scenario, vllm: RealVllm) -> Scenario:
    """
    The scenario with as many arrivals in its incident as overload this server here and now.

    It sends load of its own to find out: call it before anything watches the server.

    Returns:
        The scenario itself if it is no overload, or overloads as it is.
    """
    if scenario.overload is None:
        return scenario
    incident = scenario.phase("incident")
    least = incident.arrivals_per_s or 0.0
    rate = max(least, scenario.overload * finished_per_s(vllm, incident, scenario.slots))
    return scenario.with_arrivals("incident", rate)
