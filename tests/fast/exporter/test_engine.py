"""Histograms: quantiles as Prometheus interpolates them, and which bucket limits the precision."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_opsctl.exporter.engine import Histogram, Quantile

BOUNDS = (0.1, 0.25, 0.5, 1.0, math.inf)


def histogram_of(values: list[float], bounds: tuple[float, ...] = BOUNDS) -> Histogram:
    counts = tuple(float(sum(v <= bound for v in values)) for bound in bounds)
    return Histogram(bounds, counts, sum(values))


values = st.lists(st.floats(0.001, 3.0), min_size=1, max_size=50)


def test_a_quantile_says_between_which_bounds_it_lies() -> None:
    histogram = Histogram(BOUNDS, (0, 10, 10, 10, 10), 2.0)

    assert histogram.quantile(0.5) == Quantile(0.175, 0.1, 0.25)


def test_a_quantile_beyond_the_last_bound_is_that_bound() -> None:
    assert Histogram(BOUNDS, (0, 0, 0, 0, 4), 20.0).quantile(0.5) == Quantile(1.0, 1.0, math.inf)


def test_a_quantile_of_nothing_is_missing() -> None:
    assert Histogram(BOUNDS, (0, 0, 0, 0, 0), 0.0).quantile(0.5) is None


@given(values, st.floats(0, 1, exclude_min=True))
def test_the_true_quantile_lies_in_the_bucket(observed: list[float], q: float) -> None:
    quantile = histogram_of(observed).quantile(q)
    rank = max(0, math.ceil(q * len(observed)) - 1)
    true = sorted(observed)[rank]

    assert quantile is not None
    assert quantile.lower <= true <= quantile.upper


@given(values, values)
def test_what_was_added_is_what_a_difference_gives_back(a: list[float], b: list[float]) -> None:
    earlier, later = histogram_of(a), histogram_of(a + b)
    difference = later.minus(earlier)

    assert difference is not None
    assert difference.counts == histogram_of(b).counts
    assert difference.sum == pytest.approx(sum(b))


def test_other_bounds_are_another_histogram() -> None:
    assert histogram_of([0.2]).minus(histogram_of([0.2], (1.0, math.inf))) is None


def test_a_threshold_that_is_no_bound_cannot_be_counted() -> None:
    histogram = histogram_of([0.05, 0.2, 0.3])

    assert histogram.at_or_below(0.25) == 2
    assert histogram.at_or_below(0.18) is None
