"""A recorded load on a scaled fleet: what comes, what a replica can do, how policies decide, what is told."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from cloudwatch_fleet import config
from commands import Opsctl
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paths import RECORDINGS, TESTS

from vllm_opsctl.alarms.autoscale.load import Load, Server, load_of
from vllm_opsctl.alarms.autoscale.queueing import FluidFleet
from vllm_opsctl.alarms.autoscale.simulation import Run, Scenario, fixed, simulate
from vllm_opsctl.alarms.autoscale.tracking import Tracker, TrackingPolicy, policy_of
from vllm_opsctl.alarms.autoscale.trial import Trial, try_policy
from vllm_opsctl.errors import ConfigError, InputFileError, UsageError
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.recording import read_recording

ROOT = TESTS.parent
MINUTE_A_SECOND = Fraction(1, 60)
SERVER = Server(
    slots=8, alone_s=1.0, full_s=2.0, first_token_s=0.0, kv_percent=2.0, is_saturated=True
)
"""Four requests a second with a full batch."""

POLICY = TrackingPolicy(
    targets={"demand": 70.0, "kv_cache": 80.0},
    least=1,
    most=5,
    scale_out_s=360.0,
    scale_in_s=900.0,
)


def scenario(rates: Sequence[float | None], **more: Any) -> Scenario:
    """One rate a minute."""
    load = Load(arrivals=tuple(rates), server=SERVER, models=("tiny",), most_waiting=0.0)
    given: dict[str, Any] = {
        "told_per_s": 60.0,
        "times": 1.0,
        "max_num_seqs": 8,
        "cold_start_s": 300.0,
        "patience_s": 1.0,
        **more,
    }
    return Scenario(load=load, **given)


def decisions(run: Run) -> list[tuple[int, int, int]]:
    return [(round(one.t / 60), one.before, one.after) for one in run.decisions]


# -- the queue -------------------------------------------------------------------------------------


@given(
    steps=st.lists(
        st.tuples(st.floats(0, 200), st.integers(0, 6), st.sampled_from([0.25, 1.0, 10.0])),
        max_size=60,
    ),
    refuses=st.booleans(),
    alone_s=st.floats(0.01, 30),
    slowed=st.floats(1, 10),
)
@example(steps=[(53.0, 2, 0.25), (4.0, 2, 0.25)], refuses=False, alone_s=1.0, slowed=2.0)
@settings(max_examples=150)
def test_no_request_is_lost_or_made(
    steps: list[tuple[float, int, float]], refuses: bool, alone_s: float, slowed: float
) -> None:
    server = Server(
        slots=8,
        alone_s=alone_s,
        full_s=alone_s * slowed,
        first_token_s=0,
        kv_percent=0,
        is_saturated=True,
    )
    fleet = FluidFleet(server, patience_s=1.0, refuses=refuses)
    now, came = 0.0, 0.0
    for rate, replicas, seconds in steps:
        before = fleet.finished
        fleet.step(now, seconds, rate * seconds, replicas)
        now += seconds
        came += rate * seconds
        inside = fleet.running + fleet.waiting
        assert fleet.arrived == pytest.approx(came)
        assert fleet.finished + fleet.refused + inside == pytest.approx(came, abs=1e-6)
        assert fleet.running >= -1e-9
        assert fleet.waiting >= 0
        # never faster than all slots of all replicas
        most = replicas * server.most_per_s * seconds
        assert fleet.finished - before <= most + fleet.running * 1e-9 + 1e-6 or replicas == 0
    fleet.close(now)
    judged = sum(one.good + one.bad for one in fleet.minutes.values())
    assert judged <= came + 1e-6


@pytest.mark.parametrize("rate", [0.5, 2.0, 3.9])
def test_below_its_limit_a_replica_settles_as_littles_law_says(rate: float) -> None:
    fleet = FluidFleet(SERVER, patience_s=1.0)
    for t in range(600):
        fleet.step(float(t), 1.0, rate, 1)

    runs_s = SERVER.runs_s(fleet.running)
    assert fleet.waiting == 0
    assert fleet.running == pytest.approx(rate * runs_s, rel=0.02)
    assert fleet.longest_wait_s == 0


def test_beyond_its_limit_the_queue_grows_by_the_difference_and_waits_are_its_length() -> None:
    fleet = FluidFleet(SERVER, patience_s=1.0)
    for t in range(300):
        fleet.step(float(t), 1.0, 6.0, 1)

    assert fleet.running == pytest.approx(8)
    # it filled up in the first seconds; from then on two a second stay
    assert fleet.waiting == pytest.approx(2 * 300, rel=0.05)
    # who is served now came when 4 a second had not yet got to 6 a second's number
    assert fleet.longest_wait_s == pytest.approx(300 * (1 - 4 / 6), rel=0.05)


def test_without_a_replica_requests_wait_or_are_refused() -> None:
    waits, refuses = (FluidFleet(SERVER, patience_s=1.0, refuses=r) for r in (False, True))
    for fleet in (waits, refuses):
        for t in range(5):
            fleet.step(float(t), 1.0, 2.0, 0)
        fleet.close(5.0)

    assert (waits.waiting, waits.refused) == (10, 0)
    assert (refuses.waiting, refuses.refused) == (0, 10)
    assert refuses.minutes[0].bad == 10


# -- target tracking -------------------------------------------------------------------------------


def decide(
    tracker: Tracker, values: Sequence[float | None], desired: int, start: int = 0
) -> list[int]:
    """Minutes of demand, with an empty KV cache: how many replicas there shall be after each."""
    found = []
    for number, value in enumerate(values, start=start + 1):
        kv = None if value is None else 1.0
        desired = tracker.decide(number * 60.0, {"demand": value, "kv_cache": kv}, desired)
        found.append(desired)
    return found


def test_three_minutes_above_the_target_grow_the_fleet_in_proportion() -> None:
    assert decide(Tracker(POLICY), [140.0] * 3, 2) == [2, 2, 4]
    assert decide(Tracker(POLICY), [140.0, 140.0, 69.0, 140.0, 140.0], 2) == [2] * 5


def test_a_fleet_that_is_not_yet_relieved_does_not_grow_twice() -> None:
    assert decide(Tracker(POLICY), [140.0] * 8, 1) == [1, 1] + [2] * 6


def test_a_larger_wish_in_the_pause_counts_from_before_it() -> None:
    found = decide(Tracker(POLICY), [140.0, 140.0, 140.0, 280.0], 1)

    assert found == [1, 1, 2, 4], "four of the one replica that there was, not of two"


def test_fifteen_minutes_below_nine_tenths_shrink_it_by_one() -> None:
    assert decide(Tracker(POLICY), [10.0] * 15, 4) == [4] * 14 + [3]
    assert decide(Tracker(POLICY), [64.0] * 40, 4) == [4] * 40, "0.9 times 70 is 63"
    assert decide(Tracker(POLICY), [10.0] * 40, 4)[14:40] == [3] * 15 + [2] * 11


def test_shrinking_never_puts_it_above_the_target() -> None:
    assert decide(Tracker(POLICY), [60.0] * 40, 2) == [2] * 40, "one would be at 120 %"


def test_every_policy_must_want_to_shrink_and_one_is_enough_to_grow() -> None:
    tracker = Tracker(POLICY)
    desired = 3
    for minute in range(1, 31):
        desired = tracker.decide(minute * 60.0, {"demand": 5.0, "kv_cache": 79.0}, desired)
    assert desired == 3

    tracker = Tracker(POLICY)
    for minute in range(1, 4):
        desired = tracker.decide(minute * 60.0, {"demand": 5.0, "kv_cache": 100.0}, desired)
    assert desired == 4


def test_growth_ends_the_pause_after_shrinking() -> None:
    found = decide(Tracker(POLICY), [10.0] * 15 + [200.0] * 3, 3)

    assert found == [3] * 14 + [2] * 3 + [5]


@given(
    values=st.lists(st.one_of(st.none(), st.floats(0, 1000)), max_size=80),
    start=st.integers(1, 5),
)
@settings(max_examples=150)
def test_a_fleet_stays_within_its_bounds_and_does_nothing_blindly(
    values: list[float | None], start: int
) -> None:
    tracker, desired = Tracker(POLICY), start
    for number, value in enumerate(values, start=1):
        before = desired
        desired = decide(tracker, [value], desired, number - 1)[0]
        assert POLICY.least <= desired <= POLICY.most
        if value is None:
            assert desired == before
        if desired < before:
            assert before - desired == 1
            assert value is not None
            assert value < 63


def test_a_group_has_no_pause_after_shrinking() -> None:
    group = {"kind": "auto-scaling-group", "name": "g", "max_num_seqs": 8, "max": 5}
    one = config(autoscaling={"cold_start": "5m", "resources": [group]})
    policy = policy_of(one.autoscaling, one.autoscaling.resources[0])

    assert (policy.scale_out_s, policy.scale_in_s) == (360.0, 0.0)


# -- the fleet over time ---------------------------------------------------------------------------


def test_a_burst_is_served_when_the_new_replicas_are_there() -> None:
    run = simulate(scenario([1.0] * 10 + [10.0] * 30), POLICY, 1)
    ((first, before, after), *_) = decisions(run)

    assert (first, before) == (13, 1)
    assert after >= 3
    ready = next(i for i, one in enumerate(run.minutes) if one.ready == after)
    assert ready == 13 + 5
    shares = [one.share for one in run.minutes]
    assert shares[9] == 1.0
    assert shares[14] == 0.0
    assert shares[-1] == 1.0


def test_replicas_are_paid_from_the_decision_on() -> None:
    run = simulate(scenario([1.0] * 10 + [10.0] * 30), POLICY, 1)

    assert run.replica_hours == pytest.approx(sum(one.desired for one in run.minutes) / 60)
    assert fixed(scenario([1.0] * 30), 3).replica_hours == pytest.approx(1.5)


def test_nothing_shrinks_while_data_are_missing() -> None:
    silent = simulate(scenario([None] * 60), POLICY, 4)
    idle = simulate(scenario([0.1] * 60), POLICY, 4)

    assert decisions(silent) == []
    assert [one[2] for one in decisions(idle)] == [3, 2, 1]


def test_none_is_woken_by_a_refusal_and_grows_only_after_it_serves() -> None:
    to_zero = TrackingPolicy(
        targets={"demand": 70.0}, least=0, most=3, scale_out_s=360.0, scale_in_s=900.0
    )
    run = simulate(scenario([0.0] * 20 + [3.0] * 20, refuses=True), to_zero, 1)

    assert decisions(run)[:2] == [(15, 1, 0), (21, 0, 1)]
    assert run.refused == pytest.approx(3.0 * 60 * 6, rel=0.01)
    assert [one.ready for one in run.minutes[15:26]] == [0] * 11
    assert run.minutes[26].ready == 1
    assert run.bad >= run.refused


@given(
    rates=st.lists(st.one_of(st.none(), st.floats(0, 30)), min_size=1, max_size=40),
    start=st.integers(1, 5),
)
@settings(max_examples=25)
def test_a_run_accounts_for_everybody(rates: list[float | None], start: int) -> None:
    run = simulate(scenario(rates), POLICY, start)

    assert run.finished + run.refused + run.in_system == pytest.approx(run.arrived, abs=1e-4)
    assert run.good + run.bad <= run.arrived + 1e-4
    assert all(POLICY.least <= one.desired <= POLICY.most for one in run.minutes)
    assert all(one.ready <= one.desired for one in run.minutes)
    hours = len(rates) / 60
    assert POLICY.least * hours - 1e-6 <= run.replica_hours <= POLICY.most * hours + 1e-6


@given(rates=st.lists(st.floats(0, 30), min_size=5, max_size=30))
@settings(max_examples=15)
def test_more_replicas_serve_no_fewer_in_time(rates: list[float]) -> None:
    one, four = (fixed(scenario(rates), replicas) for replicas in (1, 4))

    assert four.good >= one.good - 1e-6
    assert four.longest_wait_s <= one.longest_wait_s + 1e-6


# -- recordings ------------------------------------------------------------------------------------


def loaded(name: str, max_num_seqs: int) -> Load:
    observations = read_recording(RECORDINGS / f"{name}.jsonl.gz")
    return load_of(observations, model=None, max_num_seqs=max_num_seqs)


@pytest.mark.parametrize(
    ("name", "slots", "is_saturated"),
    [
        ("queue-overload", 8, True),
        ("concurrency-cap", 2, True),
        ("gpu/queue-overload", 64, True),
        ("baseline", 8, False),
    ],
)
def test_a_batch_is_as_large_as_the_server_was_started_with(
    name: str, slots: int, is_saturated: bool
) -> None:
    server = loaded(name, 8).server

    assert server.is_saturated == is_saturated
    assert server.slots == pytest.approx(slots, rel=0.05)
    assert 0 < server.alone_s <= server.full_s


@pytest.mark.parametrize("name", ["baseline", "queue-overload", "gpu/healthy-bursty"])
def test_arrivals_are_what_finished_and_what_is_left(name: str) -> None:
    load = loaded(name, 8)
    pages = [
        read_page(o.text, t=o.t, target=o.target)
        for o in read_recording(RECORDINGS / f"{name}.jsonl.gz")
        if o.kind == "metrics"
    ]
    first, last = (page.engines[0] for page in (pages[0], pages[-1]))

    def total(sample: Any) -> float:
        inside = sample.gauges["requests_running"] + sample.gauges["requests_waiting"]
        return float(sample.total("requests_finished") + inside)

    assert sum(rate or 0.0 for rate in load.arrivals) == pytest.approx(
        total(last) - total(first), rel=0.03, abs=2
    )


def test_a_clock_that_was_set_changes_no_load() -> None:
    observations = read_recording(RECORDINGS / "baseline.jsonl.gz")
    half = len(observations) // 2
    back = [*observations[:half], *(replace(o, t=o.t - 3600) for o in observations[half:])]
    far = [*observations[:half], *(replace(o, t=o.t + 1e9) for o in observations[half:])]

    came = sum(rate or 0.0 for rate in loaded("baseline", 8).arrivals)
    set_back = load_of(back, model=None, max_num_seqs=8)
    assert sum(rate or 0.0 for rate in set_back.arrivals) == pytest.approx(came, rel=0.1)
    assert set_back.seconds >= 3600
    with pytest.raises(InputFileError, match="was a clock set while it was made"):
        load_of(far, model=None, max_num_seqs=8)


def test_a_server_that_was_down_has_no_load_that_is_known() -> None:
    load = loaded("process-restart", 8)

    assert sum(rate is None for rate in load.arrivals) > 10


@pytest.mark.parametrize("name", ["queue-overload", "gpu/queue-overload"])
def test_the_recorded_queue_is_what_one_replica_makes_of_the_load(name: str) -> None:
    """The model against what was recorded: the longest queue, untold, on one replica."""
    load = loaded(name, 8)
    alone = Scenario(
        load=load,
        told_per_s=1.0,
        times=1.0,
        max_num_seqs=64,
        cold_start_s=300.0,
        patience_s=1.0,
    )
    fleet = FluidFleet(load.server, patience_s=1.0)
    longest = 0.0
    for t in range(alone.told_s):
        fleet.step(float(t), 1.0, alone.arrivals(t) or 0.0, 1)
        longest = max(longest, fleet.waiting)

    assert longest == pytest.approx(load.most_waiting, rel=0.25)


# -- the trial -------------------------------------------------------------------------------------

ECS = {"kind": "ecs-service", "name": "llm/chat", "max_num_seqs": 64, "min": 1, "max": 4}


def scaled(resource: dict[str, Any] | None = None, **more: Any) -> Config:
    section = {"cold_start": "5m", "resources": [{**ECS, **(resource or {})}]}
    return config(autoscaling=section, **more)


def tried(one: Config, name: str = "gpu/healthy-busy", **more: Any) -> Trial:
    observations = read_recording(RECORDINGS / f"{name}.jsonl.gz")
    return try_policy(one, observations, **{"scale": MINUTE_A_SECOND, **more})


def test_the_policy_lies_between_the_fixed_fleets_on_a_real_load() -> None:
    trial = tried(scaled())

    assert trial.fewest.replica_hours < trial.scaled.replica_hours < trial.most.replica_hours
    assert trial.fewest.share is not None
    assert trial.scaled.share is not None
    assert trial.most.share is not None
    assert trial.fewest.share < trial.scaled.share <= trial.most.share
    assert trial.scaled.arrived == pytest.approx(trial.most.arrived)


def test_a_longer_cold_start_serves_fewer_in_time() -> None:
    shares = [
        tried(scaled(), "gpu/queue-overload", cold_start_s=cold).scaled.share
        for cold in (60.0, 300.0, 900.0)
    ]

    assert None not in shares
    assert shares == sorted(shares, key=lambda share: -(share or 0.0))


def test_pauses_follow_another_cold_start() -> None:
    slow = tried(scaled(), cold_start_s=1200.0).policy

    assert (slow.scale_out_s, slow.scale_in_s) == (1260.0, 2520.0)


def test_a_multiple_of_the_load_is_what_many_replicas_have() -> None:
    once, twice = (tried(scaled(), times=times) for times in (1.0, 2.0))

    assert twice.scaled.arrived == pytest.approx(2 * once.scaled.arrived)
    assert twice.scaled.replica_hours > once.scaled.replica_hours


@pytest.mark.parametrize(
    ("resource", "name", "more", "said"),
    [
        ({}, "queue-overload", {}, "max_num_seqs is 64, and the recorded engine ran 8 at once"),
        ({"model": "chat"}, "baseline", {}, "the recording is of tiny; it is taken for chat's"),
        ({}, "baseline", {}, "the policy decides nothing: demand is"),
        ({}, "baseline", {"scale": Fraction(1)}, "too short for policies"),
        ({}, "process-restart", {}, "are not known (no page, or a restart)"),
    ],
)
def test_what_may_surprise_is_told(
    resource: dict[str, Any], name: str, more: dict[str, Any], said: str
) -> None:
    assert any(said in note for note in tried(scaled(resource), name, **more).notes)


def test_a_promise_that_no_number_keeps_is_told() -> None:
    tight = [{"name": "t", "sli": "time_to_first_token", "threshold": "10ms", "target": "95%"}]
    trial = tried(scaled(objectives=tight))

    assert trial.most.share == 0
    assert any("no number of replicas keeps this promise" in note for note in trial.notes)


def test_what_cannot_be_tried() -> None:
    two = config(
        autoscaling={
            "cold_start": "5m",
            "resources": [{**ECS, "model": "a"}, {**ECS, "name": "llm/b", "model": "b"}],
        }
    )
    availability = [{"name": "a", "sli": "availability", "target": "99%"}]

    with pytest.raises(ConfigError, match=r"autoscaling.resources: none"):
        tried(config())
    with pytest.raises(UsageError, match="choose one of llm/chat, llm/b with --resource"):
        tried(two)
    with pytest.raises(UsageError, match="--resource c: there is none"):
        try_policy(two, read_recording(RECORDINGS / "baseline.jsonl.gz"), name="c")
    with pytest.raises(UsageError, match="--replicas 9: llm/chat has 1 to 4"):
        tried(scaled(), start=9)
    with pytest.raises(ConfigError, match="objectives: none of time_to_first_token"):
        tried(scaled(objectives=availability))
    with pytest.raises(UsageError, match="more than 7 days"):
        tried(scaled(), scale=Fraction(1, 100_000))


def test_a_recording_without_requests_tells_nothing() -> None:
    observations = read_recording(RECORDINGS / "baseline.jsonl.gz")
    page = next(one for one in observations if one.kind == "metrics")
    idle = [replace(page, t=page.t + second) for second in range(60)]

    with pytest.raises(InputFileError, match="too few finished requests"):
        try_policy(scaled(), idle)


# -- the command -----------------------------------------------------------------------------------

BUSY = str(RECORDINGS / "gpu" / "healthy-busy.jsonl.gz")
TOLD = ("autoscale", "simulate", BUSY, "--scale", "1/60")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = {
        "service": {"name": "shop"},
        "autoscaling": {"cold_start": "5m", "resources": [ECS]},
    }
    (tmp_path / "opsctl.yaml").write_text(yaml.safe_dump(data))
    return tmp_path


@pytest.mark.parametrize("columns", [80, 160])
def test_people_see_the_answer_first_and_nothing_runs_over(
    opsctl: Opsctl, folder: Path, columns: int
) -> None:
    answer = opsctl.run(*TOLD, env={"COLUMNS": str(columns)}, cwd=folder)
    lines = answer.stdout.splitlines()

    assert answer.returncode == 0, answer.stderr
    assert lines[0].startswith("ttft kept: 96 % in time of 95 % promised")
    assert max(map(len, lines)) <= columns
    text = " ".join(answer.stdout.split())
    assert "1 s of it told as 60 s" in text
    for part in ("policy, 1 to 4", "always 1", "always 4", "Assumes", "3 min 1 -> 3"):
        assert part in text
    bars = [line for line in lines if re.match(r" {4}[1-4] │", line)]
    assert len(bars) == 4
    assert "░" in bars[1]
    assert "█" in bars[1]


def test_a_row_of_a_large_fleet_is_several_replicas(opsctl: Opsctl, folder: Path) -> None:
    resources = f"[{json.dumps({**ECS, 'max': 20})}]"
    env = {"COLUMNS": "80", "OPSCTL_AUTOSCALING__RESOURCES": resources}
    answer = opsctl.run(*TOLD, "--load", "12", env=env, cwd=folder)

    rows = re.findall(r"^ +(\d+) │([ ░█]*)$", answer.stdout, re.M)
    assert [label for label, _ in rows] == ["21", "18", "15", "12", "9", "6", "3"]
    assert rows[-1][1].startswith("█"), "one of three is shown"


def test_programs_get_every_minute_and_what_was_assumed(opsctl: Opsctl, folder: Path) -> None:
    answer = opsctl.run(*TOLD, "-o", "json", cwd=folder)
    found = json.loads(answer.stdout)

    assert found["schema_version"] == 1
    assert (found["scale"], found["told_s"]) == ("1/60", 60 * len(found["minutes"]))
    assert found["objective"]["is_kept"] is True
    assert found["decisions"][0] == {"t_s": 180.0, "before": 1, "after": 3}
    assert len(found["assumptions"]) == 5
    policy, most = found["policy"], found["always_max"]
    assert policy["replica_hours"] < most["replica_hours"]
    assert policy["arrived"] == pytest.approx(
        policy["finished"] + policy["refused"] + policy["in_system_at_end"]
    )


def test_time_scale_is_another_name_of_scale(opsctl: Opsctl, folder: Path) -> None:
    other = opsctl.run(*TOLD[:3], "--time-scale", "1/60", "-o", "json", cwd=folder)

    assert other.stdout == opsctl.run(*TOLD, "-o", "json", cwd=folder).stdout


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_trial_is_the_same_picture(opsctl: Opsctl, folder: Path, suffix: str) -> None:
    pictures = []
    for number in range(2):
        path = folder / f"{number}.{suffix}"
        answer = opsctl.run(*TOLD, "--out", str(path), cwd=folder)
        assert answer.returncode == 0, answer.stderr
        pictures.append(path.read_bytes())

    assert pictures[0] == pictures[1]
    assert pictures[0].startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nobody.jsonl",), "nobody.jsonl: no such file"),
        ((BUSY, "--out", "x.gif"), "--out x.gif: .gif is no picture; name it .png or .svg"),
        ((BUSY, "--scale", "2"), "'2' is not above 0 and up to 1"),
        ((BUSY, "--cold-start", "soon"), "'soon' is not a duration"),
        ((BUSY, "--load", "0"), "--load"),
        ((BUSY, "--replicas", "7"), "--replicas 7: llm/chat has 1 to 4 replicas"),
        ((BUSY, "--resource", "x"), "--resource x: there is none of this name"),
    ],
)
def test_mistakes_are_told(
    opsctl: Opsctl, folder: Path, arguments: tuple[str, ...], said: str
) -> None:
    answer = opsctl.run("autoscale", "simulate", *arguments, cwd=folder)

    assert (answer.returncode, answer.stdout) == (64, "")
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_page_shows_what_the_command_prints(opsctl: Opsctl, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "autoscaling.md").read_text()
    settings, command = re.findall(r"```(?:yaml)?\n(.*?)```", page, re.S)[1:3]
    path = tmp_path / "opsctl.yaml"
    path.write_text(settings)
    typed, *quoted = command.splitlines()

    answer = opsctl.run(
        *("--config", str(path), *typed.removeprefix("$ opsctl ").split()),
        env={"COLUMNS": "80"},
        cwd=ROOT,
    )

    assert answer.returncode == 0, answer.stderr
    assert quoted.pop() == "…"
    assert answer.stdout.splitlines()[: len(quoted)] == quoted


def test_what_is_not_configured_is_named_with_its_file(opsctl: Opsctl, tmp_path: Path) -> None:
    (tmp_path / "opsctl.yaml").write_text("service: {name: shop}\n")
    answer = opsctl.run("autoscale", "simulate", BUSY, cwd=tmp_path)

    assert answer.returncode == 64
    assert "Error: opsctl.yaml: autoscaling.resources: none" in answer.stderr
