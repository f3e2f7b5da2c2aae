"""Windows: increases across restarts, gaps and clock steps; missing is missing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_opsctl.exporter.engine import EngineKey, EngineSample, Histogram, PageSample
from vllm_opsctl.exporter.window import Window, longest_flat, windows_by_engine

KEY = EngineKey("model", "0")


def sample(t: float, tokens: float | None = None, **gauges: float) -> EngineSample:
    counters = {} if tokens is None else {"generation_tokens": tokens}
    return EngineSample(t=t, key=KEY, gauges=gauges, counters=counters, histograms={})


def window(*samples: EngineSample) -> Window:
    return Window(samples)


def test_an_increase_is_split_at_a_restart() -> None:
    tested = window(sample(0, 100), sample(1, 150), sample(2, 20), sample(3, 30))

    assert tested.delta("generation_tokens") == 50 + 20 + 10
    assert tested.resets == (2,)
    assert tested.since_reset().delta("generation_tokens") == 10


def test_a_restart_that_counts_past_the_old_value_is_seen_by_its_start_time() -> None:
    tested = window(
        sample(0, 10, process_start_time_seconds=1000.0),
        sample(9, 50, process_start_time_seconds=1005.0),
    )

    assert tested.resets == (1,)


def test_what_was_never_there_twice_is_missing() -> None:
    assert window(sample(0, 5)).delta("generation_tokens") is None
    assert window(sample(0), sample(1)).delta("generation_tokens") is None
    assert window(sample(0), sample(1)).gauge_max("requests_running") is None


def test_a_gap_keeps_the_increase_and_the_length() -> None:
    tested = window(sample(0, 0), sample(1, 10), sample(11, 110))

    assert tested.seconds == 11
    assert tested.rate("generation_tokens") == 10


def test_a_clock_that_steps_back_does_not_shorten_the_window() -> None:
    tested = window(sample(100, 0), sample(101, 1), sample(41, 2), sample(42, 3))

    assert tested.clock_steps == 1
    assert tested.seconds == 3


def test_engines_come_and_go() -> None:
    def page(t: float, *engines: str) -> PageSample:
        return PageSample(
            t=t,
            target="replica",
            engines=tuple(
                EngineSample(
                    t=t,
                    key=EngineKey("model", e),
                    gauges={},
                    counters={"preemptions": t},
                    histograms={},
                )
                for e in engines
            ),
        )

    windows = windows_by_engine([page(0, "0"), page(1, "0", "1"), page(2, "1"), page(3, "0", "1")])

    assert windows[EngineKey("model", "0")].delta("preemptions") == 3
    assert windows[EngineKey("model", "1")].delta("preemptions") == 2


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40), st.data())
def test_the_increase_is_what_happened_wherever_the_process_restarts(
    grows: list[int], data: st.DataObject
) -> None:
    """Of a restart only what the old process did after its last sample is lost, as in Prometheus."""
    restarts = data.draw(st.sets(st.integers(1, len(grows) - 1)))
    samples: list[EngineSample] = []
    total, count, start = 0.0, 0.0, 1000.0
    for index, grown in enumerate(grows):
        if index in restarts:
            start += 10
            # a process that counts past the old value is not told apart by the counter alone
            count = min(float(grown), count - 1) if count >= 1 else count + grown
        else:
            count += grown
        if index:
            previous = samples[-1].counters["generation_tokens"]
            total += count - previous if count >= previous else count
        samples.append(sample(float(index), count, process_start_time_seconds=start))

    assert Window(tuple(samples)).delta("generation_tokens") == total


@given(st.lists(st.lists(st.floats(0.01, 5), max_size=5), min_size=2, max_size=12))
def test_a_histogram_of_a_window_holds_what_was_observed_within_it(
    steps: list[list[float]],
) -> None:
    bounds = (0.1, 1.0, math.inf)
    seen: list[float] = []
    samples = []
    for t, observed in enumerate(steps):
        seen += observed
        histogram = Histogram(
            bounds, tuple(float(sum(v <= b for v in seen)) for b in bounds), sum(seen)
        )
        samples.append(
            EngineSample(
                t=float(t), key=KEY, gauges={}, counters={}, histograms={"step_tokens": histogram}
            )
        )
    found = Window(tuple(samples)).histogram("step_tokens")

    assert found is not None
    assert found.count == sum(len(observed) for observed in steps[1:])
    assert found.sum == pytest.approx(sum(map(sum, steps[1:])))


def test_the_longest_flat_run_is_found() -> None:
    beats = [1.0, 2.0, 2.0, None, 2.0, 2.0, 2.0, 3.0]

    assert longest_flat(beats, [1.0] * 7) == (4, 6, 2.0)
