"""
The engine sample: what one vLLM engine said at one time, whatever its version and whoever asked.

Every source yields :class:`PageSample`; everything behind the sources knows nothing but these
values. Concepts are the catalogue's; a concept with a split label is keyed ``concept{value}``.
Missing is missing: a concept that the page did not have has no key.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vllm_opsctl.exporter.units import number_of


@dataclass(frozen=True, slots=True)
class Quantile:
    """
    A quantile read from buckets, and how far it can be trusted.

    Args:
        value: The interpolated quantile, in the histogram's unit.
        lower: Lower bound of the bucket it fell into.
        upper: Upper bound of that bucket; infinite when it lies beyond the last finite bound.
    """

    value: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """
    A cumulative histogram.

    Args:
        bounds: Upper bounds, ascending, shape (n,); the last is +inf.
        counts: Cumulative events, shape (n,), non-decreasing.
        sum: Sum of all observations.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    sum: float

    @property
    def count(self) -> float:
        """Number of observations."""
        return self.counts[-1]

    @property
    def mean(self) -> float | None:
        """Mean observation; None without any."""
        return self.sum / self.count if self.count > 0 else None

    def quantile(self, q: float) -> Quantile | None:
        """
        Estimate a quantile as PromQL's ``histogram_quantile`` does: linear within the bucket.

        Args:
            q: Within 0 and 1.

        Returns:
            None without observations or finite bounds. Beyond the last finite bound the value is that bound.

        Source:
            prometheus/promql/quantile.go, bucketQuantile.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"quantile {q} is not within 0 and 1")
        if self.count <= 0 or len(self.bounds) < 2:
            return None
        rank = q * self.count
        index = bisect_left(self.counts, rank)
        if index >= len(self.bounds) - 1:
            last = self.bounds[-2]
            return Quantile(last, last, math.inf)
        upper = self.bounds[index]
        if index == 0:
            share = rank / self.counts[0] if self.counts[0] else 0.0
            return Quantile(upper * share, 0.0, upper)
        lower, before = self.bounds[index - 1], self.counts[index - 1]
        inside = self.counts[index] - before
        return Quantile(lower + (upper - lower) * (rank - before) / inside, lower, upper)

    def at_or_below(self, threshold: float) -> float | None:
        """
        Observations at or below a threshold.

        Returns:
            None when the threshold is not one of the bounds: the histogram cannot tell.
        """
        for bound, count in zip(self.bounds, self.counts, strict=True):
            if math.isclose(bound, threshold, rel_tol=1e-9):
                return count
        return None

    def minus(self, earlier: Histogram) -> Histogram | None:
        """
        What was observed since an earlier state of the same histogram.

        Returns:
            None when the bounds differ or a count fell: not the same histogram's earlier state.
        """
        if self.bounds != earlier.bounds:
            return None
        counts = tuple(new - old for new, old in zip(self.counts, earlier.counts, strict=True))
        if min(counts) < 0:
            return None
        return Histogram(self.bounds, counts, self.sum - earlier.sum)

    def plus(self, other: Histogram) -> Histogram | None:
        """Both together; None when the bounds differ."""
        if self.bounds != other.bounds:
            return None
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Histogram(self.bounds, counts, self.sum + other.sum)


class EngineKey(NamedTuple):
    """Which engine of a target: the model's served name and the engine index (data parallel rank)."""

    model: str
    engine: str


@dataclass(frozen=True, kw_only=True)
class EngineSample:
    """
    One engine at one time.

    Args:
        t: Unix seconds at which the page was read.
        key: Model and engine index.
        gauges: Concept to value; ratios within 0 and 1.
        counters: Concept to cumulative value since the process started.
        histograms: Concept to cumulative histogram since the process started.
        facts: Configuration labels (``num_gpu_blocks``, ``enable_prefix_caching``, …).
    """

    t: float
    key: EngineKey
    gauges: Mapping[str, float]
    counters: Mapping[str, float]
    histograms: Mapping[str, Histogram]
    facts: Mapping[str, str] = field(default_factory=dict)

    def total(self, concept: str) -> float | None:
        """A counter over all values of its split label; None when the page had none of them."""
        if concept in self.counters:
            return self.counters[concept]
        return self._split_totals.get(concept)

    @functools.cached_property
    def _split_totals(self) -> Mapping[str, float]:
        """Sums over the split label; features ask for them again and again."""
        totals: dict[str, float] = {}
        for key, value in self.counters.items():
            concept, brace, _ = key.partition("{")
            if brace:
                totals[concept] = totals.get(concept, 0.0) + value
        return totals

    @property
    def kv_capacity_tokens(self) -> float | None:
        """Tokens that the KV cache holds, from the configuration labels."""
        tokens = number_of(self.facts.get("kv_cache_size_tokens"))
        if tokens is not None:
            return tokens
        blocks, size = (number_of(self.facts.get(f)) for f in ("num_gpu_blocks", "block_size"))
        return blocks * size if blocks and size else None

    @property
    def steps(self) -> float | None:
        """Engine steps with output since start."""
        histogram = self.histograms.get("step_tokens")
        return histogram.count if histogram else None

    @property
    def heartbeat(self) -> float | None:
        """A number that grows whenever the engine does anything; None when the page tells nothing."""
        first_tokens = self.histograms.get("time_to_first_token_seconds")
        parts = [
            self.steps,
            self.total("generation_tokens"),
            self.total("prompt_tokens"),
            first_tokens.count if first_tokens else None,
        ]
        known = [part for part in parts if part is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSample:
    """
    One whole page: the engines on it, and what was wrong with it.

    Args:
        t: Unix seconds at which the page was read.
        target: The target's name.
        engines: In order of appearance.
        problems: Series that were left out, with the reason; empty for a clean page.
        left_out: How much lies beyond a bound, by the bound's name in :mod:`.limits`.
    """

    t: float
    target: str
    engines: tuple[EngineSample, ...]
    problems: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


def split_key(key: str) -> tuple[str, str | None]:
    """
    Take a series key apart.

    >>> split_key("requests_finished{stop}"), split_key("preemptions")
    (('requests_finished', 'stop'), ('preemptions', None))
    """
    concept, brace, value = key.partition("{")
    return (concept, value[:-1]) if brace else (concept, None)
