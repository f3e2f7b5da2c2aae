"""A page from the V0 engine's own stat logger (vllm/engine/metrics.py) of one vLLM version.

Run it with the unpacked sources of that version on PYTHONPATH, in an environment that has
vLLM's Python dependencies:

    PYTHONPATH=path/to/vllm-0.6.6 python logger_v0.py 0.6.6

From 0.5.5 on the V0 server runs its front end and its engine in two processes, so the page is
rendered in prometheus_client's multiprocess mode, as it is served by default.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import time
from types import SimpleNamespace
from typing import Any

from harness import (
    HTTP_FED,
    HTTP_SINCE,
    render,
    serve_http,
    stub,
    tolerate_known_model_types,
    use_multiprocess_mode,
)
from pagefile import store
from workload import BLOCK_SIZE, KV_BLOCKS, Step, busy_run, spread, totals

ABSENT = ["gguf", "diskcache"]
MULTIPROCESS_SINCE = (0, 5, 5)
SWAPS_PHASES = "0.6.4"  # its logger observes prefill times as decode times and vice versa
MAX_LORAS = "0"
MAX_MODEL_LEN = 4096
SWAPPED = 1
CPU_KV_USAGE = 0.03125
CPU_HIT_RATIO = 0.0
FORWARD_MS = 11.5
CAPTURE_SIZES = [1, 2, 4, 8, 16, 32]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version")
    parser.add_argument("--absent", nargs="*", default=[], help="more modules to stub")
    parser.add_argument("--model", default="org/model-7b")
    parser.add_argument("--run", type=int, default=1, help="which workload to feed")
    return parser.parse_args()


def make_stats(kind: type, step: Step, so_far: list[Step], now: float) -> Any:
    """vLLM's Stats of this version; an unknown field is an error, not a silent zero."""
    done = step.finished
    known = {
        "now": now,
        "num_running_sys": step.running,
        "num_waiting_sys": step.waiting,
        "num_swapped_sys": SWAPPED,
        "gpu_cache_usage_sys": step.kv_usage,
        "cpu_cache_usage_sys": CPU_KV_USAGE,
        "cpu_prefix_cache_hit_rate": CPU_HIT_RATIO,
        "gpu_prefix_cache_hit_rate": totals(so_far)["prefix_hit_ratio"],
        "num_prompt_tokens_iter": step.prompt_tokens,
        "num_generation_tokens_iter": step.generation_tokens,
        "num_tokens_iter": step.prompt_tokens + step.generation_tokens,
        "time_to_first_tokens_iter": step.ttft,
        "time_per_output_tokens_iter": step.itl,
        "inter_token_latencies_iter": step.itl,
        "num_preemption_iter": step.preemptions,
        "time_e2e_requests": [f.e2e for f in done],
        "time_queue_requests": [f.queue for f in done],
        "time_in_queue_requests": [f.queue for f in done],
        "time_inference_requests": [f.inference for f in done],
        "time_prefill_requests": [f.prefill for f in done],
        "time_decode_requests": [f.decode for f in done],
        "model_forward_time_requests": [FORWARD_MS for _ in done],
        "model_execute_time_requests": [FORWARD_MS for _ in done],
        "num_prompt_tokens_requests": [f.prompt for f in done],
        "num_generation_tokens_requests": [f.generated for f in done],
        "max_num_generation_tokens_requests": [f.generated for f in done],
        "max_tokens_requests": [f.generated for f in done],
        "n_requests": [1 for _ in done],
        "best_of_requests": [1 for _ in done],
        "finished_reason_requests": [f.reason for f in done],
        "waiting_lora_adapters": [],
        "running_lora_adapters": [],
        "max_lora": MAX_LORAS,
        "spec_decode_metrics": None,
    }
    return kind(**{f.name: known[f.name] for f in dataclasses.fields(kind)})


def make_logger(metrics: Any, model: str) -> Any:
    kind = getattr(metrics, "PrometheusStatLogger", None) or metrics.StatLogger
    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=MAX_MODEL_LEN, enforce_eager=False),
        compilation_config=SimpleNamespace(
            cudagraph_capture_sizes=CAPTURE_SIZES, capture_sizes=CAPTURE_SIZES
        ),
        observability_config=SimpleNamespace(show_hidden_metrics=False),
    )
    offered = {"vllm_config": config, "max_model_len": MAX_MODEL_LEN}
    accepted = inspect.signature(kind).parameters
    extra = {name: value for name, value in offered.items() if name in accepted}
    return kind(local_interval=5.0, labels={"model_name": model}, **extra)


def make_cache_config() -> Any:
    from vllm.config import CacheConfig

    config = CacheConfig(
        block_size=BLOCK_SIZE,
        gpu_memory_utilization=0.9,
        swap_space=4,
        cache_dtype="auto",
        enable_prefix_caching=True,
    )
    config.num_gpu_blocks, config.num_cpu_blocks = KV_BLOCKS, 8
    return config


def feed(steps: list[Step], model: str) -> None:
    from vllm.engine import metrics

    if hasattr(metrics, "Stats"):
        kind = metrics.Stats
    else:
        from vllm.engine import metrics_types

        kind = metrics_types.Stats
    logger = make_logger(metrics, model)
    logger.info("cache_config", make_cache_config())
    start = time.time()
    for number, step in enumerate(steps):
        now = start + 0.1 * number
        logger.log(make_stats(kind, step, steps[: number + 1], now))


def expected_engine(steps: list[Step], page: str, version: str) -> dict[str, Any]:
    """The fed totals, less the concepts for which this version has no metric."""
    result = totals(steps)
    for absent in ("waiting_capacity", "waiting_deferred", "prefix_queries", "prefix_hits", "tpot"):
        del result[absent]
    done = [f for step in steps for f in step.finished]
    result |= {
        "swapped": SWAPPED,
        "cpu_kv_usage": CPU_KV_USAGE,
        "time_in_queue": spread([f.queue for f in done]),
    }
    metric_of = {
        "swapped": "num_requests_swapped",
        "cpu_kv_usage": "cpu_cache_usage_perc",
        "prefix_hit_ratio": "gpu_prefix_cache_hit_rate",
        "queue": "request_queue_time_seconds",
        "time_in_queue": "time_in_queue_requests",
        "prefill": "request_prefill_time_seconds",
        "decode": "request_decode_time_seconds",
        "inference": "request_inference_time_seconds",
        "steps": "iteration_tokens_total",
    }
    for concept, metric in metric_of.items():
        if f"# TYPE vllm:{metric} " not in page:
            del result[concept]
    if version == SWAPS_PHASES:
        result["prefill"], result["decode"] = result["decode"], result["prefill"]
        result["phases_swapped"] = True
    return result


def main() -> None:
    arguments = parse_arguments()
    version = tuple(int(part) for part in arguments.version.split("."))
    if version >= MULTIPROCESS_SINCE:
        use_multiprocess_mode()
    stub(ABSENT + arguments.absent)
    tolerate_known_model_types()
    import vllm.engine.metrics  # noqa: F401  (before forking)

    steps = busy_run(arguments.run)
    processes = [lambda: feed(steps, arguments.model)]
    if version >= HTTP_SINCE:
        processes.append(serve_http)
    page = render(processes)
    entry: dict[str, Any] = {
        "version": arguments.version,
        "engine": "v0",
        "model": arguments.model,
        "engines": {"0": expected_engine(steps, page, arguments.version)},
    }
    if version >= HTTP_SINCE:
        entry["http"] = HTTP_FED
    store(f"vllm-{arguments.version}-v0.logger.prom", page, entry)


if __name__ == "__main__":
    main()
