"""A page from the V1 engine's own PrometheusStatLogger of one vLLM version.

Run it with the unpacked sources of that version on PYTHONPATH, in an environment that has
vLLM's Python dependencies:

    PYTHONPATH=path/to/vllm-0.13.0 python logger_v1.py 0.13.0 [--engines 2] [--front-ends 4]
        [--lora] [--spec-decode] [--name other-file-name] [--model NAME]
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from functools import partial
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
from workload import BLOCK_SIZE, KV_BLOCKS, Finished, Step, busy_run, totals

ABSENT = ["gguf", "diskcache"]
MAX_LORAS = 2
MAX_MODEL_LEN = 4096
MM_QUERIES, MM_HITS = 9, 4
DRAFT_TOKENS, ACCEPTED_TOKENS = 3, 2


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version")
    parser.add_argument("--absent", nargs="*", default=[], help="more modules to stub")
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--front-ends", type=int, default=1)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--spec-decode", action="store_true")
    parser.add_argument("--model", default="org/model-7b")
    parser.add_argument("--name")
    parser.add_argument("--run", type=int, default=1, help="which workload to feed")
    return parser.parse_args()


def make_config(arguments: argparse.Namespace) -> SimpleNamespace:
    """The parts of VllmConfig that the logger reads; CacheConfig is vLLM's own."""
    from vllm.config import CacheConfig

    cache = CacheConfig(
        block_size=BLOCK_SIZE,
        gpu_memory_utilization=0.9,
        cache_dtype="auto",
        enable_prefix_caching=True,
        **needed(CacheConfig, {"swap_space": 4}),
    )
    cache.num_gpu_blocks, cache.num_cpu_blocks = KV_BLOCKS, 0
    return SimpleNamespace(
        model_config=SimpleNamespace(
            served_model_name=arguments.model,
            max_model_len=MAX_MODEL_LEN,
            enforce_eager=False,
            is_diffusion=False,
        ),
        cache_config=cache,
        observability_config=SimpleNamespace(
            show_hidden_metrics=False,
            kv_cache_metrics=False,
            enable_mfu_metrics=False,
            custom_histogram_buckets=None,
        ),
        compilation_config=SimpleNamespace(cudagraph_capture_sizes=[1, 2, 4, 8, 16, 32, 64]),
        lora_config=SimpleNamespace(max_loras=MAX_LORAS) if arguments.lora else None,
        speculative_config=SimpleNamespace(num_speculative_tokens=DRAFT_TOKENS)
        if arguments.spec_decode
        else None,
        kv_transfer_config=None,
        ec_transfer_config=None,
        watermark_config=None,
    )


def needed(function: Any, optional: dict[str, Any]) -> dict[str, Any]:
    """Those keyword arguments that this version's callable requires."""
    parameters = inspect.signature(function).parameters
    return {
        name: value
        for name, value in optional.items()
        if name in parameters and parameters[name].default is inspect.Parameter.empty
    }


def make(kind: type, values: dict[str, Any]) -> Any:
    """An object of one of vLLM's dataclasses from those values it has a field for."""
    names = {f.name for f in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def assign(target: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if hasattr(target, name):
            setattr(target, name, value)


def counts_blocks() -> bool:
    """Older V1 counts prefix cache queries in blocks; its HELP text says so."""
    from vllm.v1.metrics import loggers

    return "number of queried blocks" in inspect.getsource(loggers)


def spec_decode_stats() -> Any:
    """One draft per step: DRAFT_TOKENS proposed, ACCEPTED_TOKENS accepted."""
    from vllm.v1.spec_decode.metrics import SpecDecodingStats

    result = SpecDecodingStats.new(DRAFT_TOKENS)
    result.observe_draft(num_draft_tokens=DRAFT_TOKENS, num_accepted_tokens=ACCEPTED_TOKENS)
    return result


def lora_names(step: Step) -> list[str]:
    return sorted({*step.running_loras, *step.waiting_loras})


def lora_adapters(step: Step) -> dict[str, dict[str, int]]:
    """As vLLM fills them: every adapter with any request is in both, with a count that may be 0."""
    names = lora_names(step)
    return {
        "running_lora_adapters": {name: int(name in step.running_loras) for name in names},
        "waiting_lora_adapters": {name: int(name in step.waiting_loras) for name in names},
    }


def scheduler_stats(step: Step, spec_decode: bool) -> Any:
    from vllm.v1.metrics import stats

    unit = BLOCK_SIZE if counts_blocks() else 1
    prefix = stats.PrefixCacheStats(
        requests=step.admitted,
        queries=step.prompt_tokens // unit,
        hits=step.cached_tokens // unit,
    )
    fields = {f.name for f in dataclasses.fields(stats.SchedulerStats)}
    deferred = step.deferred if "num_skipped_waiting_reqs" in fields else 0
    return make(
        stats.SchedulerStats,
        {
            "num_running_reqs": step.running,
            "num_waiting_reqs": step.waiting - deferred,
            "num_skipped_waiting_reqs": deferred,
            "gpu_cache_usage": step.kv_usage,
            "kv_cache_usage": step.kv_usage,
            "prefix_cache_stats": prefix,
            "spec_decoding_stats": spec_decode_stats() if spec_decode else None,
            **lora_adapters(step),
        },
    )


def finished_stats(done: Finished) -> Any:
    from vllm.v1.engine import FinishReason
    from vllm.v1.metrics.stats import FinishedRequestStats

    return make(
        FinishedRequestStats,
        {
            "finish_reason": FinishReason[done.reason.upper()],
            "e2e_latency": done.e2e,
            "num_prompt_tokens": done.prompt,
            "num_preemptions": done.preemptions,
            "num_generation_tokens": done.generated,
            "max_tokens_param": done.generated,
            "queued_time": done.queue,
            "prefill_time": done.prefill,
            "inference_time": done.inference,
            "decode_time": done.decode,
            "mean_time_per_output_token": done.tpot,
            "num_cached_tokens": done.cached,
        },
    )


def iteration_stats(step: Step) -> Any:
    from vllm.v1.metrics import stats

    result = stats.IterationStats()
    values = {
        "num_generation_tokens": step.generation_tokens,
        "num_preempted_reqs": step.preemptions,
        "finished_requests": [finished_stats(f) for f in step.finished],
        "max_num_generation_tokens_iter": [f.generated for f in step.finished],
        "n_params_iter": [1] * len(step.finished),
        "time_to_first_tokens_iter": step.ttft,
        "inter_token_latencies_iter": step.itl,
        "time_per_output_tokens_iter": step.itl,
        "queue_times_iter": [f.queue for f in step.finished],
        "prefill_times_iter": [f.prefill for f in step.finished],
        **lora_adapters(step),
    }
    if hasattr(stats, "PromptTokenStats"):
        values["prompt_token_stats"] = make(
            stats.PromptTokenStats,
            {
                "computed": step.prompt_tokens - step.cached_tokens,
                "local_cache_hit": step.cached_tokens,
                "cached_tokens": step.cached_tokens,
                "total": step.prompt_tokens,
            },
        )
    else:
        values["num_prompt_tokens"] = step.prompt_tokens
    assign(result, values)
    return result


def feed(config: SimpleNamespace, runs: list[list[Step]], front_end: int, front_ends: int) -> None:
    """Give one front end its share of the steps; the first one gets all scheduler statistics."""
    from vllm.v1.metrics import loggers, stats

    parameters = inspect.signature(loggers.PrometheusStatLogger).parameters
    indexes = list(range(len(runs)))
    if "engine_indexes" in parameters:
        logger = loggers.PrometheusStatLogger(config, indexes)
    elif "engine_index" in parameters:
        logger = loggers.PrometheusStatLogger(config, 0)
    else:
        logger = loggers.PrometheusStatLogger(config)
    if hasattr(logger, "log_engine_initialized"):
        logger.log_engine_initialized()
    record = getattr(logger, "record", logger.log)
    accepted = inspect.signature(record).parameters
    spec_decode = config.speculative_config is not None
    for index in indexes:
        for number, step in enumerate(runs[index]):
            mine = number % front_ends == front_end
            extra: dict[str, Any] = {"engine_idx": index} if "engine_idx" in accepted else {}
            if "mm_cache_stats" in accepted and number == 0 and mine:
                extra["mm_cache_stats"] = stats.MultiModalCacheStats(
                    requests=MM_QUERIES, queries=MM_QUERIES, hits=MM_HITS
                )
            if mine or front_end == 0:
                record(
                    scheduler_stats=scheduler_stats(step, spec_decode) if front_end == 0 else None,
                    iteration_stats=iteration_stats(step) if mine else None,
                    **extra,
                )


def expected_engine(steps: list[Step], page: str, lora: bool, spec_decode: bool) -> dict[str, Any]:
    """The fed totals, less the concepts for which this version has no metric."""
    from vllm.v1.engine import FinishReason

    result = totals(steps)
    result["finished"] = {
        str(reason): result["finished"].get(str(reason), 0) for reason in FinishReason
    }
    del result["prefix_hit_ratio"]
    if counts_blocks():
        result["prefix_queries"] = sum(s.prompt_tokens // BLOCK_SIZE for s in steps)
        result["prefix_hits"] = sum(s.cached_tokens // BLOCK_SIZE for s in steps)
        result["prefix_unit"] = "blocks"
    result["prompt_tokens_cached"] = sum(s.cached_tokens for s in steps)
    result["mm_queries"], result["mm_hits"] = MM_QUERIES, MM_HITS
    metric_of = {
        "waiting_capacity": "num_requests_waiting_by_reason",
        "waiting_deferred": "num_requests_waiting_by_reason",
        "preemptions": "num_preemptions_total",
        "tpot": "request_time_per_output_token_seconds",
        "prompt_tokens_cached": "prompt_tokens_cached_total",
        "mm_queries": "mm_cache_queries_total",
        "mm_hits": "mm_cache_hits_total",
    }
    for concept, metric in metric_of.items():
        if f"# TYPE vllm:{metric} " not in page:
            del result[concept]
    if spec_decode:
        result["spec_decode"] = {
            "drafts": len(steps),
            "draft_tokens": len(steps) * DRAFT_TOKENS,
            "accepted_tokens": len(steps) * ACCEPTED_TOKENS,
        }
    if lora:
        names = lora_names(steps[-1])
        result["lora"] = {"max": MAX_LORAS, "running": names, "waiting": names}
    return result


def main() -> None:
    arguments = parse_arguments()
    if arguments.front_ends > 1:
        use_multiprocess_mode()
    stub(ABSENT + arguments.absent)
    tolerate_known_model_types()
    import vllm.v1.metrics.loggers  # noqa: F401  (before forking)
    from vllm.v1.engine import FinishReason

    config = make_config(arguments)
    reasons = ("stop", "stop", "length", *(str(r) for r in FinishReason if r.value > 1))
    runs = [busy_run(arguments.run + index, reasons) for index in range(arguments.engines)]
    version = tuple(int(part) for part in arguments.version.split("."))

    def front_end(number: int) -> None:
        feed(config, runs, number, arguments.front_ends)
        if number == 0 and version >= HTTP_SINCE:
            serve_http()

    page = render([partial(front_end, number) for number in range(arguments.front_ends)])
    entry: dict[str, Any] = {
        "version": arguments.version,
        "engine": "v1",
        "model": arguments.model,
        "engines": {
            str(i): expected_engine(run, page, arguments.lora, arguments.spec_decode)
            for i, run in enumerate(runs)
        },
    }
    if version >= HTTP_SINCE:
        entry["http"] = HTTP_FED
    store(arguments.name or f"vllm-{arguments.version}-v1.logger.prom", page, entry)


if __name__ == "__main__":
    main()
