"""
What the tap costs inside a real vLLM (CPU): µs per ``record()`` on recorded steps, and throughput.

Real records of full batches are recorded from the engine, then replayed through the tap, through
vLLM's own Prometheus logger and through a naive design. Then servers with the tap and without take
turns under a steady load; as such a difference drowns in noise, the time within ``record()`` is
measured too, in the server.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from parts.engine import find_python

from bench.table import ROOT
from bench.tap_rounds import (
    Load,
    alternating,
    described_machine,
    figures,
    loaded,
    one_round,
    print_timed,
    report_rounds,
    timed_calls,
    wait_for_sequence,
    write_json,
)
from bench.tap_servers import Machine, TapVllm, install_tap, write_tiny_model

FOLDER = ROOT / "build" / "bench" / "tap"
BATCHES = (1, 64, 256)
RECORDS = 400
REPLAYS = 15
STREAMS = 16
HIDDEN, LAYERS = 512, 8
"""
Of the throughput's model: with a smaller one the engine runs so far ahead of its API server that a
request is done before its first token is read.
"""
IN_SERVER_S = 8.0
NAMES = {"tap": "tap", "vllm": "vLLM's own", "naive": "JSON datagram"}


def flags(running: int) -> tuple[str, ...]:
    """A server's, for so many running requests."""
    return (
        *("--max-num-seqs", str(running), "--max-model-len", "1024"),
        *("--max-num-batched-tokens", "8192", "--block-size", "32"),
    )


def record_sequences(
    machine: Machine, pages: Path, batches: Sequence[int], records: int
) -> dict[int, dict[str, dict[str, float]]]:
    """Record a sequence at each batch size; returns what the probe measured in the servers."""
    found = {}
    for running in batches:
        served = replace(machine, flags=flags(running))
        with TapVllm(served, "probe", pages, records=records, running=running) as vllm:
            load = Load(running)
            with loaded(vllm, load):
                wait_for_sequence(vllm)
            _, span = one_round(vllm, load, IN_SERVER_S)
            timed = timed_calls(vllm, span)
            vllm.sequence.replace(sequence_file(running))
        print(f"  {running} running: {records} records; in the server itself", flush=True)
        print_timed(timed)
        found[running] = figures(timed)
    return found


def sequence_file(running: int) -> Path:
    """Where a sequence is kept."""
    return FOLDER / f"sequence-{running}.pickle"


def replay(machine: Machine, files: Sequence[Path], rounds: int) -> list[dict[str, Any]]:
    """Run bench.tap_replay in vLLM's interpreter."""
    path = [str(machine.tap), *([] if machine.site is None else [str(machine.site)])]
    done = subprocess.run(
        [
            *(str(machine.python), str(Path(__file__).with_name("tap_replay.py"))),
            *("--model", str(machine.model), "--rounds", str(rounds), *map(str, files)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the replay ended with {done.returncode}:\n{done.stderr[-3000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


def report_replay(found: Sequence[Mapping[str, Any]]) -> None:
    """Print microseconds per call, and what the sequences are like."""
    print(f"\n{' ':28}" + "".join(f"{name:>26}" for name in NAMES.values()) + "   tap / vLLM's own")
    for entry in found:
        most = max(count for count, _ in entry["running"])
        variants = {"": entry["us"], ", caches cold": entry["cold_us"]}
        for variant, us in variants.items():
            differ = ", ITL differ*" if entry["variant"] == "distinct" else ""
            cells = [
                f"{statistics.median(us[n]):.1f} ({min(us[n]):.1f} to {max(us[n]):.1f})"
                for n in NAMES
            ]
            ratio = statistics.median(us["tap"]) / statistics.median(us["vllm"])
            label = f"{most}{differ}{variant}"
            print(f"  {label:26}" + "".join(f"{cell:>26}" for cell in cells) + f"{ratio:10.3f}")
    print("  µs per record(): median of the passes and their range, by running requests.")
    print("  caches cold: 64 MiB are copied before each call; in a server the truth lies between.")
    print(
        "  * synthetic worst case: the same records, every inter-token latency made a value of its own"
    )
    for entry in found:
        if entry["variant"] == "distinct":
            continue
        most = max(count for count, _ in entry["running"])
        full = sum(often for count, often in entry["running"] if count == most)
        nearly = sum(often for count, often in entry["running"] if count >= 0.95 * most)
        print(
            f"  {most} running: {entry['records']} records, {full} of them with {most}, {nearly} with "
            f"at least 95 % of it; "
            f"{entry['gaps_mean']:.0f} inter-token latencies a record, distinct ones "
            f"{entry['distinct_median']:.0f} (median), {entry['distinct_max']} (most); "
            f"{entry['finished']} requests finish; an empty record() takes "
            f"{statistics.median(entry['us']['nothing']):.2f} µs"
        )
    dropped = sum(entry["dropped"] for entry in found) / sum(entry["sent"] for entry in found)
    corrected = sum(entry["tap_corrected"] for entry in found)
    print(f"  datagrams dropped: {100 * dropped:.1f} %; times the tap did not take: {corrected}")


def throughput(machine: Machine, pages: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Servers with the tap and without it in turn, and one with the probe."""
    model = machine.model.with_name(f"model-{HIDDEN}")
    write_tiny_model(machine.python, model, hidden=HIDDEN, layers=LAYERS)
    served, load = replace(machine, model=model, flags=flags(STREAMS)), Load(STREAMS)
    print(
        f"\ntap_cost: throughput, {STREAMS} streams, {seconds:.0f} s each, a fresh server each round"
    )
    found = alternating(served, load, pages, rounds=rounds, seconds=seconds)
    with TapVllm(served, "probe", pages / "probe") as vllm:
        _, span = one_round(vllm, load, seconds)
        timed = timed_calls(vllm, span)
    return report_rounds(found, timed)


def main() -> None:
    """Measure, print the tables, write build/bench/tap_cost.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="servers of each kind")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--records", type=int, default=RECORDS, help="per sequence")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--reuse", action="store_true", help="replay the last run's sequences")
    parser.add_argument("--skip-throughput", action="store_true")
    options = parser.parse_args()
    python = find_python()
    if python is None:
        sys.exit("there is no vLLM to measure in: make real-parts brings it")
    FOLDER.mkdir(parents=True, exist_ok=True)
    machine = Machine(python, FOLDER / "model", (), None, FOLDER / "site", FOLDER)
    write_tiny_model(python, machine.model)
    install_tap(machine.tap)
    subject = described_machine(machine)
    print(f"tap_cost: {subject}")
    data: dict[str, Any] = {"machine": subject}
    pages = Path(tempfile.mkdtemp(prefix="opsctl-bench-", dir="/dev/shm"))
    try:
        if not options.reuse:
            print("recording, tiny model, clients that each send the next request:")
            data["in_server"] = record_sequences(machine, pages, options.batches, options.records)
        files = [sequence_file(running) for running in options.batches]
        data["replay"] = replay(machine, files, REPLAYS)
        report_replay(data["replay"])
        if not options.skip_throughput:
            data["throughput"] = throughput(machine, pages, options.rounds, options.seconds)
    finally:
        shutil.rmtree(pages)
    write_json("tap_cost", data)


if __name__ == "__main__":
    main()
