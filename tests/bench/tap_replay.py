"""
Microseconds per ``record()``: the tap, vLLM's own Prometheus logger and a naive design, one sequence.

Runs in vLLM's interpreter, with this package's tap on its path; prints JSON. The sequences are those
of :mod:`bench.tap_probe`. Loggers take turns, one whole sequence each, so that whatever else the
machine does hits all of them alike.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import gc
import json
import os
import pickle
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm.engine.arg_utils import EngineArgs
from vllm.v1.metrics.loggers import PrometheusStatLogger

from vllm_opsctl.exporter.tap.page import read_tap_page
from vllm_opsctl.exporter.tap.plugin import Tap

Record = tuple[Any, Any, Any, int]
"""Arguments of one call: scheduler, iteration and multi-modal cache statistics, engine index."""

WARM_UP = 2
COLD_ROUNDS = 5
COLD_RECORDS = 100
OLD_S = 86400.0

_DRAIN = """
import socket, sys
end = socket.socket(fileno=int(sys.argv[1]))
while end.recv(1 << 20) != b"end":
    pass
"""


class Naive:
    """One JSON datagram a record over a Unix socket; another process drains it and does nothing."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        command = [sys.executable, "-S", "-c", _DRAIN, str(other.fileno())]
        self._reader = subprocess.Popen(command, pass_fds=[other.fileno()])
        other.close()
        self._socket.setblocking(False)
        self.sent = self.dropped = 0

    def record(
        self, scheduler: Any, iteration: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Send what a reader would need for the tap's numbers; never wait for it."""
        said: dict[str, Any] = {"t": time.time(), "engine": engine_idx}
        if scheduler is not None:
            prefix = scheduler.prefix_cache_stats
            said |= {
                "running": scheduler.num_running_reqs,
                "waiting": scheduler.num_waiting_reqs,
                "deferred": scheduler.num_skipped_waiting_reqs,
                "kv_cache_usage": scheduler.kv_cache_usage,
                "prefix_queries": prefix.queries,
                "prefix_hits": prefix.hits,
            }
        if iteration is not None:
            prompt = iteration.prompt_token_stats
            said |= {
                "prompt_tokens": prompt.total,
                "computed": prompt.computed,
                "cached": prompt.cached_tokens,
                "generation_tokens": iteration.num_generation_tokens,
                "preemptions": iteration.num_preempted_reqs,
                "ttft": iteration.time_to_first_tokens_iter,
                "itl": iteration.inter_token_latencies_iter,
                "finished": [vars(request) for request in iteration.finished_requests],
            }
        self.sent += 1
        try:
            self._socket.send(json.dumps(said, default=str).encode())
        except BlockingIOError:
            self.dropped += 1

    def close(self) -> None:
        """End the reader."""
        self._socket.setblocking(True)
        self._socket.send(b"end")
        self._socket.close()
        self._reader.wait()


def load(path: Path, model: Path) -> tuple[Any, list[Record]]:
    """
    VllmConfig and records of a file that the probe wrote.

    Args:
        path: The file.
        model: Folder of the model, for a configuration where the server's could not be kept.
    """
    data = pickle.loads(path.read_bytes())  # noqa: S301 - of this benchmark's own server
    if data["config"] is None:
        return EngineArgs(model=str(model)).create_engine_config(), data["records"]
    return pickle.loads(data["config"]), data["records"]  # noqa: S301


def made_distinct(records: Sequence[Record]) -> list[Record]:
    """The same records with inter-token latencies that all differ, within a fifth of what they were."""
    draw = random.Random(0)  # noqa: S311 - no secret
    changed = []
    for scheduler, iteration, mm_cache, engine in records:
        other = copy.copy(iteration)
        if other is not None:
            gaps = other.inter_token_latencies_iter
            other.inter_token_latencies_iter = [gap * draw.uniform(0.8, 1.2) for gap in gaps]
        changed.append((scheduler, other, mm_cache, engine))
    return changed


def nanoseconds(record: Callable[..., None], records: Sequence[Record]) -> float:
    """Mean wall time of a call, called as vLLM's StatLoggerManager does."""
    began = time.perf_counter_ns()
    for scheduler, iteration, mm_cache, engine in records:
        record(scheduler, iteration, mm_cache_stats=mm_cache, engine_idx=engine)
    return (time.perf_counter_ns() - began) / len(records)


class Evicting:
    """Copies more than the caches hold, as the work between two steps does to some extent."""

    BYTES = 64 * 2**20

    def __init__(self) -> None:
        self._from, self._to = bytearray(self.BYTES), bytearray(self.BYTES)

    def __call__(self) -> None:
        self._to[:] = self._from


def cold_nanoseconds(
    record: Callable[..., None], records: Sequence[Record], evict: Callable[[], None]
) -> float:
    """Median wall time of a call that finds nothing in the processor's caches."""
    times = []
    for scheduler, iteration, mm_cache, engine in records:
        evict()
        began = time.perf_counter_ns()
        record(scheduler, iteration, mm_cache_stats=mm_cache, engine_idx=engine)
        times.append(time.perf_counter_ns() - began)
    return statistics.median(times)


def nothing(
    scheduler: Any, iteration: Any, mm_cache_stats: Any = None, engine_idx: int = 0
) -> None:
    """What the loop and the call cost without any work."""


def measured(config: Any, records: Sequence[Record], rounds: int) -> dict[str, Any]:
    """
    Each logger's µs per call, one number a round, and what shows that the loggers did their work.

    Args:
        config: VllmConfig of the server that was recorded.
        records: Its records.
        rounds: Passes over them for each logger.
    """
    os.environ["OPSCTL_TAP"] = tempfile.mkdtemp(prefix="opsctl-bench-", dir="/dev/shm")
    tap, own, naive = Tap(config, [0]), PrometheusStatLogger(config, [0]), Naive()
    (page,) = tap._pages.values()
    # the replaying process is younger than what it replays: times longer than its life are left out
    page._born -= OLD_S
    calls: dict[str, Callable[..., None]] = {
        "tap": tap.record,
        "vllm": own.record,
        "naive": naive.record,
        "nothing": nothing,
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    # as vLLM's API server does when it is ready
    gc.freeze()
    names = list(calls)
    for number in range(WARM_UP + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            took = nanoseconds(calls[name], records)
            if number >= WARM_UP:
                times[name].append(took / 1000)
    cold: dict[str, list[float]] = {name: [] for name in calls}
    evict = Evicting()
    for number in range(COLD_ROUNDS):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            took = cold_nanoseconds(calls[name], records[:COLD_RECORDS], evict)
            cold[name].append(took / 1000)
    naive.close()
    page.touch()
    counters = read_tap_page(page.path).counters
    page.path.unlink()
    page.path.parent.rmdir()
    return {
        "us": times,
        "cold_us": cold,
        "tap_records": counters["records"],
        "tap_corrected": counters["corrected_times"],
        "sent": naive.sent,
        "dropped": naive.dropped,
    }


async def measured_on_a_loop(config: Any, records: Sequence[Record], rounds: int) -> dict[str, Any]:
    """The same where vLLM calls ``record()``: on an event loop, by which the tap writes its file later."""
    return measured(config, records, rounds)


def described(records: Sequence[Record]) -> dict[str, Any]:
    """What a sequence is like."""
    running = [s.num_running_reqs for s, _, _, _ in records if s is not None]
    steps = [i for _, i, _, _ in records if i is not None]
    gaps = [i.inter_token_latencies_iter for i in steps if i.inter_token_latencies_iter]
    distinct = [len(set(values)) for values in gaps]
    return {
        "records": len(records),
        "without_iteration": len(records) - len(steps),
        "running": sorted({count: running.count(count) for count in set(running)}.items()),
        "finished": sum(len(i.finished_requests) for i in steps),
        "gaps_mean": statistics.mean(map(len, gaps)),
        "distinct_median": statistics.median(distinct),
        "distinct_mean": statistics.mean(distinct),
        "distinct_max": max(distinct),
    }


def main() -> None:
    """Replay each file, print one line of JSON for each of its two variants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sequence", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for path in options.sequence:
        config, records = load(path, options.model)
        for variant, used in (("recorded", records), ("distinct", made_distinct(records))):
            found = asyncio.run(measured_on_a_loop(config, used, options.rounds))
            said = {"file": str(path), "variant": variant, **described(used), **found}
            print("RESULT " + json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
