"""Features of what clients ask for: arrivals, lengths, fan-out, finish reasons, adapters."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vllm_opsctl.exporter.units import number_of
from vllm_opsctl.exporter.window import Window
from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import feature, quotient

# -- traffic -----------------------------------------------------------------------------------


@feature("traffic.started", "count", "Requests that got their first token in the window.")
def started_requests(e: Evidence) -> float | None:
    """Requests that got their first token in the window."""
    histogram = e.window.histogram("time_to_first_token_seconds")
    return histogram.count if histogram else None


@feature("traffic.finished", "count", "Requests that finished in the window, for whatever reason.")
def _finished(e: Evidence) -> float | None:
    return e.window.delta("requests_finished")


@feature("traffic.finished_per_second", "per_second", "Requests finished per second.")
def _(e: Evidence) -> float | None:
    return e.window.rate("requests_finished")


@feature(
    "traffic.arrived_per_second",
    "per_second",
    "Requests arriving per second: first tokens plus queue growth.",
)
def _arrived(e: Evidence) -> float | None:
    return _arrivals(e.window)


@feature("traffic.arrived_per_second_before", "per_second", "Requests arriving per second before.")
def _arrived_before(e: Evidence) -> float | None:
    return _arrivals(e.reference.window) if e.reference and e.reference.window else None


@feature("traffic.arrived_vs_before", "factor", "Arrival rate against before.")
def _(e: Evidence) -> float | None:
    return quotient(_arrived(e), _arrived_before(e))


@feature(
    "traffic.lost",
    "count",
    "Requests with a first token that neither finished nor still run: hung up.",
)
def _lost(e: Evidence) -> float | None:
    started, finished = started_requests(e), _finished(e)
    running, waiting = e.window.gauge("requests_running"), e.window.gauge("requests_waiting")
    if started is None or finished is None or not running or not waiting:
        return None
    # a preempted request waits again although it has had its first token; preemptions are counted
    # only when it resumes, so a full KV cache has to do as their sign
    is_full = (e.window.gauge_max("kv_cache_usage_ratio") or 0.0) >= FULL_KV
    may_preempt = is_full or bool(e.window.delta("preemptions"))
    preempted = max(0.0, waiting[-1] - waiting[0]) if may_preempt else 0.0
    return max(0.0, started - finished - (running[-1] - running[0]) - preempted)


@feature(
    "traffic.lost_ratio", "ratio", "Share of the requests with a first token whose client hung up."
)
def _(e: Evidence) -> float | None:
    started, running = started_requests(e), e.window.gauge("requests_running")
    if started is None or not running:
        return None
    return quotient(_lost(e), started + running[0])


FULL_KV = 0.95
"""FAILURE_MODES, kv-preemption-thrash: KV usage while requests are preempted."""


def _arrivals(window: Window) -> float | None:
    started = window.histogram("time_to_first_token_seconds")
    waiting = window.gauge("requests_waiting")
    if started is None or not waiting:
        return None
    return quotient(max(0.0, started.count + waiting[-1] - waiting[0]), window.seconds)


# -- LoRA --------------------------------------------------------------------------------------


@feature("lora.limit", "count", "Adapters that may run in one batch (max_loras).")
def _(e: Evidence) -> float | None:
    return number_of(e.newest.facts.get("lora.max_lora")) if e.newest else None


@feature("lora.adapters", "count", "Different adapters seen running in the window.")
def _(e: Evidence) -> float | None:
    return _adapters(e.window)


def _adapters(window: Window) -> float | None:
    names = [
        name
        for sample in window.samples
        for name in sample.facts.get("lora.running_lora_adapters", "").split(",")
        if name
    ]
    known = any("lora.max_lora" in sample.facts for sample in window.samples)
    return float(len(set(names))) if known else None


@feature("lora.adapters_before", "count", "Different adapters seen running before.")
def _(e: Evidence) -> float | None:
    if e.reference is None or e.reference.window is None:
        return None
    return _adapters(e.reference.window)


# -- how requests end ----------------------------------------------------------------------------


def _share(finished: Mapping[str, float], reason: str) -> float | None:
    return quotient(finished.get(reason, 0.0), sum(finished.values())) if finished else None


def _finished_by_reason(window: Window) -> dict[str, float]:
    """Requests finished in a window by reason; empty when none did, or the page does not say."""
    found: dict[str, float] = {}
    for reason in ("stop", "length", "abort", "error", "repetition"):
        delta = window.delta(f"requests_finished{{{reason}}}")
        if delta is not None:
            found[reason] = delta
    return found if sum(found.values()) >= MIN_FINISHED else {}


MIN_FINISHED = 5
"""Shares of fewer finished requests say nothing."""


@feature("finish.length_ratio", "ratio", "Share of the finished requests cut at max_tokens.")
def _(e: Evidence) -> float | None:
    return _share(_finished_by_reason(e.window), "length")


@feature("finish.length_ratio_before", "ratio", "Share of the finished requests cut, before.")
def _(e: Evidence) -> float | None:
    if e.reference is None or e.reference.window is None:
        return None
    return _share(_finished_by_reason(e.reference.window), "length")


@feature("finish.errors", "count", "Requests that the engine ended with an error.")
def _(e: Evidence) -> float | None:
    return e.window.delta("requests_finished{error}")


@feature("finish.error_ratio", "ratio", "Share of the finished requests that ended with an error.")
def _(e: Evidence) -> float | None:
    return _share(_finished_by_reason(e.window), "error")


@feature("finish.repetitions", "count", "Requests that repetition detection ended.")
def _(e: Evidence) -> float | None:
    return e.window.delta("requests_finished{repetition}")


@feature("finish.corrupted", "count", "Requests with NaN logits, where vLLM counts them.")
def _(e: Evidence) -> float | None:
    return e.window.delta("corrupted_requests")


@feature("admission.rejected", "count", "Requests turned away by a queue limit.")
def _rejected(e: Evidence) -> float | None:
    return e.window.delta("admission_rejections")


@feature(
    "admission.ratio", "ratio", "Share of the arriving requests that a queue limit turned away."
)
def _(e: Evidence) -> float | None:
    rejected, started = _rejected(e), started_requests(e)
    if rejected is None or started is None:
        return None
    return quotient(rejected, rejected + started)


# -- what the work consists of -------------------------------------------------------------------


@feature(
    "traffic.fanout", "factor", "Sequences per request (n), mean of the requests that finished."
)
def _fanout(e: Evidence) -> float | None:
    return e.window.mean("request_fanout")


def _log_ratios(e: Evidence) -> dict[str, float]:
    """
    By what each factor of the work per second grew, as logarithms; empty without a reference.

    Work per second is arrivals x fan-out x (prompt tokens x share computed + output tokens), so its
    growth is the sum of these logarithms (CAUSAL_GRAPH, explain-away rule 5).
    """
    if e.reference is None or e.reference.window is None:
        return {}
    before = e.reference.window
    pairs = {
        "prompt": (
            _mean(e.window, "request_prompt_tokens"),
            _mean(before, "request_prompt_tokens"),
        ),
        "miss": (_miss_share(e.window), _miss_share(before)),
        "output": (_output(e.window), _output(before)),
        "fanout": (_mean(e.window, "request_fanout"), _mean(before, "request_fanout")),
    }
    ratios = {name: math.log(now / then) for name, (now, then) in pairs.items() if now and then}
    now, then = _arrivals(e.window), _arrivals(before)
    if now and then:
        # arrivals count sequences: what fan-out added is not more requests
        ratios["arrivals"] = math.log(now / then) - ratios.get("fanout", 0.0)
    return ratios


def _mean(window: Window, concept: str) -> float | None:
    histogram = window.histogram(concept)
    return histogram.mean if histogram and histogram.count >= MIN_FINISHED else None


def _miss_share(window: Window) -> float | None:
    return quotient(
        _mean(window, "request_computed_tokens"), _mean(window, "request_prompt_tokens")
    )


def _output(window: Window) -> float | None:
    """Output length; tokens per start see it early, finished requests late: the larger one."""
    started = window.histogram("time_to_first_token_seconds")
    early = quotient(window.delta("generation_tokens"), started.count if started else None)
    late = _mean(window, "request_generation_tokens")
    known = [value for value in (early, late) if value]
    return max(known) if known else None


def _work_share(e: Evidence, factor: str) -> float | None:
    ratios = _log_ratios(e)
    grown = sum(value for value in ratios.values() if value > 0)
    if factor not in ratios or grown < math.log(MIN_GROWTH):
        return None
    return max(0.0, ratios[factor]) / grown


MIN_GROWTH = 1.3
"""Work that grew by less needs no explanation."""


@feature("work.arrivals_share", "ratio", "Share of the work's growth that more requests explain.")
def _(e: Evidence) -> float | None:
    return _work_share(e, "arrivals")


@feature("work.prompt_share", "ratio", "Share of the work's growth that longer prompts explain.")
def _(e: Evidence) -> float | None:
    return _work_share(e, "prompt")


@feature("work.miss_share", "ratio", "Share of the work's growth that cache misses explain.")
def _(e: Evidence) -> float | None:
    return _work_share(e, "miss")


@feature("work.output_share", "ratio", "Share of the work's growth that longer outputs explain.")
def _(e: Evidence) -> float | None:
    return _work_share(e, "output")


@feature("work.fanout_share", "ratio", "Share of the work's growth that fan-out explains.")
def _(e: Evidence) -> float | None:
    return _work_share(e, "fanout")
