"""Features of the server's processes: restarts, uptime, memory, clocks, configuration."""

from __future__ import annotations

import statistics

from vllm_opsctl.exporter.units import number_of
from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import feature
from vllm_opsctl.runbooks.platform import number_said

# -- restarts ------------------------------------------------------------------------------------


@feature("restart.count", "count", "Restarts of the server process: its counters started again.")
def _(e: Evidence) -> float | None:
    if e.last("sagemaker") is not None:
        # what is counted in CloudWatch goes on growing over a restart
        return None
    return float(len(e.restarts)) if len(e.asked.samples) >= 2 or e.restarts else None


@feature("restart.recent", "count", "Restarts in all that is known, up to half an hour.")
def _(e: Evidence) -> float | None:
    if e.last("sagemaker") is not None:
        started = number_said(e, "starts")
        return max(0.0, started - 1) if started is not None else None
    return float(e.known_restarts) if e.newest else None


@feature(
    "restart.busy_before",
    "bool",
    "Requests waited for a full batch when the process was last seen before it restarted.",
)
def _(e: Evidence) -> bool | None:
    if not e.restarts or e.predecessor is None:
        return None
    waiting = e.predecessor.gauges.get("requests_waiting")
    return None if waiting is None else waiting >= 1


@feature("restart.slow_before", "seconds", "Slowest GET /health before the restart.")
def _(e: Evidence) -> float | None:
    if not e.restarts:
        return None
    found = [
        # an answer that never came took at least as long as anybody waits for one
        float(o.data.get("seconds") or PROBE_TIMEOUT_S)
        for o in e.observations
        if o.kind == "health" and o.t <= e.restarts[-1][0]
    ]
    return max(found, default=None)


PROBE_TIMEOUT_S = 1.0
"""Kubernetes' default timeoutSeconds of a probe."""


@feature("restart.gap_seconds", "seconds", "Time without a page around the last restart.")
def _(e: Evidence) -> float | None:
    return e.restarts[-1][1] - e.restarts[-1][0] if e.restarts else None


@feature("restart.age_seconds", "seconds", "Time since the last restart's first page.")
def _(e: Evidence) -> float | None:
    return e.asked.samples[-1].t - e.restarts[-1][1] if e.restarts and e.asked.samples else None


@feature("engine.uptime_seconds", "seconds", "Age of the server process.")
def _(e: Evidence) -> float | None:
    started = e.newest.gauges.get("process_start_time_seconds") if e.newest else None
    if e.newest is None or started is None or started > e.newest.t:
        return None
    return e.newest.t - started


# -- memory and clocks ---------------------------------------------------------------------------

MIN_LEAK_SPAN_S = 3600.0
"""Memory that grows for minutes is a cache that fills."""


@feature(
    "memory.growth_per_hour", "ratio", "Growth of the API server's resident memory in an hour."
)
def _(e: Evidence) -> float | None:
    rows = [
        (s.t, s.gauges["process_resident_memory_bytes"])
        for s in e.history.samples
        if "process_resident_memory_bytes" in s.gauges
    ]
    if len(rows) < 5 or rows[-1][0] - rows[0][0] < MIN_LEAK_SPAN_S or rows[0][1] <= 0:
        return None
    times, values = zip(*rows, strict=True)
    return statistics.linear_regression(times, values).slope * 3600 / rows[0][1]


@feature("clock.steps", "count", "How often the clock of the pages went backwards.")
def _(e: Evidence) -> float | None:
    return float(e.asked.clock_steps) if len(e.asked.samples) >= 2 else None


@feature("clock.start_ahead_seconds", "seconds", "By how much the process started in the future.")
def _(e: Evidence) -> float | None:
    started = e.newest.gauges.get("process_start_time_seconds") if e.newest else None
    return None if e.newest is None or started is None else max(0.0, started - e.newest.t)


@feature("page.counter_flips", "count", "Counters that fell although the process did not restart.")
def _(e: Evidence) -> float | None:
    return float(e.counter_flips) if len(e.asked.samples) >= 2 else None


@feature(
    "page.problems", "count", "Series that the newest page has twice, broken or without a value."
)
def _(e: Evidence) -> float | None:
    return float(e.page_problems) if e.newest else None


# -- configuration that advice depends on --------------------------------------------------------


def _fact(e: Evidence, name: str) -> str | None:
    text = e.newest.facts.get(name) if e.newest else None
    return None if text in (None, "None") else text


@feature("config.version", "text", "The engine's vLLM version, as GET /version says.")
def _(e: Evidence) -> str | None:
    version = e.api_facts.get("version")
    # a source build calls itself 0.1.dev1234: that says nothing of its flags
    return version if isinstance(version, str) and ".dev" not in version else None


@feature("config.kv_blocks_overridden", "bool", "The number of KV blocks was set by hand.")
def _(e: Evidence) -> bool | None:
    if e.newest is None or "num_gpu_blocks_override" not in e.newest.facts:
        return None
    return _fact(e, "num_gpu_blocks_override") is not None


@feature("config.kv_dtype", "text", "Data type of the KV cache; auto means the model's own.")
def _(e: Evidence) -> str | None:
    return _fact(e, "cache_dtype")


@feature("config.gpu_memory_utilization", "ratio", "Share of GPU memory that vLLM may use.")
def _(e: Evidence) -> float | None:
    return number_of(_fact(e, "gpu_memory_utilization"))


@feature("config.expected_max_length", "count", "Longest context that the configuration expects.")
def _(e: Evidence) -> float | None:
    value = e.api_facts.get("expected_max_model_len")
    return float(value) if isinstance(value, int | float) else None
