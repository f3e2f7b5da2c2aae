"""What a recording's own pages say of each phase: a first look, whether the incident happened."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from vllm_opsctl.exporter.engine import EngineSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.recording import read_recording
from vllm_opsctl.exporter.window import Window

_MEANS = {
    "ttft_s": "time_to_first_token_seconds",
    "itl_s": "inter_token_latency_seconds",
    "queue_s": "request_queue_seconds",
}


def figures(path: Path, starts: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return peaks and means of the engine by phase.

    Args:
        path: a recording of one target with one engine.
        starts: phase to the Unix time of its begin, in order; the last one is only the end.
    """
    observations = read_recording(path)
    samples: list[EngineSample] = []
    for seen in observations:
        if seen.kind == "metrics" and "vllm:" in seen.data["text"]:
            page = read_page(seen.data["text"], t=seen.t, target=seen.target)
            samples += page.engines[:1]
    found = {}
    for (name, begin), (_, end) in pairwise(starts.items()):
        inside = tuple(sample for sample in samples if begin <= sample.t <= end)
        failed = sum(o.kind == "error" and begin <= o.t <= end for o in observations)
        found[name] = {**(_of(Window(inside)) if len(inside) > 1 else {}), "failed_reads": failed}
    return found


def _of(window: Window) -> dict[str, Any]:
    """Return the figures of a stretch that has at least two samples."""
    queried = window.delta("prefix_cache_queried_tokens")
    hits = window.delta("prefix_cache_hit_tokens")
    said: dict[str, float | None] = {
        "running_max": window.gauge_max("requests_running"),
        "running_mean": window.gauge_mean("requests_running"),
        "waiting_max": window.gauge_max("requests_waiting"),
        "deferred_max": window.gauge_max("requests_waiting_by_reason{deferred}"),
        "kv_max": window.gauge_max("kv_cache_usage_ratio"),
        "kv_mean": window.gauge_mean("kv_cache_usage_ratio"),
        "hit": hits / queried if hits is not None and queried else None,
        "preemptions": window.delta("preemptions"),
        "generated_per_s": window.rate("generation_tokens"),
        "cpu_cores": window.rate("process_cpu_seconds"),
        "open_fds_max": window.gauge_max("process_open_fds"),
        "awake": window.gauge_last("awake"),
        **{name: window.mean(concept) for name, concept in _MEANS.items()},
    }
    return {name: round(value, 4) for name, value in said.items() if value is not None}
