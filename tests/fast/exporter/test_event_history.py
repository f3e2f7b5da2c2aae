"""What the counters of objectives read in the last hour: bounded, and honest about what was watched."""

from __future__ import annotations

from vllm_opsctl.exporter.event_history import (
    KEEP_S,
    MAX_SERIES,
    STEP_S,
    EventHistory,
    Grown,
    grown,
)
from vllm_opsctl.exporter.sli import Events

KEY = ("ttft", "tiny")
T = 1_700_000_000.0


def history(*seconds: float, bad_from: float = float("inf")) -> EventHistory:
    """A good event a second; from some second on they are bad."""
    found = EventHistory()
    for s in seconds:
        found.add(T + s, {KEY: Events(good=min(s, bad_from), bad=max(0.0, s - bad_from))})
    return found


def test_events_of_a_window_are_those_since_its_start() -> None:
    readings = history(*range(901), bad_from=800.0).readings()

    assert grown(readings, KEY, end=T + 900, window_s=300) == Grown(200.0, 100.0, 300.0)


def test_a_window_that_was_watched_in_part_says_how_much() -> None:
    readings = history(*range(61)).readings()

    assert grown(readings, KEY, end=T + 60, window_s=300) == Grown(60.0, 0.0, 60.0)


def test_a_target_that_died_has_no_events_in_the_windows_after() -> None:
    readings = history(*range(61)).readings()

    assert grown(readings, KEY, end=T + 600, window_s=300) is None


def test_one_page_is_no_window() -> None:
    assert grown(history(0).readings(), KEY, end=T, window_s=300) is None


def test_a_model_that_came_later_counts_from_nothing() -> None:
    found = history(0)
    found.add(T + 1, {KEY: Events(1.0, 0.0), ("ttft", "other"): Events(2.0, 1.0)})

    assert grown(found.readings(), ("ttft", "other"), end=T + 1, window_s=300) == Grown(
        2.0, 1.0, 1.0
    )


def test_no_more_than_an_hour_in_steps_is_kept() -> None:
    readings = history(*range(3 * 3600)).readings()

    assert readings[-1].t - readings[0].t <= KEEP_S + STEP_S
    assert len(readings) <= KEEP_S / STEP_S + 3


def test_of_a_thousand_models_a_bounded_number_is_kept() -> None:
    found = EventHistory()
    found.add(T, {("ttft", f"adapter-{n}"): Events() for n in range(1000)})

    assert len(found.readings()[0].counted) == MAX_SERIES


def test_a_clock_that_was_set_back_begins_anew() -> None:
    found = history(*range(100))
    found.add(T - 3600, {KEY: Events(good=101.0)})
    found.add(T - 3590, {KEY: Events(good=111.0)})

    assert grown(found.readings(), KEY, end=T - 3590, window_s=300) == Grown(10.0, 0.0, 10.0)
