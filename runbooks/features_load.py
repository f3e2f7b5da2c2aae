"""Features of the scheduler: queue, running batch, KV cache, preemptions, prefix cache."""

from __future__ import annotations

import statistics

from vllm_opsctl.exporter.engine import EngineSample
from vllm_opsctl.exporter.units import number_of
from vllm_opsctl.exporter.window import Window
from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import feature, median_of, quotient
from vllm_opsctl.runbooks.features_traffic import started_requests

_FETCH_STAGES = ("waiting_to_start", "in_progress")
"""vllm/v1/metrics/loggers.py, 0.32: stages of num_requests_kv_fetch_by_stage."""

TREND_S = 15.0
"""Long enough for ten samples a second apart, short enough to see a backlog turn."""

MIN_TREND_SAMPLES = 5

MIN_SLOTS_TO_BLOCK = 4
"""Half of fewer slots is one or two requests: a batch between two steps looks like that."""


def _waiting(window: Window) -> list[tuple[float, float, float, float | None]]:
    """Per sample: time, requests waiting for capacity, running, KV usage."""
    rows = []
    for sample in window.samples:
        waiting = sample.gauges.get(
            "requests_waiting_by_reason{capacity}", sample.gauges.get("requests_waiting")
        )
        running = sample.gauges.get("requests_running")
        if waiting is not None and running is not None:
            rows.append((sample.t, waiting, running, sample.gauges.get("kv_cache_usage_ratio")))
    return rows


# -- queue -------------------------------------------------------------------------------------


@feature(
    "queue.waiting_avg", "count", "Requests waiting for slots or KV blocks, mean of the samples."
)
def _(e: Evidence) -> float | None:
    rows = _waiting(e.window)
    return statistics.fmean(row[1] for row in rows) if rows else None


@feature("queue.waiting_max", "count", "Most requests waiting for capacity in any sample.")
def _(e: Evidence) -> float | None:
    return max((row[1] for row in _waiting(e.window)), default=None)


@feature("queue.waiting_last", "count", "Requests waiting for capacity in the newest sample.")
def _(e: Evidence) -> float | None:
    rows = _waiting(e.window)
    return rows[-1][1] if rows else None


@feature("queue.busy_share", "ratio", "Share of the samples with at least one request waiting.")
def _(e: Evidence) -> float | None:
    rows = _waiting(e.window)
    return sum(row[1] >= 1 for row in rows) / len(rows) if rows else None


@feature("queue.deferred_avg", "count", "Requests deferred by LoRA budget, grammar or KV transfer.")
def _(e: Evidence) -> float | None:
    return e.window.gauge_mean("requests_waiting_by_reason{deferred}")


@feature(
    "queue.deferred_share", "ratio", "Share of the samples with at least one deferred request."
)
def _(e: Evidence) -> float | None:
    values = e.window.gauge("requests_waiting_by_reason{deferred}")
    return sum(value >= 1 for value in values) / len(values) if values else None


@feature(
    "queue.growth", "per_second", "Requests by which the queue grows, last against first sample."
)
def _(e: Evidence) -> float | None:
    rows = _waiting(e.window)
    return quotient(rows[-1][1] - rows[0][1], e.window.seconds) if len(rows) >= 2 else None


@feature(
    "queue.wait_seconds",
    "seconds",
    "Queue time of a request that arrives now, by Little's law: waiting over starts per second.",
)
def _(e: Evidence) -> float | None:
    rows = _waiting(e.window)
    started = started_requests(e)
    if not rows or started is None or e.window.seconds <= 0:
        return None
    waiting = statistics.fmean(row[1] for row in rows)
    # nothing started: whoever waits has waited since the window began
    return waiting * e.window.seconds / max(started, 1.0)


@feature(
    "queue.trend",
    "per_second",
    "Slope of the queue over the last seconds of the window, by least squares.",
)
def _trend(e: Evidence) -> float | None:
    rows = _waiting(e.window)
    if not rows:
        return None
    recent = [(row[0], row[1]) for row in rows if row[0] >= rows[-1][0] - TREND_S]
    if len(recent) < MIN_TREND_SAMPLES or recent[-1][0] <= recent[0][0]:
        return None
    times, values = zip(*recent, strict=True)
    if len(set(times)) < len(times):
        return None
    return statistics.linear_regression(times, values).slope


@feature(
    "queue.drain_seconds", "seconds", "Time until the queue is empty if it goes on to shrink so."
)
def _(e: Evidence) -> float | None:
    rows, trend = _waiting(e.window), _trend(e)
    return rows[-1][1] / -trend if rows and trend is not None and trend < 0 else None


@feature("queue.fallen_ratio", "ratio", "How far the queue has fallen from its highest sample.")
def _(e: Evidence) -> float | None:
    rows = _waiting(e.window)
    most = max((row[1] for row in rows), default=0.0)
    return 1 - rows[-1][1] / most if most else None


@feature(
    "queue.blocked_share",
    "ratio",
    "Share of the samples in which requests wait although slots and KV blocks are free.",
)
def _(e: Evidence) -> float | None:
    rows = [row for row in _waiting(e.window) if row[3] is not None]
    slots = max((row[2] for row in _waiting(e.history) if row[1] >= 1), default=0.0)
    if not rows or slots < MIN_SLOTS_TO_BLOCK:
        return None
    return sum(row[1] >= 2 and row[2] <= 0.5 * slots and 0.3 < row[3] < 0.9 for row in rows) / len(  # type: ignore[operator]
        rows
    )


# -- running batch -----------------------------------------------------------------------------


@feature("running.avg", "count", "Requests in the running batch, mean of the samples.")
def _(e: Evidence) -> float | None:
    return e.window.gauge_mean("requests_running")


@feature("running.max", "count", "Most requests in the running batch in any sample.")
def _(e: Evidence) -> float | None:
    return e.window.gauge_max("requests_running")


@feature(
    "running.slots",
    "count",
    "Size of the batch while others wait: max_num_seqs, or what KV allows.",
)
def _(e: Evidence) -> float | None:
    return max((row[2] for row in _waiting(e.window) if row[1] >= 1), default=None)


@feature(
    "running.fill_ratio", "ratio", "How full the batch is while others wait, mean against its size."
)
def _(e: Evidence) -> float | None:
    queued = [row[2] for row in _waiting(e.window) if row[1] >= 1]
    return quotient(statistics.fmean(queued), max(queued)) if queued else None


@feature("running.vs_before", "factor", "Batch size against before.")
def _(e: Evidence) -> float | None:
    if e.reference is None or e.reference.window is None:
        return None
    before = e.reference.window.gauge_mean("requests_running")
    return quotient(e.window.gauge_mean("requests_running"), before)


@feature("running.little", "count", "Requests in the batch by Little's law, where gauges read 0.")
def _(e: Evidence) -> float | None:
    histogram = e.window.histogram("request_inference_seconds")
    return quotient(histogram.sum, e.window.seconds) if histogram else None


# -- KV cache ----------------------------------------------------------------------------------


@feature("kv.usage_avg", "ratio", "KV-cache usage, mean of the samples.")
def _(e: Evidence) -> float | None:
    return e.window.gauge_mean("kv_cache_usage_ratio")


@feature("kv.usage_max", "ratio", "KV-cache usage, highest sample.")
def _(e: Evidence) -> float | None:
    return e.window.gauge_max("kv_cache_usage_ratio")


@feature("kv.usage_queued", "ratio", "KV-cache usage while requests wait, mean of those samples.")
def _(e: Evidence) -> float | None:
    queued = [row[3] for row in _waiting(e.window) if row[1] >= 1 and row[3] is not None]
    return statistics.fmean(queued) if queued else None


@feature("kv.capacity_tokens", "count", "Tokens that the KV cache holds.")
def _capacity(e: Evidence) -> float | None:
    return capacity_tokens(e.newest)


def capacity_tokens(sample: EngineSample | None) -> float | None:
    """Tokens that the KV cache of an engine holds."""
    return sample.kv_capacity_tokens if sample else None


@feature(
    "kv.capacity_vs_before", "factor", "Size of the KV cache against the process before this one."
)
def _(e: Evidence) -> float | None:
    return quotient(capacity_tokens(e.newest), capacity_tokens(e.predecessor))


@feature(
    "kv.max_concurrency", "factor", "How many requests of full context length the KV cache holds."
)
def _(e: Evidence) -> float | None:
    return number_of(e.newest.facts.get("kv_cache_max_concurrency")) if e.newest else None


@feature("kv.block_tokens", "count", "Tokens of one prefix-cache block: nothing shorter can hit.")
def _(e: Evidence) -> float | None:
    facts = e.newest.facts if e.newest else {}
    for name in ("cache_hit_alignment_tokens", "hash_block_size", "block_size"):
        tokens = number_of(facts.get(name))
        if tokens is not None:
            return tokens
    return None


@feature(
    "kv.tokens_per_request", "count", "KV tokens held per running request, mean of the samples."
)
def _held(e: Evidence) -> float | None:
    capacity = _capacity(e)
    if capacity is None:
        return None
    held = [
        row[3] * capacity / row[2]
        for row in _waiting(e.window)
        if row[2] >= 1 and row[3] is not None
    ]
    return statistics.fmean(held) if held else None


@feature(
    "kv.tokens_vs_typical",
    "factor",
    "KV tokens held per running request against the length of the median request.",
)
def _(e: Evidence) -> float | None:
    prompt = median_of(e, "request_prompt_tokens")
    output = median_of(e, "request_generation_tokens")
    return (
        quotient(_held(e), prompt + output) if prompt is not None and output is not None else None
    )


@feature("kv.offload_bytes_per_second", "per_second", "Bytes per second of loads from the KV tier.")
def _(e: Evidence) -> float | None:
    return quotient(
        e.window.delta("kv_offload_loaded_bytes"), e.window.delta("kv_offload_load_seconds")
    )


@feature("kv.fetching_avg", "count", "Requests that wait for their KV from another engine, mean.")
def _(e: Evidence) -> float | None:
    stages = [e.window.gauge_mean(f"requests_kv_fetch{{{stage}}}") for stage in _FETCH_STAGES]
    known = [stage for stage in stages if stage is not None]
    return sum(known) if known else None


@feature("kv.transfer_failures", "count", "KV transfers between engines that failed.")
def _(e: Evidence) -> float | None:
    return e.window.delta("kv_transfer_failures")


@feature("kv.turnover_seconds", "seconds", "Time in which new tokens fill the whole KV cache once.")
def _turnover(e: Evidence) -> float | None:
    computed, generated = _computed_tokens(e), e.window.delta("generation_tokens")
    if computed is None or generated is None:
        return None
    return quotient(_capacity(e), quotient(computed + generated, e.window.seconds))


def _computed_tokens(e: Evidence) -> float | None:
    """Prompt tokens computed in the window; releases before 0.13 tell it as lookups less hits."""
    mean, started = e.window.mean("request_computed_tokens"), started_requests(e)
    if mean is not None and started is not None:
        return mean * started
    queried, hits = (
        e.window.delta("prefix_cache_queried_tokens"),
        e.window.delta("prefix_cache_hit_tokens"),
    )
    return max(0.0, queried - hits) if queried is not None and hits is not None else None


@feature(
    "kv.turnovers", "count", "How often the KV cache could have been refilled since the onset."
)
def _(e: Evidence) -> float | None:
    return quotient(e.window.seconds, _turnover(e))


# -- preemptions -------------------------------------------------------------------------------


@feature("preempt.count", "count", "Preemptions in the window.")
def _(e: Evidence) -> float | None:
    return e.window.delta("preemptions")


@feature("preempt.per_request", "count", "Preemptions per request that got its first token.")
def _(e: Evidence) -> float | None:
    return quotient(e.window.delta("preemptions"), started_requests(e))


# -- prefix cache ------------------------------------------------------------------------------


@feature("prefix.enabled", "bool", "Prefix caching is on, as the engine's configuration says.")
def _(e: Evidence) -> bool | None:
    text = e.newest.facts.get("enable_prefix_caching") if e.newest else None
    return None if text in (None, "None") else text == "True"


@feature("prefix.queried_tokens", "count", "Prompt tokens looked up in the prefix cache.")
def _(e: Evidence) -> float | None:
    return e.window.delta("prefix_cache_queried_tokens")


@feature("prefix.hit_ratio", "ratio", "Prefix-cache hit ratio, hits over lookups in tokens.")
def _hit_ratio(e: Evidence) -> float | None:
    return _hit_ratio_of(e.window)


STRETCH = 3
"""Pages of a stretch: long enough for some requests, short enough not to mix before and after."""


@feature(
    "prefix.hit_ratio_typical",
    "ratio",
    "Prefix-cache hit ratio of three pages in a row, median over the window: edges do not mix in.",
)
def _(e: Evidence) -> float | None:
    count = len(e.window.samples)
    ratios = [
        _hit_ratio_of(e.window.slice(start, start + STRETCH))
        for start in range(max(1, count - STRETCH + 1))
    ]
    known = [ratio for ratio in ratios if ratio is not None]
    return statistics.median(known) if known else None


def _hit_ratio_of(window: Window) -> float | None:
    return quotient(
        window.delta("prefix_cache_hit_tokens"), window.delta("prefix_cache_queried_tokens")
    )


@feature("prefix.hit_ratio_before", "ratio", "Prefix-cache hit ratio before.")
def _hit_ratio_before(e: Evidence) -> float | None:
    if e.reference is None:
        return None
    return quotient(
        e.reference.total("prefix_cache_hit_tokens"),
        e.reference.total("prefix_cache_queried_tokens"),
    )


@feature("prefix.hit_vs_before", "factor", "Prefix-cache hit ratio against before.")
def _(e: Evidence) -> float | None:
    return quotient(_hit_ratio(e), _hit_ratio_before(e))


@feature(
    "prefix.lookups_missing", "bool", "Prompts are served, and none is looked up in the cache."
)
def _(e: Evidence) -> bool | None:
    queried, prompts = (
        e.window.delta("prefix_cache_queried_tokens"),
        e.window.delta("prompt_tokens"),
    )
    if queried is None or prompts is None:
        return None
    return prompts > 0 and queried == 0


@feature(
    "prefix.never_hit", "bool", "Not one token has hit the prefix cache since the process began."
)
def _(e: Evidence) -> bool | None:
    if e.newest is None:
        return None
    hits, queried = (
        e.newest.total("prefix_cache_hit_tokens"),
        e.newest.total("prefix_cache_queried_tokens"),
    )
    return None if hits is None or not queried else hits == 0


@feature("prefix.idle_before_evict", "seconds", "Median idle time of a block before its eviction.")
def _(e: Evidence) -> float | None:
    return median_of(e, "kv_block_idle_before_evict_seconds")
