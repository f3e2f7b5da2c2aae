"""Where objectives stand by the last hour alone: burn rates as alarms judge them, and no 30 days claimed."""

from __future__ import annotations

from collections import Counter

import pytest

from vllm_opsctl.alarms.status import Standing
from vllm_opsctl.alarms.status_live import HOUR_S, live_standings, spent
from vllm_opsctl.exporter.config import Objective, Target
from vllm_opsctl.exporter.event_history import KEEP_S, Reading
from vllm_opsctl.exporter.sli import Events
from vllm_opsctl.exporter.target_state import Snapshot

UP = Objective(name="availability", sli="availability", target=0.999)
NOW = 1_700_000_000.0


def seen(bad_ratio: float, *, span_s: float = 3600.0, ended_s: float = 0.0) -> Snapshot:
    """A replica with ten requests a second, a share of which is bad."""
    steps = [NOW - ended_s - span_s + s for s in range(0, int(span_s) + 1, 15)]
    readings = tuple(
        Reading(
            t,
            {
                ("availability", "tiny"): (
                    10 * (t - steps[0]) * (1 - bad_ratio),
                    10 * (t - steps[0]) * bad_ratio,
                )
            },
        )
        for t in steps
    )
    return Snapshot(
        target=Target(name="chat-0", url="http://chat-0:8000"),
        now=NOW,
        up=True,
        error=None,
        page=None,
        last_success=NOW,
        reads=1,
        failures=Counter(),
        read_seconds=0.0,
        restarts=0,
        peaks={},
        hit_ratios={},
        events={("availability", "tiny"): Events()} if readings else {},
        history=readings,
        recorder_bytes=0,
        recorder_span_s=0.0,
        problems=0,
        left_out={},
        not_ready=None,
    )


def one(*snapshots: Snapshot, objective: Objective = UP) -> Standing:
    (standing,) = live_standings([objective], snapshots, NOW)
    return standing


def test_the_history_holds_the_longest_window_that_is_judged() -> None:
    assert HOUR_S == KEEP_S


@pytest.mark.parametrize(
    ("bad_ratio", "state"),
    [(0.0, "ok"), (0.0009, "ok"), (0.007, "burning fast"), (0.02, "burning fast")],
)
def test_the_state_is_that_of_the_rows_that_page(bad_ratio: float, state: str) -> None:
    assert one(seen(bad_ratio)).state == state


def test_a_slow_burn_is_not_judged_by_an_hour() -> None:
    """2x is a ticket when three days were so."""
    assert one(seen(0.002)).state == "ok"


def test_what_opens_a_ticket_burns_and_pages_nobody() -> None:
    assert one(seen(0.02), objective=UP.model_copy(update={"notify": "ticket"})).state == "burning"


def test_burn_rates_of_the_short_windows_and_the_hour() -> None:
    standing = one(seen(0.02))

    for window_s in (300.0, 1800.0, 3600.0):
        burn = standing.burn(window_s)
        assert burn is not None
        assert burn.rate == pytest.approx(20)
        assert burn.known_s == window_s


def test_no_budget_is_called_exhausted_by_an_hour() -> None:
    """All of an hour was bad: 1000x, which is more than the month's budget, but the month is not known."""
    standing = one(seen(1.0))

    assert standing.state == "burning fast"
    assert standing.used is None
    assert spent(standing) == pytest.approx(1000 / 720)


def test_replicas_are_added_and_their_time_is_not() -> None:
    standing = one(seen(0.02, span_s=600.0), seen(0.0, span_s=600.0))

    assert standing.known.count.ratio == pytest.approx(0.01)
    assert standing.known.seconds == 600.0


def test_a_model_whose_replicas_are_all_gone_has_no_burn_now() -> None:
    standing = one(seen(0.02, span_s=600.0, ended_s=900.0))
    short = standing.burn(300.0)

    assert short is not None
    assert short.rate is None
    assert standing.known.seconds == 600.0


def test_what_nobody_can_tell_says_why() -> None:
    (perfect,) = live_standings([UP.model_copy(update={"target": 1.0})], [seen(0.0)], NOW)
    (unseen,) = live_standings([UP.model_copy(update={"name": "other"})], [seen(0.0)], NOW)
    (gone,) = live_standings([UP], [seen(0.0, span_s=60.0, ended_s=7200.0)], NOW)

    assert (perfect.state, unseen.state, gone.state) == ("not measured", "no data", "no data")
    assert all(found.reason for found in (perfect, unseen, gone))
