"""Where objectives stand: budgets, burn rates, states and forecasts, by arithmetic alone."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_opsctl.alarms import report, status, status_timeline
from vllm_opsctl.alarms.burn import PERIOD_S, WINDOWS_S, budget_of
from vllm_opsctl.alarms.status import (
    EXIT_CODES,
    WORST_FIRST,
    Standing,
    Status,
    gone_in,
    standing_of_timeline,
    used_of,
    worst_first,
)
from vllm_opsctl.alarms.status_timeline import SLOT_S, Count, Slot, Timeline
from vllm_opsctl.exporter.config import Objective

END = 1_750_000_200.0
HOUR = 12
"""Slots."""
GOOD = Count(600.0, 0.0)

counts = st.builds(
    lambda total, share: Count(float(total), total * share),
    st.integers(0, 10**9),
    st.floats(0, 1),
)
targets = st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999, 0.9999])


def objective(target: float = 0.999, notify: str = "page") -> Objective:
    return Objective.model_validate(
        {"name": "o", "sli": "availability", "target": target, "notify": notify}
    )


def history(*recent: Count, before: Count = GOOD, slots: int = 8640) -> Timeline:
    """The newest slots, the newest last, and even traffic before them."""
    all_counts = [before] * (slots - len(recent)) + list(recent)
    return Timeline(
        END - PERIOD_S,
        END,
        tuple(Slot(END - i * SLOT_S, c) for i, c in enumerate(reversed(all_counts)))[::-1],
    )


def test_the_documented_examples_hold() -> None:
    for module in (status, status_timeline, report):
        assert doctest.testmod(module).failed == 0


@given(counts, targets)
def test_used_is_within_nothing_and_a_total_outage(count: Count, target: float) -> None:
    used = used_of(count, target)

    if count.total == 0:
        assert used is None
    else:
        assert used is not None
        assert 0 <= used <= (1 / budget_of(target)) * (1 + 1e-9)


@given(st.lists(counts, max_size=8), targets)
def test_used_of_a_sum_lies_between_that_of_its_parts(parts: list[Count], target: float) -> None:
    """A ratio of sums, not a mean of ratios: an idle hour weighs nothing."""
    used = [u for part in parts if (u := used_of(part, target)) is not None]
    together = used_of(sum(parts, Count()), target)

    if not used:
        assert together is None
    else:
        assert together is not None
        assert min(used) - 1e-9 <= together <= max(used) * (1 + 1e-9) + 1e-9


@given(
    st.floats(0, 0.999),
    st.floats(1.001, 1000),
    st.floats(0, PERIOD_S),
)
def test_a_forecast_holds_when_it_is_played_through(
    used: float, burn: float, known_s: float
) -> None:
    """Counting on at the same traffic until then leaves nothing, when what drops out was spotless."""
    found = gone_in(used, burn, known_s)

    assert found is not None
    window_s = min(PERIOD_S, known_s + found)
    spent = used * known_s + burn * found
    assert spent == pytest.approx(window_s, rel=1e-6, abs=1e-3)


@given(st.floats(0, 0.99), st.floats(0, PERIOD_S), st.floats(1.01, 100), st.floats(1.01, 100))
def test_a_faster_burn_is_never_forecast_later(
    used: float, known_s: float, one: float, other: float
) -> None:
    slow, fast = (gone_in(used, burn, known_s) for burn in sorted((one, other)))

    assert slow is not None
    assert fast is not None
    assert fast <= slow * (1 + 1e-9)


def test_at_a_burn_of_one_a_budget_lasts() -> None:
    assert gone_in(0.9, 1.0, PERIOD_S) is None
    assert gone_in(1.2, 0.0, PERIOD_S) == 0


@pytest.mark.parametrize(
    ("recent", "target", "notify", "state"),
    [
        # an hour at 20x and still burning
        ([Count(600, 12)] * HOUR, 0.999, "page", "burning fast"),
        # the same, but nobody is to be paged
        ([Count(600, 12)] * HOUR, 0.999, "ticket", "burning"),
        # repaired ten minutes ago: the short window ends it
        ([Count(600, 12)] * HOUR + [Count(600, 0)] * 2, 0.999, "page", "ok"),
        # six hours at 7x: the second paging row
        ([Count(600, 4.2)] * 6 * HOUR, 0.999, "page", "burning fast"),
        # two days at 2x: the last row alone
        ([Count(600, 1.2)] * 48 * HOUR, 0.999, "page", "burning"),
        # four bad events are too few for the guard, however few events there are
        ([Count(1, 1)] * 4, 0.999, "page", "ok"),
        # a total outage at 95 %: the hard floor pages before any row does
        ([Count(600, 600)], 0.95, "page", "burning fast"),
        # a day of total outage
        ([Count(600, 600)] * 24 * HOUR, 0.999, "page", "exhausted"),
    ],
)
def test_states_are_those_of_the_window_table(
    recent: list[Count], target: float, notify: str, state: str
) -> None:
    found = standing_of_timeline(objective(target, notify), "m", history(*recent))

    assert found.state == state


def test_burn_rates_are_of_the_newest_windows() -> None:
    found = standing_of_timeline(objective(), "m", history(*[Count(600, 6)] * 6, Count(600, 0)))

    rates = {burn.window_s: burn.rate for burn in found.burns}
    assert sorted(rates) == list(WINDOWS_S)
    assert rates[300.0] == 0
    assert rates[1800.0] == pytest.approx(10 * 5 / 6)
    assert rates[3600.0] == pytest.approx(5)
    assert found.known.seconds == PERIOD_S


def test_two_known_days_are_no_thirty() -> None:
    found = standing_of_timeline(objective(), "m", history(slots=2 * 288))

    assert found.known.seconds == 2 * 86400
    assert found.since == END - 2 * 86400
    assert found.left == 1


def test_what_nobody_saw_is_no_data_and_what_idles_is_ok() -> None:
    unseen = standing_of_timeline(objective(), "m", Timeline(END - PERIOD_S, END, ()))
    idle = standing_of_timeline(objective(), "m", history(before=Count()))

    assert (unseen.state, unseen.left, unseen.reason is None) == ("no data", None, False)
    assert (idle.state, idle.left, idle.reason) == ("ok", None, None)


def test_the_worst_comes_first_and_decides() -> None:
    names = {
        state: Standing(objective=objective(), model=state, state=state) for state in WORST_FIRST
    }
    found = Status(END, "x", worst_first(list(reversed(names.values()))))

    assert [one.state for one in found.standings] == list(WORST_FIRST)
    assert (found.state, found.exit_code) == ("exhausted", 2)
    codes = [EXIT_CODES[state] for state in WORST_FIRST]
    assert codes == [2, 2, 1, 3, 0, 0]


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 60))
def test_a_window_knows_what_its_slots_know(is_known: list[bool], slots: int) -> None:
    kept = tuple(
        Slot(END - (len(is_known) - 1 - i) * SLOT_S, Count(2.0, 1.0))
        for i, known in enumerate(is_known)
        if known
    )
    found = Timeline(END - PERIOD_S, END, kept).last(slots * SLOT_S)

    expected = sum(is_known[-slots:])
    assert found.seconds == expected * SLOT_S
    assert found.count == Count(2.0 * expected, 1.0 * expected)
    assert math.isfinite(found.count.total)
