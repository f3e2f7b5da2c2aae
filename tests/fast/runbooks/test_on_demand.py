"""Verdicts on demand: none without somebody who asks, one at a time, and nobody waits for one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from loopback import wait_for
from paths import RECORDINGS

from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.recording import read_recording
from vllm_opsctl.runbooks.load import shipped_library
from vllm_opsctl.runbooks.on_demand import OUTDATED_S, PAUSE_S, Look, OnDemand, diagnose_recorded
from vllm_opsctl.runbooks.verdict import TargetVerdict, Verdict

FINE = Verdict(
    (
        TargetVerdict(
            target="chat-0",
            verdict="healthy",
            summary="fine",
            source="sidecar",
            start=0.0,
            end=1.0,
            samples=1,
        ),
    )
)


@dataclass
class Doctor:
    """Diagnoses when it is let, at a time that the test sets."""

    now: float = 1000.0
    looks: int = 0
    problem: Exception | None = None
    may_end: threading.Event = field(default_factory=threading.Event)

    def diagnose(self) -> Verdict:
        self.looks += 1
        assert self.may_end.wait(timeout=30)
        if self.problem is not None:
            raise self.problem
        return FINE

    def on_demand(self) -> OnDemand:
        return OnDemand(self.diagnose, now=lambda: self.now)


def until(asked: OnDemand, holds: Callable[[Look], bool]) -> Look:
    wait_for(lambda: holds(asked.ask()), timeout_s=30, what="the look")
    return asked.ask()


def test_nothing_is_computed_until_somebody_asks() -> None:
    doctor = Doctor()
    doctor.on_demand()

    assert doctor.looks == 0


def test_the_first_who_asks_is_not_kept_waiting_and_those_meanwhile_start_nothing() -> None:
    doctor = Doctor()
    asked = doctor.on_demand()

    assert [asked.ask() for _ in range(20)] == [Look()] * 20
    wait_for(lambda: doctor.looks == 1, timeout_s=30, what="the thread")
    doctor.may_end.set()
    assert until(asked, lambda look: look.verdict is not None).verdict == FINE
    assert doctor.looks == 1


def test_an_answer_is_kept_for_the_pause_and_then_made_again() -> None:
    doctor = Doctor()
    doctor.may_end.set()
    asked = doctor.on_demand()
    until(asked, lambda look: look.verdict is not None)

    doctor.now += PAUSE_S - 1
    asked.ask()
    assert doctor.looks == 1
    doctor.now += 1
    assert asked.ask().verdict == FINE
    wait_for(lambda: doctor.looks == 2, timeout_s=30, what="the next look")


def test_a_slow_look_is_followed_by_a_longer_rest() -> None:
    assert Look(took_s=1.0).pause_s == PAUSE_S
    assert Look(took_s=10.0).pause_s == 40.0


def test_nobody_is_shown_the_verdict_of_another_time() -> None:
    doctor = Doctor()
    doctor.may_end.set()
    asked = doctor.on_demand()
    until(asked, lambda look: look.verdict is not None)
    doctor.may_end.clear()

    doctor.now += PAUSE_S + 2 * OUTDATED_S
    assert asked.ask().verdict is None
    doctor.may_end.set()


def test_a_diagnosis_that_fails_says_so_and_the_next_one_is_tried() -> None:
    doctor = Doctor(problem=RuntimeError("no such feature"))
    doctor.may_end.set()
    asked = doctor.on_demand()

    failed = until(asked, lambda look: look.problem is not None)
    assert failed.problem == "RuntimeError: no such feature"
    assert failed.verdict is None
    doctor.problem = None
    doctor.now += PAUSE_S
    assert until(asked, lambda look: look.verdict is not None).problem is None


def recorded(name: str) -> Callable[[str, float, float], Iterable[Observation]]:
    observed = read_recording(RECORDINGS / f"{name}.jsonl.gz")

    def between(target: str, start: float, end: float) -> Iterable[Observation]:
        return [o for o in observed if start <= o.t <= end and target == "chat-0"]

    return between


def test_what_the_flight_recorders_hold_is_diagnosed() -> None:
    newest = read_recording(RECORDINGS / "kv-preemption-thrash.jsonl.gz")[-1].t
    verdict = diagnose_recorded(
        ["chat-0", "never-read"],
        recorded("kv-preemption-thrash"),
        shipped_library(),
        now=newest - 10,
    )

    known, unknown = verdict.targets
    assert [root.id for root in known.roots] == ["kv-preemption-thrash"]
    assert unknown.verdict == "unknown"
