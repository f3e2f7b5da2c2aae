"""Features of load: queue, running batch, KV cache, preemptions, prefix cache, traffic."""

from __future__ import annotations

import statistics

from vllm_opsctl.exporter.window import Window
from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import feature, number_of, quotient


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
    facts = e.newest.facts if e.newest else {}
    tokens = number_of(facts.get("kv_cache_size_tokens"))
    if tokens is not None:
        return tokens
    blocks, size = number_of(facts.get("num_gpu_blocks")), number_of(facts.get("block_size"))
    return blocks * size if blocks and size else None


@feature("kv.turnover_seconds", "seconds", "Time in which new tokens fill the whole KV cache once.")
def _turnover(e: Evidence) -> float | None:
    computed = e.window.mean("request_computed_tokens")
    started = _started(e)
    generated = e.window.delta("generation_tokens")
    if computed is None or started is None or generated is None:
        return None
    per_second = quotient(computed * started + generated, e.window.seconds)
    return quotient(_capacity(e), per_second)


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
    return quotient(e.window.delta("preemptions"), _started(e))


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
    return quotient(
        e.window.delta("prefix_cache_hit_tokens"), e.window.delta("prefix_cache_queried_tokens")
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


# -- traffic -----------------------------------------------------------------------------------


@feature("traffic.started", "count", "Requests that got their first token in the window.")
def _started(e: Evidence) -> float | None:
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
    started, finished = _started(e), _finished(e)
    running, waiting = e.window.gauge("requests_running"), e.window.gauge("requests_waiting")
    if started is None or finished is None or not running or not waiting:
        return None
    # a preempted request waits again although it has had its first token
    preempted = max(0.0, waiting[-1] - waiting[0]) if e.window.delta("preemptions") else 0.0
    return max(0.0, started - finished - (running[-1] - running[0]) - preempted)


@feature(
    "traffic.lost_ratio", "ratio", "Share of the requests with a first token whose client hung up."
)
def _(e: Evidence) -> float | None:
    started, running = _started(e), e.window.gauge("requests_running")
    if started is None or not running:
        return None
    return quotient(_lost(e), started + running[0])


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
    names = [
        name
        for sample in e.window.samples
        for name in sample.facts.get("lora.running_lora_adapters", "").split(",")
        if name
    ]
    known = any("lora.max_lora" in sample.facts for sample in e.window.samples)
    return float(len(set(names))) if known else None
