"""
The benchmark's own stat logger plugin, loaded by vLLM in place of the tap.

It is the tap, with a watch in its hand: first it keeps some records of vLLM's ``record()`` for
:mod:`bench.tap_replay`, then it notes how long each ``record()`` takes, the tap's and that of vLLM's
own Prometheus logger, in the same calls of the same server. Runs in vLLM's interpreter.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger

from vllm_opsctl.exporter.tap.plugin import Tap

VARIABLE = "OPSCTL_BENCH_PROBE"
"""
Environment variable, JSON: ``sequence`` and ``times`` are files to write; ``records`` is how many to
keep in a row, from the first one with ``running`` requests running on.
"""


Call = tuple[float, int, int]
"""Unix seconds; nanoseconds that it took; nanoseconds of CPU, which no other process can lengthen."""


class Probe(Tap):
    """The tap, its records kept and its calls timed."""

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        super().__init__(vllm_config=vllm_config, engine_indexes=engine_indexes)
        wanted = json.loads(os.environ[VARIABLE])
        self._sequence, self._times = Path(wanted["sequence"]), Path(wanted["times"])
        self._wanted, self._running = int(wanted["records"]), int(wanted["running"])
        self._kept: list[tuple[Any, Any, Any, int]] = []
        self._tap: list[Call] = []
        self._vllm: list[Call] = []
        self._written = 0
        _time_prometheus(self._vllm)
        atexit.register(self._write)

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Time the tap's own; keep the record while some are wanted."""
        cpu, began = time.thread_time_ns(), time.perf_counter_ns()
        super().record(scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)
        took = time.perf_counter_ns() - began
        self._tap.append((time.time(), took, time.thread_time_ns() - cpu))
        if self._wanted:
            running = getattr(scheduler_stats, "num_running_reqs", 0)
            if self._kept or running >= self._running:
                self._kept.append((scheduler_stats, iteration_stats, mm_cache_stats, engine_idx))
            if len(self._kept) == self._wanted:
                self._write_sequence()

    def log(self) -> None:
        """Every VLLM_LOG_STATS_INTERVAL: what was timed so far goes to the file."""
        super().log()
        self._write()

    def _write_sequence(self) -> None:
        kept, self._kept, self._wanted = self._kept, [], 0
        try:
            config = pickle.dumps(self._config)
        except Exception:
            # an error here would end the server; the replay then makes a configuration of its own
            config = None
        data = {"config": config, "records": kept}
        _replace(self._sequence, pickle.dumps(data))

    def _write(self) -> None:
        if len(self._tap) > self._written:
            self._written = len(self._tap)
            data = {"tap": self._tap, "vllm": self._vllm}
            _replace(self._times, json.dumps(data).encode())


def _time_prometheus(times: list[Call]) -> None:
    """Note every ``record()`` of vLLM's Prometheus logger."""
    original = PrometheusStatLogger.record

    def record(self: Any, *arguments: Any, **named: Any) -> None:
        cpu, began = time.thread_time_ns(), time.perf_counter_ns()
        original(self, *arguments, **named)
        took = time.perf_counter_ns() - began
        times.append((time.time(), took, time.thread_time_ns() - cpu))

    PrometheusStatLogger.record = record


def _replace(path: Path, data: bytes) -> None:
    """Write a file that is never seen half done."""
    unfinished = path.with_suffix(".new")
    unfinished.write_bytes(data)
    unfinished.replace(path)
