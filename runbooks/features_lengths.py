"""Features of the shape of requests: prompt and output lengths, what speculation makes of them."""

from __future__ import annotations

from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import feature, median_of, quantile_of, quotient
from vllm_opsctl.runbooks.features_latency import versus_before

# -- lengths -------------------------------------------------------------------------------------


@feature("prompt.tokens_mean", "count", "Mean prompt length of the requests that finished.")
def _(e: Evidence) -> float | None:
    return e.window.mean("request_prompt_tokens")


@feature("prompt.tokens_vs_before", "factor", "Mean prompt length against before.")
def _(e: Evidence) -> float | None:
    return versus_before(e, "request_prompt_tokens")


@feature("prompt.tail_tokens", "count", "99th percentile of the prompt length.")
def _(e: Evidence) -> float | None:
    return quantile_of(e, "request_prompt_tokens", 0.99)


@feature("prompt.p50_tokens", "count", "Median prompt length, interpolated within vLLM's bucket.")
def _(e: Evidence) -> float | None:
    return median_of(e, "request_prompt_tokens")


@feature("prompt.p50_vs_before", "factor", "Median prompt length against before.")
def _(e: Evidence) -> float | None:
    before = e.reference.histogram("request_prompt_tokens") if e.reference else None
    median = before.quantile(0.5) if before else None
    return quotient(median_of(e, "request_prompt_tokens"), median.value if median else None)


@feature("prompt.tail_ratio", "factor", "99th percentile of the prompt length against the median.")
def _(e: Evidence) -> float | None:
    return quotient(
        quantile_of(e, "request_prompt_tokens", 0.99), median_of(e, "request_prompt_tokens")
    )


@feature("output.tail_ratio", "factor", "99th percentile of the output length against the median.")
def _(e: Evidence) -> float | None:
    return quotient(
        quantile_of(e, "request_generation_tokens", 0.99), median_of(e, "request_generation_tokens")
    )


@feature("output.rate_vs_before", "factor", "Tokens generated per second against before.")
def _(e: Evidence) -> float | None:
    return (
        quotient(e.window.rate("generation_tokens"), e.reference.rate("generation_tokens"))
        if e.reference
        else None
    )


@feature("output.limit_p50", "count", "Median of the max_tokens that finished requests asked for.")
def _(e: Evidence) -> float | None:
    return median_of(e, "request_max_tokens")


@feature("output.limit_vs_before", "factor", "Mean max_tokens asked for against before.")
def _(e: Evidence) -> float | None:
    return versus_before(e, "request_max_tokens")


@feature("output.of_limit", "ratio", "Mean output length against the mean max_tokens asked for.")
def _(e: Evidence) -> float | None:
    return quotient(e.window.mean("request_generation_tokens"), e.window.mean("request_max_tokens"))


@feature(
    "prompt.computed_mean", "count", "Prompt tokens that had to be computed per finished request."
)
def _(e: Evidence) -> float | None:
    return e.window.mean("request_computed_tokens")


@feature(
    "prompt.computed_vs_before", "factor", "Computed prompt tokens per request against before."
)
def _(e: Evidence) -> float | None:
    return versus_before(e, "request_computed_tokens")


@feature("output.tokens_mean", "count", "Mean output length of the requests that finished.")
def _(e: Evidence) -> float | None:
    return e.window.mean("request_generation_tokens")


@feature(
    "output.tokens_vs_before", "factor", "Mean output length of finished requests against before."
)
def _(e: Evidence) -> float | None:
    return versus_before(e, "request_generation_tokens")


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


# -- speculative decoding ------------------------------------------------------------------------


@feature("spec.draft_tokens", "count", "Tokens that speculative decoding proposed.")
def _(e: Evidence) -> float | None:
    return e.window.delta("spec_decode_draft_tokens")


@feature("spec.acceptance", "ratio", "Share of the proposed tokens that were accepted.")
def _acceptance(e: Evidence) -> float | None:
    return quotient(
        e.window.delta("spec_decode_accepted_tokens"), e.window.delta("spec_decode_draft_tokens")
    )


@feature("spec.acceptance_before", "ratio", "Share of the proposed tokens accepted before.")
def _acceptance_before(e: Evidence) -> float | None:
    if e.reference is None:
        return None
    return quotient(
        e.reference.total("spec_decode_accepted_tokens"),
        e.reference.total("spec_decode_draft_tokens"),
    )


@feature("spec.acceptance_vs_before", "factor", "Acceptance against before.")
def _(e: Evidence) -> float | None:
    return quotient(_acceptance(e), _acceptance_before(e))
