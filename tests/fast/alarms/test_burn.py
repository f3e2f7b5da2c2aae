"""The arithmetic of burn rates: what can fire, and when."""

from __future__ import annotations

import doctest
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vllm_opsctl.alarms import burn
from vllm_opsctl.alarms.burn import (
    FLOOR,
    ROWS,
    Clock,
    Row,
    duration_text,
    parse_scale,
    threshold_of,
    time_to_fire,
    time_to_floor,
    time_to_page,
    unreachable,
)
from vllm_opsctl.exporter.units import parse_duration

TARGETS = st.floats(0.5, 0.9999)
RATIOS = st.floats(0.001, 1.0)


def simulated(row: Row, target: float, ratio: float, history_s: float) -> float | None:
    """The same, second by second: the share of bad events in both windows."""
    held = 0.0
    for t in range(1, int(4 * row.long_s)):
        shares = [
            ratio * min(t, window) / min(window, history_s + t)
            for window in (row.long_s, row.short_s)
        ]
        held = held + 1 if min(shares) > threshold_of(row, target) else 0
        if held >= row.for_s:
            return t
    return None


@pytest.mark.parametrize("target", [0.9, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("history_s", [1800.0, 7200.0, 10 * 86400.0])
@pytest.mark.parametrize("row", ROWS[:2])
def test_the_formula_is_what_a_simulation_says(
    row: Row, target: float, ratio: float, history_s: float
) -> None:
    expected = simulated(row, target, ratio, history_s)
    found = time_to_fire(row, target, ratio, history_s=history_s)

    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert abs(found - expected) <= 2


@given(TARGETS, RATIOS, RATIOS)
def test_a_worse_outage_never_pages_later(target: float, one: float, other: float) -> None:
    mild, bad = sorted((one, other))
    late, soon = time_to_page(target, mild), time_to_page(target, bad)

    assert late is None or (soon is not None and soon <= late)


@given(TARGETS, TARGETS, RATIOS)
def test_a_stricter_objective_never_fires_later(one: float, other: float, ratio: float) -> None:
    loose, strict = sorted((one, other))
    for row in ROWS:
        late, soon = time_to_fire(row, loose, ratio), time_to_fire(row, strict, ratio)
        assert late is None or (soon is not None and soon <= late)


@given(TARGETS, RATIOS, st.floats(1e-6, 100))
def test_less_traffic_never_fires_sooner(target: float, ratio: float, per_s: float) -> None:
    for row in ROWS:
        plenty = time_to_fire(row, target, ratio)
        few = time_to_fire(row, target, ratio, requests_per_s=per_s)
        assert few is None or (plenty is not None and plenty <= few)


@given(TARGETS)
@example(0.9)
@example(0.95)
def test_a_row_is_unreachable_exactly_when_a_total_outage_never_fires_it(target: float) -> None:
    for row in ROWS:
        assert (unreachable(row, target) is None) == (time_to_fire(row, target, 1.0) is not None)


@given(TARGETS, RATIOS)
def test_a_share_within_the_threshold_never_fires(target: float, ratio: float) -> None:
    for row in ROWS:
        assume(ratio <= threshold_of(row, target))
        assert time_to_fire(row, target, ratio) is None


def test_the_rows_of_lax_objectives_are_late_and_the_floor_is_not() -> None:
    assert [unreachable(row, 0.9) is None for row in ROWS] == [False, True, True, True, True]
    assert time_to_fire(ROWS[0], 0.95, 1.0) == pytest.approx(0.72 * 3600 + 120)
    assert time_to_page(0.95, 1.0) == time_to_floor(0.95, 1.0) == 450
    assert time_to_floor(0.98, 1.0) is None
    assert time_to_floor(0.95, FLOOR.ratio) is None


def test_five_bad_events_must_come_within_the_window() -> None:
    assert time_to_page(0.999, 1.0, requests_per_s=4 / 6 / 3600) is None
    assert time_to_page(0.999, 1.0, requests_per_s=6 / 6 / 3600) is not None
    assert time_to_page(0.999, 1.0, requests_per_s=0.0) is None


def test_a_target_of_all_has_no_budget() -> None:
    assert "no error budget" in (unreachable(ROWS[0], 1.0) or "")


@given(st.integers(1, 40 * 86400), st.sampled_from([Fraction(1), Fraction(1, 60), Fraction(1, 7)]))
def test_durations_are_read_back_as_they_were_written(seconds: int, scale: Fraction) -> None:
    text = Clock(scale).text(seconds)

    assert parse_duration(text) == pytest.approx(float(seconds * scale), abs=0.001)
    assert duration_text(parse_duration(text)) == text


@pytest.mark.parametrize("text", ["0", "2", "-1", "fast", "1/0", ""])
def test_a_scale_that_is_none_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(ValueError, match="write 1/60"):
        parse_scale(text)


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(burn).failed == 0
