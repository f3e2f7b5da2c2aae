"""
A real vLLM on the CPU gets into real trouble, and `opsctl diagnose` names it.

Every incident is made by load or by a signal, seen through the sidecar, and compared with what the
load generator's clients counted: requests and tokens exactly, TTFT within vLLM's bucket.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Opsctl
from load.capacity import overloading
from load.counts import percentile
from load.drive import drive
from load.generator import Summary
from load.scenarios import SCENARIOS, Scenario
from load.stalls import MachineWatch, play
from loopback import http_get, wait_for
from parts.shared import Servers
from prometheus_client.parser import text_string_to_metric_families

from vllm_opsctl.exporter.engine import Histogram
from vllm_opsctl.exporter.exposition import read_page

DIAGNOSE_AFTER_S = 24.0
"""Seconds into the incident at which on-call looks; the shortest lasts 25 s."""

DIAGNOSE_FROZEN_AFTER_S = 19.0
"""The same where the engine is frozen: while it is; a stall has to last 10 s to be one."""


class Exported:
    """What the sidecar, or vLLM itself, exposes of its one engine, read with prometheus-client's parser."""

    def __init__(self, url: str) -> None:
        text = http_get(f"{url}/metrics")[1]
        self._samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def total(self, name: str) -> float | None:
        """A metric over all its series; None when there is none."""
        found = [sample.value for sample in self._samples if sample.name == name]
        return sum(found) if found else None

    def histogram(self, name: str) -> Histogram:
        """A histogram of the engine."""
        buckets = {
            float(sample.labels["le"]): sample.value
            for sample in self._samples
            if sample.name == f"{name}_bucket"
        }
        return Histogram(
            tuple(sorted(buckets)),
            tuple(buckets[bound] for bound in sorted(buckets)),
            self.total(f"{name}_sum") or 0.0,
        )


FINISHED = "vllm_engine_requests_finished_total"
TTFT = "vllm_engine_time_to_first_token_seconds"
VLLM_TTFT = "vllm:time_to_first_token_seconds"


def finished_requests(url: str) -> float:
    """What vLLM itself has counted."""
    page = read_page(http_get(f"{url}/metrics")[1], t=0.0, target="direct")
    return page.engines[0].total("requests_finished") or 0.0


class Incident:
    """A scenario that was played: what the clients saw, and what opsctl said in the middle of it."""

    def __init__(
        self,
        exported: tuple[Exported, Exported],
        by_vllm: tuple[Exported, Exported],
        load: Summary,
        said: Any,
    ) -> None:
        self.before, self.after = exported
        self.vllm_before, self.vllm_after = by_vllm
        self.load = load
        self.said = said

    @property
    def roots(self) -> list[str]:
        """The root causes that opsctl named."""
        causes = self.said["targets"][0]["causes"]
        return [cause["id"] for cause in causes if cause["role"] == "root"]

    def __str__(self) -> str:
        """What opsctl said and what it rests on, for a failing test."""
        target = self.said["targets"][0]
        causes = [(c["id"], c["role"]) for c in target["causes"]]
        return f"{target['summary']} {causes} {target['ruled_out']} {target['features']}"

    def grew(self, name: str) -> float:
        """Increase of an exported counter."""
        return (self.after.total(name) or 0.0) - (self.before.total(name) or 0.0)


Judge = Callable[[Incident], None]


@pytest.fixture
def shows(
    servers: Servers, opsctl: Opsctl, measured: Callable[[str], None]
) -> Callable[[str, Judge], None]:
    """Plays a scenario on its real server with a sidecar beside it, and judges what came of it."""

    def incident(name: str, watch: MachineWatch) -> Incident:
        opsctl.stop_all()
        vllm = servers.get(SCENARIOS[name].server)
        scenario = overloading(SCENARIOS[name], vllm)
        sidecar = opsctl.start_sidecar(vllm.url)
        wait_for(
            lambda: Exported(sidecar).total("opsctl_target_up") == 1,
            timeout_s=20,
            what="the target",
        )
        before, vllm_before = Exported(sidecar), Exported(vllm.url)
        asked: list[subprocess.CompletedProcess[str]] = []

        def ask() -> None:
            # no canary: it would be one more request than the load generator knows of
            asked.append(
                opsctl.run("diagnose", "--sidecar", sidecar, "--no-probe", "--output", "json")
            )

        patience = DIAGNOSE_AFTER_S if scenario.fault is None else DIAGNOSE_FROZEN_AFTER_S
        timer = threading.Timer(_starts_after_s(scenario) + patience, ask)
        timer.start()
        load = drive(scenario, vllm)
        watch.saw(load)
        timer.join()
        finished = finished_requests(vllm.url)
        wait_for(
            lambda: Exported(sidecar).total(FINISHED) == finished,
            timeout_s=20,
            what="the sidecar to see the last request",
        )
        assert asked[0].stdout, asked[0].stderr
        return Incident(
            (before, Exported(sidecar)),
            (vllm_before, Exported(vllm.url)),
            load,
            json.loads(asked[0].stdout),
        )

    def play_and_judge(name: str, judge: Judge) -> None:
        play(name, lambda watch: judge(incident(name, watch)), measured)

    return play_and_judge


def _starts_after_s(scenario: Scenario) -> float:
    seconds = 0.0
    for phase in scenario.phases:
        if phase.name == "incident":
            return seconds
        seconds += phase.duration_s
    return 0.0


def assert_counted_exactly(found: Incident) -> None:
    """The sidecar's counters grew by what the clients counted."""
    total = found.load.total
    assert found.grew(FINISHED) == total.outcome("ok")
    assert found.grew("vllm_engine_prompt_tokens_total") == total.prompt_tokens
    assert found.grew("vllm_engine_generation_tokens_total") == total.completion_tokens


def assert_ttft_within_bucket(found: Incident) -> None:
    """
    The exported TTFT is vLLM's own, and its median lies in the bucket that the clients' median lies in.

    What a client adds to each request (HTTP, tokenization, streaming) is known from these very requests, as
    the difference of the means. The middle fifth of the clients stands for their median, which may lie right
    on a bound of the bucket.
    """
    window = found.after.histogram(TTFT).minus(found.before.histogram(TTFT))
    of_vllm = found.vllm_after.histogram(VLLM_TTFT).minus(found.vllm_before.histogram(VLLM_TTFT))
    assert window is not None
    assert of_vllm is not None
    seen = found.load.total.ttft_s
    added = statistics.mean(seen) - of_vllm.sum / of_vllm.counts[-1]
    low, high = (percentile(seen, share) - added for share in (0.4, 0.6))
    quantile = window.quantile(0.5)

    assert window.counts == of_vllm.counts
    assert window.sum == pytest.approx(of_vllm.sum)
    assert window.counts[-1] == len(seen)
    assert added > 0
    assert quantile is not None
    assert quantile.lower <= high
    assert low <= quantile.upper


@pytest.mark.parametrize(
    ("scenario", "verdict"),
    [
        ("concurrency-cap", "degraded"),
        ("kv-preemption-thrash", "critical"),
        # the others share a server with all that follows
        ("queue-overload", "critical"),
        ("prefix-cache-nonce", "degraded"),
        ("context-length-rejections", "degraded"),
    ],
)
def test_trouble_made_by_load_is_named(
    shows: Callable[[str, Judge], None], scenario: str, verdict: str
) -> None:
    def named(found: Incident) -> None:
        assert (found.roots, found.said["verdict"]) == ([scenario], verdict), str(found)
        assert_counted_exactly(found)
        assert_ttft_within_bucket(found)

    shows(scenario, named)


def test_healthy_load_is_healthy(shows: Callable[[str, Judge], None]) -> None:
    def healthy(found: Incident) -> None:
        (target,) = found.said["targets"]
        assert (found.said["verdict"], target["causes"]) == ("healthy", []), str(found)
        assert_counted_exactly(found)
        assert_ttft_within_bucket(found)

    shows("healthy", healthy)


@pytest.mark.parametrize("scenario", ["engine-hung-busy", "engine-hung-idle"])
def test_a_frozen_engine_is_named(shows: Callable[[str, Judge], None], scenario: str) -> None:
    def frozen(found: Incident) -> None:
        assert (found.roots, found.said["verdict"]) == (["engine-hung"], "critical"), str(found)
        assert_counted_exactly(found)

    shows(scenario, frozen)


def test_clients_that_hang_up_are_named(shows: Callable[[str, Judge], None]) -> None:
    def hung_up(found: Incident) -> None:
        total = found.load.total

        assert found.roots == ["client-abort-storm"], str(found)
        assert found.grew("vllm_engine_prompt_tokens_total") == total.first_token_prompt_tokens
        # the engine generates on until it hears of the hang-up, sometimes to the end
        most = total.outcome("ok") + total.outcome("hung_up")
        assert total.outcome("ok") <= found.grew(FINISHED) < most
        assert found.grew("vllm_engine_generation_tokens_total") >= total.completion_tokens

    shows("client-abort-storm", hung_up)


def test_a_frozen_engine_that_nobody_uses_is_found_by_the_canary(
    servers: Servers, opsctl: Opsctl
) -> None:
    vllm = servers.get("general")
    well = opsctl.run("diagnose", vllm.url, "--for", "3s", "--output", "json")
    vllm.freeze()
    try:
        frozen = opsctl.run("diagnose", vllm.url, "--for", "3s", "--output", "json")
    finally:
        vllm.thaw()

    assert (json.loads(well.stdout)["verdict"], well.returncode) == ("healthy", 0)
    assert frozen.returncode == 2, frozen.stdout
    (cause,) = json.loads(frozen.stdout)["targets"][0]["causes"]
    assert (cause["id"], cause["role"]) == ("engine-hung", "root")


def test_what_was_recorded_live_diagnoses_as_it_did_live(
    servers: Servers, opsctl: Opsctl, tmp_path: Path
) -> None:
    vllm = servers.get("general")
    path = tmp_path / "idle.jsonl.gz"
    recorded = opsctl.run("record", vllm.url, "-o", str(path), "--for", "6s")
    live = opsctl.run("diagnose", vllm.url, "--for", "6s", "--output", "json")
    again = opsctl.run("diagnose", "--recording", str(path), "--output", "json")

    assert recorded.returncode == 0, recorded.stderr
    assert json.loads(again.stdout)["targets"][0]["vllm_version"] == "0.32.0"
    assert again.returncode == live.returncode == 0
