"""What boards are shown on: a vLLM under an overload, its sidecar, a Prometheus with the generated rules."""

from __future__ import annotations

import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests
from conftest import Opsctl, free_port, wait_for

from real.engine import RealVllm
from real.load import start_load
from real.prometheus import RealPrometheus
from real.scenarios import MODEL_SIZE, SCENARIOS
from vllm_opsctl.alarms.vocabulary import Source

SCENARIO = SCENARIOS["queue-overload"]

PHASE_S = 20.0
"""Of healthy load, and of the overload after it."""

BEFORE_ITS_END_S = 3.0

SCALE = "1/60"
"""A minute of load fills what an hour would."""

NO_TAP, YOUNG, LOAD = "this server has no tap", "nothing is a day old here", "the load has none"
FIRING = "how long the load lasts decides whether something fires"

EMPTY: dict[str, str] = {
    "Alarms": FIRING,
    "Alerts": FIRING,
    "Alerts on": FIRING,
    "Clients that gave up": NO_TAP,
    "TTFT of returning and new users": NO_TAP,
    "Running, by adapter": NO_TAP,
    "Waiting, by adapter": NO_TAP,
    "Now and a day ago": YOUNG,
    "Requests started": YOUNG,
    "Prompt tokens of a request": YOUNG,
    "Tokens of an answer": YOUNG,
    "Prefix-cache hit ratio": YOUNG,
    "Adapters running": LOAD,
    "Hits of the external tier": LOAD,
}
"""Panels that this load cannot fill, or not with every line, and why."""


@dataclass(frozen=True)
class Watched:
    """The address of a Prometheus, and a time at which the overload was in full swing, Unix seconds."""

    url: str
    at: float


@contextmanager
def watched_overload(
    python: Path, prometheus: Path, source: Source, folder: Path
) -> Iterator[Watched]:
    """
    A Prometheus that has watched an overload.

    Args:
        python: Of the environment with vLLM.
        prometheus: The program.
        source: Whose metrics it scraped.
        folder: For everything.
    """
    script = Path(__file__).with_name("tiny_model.py")
    size = [text for name, value in MODEL_SIZE.items() for text in (f"--{name}", str(value))]
    subprocess.run([python, script, str(folder / "model"), *size], check=True, capture_output=True)
    server = RealVllm(python, folder / "model", SCENARIO.flags, log_file=folder / "vllm.log")
    opsctl = Opsctl()
    build = ("alarms", "build", "--from", source, "--out", str(folder / "rules"), "--scale", SCALE)
    assert opsctl.run(*build).returncode == 0
    server.start()
    watched = opsctl.start_sidecar(server.url) if source == "sidecar" else server.url
    watcher = RealPrometheus(
        prometheus,
        folder,
        free_port(),
        scrape={"vllm": [watched.removeprefix("http://")]},
        rules=[folder / "rules" / "rules.yaml"],
    )
    watcher.start()
    phases = [replace(phase, duration_s=PHASE_S) for phase in SCENARIO.phases]
    recorded = "max_over_time(llm_slo:total:rate5m[10s]) > 0"
    try:
        with start_load(server.url, server.model, phases, drain=False) as load:
            load.wait_phase(phases[-1].name)
            wait_for(
                lambda: answer(watcher.url, recorded) != [],
                timeout_s=60,
                what="recordings of the load",
            )
            load.wait()
        # a fast machine has worked off its queue soon after
        yield Watched(watcher.url, time.time() - BEFORE_ITS_END_S)
    finally:
        watcher.stop()
        opsctl.stop_all()
        server.stop()


def answer(url: str, query: str, at: float | None = None) -> list[Any]:
    """The series of an instant query, now or at a time."""
    asked = urllib.parse.urlencode({"query": query} | ({} if at is None else {"time": str(at)}))
    found = requests.get(f"{url}/api/v1/query?{asked}", timeout=30).json()
    assert found["status"] == "success", f"{query}: {found}"
    series: list[Any] = found["data"]["result"]
    return series
