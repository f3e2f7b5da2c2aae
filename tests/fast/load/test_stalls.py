"""A failure on a real engine is played again where the machine itself stood still, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from load.stalls import MOST_PLAYS, STALL_ROUND_TRIP_S, STALL_STEAL_RATIO, MachineWatch, play


@dataclass
class Played:
    """What came of a scenario whose plays fail in this order, on a machine that measures so."""

    fails: list[bool]
    round_trip_s: float = 0.0
    steal_ratio: float = 0.0
    plays: int = 0
    notes: list[str] = field(default_factory=list)

    def attempt(self, watch: MachineWatch) -> None:
        watch.round_trip_s, watch.steal_ratio = self.round_trip_s, self.steal_ratio
        self.plays += 1
        assert not self.fails[self.plays - 1], f"play {self.plays} failed"

    def run(self) -> None:
        play("overload", self.attempt, self.notes.append)


def test_what_holds_is_played_once() -> None:
    played = Played([False], round_trip_s=99.0)
    played.run()

    assert played.plays == 1
    assert played.notes == [
        "overload: held; longest GET /version 99.00 s, at most 0% of the cores' time stolen over 3 s"
    ]


def test_a_failure_on_a_quiet_machine_fails_at_once() -> None:
    played = Played([True, False], round_trip_s=STALL_ROUND_TRIP_S - 0.01)

    with pytest.raises(AssertionError, match="play 1 failed"):
        played.run()
    assert played.plays == 1


@pytest.mark.parametrize(
    ("round_trip_s", "steal_ratio"), [(STALL_ROUND_TRIP_S, 0.0), (0.0, STALL_STEAL_RATIO)]
)
def test_a_failure_in_a_stall_is_played_again_and_the_report_says_so(
    round_trip_s: float, steal_ratio: float
) -> None:
    played = Played([True, False], round_trip_s, steal_ratio)
    played.run()

    assert played.plays == 2
    assert played.notes[1] == (
        "overload: PLAYED AGAIN, for the machine stood still; it had failed with: play 1 failed"
    )


def test_a_machine_that_never_stands_still_no_more_than_so_often_is_believed() -> None:
    played = Played([True] * MOST_PLAYS, steal_ratio=1.0)

    with pytest.raises(AssertionError, match=f"play {MOST_PLAYS} failed"):
        played.run()


def test_what_a_wait_gave_up_on_is_played_again_too() -> None:
    played = Played([False, False], round_trip_s=STALL_ROUND_TRIP_S)

    def attempt(watch: MachineWatch) -> None:
        played.attempt(watch)
        if played.plays == 1:
            pytest.fail("a root: not within 120 s")

    play("overload", attempt, played.notes.append)
    assert played.plays == 2


def test_the_largest_share_of_stolen_time_counts(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    shares = []
    stat.write_text("cpu  100 0 100 700 0 0 0 100 0 0\ncpu0 1\n")
    watch = MachineWatch(stat)
    # of 200 ticks each time: none, 50, 10
    for user, steal in ((300, 100), (450, 150), (640, 160)):
        stat.write_text(f"cpu  {user} 0 100 700 0 0 0 {steal} 0 0\ncpu0 1\n")
        watch.measure()
        shares.append(watch.steal_ratio)

    assert shares == [0.0, 0.25, 0.25]
