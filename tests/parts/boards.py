"""What boards are shown on: a vLLM under an overload, its sidecar, Prometheus with the generated rules."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests
import yaml
from bench.tap_servers import install_tap, write_tiny_model
from commands import Opsctl
from incidents.servers import LORA, lora_modules
from load.capacity import overloading
from load.generator import start_load
from load.phase import Phase
from load.scenarios import SCENARIOS
from loopback import wait_for
from ports import reserve_port

from parts.engine import RealVllm
from parts.machine import MODEL_FIT
from parts.prometheus import RealPrometheus
from vllm_opsctl.alarms.prometheus.conventions import Source, recorded_name

SCENARIO = SCENARIOS["queue-overload"]

PHASE_S = 20.0
"""Of healthy load, and of the overload at the end."""

LEAVING_S = 8.0
"""Of clients that hang up, between them."""

LOAD_S = 2 * PHASE_S + LEAVING_S

ADAPTERS = 3
"""One more than run at once."""

_MIXED: dict[str, Any] = {
    "prompt_kind": "shared_prefix",
    "heads": 2,
    "models": ("", *(f"a{number}" for number in range(1, ADAPTERS + 1))),
}
"""Users that come again, of the model and of its adapters."""

BEFORE_ITS_END_S = 3.0

SCALE = "1/60"
"""A minute of load fills what an hour would."""

YOUNG, NOT_USED = "nothing is a day old here", "this server does not use it"
FIRING = "how long the load lasts decides whether something fires"

EMPTY: dict[tuple[str, str], str] = {
    ("Alarms", ""): FIRING,
    ("Alerts", ""): FIRING,
    ("Alerts on", ""): FIRING,
    ("Blind spots", ""): FIRING,
    ("", "a day ago"): YOUNG,
    ("", "a week ago"): YOUNG,
    ("Hits of the external tier", ""): NOT_USED,
    ("Draft tokens accepted", ""): NOT_USED,
    ("Corrupted answers", ""): NOT_USED,
}
"""Lines that this load cannot fill, and why: of which panel, and how their legends begin; empty for any."""


def may_be_empty(title: str, legend: str) -> bool:
    """Whether a line of a panel is one that this load cannot fill."""
    return any(panel in ("", title) and legend.startswith(line) for panel, line in EMPTY)


@dataclass(frozen=True)
class Watched:
    """Who has watched an overload, and a time at which it was in full swing, Unix seconds."""

    urls: Mapping[Source, str]
    """Of the Prometheus that scraped this source's metrics."""
    at: float


@contextmanager
def watched_overload(
    python: Path, prometheus: Path, sources: Sequence[Source], folder: Path
) -> Iterator[Watched]:
    """
    For each source a Prometheus that has watched an overload, all of them the same one.

    Args:
        python: Of the environment with vLLM.
        prometheus: The program.
        sources: Whose metrics are scraped.
        folder: For everything.
    """
    model, pages, tap = folder / "model", folder / "pages", folder / "tap"
    write_tiny_model(python, model, **MODEL_FIT.size, adapters=ADAPTERS)
    flags = (*SCENARIO.flags, *LORA, *lora_modules(model, ADAPTERS))
    install_tap(tap)
    environment = {"PYTHONPATH": str(tap), "OPSCTL_TAP": str(pages)}
    server = RealVllm(python, model, flags, environment, log_file=folder / "vllm.log")
    settings = {
        "exporter": {"tap": {"dir": str(pages)}},
        "targets": [{"name": "chat-0", "url": server.url}],
    }
    (folder / "opsctl.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    opsctl = Opsctl()
    server.start()
    phases = overloading(SCENARIO, server).phases
    scraped: Mapping[Source, str] = {
        "sidecar": opsctl.start_sidecar(cwd=folder),
        "vllm": server.url,
    }
    watchers = {
        source: _watcher(opsctl, prometheus, source, scraped[source], folder) for source in sources
    }
    healthy, overload = (replace(phase, duration_s=PHASE_S, **_MIXED) for phase in phases)
    leaving = Phase("leaving", LEAVING_S, concurrency=2, output_tokens=3900, hang_up_after_tokens=5)
    sent = (healthy, leaving, overload)
    recorded = f"max_over_time({recorded_name('total', '5m')}[10s]) > 0"
    try:
        with start_load(server.url, server.model, sent, drain=False) as load:
            load.wait_phase(sent[-1].name)
            wait_for(
                lambda: all(answer(one.url, recorded) for one in watchers.values()),
                timeout_s=60,
                what="recordings of the load",
            )
            load.wait()
        # a fast machine has worked off its queue soon after
        urls = {source: watcher.url for source, watcher in watchers.items()}
        yield Watched(urls, time.time() - BEFORE_ITS_END_S)
    finally:
        for watcher in watchers.values():
            watcher.stop()
        opsctl.stop_all()
        server.stop()


def _watcher(
    opsctl: Opsctl, program: Path, source: Source, scraped: str, folder: Path
) -> RealPrometheus:
    """A started Prometheus with the rules of a source."""
    rules = folder / f"rules-{source}"
    build = ("alarms", "build", "--from", source, "--out", str(rules), "--scale", SCALE)
    built = opsctl.run(*build, cwd=folder)
    assert built.returncode == 0, built.stderr
    watcher = RealPrometheus(
        program,
        folder / source,
        reserve_port(),
        scrape={"vllm": [scraped.removeprefix("http://")]},
        rules=[rules / "rules.yaml"],
    )
    watcher.start()
    return watcher


def answer(url: str, query: str, at: float | None = None) -> list[Any]:
    """The series of an instant query, now or at a time."""
    asked = urllib.parse.urlencode({"query": query} | ({} if at is None else {"time": str(at)}))
    found = requests.get(f"{url}/api/v1/query?{asked}", timeout=30).json()
    assert found["status"] == "success", f"{query}: {found}"
    series: list[Any] = found["data"]["result"]
    return series
