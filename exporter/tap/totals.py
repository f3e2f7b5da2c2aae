"""
Adds up what vLLM says of its steps, in a fixed amount of memory; knows nothing of files.

Reads vLLM's statistics objects by attribute and takes what is there: a field that a release does
not have stays without a value, a counter ``untold`` (vllm/v1/metrics/stats.py, read in 0.11.1 to 0.33.0).
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.layout import COUNTERS, GAUGES, HISTOGRAMS, SLOT_FIELDS

_C = {name: index for index, name in enumerate(COUNTERS)}
_G = {name: index for index, name in enumerate(GAUGES)}
_COUNTS = [name for name, code, _ in SLOT_FIELDS if code != "f"]
_S = {name: index + (index > 0) for index, name in enumerate(_COUNTS)}
"""Cells of 32 bits of a slot's counts; the second takes two of them."""
_FLOATS = [name for name, code, _ in SLOT_FIELDS if code == "f"]
_F = {name: index for index, name in enumerate(_FLOATS)}
_H = {name: index for index, (name, _, _) in enumerate(HISTOGRAMS)}
_SCALES = tuple(scale for _, scale, _ in HISTOGRAMS)

FIRST_BUCKETS = tuple(
    layout.HISTOGRAM_OFFSETS[name] // 8 + layout.HISTOGRAM_HEAD for name, _, _ in HISTOGRAMS
)
"""Cell of each histogram's first bucket."""

_NO_COUNTS = array("I", [0] * (len(_COUNTS) + 1))
_NO_FLOATS = array("f", [0.0] * len(_FLOATS))

_REQUEST_TIMES = (
    ("e2e_latency", _H["e2e"], _F["e2e_sum"], _F["e2e_max"]),
    ("queued_time", _H["queue"], _F["queue_sum"], _F["queue_max"]),
    ("prefill_time", _H["prefill"], _F["prefill_sum"], None),
    ("decode_time", _H["decode"], _F["decode_sum"], None),
    ("mean_time_per_output_token", _H["tpot"], None, None),
)
"""FinishedRequestStats' field, histogram, and the slot's sum and peak."""

_REQUEST_TOKENS = (
    ("num_prompt_tokens", _H["prompt_length"], _S["finished_prompt_tokens"]),
    ("num_generation_tokens", _H["output_length"], _S["finished_output_tokens"]),
    ("num_cached_tokens", _H["cached_length"], _S["finished_cached_tokens"]),
    ("max_tokens_param", _H["max_tokens"], None),
)

_SCHEDULER_COUNTERS = (
    ("prefix_cache_stats", ("prefix_queries", "prefix_hits")),
    ("connector_prefix_cache_stats", ("external_prefix_queries", "external_prefix_hits")),
    ("spec_decoding_stats", ("spec_drafts", "spec_draft_tokens", "spec_accepted_tokens")),
)
"""SchedulerStats' field, and the counters that nothing else fills."""

_ITERATION_COUNTERS = (
    ("num_prompt_tokens", ("prompt_tokens",)),
    ("num_generation_tokens", ("generation_tokens",)),
    ("num_preempted_reqs", ("preemptions",)),
    ("num_corrupted_reqs", ("corrupted_requests",)),
)
"""The same of IterationStats."""

_FINISHED = {reason: _C[f"finished_{reason}"] for reason in layout.FINISH_REASONS}
_FINISHED_IN_SLOT = {
    reason: _S[f"finished_{reason}"]
    for reason in layout.FINISH_REASONS
    if f"finished_{reason}" in _S
}
_REJECTED = {reason: _C[f"rejected_{reason}"] for reason in layout.REJECTIONS}

# plain names for the hot path
_C_RECORDS, _C_SCHEDULER_RECORDS, _C_STEPS = _C["records"], _C["scheduler_records"], _C["steps"]
_C_PROMPT, _C_GENERATION = _C["prompt_tokens"], _C["generation_tokens"]
_C_STEP_TOKENS, _C_PREEMPTIONS = _C["step_tokens"], _C["preemptions"]
_C_QUERIES, _C_HITS = _C["prefix_queries"], _C["prefix_hits"]
_C_CORRECTED = _C["corrected_times"]
_G_RUNNING, _G_WAITING, _G_DEFERRED = _G["running"], _G["waiting"], _G["deferred"]
_G_KV, _G_SCHEDULED, _G_RECORDED = _G["kv_cache_usage"], _G["scheduled_at"], _G["recorded_at"]
_S_SCHEDULED, _S_STEPS, _S_STEP_TOKENS = _S["scheduled"], _S["steps"], _S["step_tokens"]
_S_RUNNING, _S_RUNNING_MAX = _S["running"], _S["running_max"]
_S_WAITING, _S_WAITING_MAX, _S_DEFERRED = _S["waiting"], _S["waiting_max"], _S["deferred"]
_F_KV, _F_KV_MAX = _F["kv_cache_usage"], _F["kv_cache_usage_max"]
_S_PROMPT, _S_GENERATION = _S["prompt_tokens"], _S["generation_tokens"]
_S_QUERIES, _S_HITS, _S_PREEMPTIONS = _S["prefix_queries"], _S["prefix_hits"], _S["preemptions"]
_S_TTFT, _F_TTFT_SUM, _F_TTFT_MAX = _S["ttft"], _F["ttft_sum"], _F["ttft_max"]
_S_ITL, _F_ITL_SUM, _F_ITL_MAX = _S["itl"], _F["itl_sum"], _F["itl_max"]
_S_FINISHED = _S["finished"]
_GOES_ON = ((_S_RUNNING, _S_RUNNING_MAX), (_S_WAITING, _S_WAITING_MAX))
_MAX_32 = 2**32 - 1
_H_TTFT, _H_ITL, _H_HIT, _H_MISS = _H["ttft"], _H["itl"], _H["ttft_hit"], _H["ttft_miss"]


class Totals:
    """
    The running totals of one engine.

    Attributes:
        counters: In the order of ``layout.COUNTERS``.
        gauges: In the order of ``layout.GAUGES``.
        sums: Of each histogram's values, and ``largest`` of them.
        second: Unix second that ``counts`` and ``floats`` are of; 0 before the first.
        counts: The slot's fields of ``layout.SLOT_FIELDS`` that are counts, in cells of 32 bits.
        floats: Its floats.
        added: Cells of buckets and by how much they grew since :meth:`clear`.
        touched: Histograms that grew.
        untold: Bit by bit the counters that this vLLM does not tell, as ``layout.HEADER_FIELDS`` has it.
    """

    # arrays: what is copied to the page lies together, and nothing that it holds is an object
    __slots__ = (
        *("added", "counters", "counts", "floats", "gauges"),
        *("largest", "second", "sums", "touched", "untold"),
    )

    def __init__(self) -> None:
        self.counters = array("Q", [0] * len(COUNTERS))
        self.gauges = array("d", [layout.NO_VALUE] * len(GAUGES))
        self.gauges[_G["awake"]], self.gauges[_G["sleep_level"]] = 1.0, 0.0
        self.sums = [0.0] * len(HISTOGRAMS)
        self.largest = [0.0] * len(HISTOGRAMS)
        self.second = 0
        self.counts = array("I", _NO_COUNTS)
        self.floats = array("f", _NO_FLOATS)
        self.added: list[tuple[int, int]] = []
        self.touched: list[int] = []
        self.untold = 0

    def clear(self) -> None:
        """The page has what grew."""
        self.added.clear()
        self.touched.clear()

    def step(self, now: float, age_s: float, scheduler: Any, iteration: Any, mm_cache: Any) -> None:
        """
        Take in what vLLM passes to ``record()``.

        Args:
            now: Unix seconds.
            age_s: Age of the process: no time within it is longer.
            scheduler: SchedulerStats, or None when they went to another front end.
            iteration: IterationStats, or None when the step had no output.
            mm_cache: MultiModalCacheStats, or None.
        """
        self._turn_to(int(now))
        counters = self.counters
        counters[_C_RECORDS] += 1
        self.gauges[_G_RECORDED] = now
        if scheduler is not None:
            if not counters[_C_SCHEDULER_RECORDS]:
                self.untold |= _untold(scheduler, _SCHEDULER_COUNTERS)
            counters[_C_SCHEDULER_RECORDS] += 1
            self.counts[_S_SCHEDULED] += 1
            self.gauges[_G_SCHEDULED] = now
            self._scheduler(scheduler)
        if mm_cache is not None:
            counters[_C["mm_queries"]] += getattr(mm_cache, "queries", 0)
            counters[_C["mm_hits"]] += getattr(mm_cache, "hits", 0)
        if iteration is not None:
            self._iteration(iteration, age_s)

    def sleep(self, *, asleep: bool, level: int) -> None:
        """Sleep mode began or ended."""
        self.gauges[_G["awake"]] = 0.0 if asleep else 1.0
        self.gauges[_G["sleep_level"]] = float(level) if asleep else 0.0

    def rejection(self, now: float, reason: str) -> None:
        """Admission control refused a request."""
        self._turn_to(int(now))
        self.counters[_REJECTED.get(reason, _C["rejected_other"])] += 1
        self.counts[_S["rejections"]] += 1

    def _turn_to(self, second: int) -> None:
        """Begin a new slot with a new second; a clock that goes back stays in the newest slot."""
        if second > self.second:
            counts, floats = array("I", _NO_COUNTS), array("f", _NO_FLOATS)
            self.second = second
            counts[0], counts[1] = second & _MAX_32, second >> 32
            # what is a state and not an event goes on, and peaks begin with it
            for state, peak in _GOES_ON:
                counts[state] = counts[peak] = self.counts[state]
            counts[_S_DEFERRED] = self.counts[_S_DEFERRED]
            floats[_F_KV] = floats[_F_KV_MAX] = self.floats[_F_KV]
            self.counts, self.floats = counts, floats

    def _scheduler(self, stats: Any) -> None:
        gauges, counts, floats = self.gauges, self.counts, self.floats
        running = getattr(stats, "num_running_reqs", None)
        if running is not None:
            gauges[_G_RUNNING] = counts[_S_RUNNING] = running
            if running > counts[_S_RUNNING_MAX]:
                counts[_S_RUNNING_MAX] = running
        waiting = getattr(stats, "num_waiting_reqs", None)
        if waiting is not None:
            gauges[_G_WAITING] = waiting
            # from 0.20 on requests that a constraint defers are counted apart
            deferred = getattr(stats, "num_skipped_waiting_reqs", None)
            if deferred is not None:
                gauges[_G_DEFERRED] = counts[_S_DEFERRED] = deferred
                waiting += deferred
            counts[_S_WAITING] = waiting
            if waiting > counts[_S_WAITING_MAX]:
                counts[_S_WAITING_MAX] = waiting
        usage = getattr(stats, "kv_cache_usage", None)
        if usage is not None:
            gauges[_G_KV] = floats[_F_KV] = usage
            if usage > floats[_F_KV_MAX]:
                floats[_F_KV_MAX] = usage
        counters = self.counters
        prefix = getattr(stats, "prefix_cache_stats", None)
        if prefix is not None and prefix.queries:
            counters[_C_QUERIES] += prefix.queries
            counters[_C_HITS] += prefix.hits
            counts[_S_QUERIES] += prefix.queries
            counts[_S_HITS] += prefix.hits
        external = getattr(stats, "connector_prefix_cache_stats", None)
        if external is not None:
            counters[_C["external_prefix_queries"]] += external.queries
            counters[_C["external_prefix_hits"]] += external.hits
        spec = getattr(stats, "spec_decoding_stats", None)
        if spec is not None:
            counters[_C["spec_drafts"]] += getattr(spec, "num_drafts", 0)
            counters[_C["spec_draft_tokens"]] += getattr(spec, "num_draft_tokens", 0)
            counters[_C["spec_accepted_tokens"]] += getattr(spec, "num_accepted_tokens", 0)

    def _iteration(self, stats: Any, age_s: float) -> None:
        counters, counts, floats = self.counters, self.counts, self.floats
        if not counters[_C_STEPS]:
            self.untold |= _untold(stats, _ITERATION_COUNTERS)
        counters[_C_STEPS] += 1
        counts[_S_STEPS] += 1
        generated = getattr(stats, "num_generation_tokens", 0)
        tokens = prompt = getattr(stats, "num_prompt_tokens", 0)
        if prompt:
            counters[_C_PROMPT] += prompt
            counts[_S_PROMPT] += prompt
            sources = getattr(stats, "prompt_token_stats", None)
            if sources is not None:
                tokens = getattr(sources, "computed", prompt)
                external = getattr(sources, "external_kv_transfer", 0)
                # 0.16.0 to 0.18.0 may say less than 0 after a preemption (stats.py, FIXME of 0.19.0)
                cached = max(0, getattr(sources, "local_cache_hit", 0))
                counters[_C["cached_prompt_tokens"]] += cached
                counters[_C["external_prompt_tokens"]] += external
        tokens += generated
        counters[_C_GENERATION] += generated
        counts[_S_GENERATION] += generated
        counters[_C_STEP_TOKENS] += tokens
        counts[_S_STEP_TOKENS] += tokens
        preempted = getattr(stats, "num_preempted_reqs", 0)
        if preempted:
            counters[_C_PREEMPTIONS] += preempted
            counts[_S_PREEMPTIONS] += preempted
        gaps = getattr(stats, "inter_token_latencies_iter", None)
        if gaps:
            self._gaps(gaps, age_s)
        firsts = getattr(stats, "time_to_first_tokens_iter", None)
        if firsts:
            for value in firsts:
                seconds = self._observe(_H_TTFT, value, age_s)
                counts[_S_TTFT] += 1
                floats[_F_TTFT_SUM] += seconds
                if seconds > floats[_F_TTFT_MAX]:
                    floats[_F_TTFT_MAX] = seconds
        finished = getattr(stats, "finished_requests", None)
        if finished:
            counters[_C["corrupted_requests"]] += getattr(stats, "num_corrupted_reqs", 0)
            fanout = getattr(stats, "n_params_iter", ())
            counters[_C["fanout_requests"]] += len(fanout)
            counters[_C["fanout_choices"]] += sum(fanout)
            for request in finished:
                self._finished(request, age_s)

    def _gaps(self, gaps: list[float], age_s: float) -> None:
        """
        Inter-token latencies of one step.

        Requests that were in the step before have the very same latency, for both of its time
        stamps are the steps' (stats.py, update_from_output): few values are distinct.
        """
        first, many = gaps[0], len(gaps)
        distinct: Iterable[tuple[float, int]]
        distinct = ((first, many),) if gaps.count(first) == many else Counter(gaps).items()
        counts, floats = self.counts, self.floats
        counts[_S_ITL] += many
        for value, times in distinct:
            seconds = self._observe(_H_ITL, value, age_s, times)
            floats[_F_ITL_SUM] += seconds * times
            if seconds > floats[_F_ITL_MAX]:
                floats[_F_ITL_MAX] = seconds

    def _finished(self, request: Any, age_s: float) -> None:
        counters, counts, floats = self.counters, self.counts, self.floats
        reason = str(getattr(request, "finish_reason", "other"))
        counters[_FINISHED.get(reason, _C["finished_other"])] += 1
        counts[_S_FINISHED] += 1
        if reason in _FINISHED_IN_SLOT:
            counts[_FINISHED_IN_SLOT[reason]] += 1
        for name, histogram, total, peak in _REQUEST_TIMES:
            value = getattr(request, name, None)
            if value is None:
                continue
            seconds = self._observe(histogram, value, age_s)
            if total is not None:
                floats[total] += seconds
            if peak is not None and seconds > floats[peak]:
                floats[peak] = seconds
        for name, histogram, total in _REQUEST_TOKENS:
            tokens = getattr(request, name, None)
            if tokens is None:
                continue
            # a request without max_tokens is none of that histogram; -1 stands for "not looked up"
            tokens = max(0, tokens)
            if total is not None or tokens:
                self._observe(histogram, tokens, math.inf)
            if total is not None:
                counts[total] += tokens
        cached = getattr(request, "num_cached_tokens", None)
        prompt = getattr(request, "num_prompt_tokens", 0)
        computed = max(0, prompt - max(0, cached or 0))
        counters[_C["computed_at_finish"]] += computed
        if cached is not None and getattr(request, "num_generation_tokens", 0) > 0:
            # both intervals end with the last token: their difference ends with the first one
            histogram = _H_HIT if cached > 0 else _H_MISS
            self._observe(histogram, request.e2e_latency - request.decode_time, age_s)

    def _observe(self, histogram: int, value: float, limit: float, times: int = 1) -> float:
        """Note a value some times over; returns what it was taken for."""
        if not 0.0 <= value <= limit:
            self.counters[_C_CORRECTED] += times
            if not value < 0.0:
                return 0.0
            value = 0.0
        self.added.append((FIRST_BUCKETS[histogram] + _SCALES[histogram].index(value), times))
        self.sums[histogram] += value * times
        if value > self.largest[histogram]:
            self.largest[histogram] = value
        self.touched.append(histogram)
        return value


def _untold(stats: Any, filled_by: Iterable[tuple[str, Iterable[str]]]) -> int:
    """The bits of counters whose field a statistics object lacks; the first one is as all of them."""
    return sum(
        1 << _C[counter]
        for field, counters in filled_by
        if not hasattr(stats, field)
        for counter in counters
    )


def adapter_counts(stats: Any) -> tuple[Mapping[str, int], Mapping[str, int]] | None:
    """Running and waiting requests by adapter, as SchedulerStats say; None without adapters."""
    running = getattr(stats, "running_lora_adapters", None)
    waiting = getattr(stats, "waiting_lora_adapters", None)
    return (running or {}, waiting or {}) if running or waiting else None
