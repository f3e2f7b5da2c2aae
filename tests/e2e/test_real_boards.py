"""
Every query of a board on real data: a vLLM under load, its sidecar, a Prometheus with the generated rules.

Windows are scaled by 1/60, so that a minute of load fills what an hour would.
"""

from __future__ import annotations

import json
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Opsctl, free_port, http_get, wait_for
from real.engine import RealVllm, find_python
from real.load import start_load
from real.prometheus import RealPrometheus
from real.scenarios import MODEL_SIZE, SCENARIOS

from vllm_opsctl.alarms.vocabulary import Source
from vllm_opsctl.dashboards.build import draw_boards
from vllm_opsctl.exporter.config import Config

SCENARIO = SCENARIOS["queue-overload"]

NO_TAP, YOUNG, LOAD = "this server has no tap", "nothing is a day old here", "the load has none"

EMPTY: dict[str, str] = {
    "Alarms": "how long the load lasts decides whether something fires",
    "Alerts": "how long the load lasts decides whether something fires",
    "Alerts on": "how long the load lasts decides whether something fires",
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


@pytest.fixture(scope="module", params=["sidecar", "vllm"])
def source(request: pytest.FixtureRequest) -> Source:
    found: Source = request.param
    return found


@pytest.fixture(scope="module")
def prometheus(
    part: Callable[[str], Path], source: Source, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a Prometheus that has watched an overload."""
    part("vllm")
    binary = part("prometheus")
    python = find_python()
    assert python is not None
    folder = tmp_path_factory.mktemp("boards")
    script = Path(__file__).parents[1] / "real" / "tiny_model.py"
    size = [text for name, value in MODEL_SIZE.items() for text in (f"--{name}", str(value))]
    subprocess.run([python, script, str(folder / "model"), *size], check=True, capture_output=True)
    server = RealVllm(python, folder / "model", SCENARIO.flags, log_file=folder / "vllm.log")
    opsctl = Opsctl()
    build = ("alarms", "build", "--from", source, "--out", str(folder / "rules"), "--scale", "1/60")
    assert opsctl.run(*build).returncode == 0
    server.start()
    watched = server.url
    if source == "sidecar":
        watched = opsctl.start_sidecar(server.url)
    prometheus = RealPrometheus(
        binary,
        folder,
        free_port(),
        scrape={"vllm": [watched.removeprefix("http://")]},
        rules=[folder / "rules" / "rules.yaml"],
    )
    prometheus.start()
    phases = [replace(phase, duration_s=20) for phase in SCENARIO.phases]
    try:
        with start_load(server.url, server.model, phases, drain=False) as load:
            load.wait_phase(phases[-1].name)
            wait_for(
                lambda: (
                    answer(prometheus.url, "max_over_time(llm_slo:total:rate5m[10s]) > 0") != []
                ),
                timeout_s=60,
                what="recordings of the load",
            )
            load.wait()
        yield prometheus.url
    finally:
        prometheus.stop()
        opsctl.stop_all()
        server.stop()


def answer(url: str, query: str) -> list[Any]:
    """The series of an instant query."""
    asked = urllib.parse.urlencode({"query": query})
    status, text = http_get(f"{url}/api/v1/query?{asked}", timeout_s=30)
    found = json.loads(text)
    assert (status, found["status"]) == (200, "success"), f"{query}: {text[:300]}"
    series: list[Any] = found["data"]["result"]
    return series


def filled_in(query: str) -> str:
    """With what Grafana puts for its variables, all of everything; a window of the whole load."""
    for name in ("objective", "job", "model", "target"):
        query = query.replace(f"${name}", ".*")
    return query.replace("$__rate_interval", "40s").replace("$__range", "40s")


def test_every_panel_has_data_and_every_variable_values(prometheus: str, source: Source) -> None:
    boards = draw_boards(Config(), source)
    empty = {
        f"{drawn.uid}, {panel['title']}, {target['legendFormat']}": filled_in(target["expr"])
        for drawn in boards
        for panel in drawn.body["panels"]
        for target in panel.get("targets", ())
        if not answer(prometheus, filled_in(target["expr"])) and panel["title"] not in EMPTY
    }
    assert empty == {}
    for variable in (one for drawn in boards for one in drawn.body["templating"]["list"][1:]):
        series, _, label = (
            variable["definition"].removeprefix("label_values(")[:-1].rpartition(", ")
        )
        values = {one["metric"].get(label) for one in answer(prometheus, filled_in(series))}
        assert values, variable["name"]
        assert None not in values, variable["name"]
