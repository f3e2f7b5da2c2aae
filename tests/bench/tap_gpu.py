"""
What the tap costs beside an engine on a GPU: three servers on one card, under load in turn.

One server has no plugin, one the tap, one the timing probe; they stand side by side, so no round
waits for a start. At last the records of the probe are replayed with this vLLM's own Prometheus
logger. ``tap_gpu.sh`` brings what a bare GPU machine lacks. With ``--one-at-a-time`` each round
starts its server, for a machine that holds one only (a dry run on a CPU).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.table import ROOT
from bench.tap_cost import replay, report_replay
from bench.tap_rounds import (
    Load,
    Round,
    described_machine,
    loaded,
    one_round,
    report_rounds,
    said,
    timed_calls,
    wait_for_sequence,
    write_json,
)
from bench.tap_servers import Arm, Machine, TapVllm

ARMS: tuple[Arm, ...] = ("bare", "tap", "probe")


class Servers:
    """A server of each arm: all of them at once, or each when it is asked for."""

    def __init__(self, machine: Machine, pages: Path, load: Load, records: int) -> None:
        self._machine, self._pages = machine, pages
        self._probe = {"records": records, "running": load.streams}
        self._running: dict[Arm, TapVllm] = {}

    def _made(self, arm: Arm) -> TapVllm:
        more = self._probe if arm == "probe" else {}
        return TapVllm(self._machine, arm, self._pages / arm, **more)

    @contextlib.contextmanager
    def all_at_once(self) -> Iterator[None]:
        """Start all, side by side; stop them at the end."""
        self._running = {arm: self._made(arm) for arm in ARMS}
        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(TapVllm.start, self._running.values()))
            yield
        finally:
            for vllm in self._running.values():
                vllm.stop()

    @contextlib.contextmanager
    def of(self, arm: Arm) -> Iterator[TapVllm]:
        """The arm's server, started for this when it does not run."""
        if arm in self._running:
            yield self._running[arm]
        else:
            with self._made(arm) as vllm:
                yield vllm


def measure(
    machine: Machine, servers: Servers, load: Load, rounds: int, seconds: float
) -> dict[str, Any]:
    """All rounds, the probe's last; prints them as they come."""
    found: list[Round] = []
    for number in range(rounds):
        order: tuple[Arm, Arm] = ("tap", "bare") if number % 2 == 0 else ("bare", "tap")
        for arm in order:
            with servers.of(arm) as vllm:
                measured, _ = one_round(vllm, load, seconds)
            found.append(measured)
            print("  " + said(measured), flush=True)
    with servers.of("probe") as vllm:
        with loaded(vllm, load):
            wait_for_sequence(vllm)
        measured, span = one_round(vllm, load, seconds)
        print("  " + said(measured), flush=True)
        timed = timed_calls(vllm, span)
        # the server's own file is removed by the next probe's start
        shutil.copy(vllm.sequence, machine.work / "kept.pickle")
    return report_rounds(found, timed)


def main() -> None:
    """Measure, print, write build/bench/tap_gpu.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="has vLLM")
    parser.add_argument("--site", type=Path, help="folder of vLLM's packages, if not python's own")
    parser.add_argument("--tap", type=Path, required=True, help="folder made by --target DIR .")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--flags", type=shlex.split, default=[], help="of every server")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--one-at-a-time", action="store_true")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--processes", type=int, default=4, help="load generators")
    parser.add_argument("--output-tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="folder that gets the results and the logs too")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="opsctl-tap-gpu-"))
    # absolute, but no links followed: a virtual environment's interpreter is one
    machine = Machine(
        options.python.absolute(),
        options.model.absolute(),
        (*options.flags, "--max-num-seqs", str(options.streams)),
        None if options.site is None else options.site.absolute(),
        options.tap.absolute(),
        work,
        eager=options.eager,
    )
    load = Load(options.streams, options.processes, output_tokens=options.output_tokens)
    subject = f"{described_machine(machine)}; {options.streams} streams, {options.processes} load processes"
    print(f"tap_gpu: {subject}", flush=True)
    pages = Path(tempfile.mkdtemp(prefix="opsctl-bench-", dir="/dev/shm"))
    servers = Servers(machine, pages, load, options.records)
    try:
        together = contextlib.nullcontext() if options.one_at_a_time else servers.all_at_once()
        with together:
            found = measure(machine, servers, load, options.rounds, options.seconds)
        replayed = replay(machine, [work / "kept.pickle"], 15)
        report_replay(replayed)
        data = {"machine": subject, "load": asdict(load), "flags": machine.flags, **found}
        write_json("tap_gpu", {**data, "replay": replayed})
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "build" / "bench" / "tap_gpu.json", options.out)
    finally:
        shutil.rmtree(pages)
        if options.out is not None:
            for log in work.glob("*.log"):
                shutil.copy(log, options.out)
        shutil.rmtree(work)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
