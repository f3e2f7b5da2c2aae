"""Features of latency and of the shape of requests: TTFT, inter-token latency, lengths, steps."""

from __future__ import annotations

from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import feature, quotient

STALL_S = 0.1
"""A gap between two tokens that a reader notices; the floor of a stall (FAILURE_MODES, stall_share)."""


MIN_EVENTS = 5
"""A mean of fewer events in the window is not compared with anything."""


def _vs_before(e: Evidence, concept: str) -> float | None:
    now = e.window.histogram(concept)
    if e.reference is None or now is None or now.count < MIN_EVENTS:
        return None
    return quotient(e.window.mean(concept), e.reference.mean(concept))


def _quantile(e: Evidence, concept: str, q: float) -> float | None:
    histogram = e.window.histogram(concept)
    quantile = histogram.quantile(q) if histogram else None
    return quantile.value if quantile else None


# -- TTFT, queue time, end to end ----------------------------------------------------------------


@feature("ttft.mean", "seconds", "Mean TTFT.")
def _(e: Evidence) -> float | None:
    return e.window.mean("time_to_first_token_seconds")


@feature("ttft.mean_before", "seconds", "Mean TTFT before.")
def _(e: Evidence) -> float | None:
    return e.reference.mean("time_to_first_token_seconds") if e.reference else None


@feature("ttft.p95", "seconds", "95th percentile of TTFT, interpolated within vLLM's bucket.")
def _(e: Evidence) -> float | None:
    return _quantile(e, "time_to_first_token_seconds", 0.95)


@feature("ttft.vs_before", "factor", "Mean TTFT against before.")
def _(e: Evidence) -> float | None:
    return _vs_before(e, "time_to_first_token_seconds")


@feature("queue.time_mean", "seconds", "Mean queue time of the requests that finished.")
def _(e: Evidence) -> float | None:
    return e.window.mean("request_queue_seconds")


@feature("prefill.time_mean", "seconds", "Mean prefill time of the requests that finished.")
def _(e: Evidence) -> float | None:
    return e.window.mean("request_prefill_seconds")


@feature("e2e.mean", "seconds", "Mean end-to-end latency of the requests that finished.")
def _(e: Evidence) -> float | None:
    return e.window.mean("request_e2e_seconds")


# -- inter-token latency -------------------------------------------------------------------------


@feature("itl.mean", "seconds", "Mean inter-token latency.")
def _(e: Evidence) -> float | None:
    return e.window.mean("inter_token_latency_seconds")


@feature("itl.mean_before", "seconds", "Mean inter-token latency before.")
def _(e: Evidence) -> float | None:
    return e.reference.mean("inter_token_latency_seconds") if e.reference else None


@feature("itl.vs_before", "factor", "Mean inter-token latency against before.")
def _(e: Evidence) -> float | None:
    return _vs_before(e, "inter_token_latency_seconds")


@feature("itl.p50", "seconds", "Median inter-token latency, interpolated within vLLM's bucket.")
def _itl_p50(e: Evidence) -> float | None:
    return _quantile(e, "inter_token_latency_seconds", 0.5)


@feature(
    "itl.stall_share", "ratio", "Share of the decode time spent in gaps of 0.1 s or ten medians."
)
def _(e: Evidence) -> float | None:
    histogram = e.window.histogram("inter_token_latency_seconds")
    median = _itl_p50(e)
    if histogram is None or median is None or histogram.sum <= 0:
        return None
    floor = max(STALL_S, 10 * median)
    stalled, below = 0.0, 0.0
    for lower, count in zip((0.0, *histogram.bounds[:-1]), histogram.counts, strict=True):
        if lower >= floor:
            stalled += lower * (count - below)
        below = count
    return min(1.0, stalled / histogram.sum)


# -- lengths -------------------------------------------------------------------------------------


@feature("prompt.tokens_mean", "count", "Mean prompt length of the requests that finished.")
def _(e: Evidence) -> float | None:
    return e.window.mean("request_prompt_tokens")


@feature("prompt.tokens_vs_before", "factor", "Mean prompt length against before.")
def _(e: Evidence) -> float | None:
    return _vs_before(e, "request_prompt_tokens")


@feature("prompt.tail_tokens", "count", "99th percentile of the prompt length.")
def _(e: Evidence) -> float | None:
    return _quantile(e, "request_prompt_tokens", 0.99)


@feature(
    "prompt.computed_mean", "count", "Prompt tokens that had to be computed per finished request."
)
def _(e: Evidence) -> float | None:
    return e.window.mean("request_computed_tokens")


@feature(
    "prompt.computed_vs_before", "factor", "Computed prompt tokens per request against before."
)
def _(e: Evidence) -> float | None:
    return _vs_before(e, "request_computed_tokens")


@feature("output.tokens_mean", "count", "Mean output length of the requests that finished.")
def _(e: Evidence) -> float | None:
    return e.window.mean("request_generation_tokens")


@feature(
    "output.tokens_vs_before", "factor", "Mean output length of finished requests against before."
)
def _(e: Evidence) -> float | None:
    return _vs_before(e, "request_generation_tokens")


@feature(
    "output.per_start",
    "count",
    "Tokens generated per request started: the output length, seen early.",
)
def _per_start(e: Evidence) -> float | None:
    started = e.window.histogram("time_to_first_token_seconds")
    return quotient(e.window.delta("generation_tokens"), started.count if started else None)


@feature(
    "output.per_start_vs_before", "factor", "Tokens generated per request started, against before."
)
def _(e: Evidence) -> float | None:
    if e.reference is None:
        return None
    started = e.reference.histogram("time_to_first_token_seconds")
    before = quotient(e.reference.total("generation_tokens"), started.count if started else None)
    return quotient(_per_start(e), before)


# -- engine steps --------------------------------------------------------------------------------


@feature("step.rate", "per_second", "Engine steps with output per second.")
def _(e: Evidence) -> float | None:
    histogram = e.window.histogram("step_tokens")
    return quotient(histogram.count, e.window.seconds) if histogram else None


@feature("step.tokens_mean", "count", "Mean tokens computed per engine step.")
def _(e: Evidence) -> float | None:
    return e.window.mean("step_tokens")


@feature(
    "step.big_count", "count", "Steps of more than 1,024 tokens and four medians: long prefills."
)
def _(e: Evidence) -> float | None:
    histogram = e.window.histogram("step_tokens")
    median = histogram.quantile(0.5) if histogram else None
    if histogram is None or median is None:
        return None
    floor = max(1024.0, 4 * median.value)
    below = max(
        (n for bound, n in zip(histogram.bounds, histogram.counts, strict=True) if bound <= floor),
        default=0.0,
    )
    return histogram.count - below
