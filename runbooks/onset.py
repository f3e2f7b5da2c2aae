"""
When did it start? One change point over several series of one engine, by least squares.

The split that removes most of the squared deviation from the two means is the onset (single
change-point detection, Hinkley 1970; the cost is ruptures' "l2"). Every series is scaled to the
same total, so that a jump of the queue and a fall of the hit ratio count alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from vllm_opsctl.exporter.engine import EngineSample
from vllm_opsctl.exporter.window import Window

MIN_SAMPLES = 5
"""A side with fewer samples cannot be judged (FAILURE_MODES: a window has at least 5 scrapes)."""

MIN_EXPLAINED = 0.5
"""Share of the deviation that the split must remove, for the series that shows it best."""


def find_onset(window: Window) -> int | None:
    """
    Find the sample at which the engine's behaviour changed most.

    Returns:
        Index of the first sample after the change; None when nothing changed clearly.
    """
    series = [values for values in map(_complete, _series(window)) if values is not None]
    length = len(window.samples) - 1
    if not series or length < 2 * MIN_SAMPLES:
        return None
    gains = [_gains(values) for values in series]
    split = max(
        range(MIN_SAMPLES, length - MIN_SAMPLES + 1),
        key=lambda index: sum(gain[index] for gain in gains),
    )
    if max(gain[split] for gain in gains) < MIN_EXPLAINED:
        return None
    # intervals are numbered by their later sample: interval k lies between samples k and k+1
    return split


def _gains(values: Sequence[float]) -> list[float]:
    """Share of the squared deviation that a split before each index removes, shape (n,)."""
    n = len(values)
    prefix = [0.0]
    for value in values:
        prefix.append(prefix[-1] + value)
    mean = prefix[-1] / n
    total = sum((value - mean) ** 2 for value in values)
    if total <= 1e-12 * max(1.0, mean * mean) * n:
        return [0.0] * n
    gains = [0.0] * n
    for split in range(1, n):
        left = prefix[split] / split - mean
        right = (prefix[-1] - prefix[split]) / (n - split) - mean
        gains[split] = (split * left**2 + (n - split) * right**2) / total
    return gains


def _series(window: Window) -> list[list[float | None]]:
    """The series in which incidents show, one value per interval between two samples."""
    pairs = list(zip(window.samples, window.samples[1:], strict=False))
    steps_s = window.steps_s

    def gauge(key: str, scale: Callable[[float], float]) -> list[float | None]:
        found = [b.gauges.get(key) for _, b in pairs]
        return [None if value is None else scale(value) for value in found]

    def rate(read: Callable[[EngineSample], float | None]) -> list[float | None]:
        rates: list[float | None] = []
        for (a, b), seconds in zip(pairs, steps_s, strict=True):
            old, new = read(a), read(b)
            usable = old is not None and new is not None and new >= old and seconds > 0
            rates.append((new - old) / seconds if usable else None)  # type: ignore[operator]
        return rates

    def ratio(
        top: Callable[[EngineSample], float | None], bottom: Callable[[EngineSample], float | None]
    ) -> list[float | None]:
        ratios: list[float | None] = []
        for up, down in zip(rate(top), rate(bottom), strict=True):
            ratios.append(up / down if up is not None and down else None)
        return ratios

    def mean(concept: str) -> list[float | None]:
        return ratio(lambda s: _sum(s, concept), lambda s: _count(s, concept))

    return [
        gauge("requests_waiting", math.log1p),
        gauge("kv_cache_usage_ratio", float),
        rate(lambda s: s.total("preemptions")),
        rate(lambda s: s.steps),
        rate(_client_errors),
        ratio(
            lambda s: s.total("prefix_cache_hit_tokens"),
            lambda s: s.total("prefix_cache_queried_tokens"),
        ),
        mean("inter_token_latency_seconds"),
        ratio(
            lambda s: s.total("requests_finished"),
            lambda s: _count(s, "time_to_first_token_seconds"),
        ),
        gauge("requests_waiting_by_reason{deferred}", math.log1p),
        ratio(
            lambda s: s.counters.get("requests_finished{length}"),
            lambda s: s.total("requests_finished"),
        ),
        mean("request_prompt_tokens"),
        mean("request_generation_tokens"),
        ratio(
            lambda s: s.total("spec_decode_accepted_tokens"),
            lambda s: s.total("spec_decode_draft_tokens"),
        ),
    ]


def _complete(values: Sequence[float | None]) -> list[float] | None:
    """Carry the last value over gaps; None when hardly anything was there."""
    known = [value for value in values if value is not None]
    if len(known) < MIN_SAMPLES or len(known) < len(values) / 3:
        return None
    filled: list[float] = []
    last = known[0]
    for value in values:
        last = last if value is None else value
        filled.append(last)
    return filled


def _client_errors(sample: EngineSample) -> float | None:
    if sample.total("http_requests") is None:
        return None
    return sample.counters.get("http_requests{4xx}", 0.0)


def _sum(sample: EngineSample, concept: str) -> float | None:
    histogram = sample.histograms.get(concept)
    return histogram.sum if histogram else None


def _count(sample: EngineSample, concept: str) -> float | None:
    histogram = sample.histograms.get(concept)
    return histogram.count if histogram else None
