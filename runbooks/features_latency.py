"""Features of latency: TTFT, inter-token latency, time per token, engine steps."""

from __future__ import annotations

import statistics

from vllm_opsctl.exporter.window import Window
from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import feature, quantile_of, quotient

STALL_S = 0.1
"""A gap between two tokens that a reader notices; the floor of a stall (FAILURE_MODES, stall_share)."""


MIN_EVENTS = 5
"""A mean of fewer events in the window is not compared with anything."""


def versus_before(e: Evidence, concept: str) -> float | None:
    """Mean of a histogram against before; None for few events."""
    now = e.window.histogram(concept)
    if e.reference is None or now is None or now.count < MIN_EVENTS:
        return None
    return quotient(e.window.mean(concept), e.reference.mean(concept))


# -- TTFT, queue time, end to end ----------------------------------------------------------------


@feature("ttft.mean", "seconds", "Mean TTFT.")
def _(e: Evidence) -> float | None:
    return e.window.mean("time_to_first_token_seconds")


@feature("ttft.mean_before", "seconds", "Mean TTFT before.")
def _(e: Evidence) -> float | None:
    return e.reference.mean("time_to_first_token_seconds") if e.reference else None


@feature("ttft.p95", "seconds", "95th percentile of TTFT, interpolated within vLLM's bucket.")
def _(e: Evidence) -> float | None:
    return quantile_of(e, "time_to_first_token_seconds", 0.95)


@feature("ttft.vs_before", "factor", "Mean TTFT against before.")
def _(e: Evidence) -> float | None:
    return versus_before(e, "time_to_first_token_seconds")


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
    return versus_before(e, "inter_token_latency_seconds")


@feature("itl.p50", "seconds", "Median inter-token latency, interpolated within vLLM's bucket.")
def _itl_p50(e: Evidence) -> float | None:
    return quantile_of(e, "inter_token_latency_seconds", 0.5)


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


@feature("itl.p50_vs_before", "factor", "Median inter-token latency against before.")
def _median_vs_before(e: Evidence) -> float | None:
    now = e.window.histogram("inter_token_latency_seconds")
    if e.reference is None or now is None or now.count < MIN_EVENTS:
        return None
    before = e.reference.histogram("inter_token_latency_seconds")
    median = before.quantile(0.5) if before else None
    return quotient(_itl_p50(e), median.value) if median else None


FREE = 1.25
"""FAILURE_MODES, rule 4: inter-token latency of a batch that has room, against before."""


MIN_BATCH_GROWTH = 2.0
"""A batch that grew by less says nothing of where the engine saturates."""


@feature(
    "itl.growth_is_free",
    "bool",
    "The batch at least doubled, and inter-token latency hardly grew: more slots would help.",
)
def _(e: Evidence) -> bool | None:
    if e.reference is None or e.reference.window is None:
        return None
    mean = versus_before(e, "inter_token_latency_seconds")
    batch = quotient(
        e.window.gauge_mean("requests_running"),
        e.reference.window.gauge_mean("requests_running"),
    )
    if mean is None or batch is None:
        return None
    if batch < MIN_BATCH_GROWTH:
        return False
    median = _median_vs_before(e)
    tokens, running = e.window.mean("step_tokens"), e.window.gauge_max("requests_running")
    if median is None or tokens is None or not running:
        return mean < FREE
    # in steps of decodes alone a stray stall moves the mean, a dearer batch moves the median too
    is_decoding = tokens < 2 * running
    return mean < FREE or (is_decoding and median < 1.15 and mean < 1 + 0.1 * (batch - 1))


@feature(
    "itl.running_correlation",
    "ratio",
    "Correlation of the inter-token latency with the size of the batch, interval by interval.",
)
def _(e: Evidence) -> float | None:
    rows = []
    for index in range(1, len(e.history.samples)):
        pair = e.history.slice(index - 1, index + 1)
        histogram = pair.histogram("inter_token_latency_seconds")
        running = pair.gauge_mean("requests_running")
        if histogram is not None and histogram.mean is not None and running is not None:
            rows.append((running, histogram.mean))
    if len(rows) < 10 or len({row[0] for row in rows}) < 3 or len({row[1] for row in rows}) < 3:
        return None
    running_values, latencies = zip(*rows, strict=True)
    return statistics.correlation(running_values, latencies)


@feature("decode.time_mean", "seconds", "Mean decode time of the requests that finished.")
def _(e: Evidence) -> float | None:
    return e.window.mean("request_decode_seconds")


@feature("tpot.mean", "seconds", "Mean time per output token of the requests that finished.")
def _(e: Evidence) -> float | None:
    return _tpot(e.window)


@feature("tpot.vs_before", "factor", "Time per output token of finished requests against before.")
def _(e: Evidence) -> float | None:
    if e.reference is None or e.reference.window is None:
        return None
    return quotient(_tpot(e.window), _tpot(e.reference.window))


def _tpot(window: Window) -> float | None:
    """Decode time over tokens: speculation counts, where inter-token latency counts steps."""
    decode, output = (
        window.histogram("request_decode_seconds"),
        window.histogram("request_generation_tokens"),
    )
    if decode is None or output is None or decode.count < MIN_EVENTS:
        return None
    return quotient(decode.sum, output.sum)


# -- engine steps --------------------------------------------------------------------------------


@feature("step.rate", "per_second", "Engine steps with output per second.")
def _(e: Evidence) -> float | None:
    return _step_rate(e.window)


@feature("step.rate_vs_before", "factor", "Engine steps per second against before.")
def _(e: Evidence) -> float | None:
    if e.reference is None or e.reference.window is None:
        return None
    return quotient(_step_rate(e.window), _step_rate(e.reference.window))


def _step_rate(window: Window) -> float | None:
    histogram = window.histogram("step_tokens")
    return quotient(histogram.count, window.seconds) if histogram else None


@feature("step.tokens_vs_before", "factor", "Tokens per engine step against before.")
def _(e: Evidence) -> float | None:
    return versus_before(e, "step_tokens")


@feature("prefill.per_token_vs_before", "factor", "Prefill time per computed token against before.")
def _(e: Evidence) -> float | None:
    if e.reference is None or e.reference.window is None:
        return None
    return quotient(_prefill_per_token(e.window), _prefill_per_token(e.reference.window))


def _prefill_per_token(window: Window) -> float | None:
    prefill, computed = (
        window.histogram("request_prefill_seconds"),
        window.histogram("request_computed_tokens"),
    )
    if prefill is None or computed is None or prefill.count < MIN_EVENTS:
        return None
    return quotient(prefill.sum, computed.sum)


@feature("prefill.share", "ratio", "Share of the time in the batch that requests spend in prefill.")
def _(e: Evidence) -> float | None:
    prefill, inference = (
        e.window.histogram("request_prefill_seconds"),
        e.window.histogram("request_inference_seconds"),
    )
    return quotient(prefill.sum, inference.sum) if prefill and inference else None


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
