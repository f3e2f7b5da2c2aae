"""Rolling peaks and ratios say what a look at all values would say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_opsctl.exporter.rolling import RollingPeak, RollingRatio


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 100)), min_size=1, max_size=60))
def test_the_peak_is_the_largest_value_of_the_span(moves: list[tuple[float, float]]) -> None:
    peak, t, seen = RollingPeak(15.0), 0.0, []
    for step, value in moves:
        t += step
        seen.append((t, value))
        peak.add(t, value)

        assert peak.peak(t) == max(v for when, v in seen if when >= t - 15.0)


def test_a_peak_fades_when_nothing_comes_after_it() -> None:
    peak = RollingPeak(15.0)
    peak.add(0.0, 7.0)

    assert peak.peak(15.0) == 7.0
    assert peak.peak(15.1) is None


def test_a_hit_ratio_is_of_the_last_minute_and_survives_a_restart() -> None:
    ratio = RollingRatio(60.0)
    for t, hits, queries in [(0, 900, 1000), (30, 900, 1100), (60, 5, 10), (70, 55, 60)]:
        ratio.add(t, hits, queries)

    assert ratio.ratio(70) == pytest.approx((0 + 5 + 50) / (100 + 10 + 50))


def test_without_queries_there_is_no_hit_ratio() -> None:
    ratio = RollingRatio(60.0)
    ratio.add(0, 0, 100)
    ratio.add(1, 0, 100)

    assert ratio.ratio(1) is None
    assert ratio.ratio(100) is None
