"""The report of a period: days, episodes and what remains add up; its picture is whole or not there."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_opsctl.alarms.burn import budget_of
from vllm_opsctl.alarms.report import (
    PAUSE_S,
    Account,
    Period,
    account_of,
    last_days,
    month,
    report_of,
)
from vllm_opsctl.alarms.report_plot import check_plot, write_plot
from vllm_opsctl.alarms.status_prometheus import History
from vllm_opsctl.alarms.status_timeline import SLOT_S, Count, Slot, Timeline
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.config import Objective

START = datetime(2026, 10, 1, tzinfo=UTC).timestamp()
OBJECTIVE = Objective(name="availability", sli="availability", target=0.99)


def account(slots: Sequence[Count | None]) -> Account:
    """Of slots from the period's start; None is not known."""
    known = [
        Slot(START + (i + 1) * SLOT_S, count) for i, count in enumerate(slots) if count is not None
    ]
    end = START + len(slots) * SLOT_S
    return account_of(OBJECTIVE, "m", Timeline(START, end, tuple(known)))


GOOD, BAD, IDLE = Count(100, 0), Count(100, 50), Count()

slot = st.one_of(
    st.none(),
    st.builds(lambda n, share: Count(float(n), n * share), st.integers(0, 1000), st.floats(0, 1)),
    st.sampled_from([GOOD, BAD, IDLE]),
)


@settings(max_examples=60)
@given(st.lists(slot, max_size=700))
def test_everything_adds_up(slots: list[Count | None]) -> None:
    found = account(slots)

    total = sum((count for count in slots if count is not None), Count())
    assert found.known.count.total == pytest.approx(total.total)
    if found.used is None:
        assert total.total == 0
        return
    assert sum(day.spent for day in found.days) == pytest.approx(found.used)
    assert sum(day.known.seconds for day in found.days) == found.known.seconds
    # what burned no faster than the budget lasts is in no episode, and spends at most all of it
    outside = found.used - sum(episode.spent for episode in found.episodes)
    assert -1e-9 <= outside <= 1 + 1e-9
    assert found.remaining[-1][1] == pytest.approx(1 - found.used)
    lefts = [left for _, left in found.remaining]
    assert lefts == sorted(lefts, reverse=True)


@settings(max_examples=60)
@given(st.lists(slot, max_size=200))
def test_episodes_are_apart_and_burn(slots: list[Count | None]) -> None:
    found = account(slots)

    ordered = sorted(found.episodes, key=lambda episode: episode.start)
    for one, following in pairwise(ordered):
        assert one.start + one.length_s <= following.start
    for episode in found.episodes:
        assert (episode.count.ratio or 0) > budget_of(OBJECTIVE.target) * (1 - 1e-9)
        assert episode.length_s >= SLOT_S
        assert episode.peak > 1
    spent = [episode.spent for episode in found.episodes]
    assert spent == sorted(spent, reverse=True)


def starts_and_lengths(slots: list[Count | None]) -> list[tuple[float, float]]:
    found = sorted(account(slots).episodes, key=lambda episode: episode.start)
    return [((one.start - START) / SLOT_S, one.length_s / SLOT_S) for one in found]


def test_an_episode_is_contiguous() -> None:
    assert starts_and_lengths([GOOD, BAD, BAD, GOOD, BAD]) == [(1, 2), (4, 1)]


@pytest.mark.parametrize("silence", [IDLE, None])
def test_silence_ends_an_episode_only_when_it_is_long(silence: Count | None) -> None:
    pause = int(PAUSE_S / SLOT_S)

    assert starts_and_lengths([BAD, *[silence] * pause, BAD]) == [(0, pause + 2)]
    assert starts_and_lengths([BAD, *[silence] * (pause + 1), BAD]) == [(0, 1), (pause + 2, 1)]
    assert starts_and_lengths([BAD, silence, GOOD, BAD]) == [(0, 1), (3, 1)]


def test_days_are_those_of_utc_and_the_worst_spent_most() -> None:
    found = account([GOOD] * 288 + [BAD] * 6 + [GOOD] * 282 + [BAD] * 2 + [GOOD] * 10)

    assert [day.date for day in found.days] == [date(2026, 10, n) for n in (1, 2, 3)]
    assert [day.date.day for day in found.worst_days] == [2, 3]


def test_a_month_is_a_whole_one_or_the_running_one() -> None:
    now = datetime(2026, 11, 25, 20, 33, tzinfo=UTC).timestamp()
    whole, running = month("2026-10", now), month("2026-11", now)

    assert (whole.start, whole.end) == (START, START + 31 * 86400)
    assert whole.label == "October 2026"
    assert running.end == datetime(2026, 11, 25, 20, 30, tzinfo=UTC).timestamp()
    assert running.label == "November 2026, so far"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("october", "write it like 2026-10"),
        ("2026-13", "write it like 2026-10"),
        ("2026-00", "write it like 2026-10"),
        ("2027-01", "has not begun"),
        ("0001-01", "before 1970"),
        ("9999-12", "has not begun"),
    ],
)
def test_what_is_no_month_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        month(text, START + 60 * 86400)


def test_days_end_with_a_whole_slot() -> None:
    period = last_days(2, START + 1234)

    assert (period.end - START, period.end - period.start) == (1200, 2 * 86400)


@pytest.fixture
def written() -> tuple[History, Period]:
    """A good one, an overspent one with a gap, and one that idled."""
    end = START + 600 * SLOT_S

    def timeline(slots: list[Count | None]) -> Timeline:
        known = [Slot(START + (i + 1) * SLOT_S, c) for i, c in enumerate(slots) if c is not None]
        return Timeline(START, end, tuple(known))

    history = History(
        START,
        end,
        [
            (OBJECTIVE, "org/good", timeline([GOOD] * 600)),
            (OBJECTIVE, "org/bad", timeline([GOOD] * 100 + [None] * 200 + [BAD] * 300)),
            (OBJECTIVE, "org/$idle$ \u4f60", timeline([IDLE] * 600)),
        ],
    )
    return history, Period(START, end, "3 days")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_report_is_the_same_picture(
    written: tuple[History, Period], tmp_path: Path, suffix: str
) -> None:
    pytest.importorskip("matplotlib")
    found = report_of(*written, service="fleet", source="Prometheus http://p:9090")
    one, other = tmp_path / f"one.{suffix}", tmp_path / f"other.{suffix}"

    write_plot(found, one)
    write_plot(found, other)

    assert one.read_bytes() == other.read_bytes()
    begin = b"\x89PNG" if suffix == "png" else b"<?xml"
    assert one.read_bytes().startswith(begin)
    assert sorted(os.listdir(tmp_path)) == [f"one.{suffix}", f"other.{suffix}"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plot.pdf", "name it .png or .svg"),
        ("plot", "no suffix is no picture"),
        ("none/plot.png", "is no folder"),
    ],
)
def test_a_plot_that_cannot_be_is_refused_first(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_plot(tmp_path / name)


def test_a_missing_matplotlib_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(UsageError, match=r"pip install 'vllm-opsctl\[report\]'"):
        check_plot(tmp_path / "plot.png")


def test_nothing_half_written_stays(written: tuple[History, Period], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = report_of(*written, service="fleet", source="Prometheus http://p:9090")
    taken = tmp_path / "taken.png"
    taken.mkdir()

    with pytest.raises(UsageError, match=r"taken\.png"):
        write_plot(found, taken)

    assert os.listdir(tmp_path) == ["taken.png"]
