"""
How long panels take on a Prometheus that holds 200 targets for six hours, four samples a minute.

The history is synthetic: the series of a recorded incident's page, once for each target, with counters that
grow and gauges that swing, put into a TSDB by promtool. Panels are asked one after the other, each
panel's queries at once, over the six hours with the step and window that Grafana would take.
"""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import requests
from commands import Opsctl
from parts.prometheus import RealPrometheus
from ports import reserve_port

from bench.table import ROOT
from vllm_opsctl.dashboards.build import draw_boards
from vllm_opsctl.dashboards.grafana import panels_of
from vllm_opsctl.exporter.config import Config

TARGETS = 200
HOURS = 6
EVERY_S = 15
PIXELS = 430
"""Of a panel of eight columns at 1366."""

_ROUNDED = ((90, 60), (180, 120), (450, 300))

GOAL_S = 1.0
ROUNDS = 3
"""The median of them is the panel's."""

RECORDING = ROOT / "tests" / "recordings" / "kv-preemption-thrash.jsonl.gz"
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_TARGET = re.compile(r'target="[^"]*",?')


@dataclass(frozen=True)
class Series:
    """One series of a target: its name, labels beside the target's, and last value."""

    name: str
    labels: str
    value: float

    @property
    def grows(self) -> bool:
        """It is a counter, or a part of a histogram."""
        return self.name.endswith(("_total", "_bucket", "_count", "_sum"))


def panels() -> dict[str, dict[str, Any]]:
    """Every panel by its board and title, those that ask the same of several boards once."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for board in draw_boards(Config(), "sidecar"):
        for panel in panels_of(board.body):
            exprs = [target["expr"] for target in panel["targets"]]
            asks = (panel.get("maxDataPoints"), *exprs)
            found.setdefault(asks, {**panel, "name": f"{board.uid}: {panel['title']}"})
    return {panel["name"]: panel for panel in found.values()}


def step_of(panel: Mapping[str, Any]) -> int:
    """
    Seconds between two points, as Grafana rounds them.

    Source:
        rangeutil.roundInterval, @grafana/data 12.
    """
    exact = 3600 * HOURS / panel.get("maxDataPoints", PIXELS)
    rounded = next((step for below, step in _ROUNDED if exact < below), 600)
    return max(EVERY_S, rounded)


def page_series(read: set[str]) -> list[Series]:
    """What the sidecar says of one target at the end of the recording, as far as boards read it."""
    opsctl = Opsctl()
    try:
        replay = opsctl.start_replay(RECORDING, "--speed", "4")
        sidecar = opsctl.start_sidecar(replay)
        time.sleep(12)
        page = requests.get(f"{sidecar}/metrics", timeout=10).text
    finally:
        opsctl.stop_all()
    found = []
    for line in page.splitlines():
        match = _SAMPLE.match(line)
        if match and match[1] in read:
            labels = _TARGET.sub("", match[2] or "").strip(",")
            found.append(Series(match[1], labels, float(match[3])))
    return found


def samples(series: list[Series], start: float, hour: int) -> Iterator[str]:
    """An hour of OpenMetrics, name by name."""
    points = [start + 3600 * hour + EVERY_S * step for step in range(3600 // EVERY_S)]
    for one in sorted(series, key=lambda one: one.name):
        for index in range(TARGETS):
            more = f",{one.labels}" if one.labels else ""
            key = (
                f'{one.name}{{job="vllm",instance="sidecar:9836",target="chat-{index}:8000"{more}}}'
            )
            swing = 0.8 + 0.2 * math.sin(index)
            for t in points:
                passed = (t - start) / (3600 * HOURS)
                grown = passed if one.grows else 0.5 + 0.5 * math.sin(12 * passed + index)
                yield f"{key} {one.value * swing * grown:.6g} {t:.0f}"
    yield from recordings(points)
    yield "# EOF"


def recordings(points: list[float]) -> Iterator[str]:
    """What the rules of the default objectives have recorded."""
    names = [f"{what}:rate5m" for what in ("bad", "total")]
    names += [f"error:ratio_rate{window}" for window in ("5m", "1h", "6h", "3d")]
    names += ["error_budget_remaining:ratio", "objective:ratio"]
    chance = random.Random(1)  # noqa: S311 - noise, no secret
    for name in names:
        for objective in Config().objectives:
            model = "" if name == "objective:ratio" else ',model="tiny"'
            key = f'llm_slo:{name}{{service="vllm",objective="{objective.name}"{model}}}'
            for t in points:
                yield f"{key} {0.9 + 0.05 * chance.random():.6g} {t:.0f}"


def fill(folder: Path, series: list[Series], start: float) -> int:
    """Put the history into a TSDB: how many samples it is."""
    count = 0
    for hour in range(HOURS):
        file = folder / "hour.om"
        with file.open("w") as out:
            for line in samples(series, start, hour):
                out.write(f"{line}\n")
                count += 1
        blocks = ("promtool", "tsdb", "create-blocks-from", "openmetrics")
        command = [*blocks, str(file), str(folder / "data")]
        subprocess.run(command, check=True, capture_output=True)
        file.unlink()
        print(
            f"  {hour + 1} of {HOURS} hours written, {count / 1e6:.1f} million samples", flush=True
        )
    return count


def ask(url: str, target: Mapping[str, Any], end: float, step: int) -> float:
    """How long an answer takes, seconds."""
    expression = str(target["expr"])
    for name in ("objective", "job", "model", "target"):
        expression = expression.replace(f"${name}", ".*")
    # four scrapes at least, or a step and a scrape
    window = f"{max(4 * EVERY_S, step + EVERY_S)}s"
    expression = expression.replace("$__rate_interval", window).replace("$__range", f"{HOURS}h")
    asked: dict[str, object] = {"query": expression}
    if target["instant"]:
        asked["time"] = end
    else:
        asked |= {"start": end - 3600 * HOURS, "end": end, "step": step}
    path = "query" if target["instant"] else "query_range"
    began = time.perf_counter()
    answer = requests.get(f"{url}/api/v1/{path}?{urllib.parse.urlencode(asked)}", timeout=120)
    took = time.perf_counter() - began
    assert answer.json()["status"] == "success", answer.text[:300]
    return took


def panel_takes(url: str, panel: Mapping[str, Any], end: float) -> float:
    """How long a panel takes, seconds: its queries are asked at once, as a browser does."""
    with ThreadPoolExecutor(len(panel["targets"])) as together:
        asked = [
            together.submit(ask, url, target, end, step_of(panel)) for target in panel["targets"]
        ]
        return max(one.result() for one in asked)


def main() -> int:
    """Fill, ask, report."""
    every = panels()
    text = json.dumps(every)
    series = page_series({*re.findall(r"\b(?:vllm|opsctl)_\w+", text)})
    end = time.time() // 3600 * 3600
    start = end - 3600 * HOURS
    print(
        f"board_cost: {TARGETS} targets, {len(series)} series each, {HOURS} h, a sample every {EVERY_S} s"
    )
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as temporary:
        folder = Path(temporary)
        count = fill(folder, series, start)
        prometheus = RealPrometheus(Path("prometheus"), folder, reserve_port())
        prometheus.start()
        try:
            took = {
                name: median(panel_takes(prometheus.url, panel, end) for _ in range(ROUNDS))
                for name, panel in every.items()
            }
        finally:
            prometheus.stop()
    slowest = sorted(took.items(), key=lambda pair: -pair[1])
    for panel, seconds in slowest[:8]:
        print(f"  {seconds:7.3f} s  {panel}")
    over = [panel for panel, seconds in took.items() if seconds > GOAL_S]
    print(
        f"  {len(took)} panels on {count / 1e6:.1f} million samples: median {median(took.values()):.3f} s, "
        f"slowest {slowest[0][1]:.3f} s, {len(over)} over {GOAL_S:g} s (median of {ROUNDS})"
    )
    out = ROOT / "build" / "bench" / "board_cost.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"samples": count, "targets": TARGETS, "seconds": took}, indent=1))
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
