"""Load on the tap benchmarks' servers, and what is measured while it lasts."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from load.generator import start_load
from load.phase import Phase

from bench.table import ROOT
from bench.tap_servers import Arm, Machine, TapVllm
from vllm_opsctl.exporter.tap.page import read_tap_page

FULL_TIMEOUT_S = 120.0
SEQUENCE_TIMEOUT_S = 300.0
SETTLE_S = 3.0
"""From a full batch to the measurement."""

IDLE_TIMEOUT_S = 60.0
ENDLESS_S = 3600.0
RUNNING = "vllm:num_requests_running"


@dataclass(frozen=True)
class Load:
    """
    A closed load that keeps a batch full.

    Args:
        streams: Requests that run at a time; a few more clients keep the queue from running dry.
        processes: Load generators that share them.
        prompt_tokens: Of each request.
        output_tokens: Longest answer; the shortest is a fifth of it, so that clients do not march
            in step.
    """

    streams: int
    processes: int = 1
    prompt_tokens: int = 32
    output_tokens: int = 640

    @property
    def clients(self) -> int:
        """How many there are."""
        return self.streams + max(1, self.streams // 16)


@dataclass(frozen=True)
class Round:
    """
    What was measured within one stretch of steady load.

    Args:
        arm: The server's.
        seconds: How long.
        tokens_per_s: Generated tokens, of the server's own counter.
        api_cpu: CPU of the API server's process, share of a core.
        records_per_s: Calls of ``record()``; None without a tap that counts them.
        running: Requests running, at the beginning and at the end.
    """

    arm: Arm
    seconds: float
    tokens_per_s: float
    api_cpu: float
    records_per_s: float | None
    running: tuple[float, float]


@dataclass(frozen=True)
class Calls:
    """
    Calls of one logger's ``record()`` within a stretch of steady load, in the server itself.

    Args:
        seconds: How long the stretch was.
        wall_us: Of each call; whatever else the machine did meanwhile is in it.
        cpu_us: CPU time of each call.
    """

    seconds: float
    wall_us: Sequence[float]
    cpu_us: Sequence[float]

    def figures(self) -> dict[str, float]:
        """Calls a second, microseconds a call, and CPU as a share of one core."""
        return {
            "calls_per_s": len(self.wall_us) / self.seconds,
            "wall_p50_us": _quantile(self.wall_us, 0.5),
            "wall_mean_us": statistics.mean(self.wall_us),
            "wall_p99_us": _quantile(self.wall_us, 0.99),
            "cpu_p50_us": _quantile(self.cpu_us, 0.5),
            "cpu_mean_us": statistics.mean(self.cpu_us),
            "share_of_core": sum(self.cpu_us) / 1e6 / self.seconds,
        }


Timed = Mapping[str, Calls]
"""Of ``tap`` and of ``vllm``, vLLM's own Prometheus logger."""


@contextlib.contextmanager
def loaded(vllm: TapVllm, load: Load) -> Iterator[None]:
    """A server with a full batch, until the context is left; then an idle one."""
    phase = Phase(
        "steady",
        ENDLESS_S,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        output_least=max(1, load.output_tokens // 5),
        concurrency=1,
    )
    with contextlib.ExitStack() as stack:
        for number in range(load.processes):
            share = (load.clients + number) // load.processes
            phases = [replace(phase, concurrency=share)]
            stack.enter_context(start_load(vllm.url, vllm.model, phases, drain=False))
        deadline = time.monotonic() + FULL_TIMEOUT_S
        while figures_of(vllm, RUNNING)[0] < load.streams:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{load.streams} requests never ran at a time")
            time.sleep(0.2)
        time.sleep(SETTLE_S)
        yield
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    while figures_of(vllm, RUNNING)[0] > 0 and time.monotonic() < deadline:
        time.sleep(0.2)


def one_round(vllm: TapVllm, load: Load, seconds: float) -> tuple[Round, tuple[float, float]]:
    """Measure for some seconds; also returns their beginning and end, Unix seconds."""
    with loaded(vllm, load):
        before = _state(vllm)
        time.sleep(seconds)
        after = _state(vllm)
        # some calls beyond the end, which show that the probe's file reaches that far
        time.sleep(0.5)
    took = after["at"] - before["at"]
    counted = before["records"] is not None and after["records"] is not None
    found = Round(
        arm=vllm.arm,
        seconds=took,
        tokens_per_s=(after["tokens"] - before["tokens"]) / took,
        api_cpu=(after["cpu"] - before["cpu"]) / took,
        records_per_s=(after["records"] - before["records"]) / took if counted else None,
        running=(before["running"], after["running"]),
    )
    return found, (before["at"], after["at"])


def timed_calls(vllm: TapVllm, span: tuple[float, float]) -> Timed:
    """What the probe noted within a span of Unix seconds; waits for its file to reach that far."""
    began, ended = span
    deadline = time.monotonic() + 30
    while True:
        if vllm.times.is_file():
            times = json.loads(vllm.times.read_text(encoding="utf-8"))
            if times["tap"][-1][0] >= ended:
                break
        if time.monotonic() > deadline:
            raise TimeoutError(f"the probe's {vllm.times} does not reach the end of the load")
        time.sleep(0.5)
    return {
        name: Calls(
            seconds=ended - began,
            wall_us=[wall / 1000 for at, wall, _ in times[name] if began <= at < ended],
            cpu_us=[cpu / 1000 for at, _, cpu in times[name] if began <= at < ended],
        )
        for name in ("tap", "vllm")
    }


def wait_for_sequence(vllm: TapVllm) -> None:
    """Until the probe has kept the records that it was asked for; the server is under load."""
    deadline = time.monotonic() + SEQUENCE_TIMEOUT_S
    while not vllm.sequence.is_file():
        if time.monotonic() > deadline:
            raise TimeoutError("the probe did not get its records in time")
        time.sleep(0.5)


def alternating(
    machine: Machine, load: Load, pages: Path, *, rounds: int, seconds: float
) -> list[Round]:
    """The tap and none, in turn, each round a server of its own: one engine at a time."""
    found = []
    for number in range(rounds):
        order: tuple[Arm, Arm] = ("tap", "bare") if number % 2 == 0 else ("bare", "tap")
        for arm in order:
            with TapVllm(machine, arm, pages / arm) as vllm:
                measured, _ = one_round(vllm, load, seconds)
            print("  " + said(measured), flush=True)
            found.append(measured)
    return found


def said(measured: Round) -> str:
    """A round in one line."""
    calls = "" if measured.records_per_s is None else f", {measured.records_per_s:.1f} records/s"
    return (
        f"{measured.arm:6} {measured.tokens_per_s:9.1f} tokens/s, API server "
        f"{100 * measured.api_cpu:5.1f} % of a core, {measured.running[0]:.0f} and "
        f"{measured.running[1]:.0f} running{calls}"
    )


def report_rounds(found: Sequence[Round], timed: Timed) -> dict[str, Any]:
    """Print medians and ranges by arm and what the tap takes of a core; return the same as data."""
    for arm in ("tap", "bare"):
        mine = [r for r in found if r.arm == arm]
        rates = sorted(r.tokens_per_s for r in mine)
        cpu = sorted(r.api_cpu for r in mine)
        print(
            f"  {arm:5} median {statistics.median(rates):9.1f} tokens/s ({rates[0]:.1f} to "
            f"{rates[-1]:.1f}), API server {100 * statistics.median(cpu):.1f} % of a core "
            f"({100 * cpu[0]:.1f} to {100 * cpu[-1]:.1f}), {len(mine)} rounds"
        )
    print("  in the server, a round of its own with a watch around record():")
    print_timed(timed)
    return {"rounds": [asdict(r) for r in found], "in_server": figures(timed)}


def print_timed(timed: Timed) -> None:
    """Print the probe's figures."""
    for name, calls in timed.items():
        found = calls.figures()
        print(
            f"    {'tap' if name == 'tap' else 'vLLM own':9} P50 {found['wall_p50_us']:6.1f} us, mean "
            f"{found['wall_mean_us']:6.1f}, P99 {found['wall_p99_us']:7.1f}; CPU P50 "
            f"{found['cpu_p50_us']:6.1f}, mean {found['cpu_mean_us']:6.1f} us x "
            f"{found['calls_per_s']:5.1f} calls/s = {100 * found['share_of_core']:.3f} % of a core",
            flush=True,
        )


def figures(timed: Timed) -> dict[str, dict[str, float]]:
    """The probe's figures as data."""
    return {name: calls.figures() for name, calls in timed.items()}


def figures_of(vllm: TapVllm, *names: str) -> list[float]:
    """The sums of some metrics of the server's page."""
    with urllib.request.urlopen(f"{vllm.url}/metrics", timeout=60) as answer:  # noqa: S310 - loopback
        lines = answer.read().decode().splitlines()
    return [
        sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith((f"{name}{{", f"{name} "))
        )
        for name in names
    ]


def described_machine(machine: Machine) -> str:
    """CPU, cores, GPU, versions and what else runs, in one line."""
    # not the distribution's version: the CPU's has a name of its own
    code = (
        "import platform; from vllm.version import __version__; "
        "print(f'vLLM {__version__}, CPython {platform.python_version()}')"
    )
    path = "" if machine.site is None else str(machine.site)
    versions = (
        subprocess.run(
            [str(machine.python), "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        .stdout.strip()
        .splitlines()[-1]
    )
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(": ")[2] for line in cpuinfo if line.startswith("model name")]
    load = Path("/proc/loadavg").read_text(encoding="utf-8").split()[0]
    return (
        f"{names[0] if names else platform.machine()}, {len(names)} cores{_gpu()}, "
        f"{versions}, load average at the start {load}"
    )


def write_json(name: str, data: object) -> None:
    """Write build/bench/<name>.json."""
    folder = ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        gpus = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f", {gpus.splitlines()[0].strip()}"


def _state(vllm: TapVllm) -> dict[str, Any]:
    """Cumulative figures of a server, and when: a busy server answers late, but of that moment."""
    tokens, running = figures_of(vllm, "vllm:generation_tokens_total", RUNNING)
    at, cpu = time.time(), vllm.cpu_seconds()
    pages = [page for page in map(read_tap_page, vllm.pages.glob("*.tap")) if page.alive]
    records = pages[0].counters["records"] if pages else None
    return {"at": at, "tokens": tokens, "running": running, "cpu": cpu, "records": records}


def _quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
