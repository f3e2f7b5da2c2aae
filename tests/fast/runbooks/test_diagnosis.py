"""Diagnosis on real incidents: the root is named, look-alikes are not, and health stays silent."""

from __future__ import annotations

import json
from collections.abc import Sequence

import jsonschema
import pytest
from paths import RECORDINGS
from truth import Case, cases

from vllm_opsctl.exporter.observation import Observation, metrics
from vllm_opsctl.runbooks.diagnosis import diagnose_target
from vllm_opsctl.runbooks.fleet import Question, diagnose_fleet
from vllm_opsctl.runbooks.load import shipped_library
from vllm_opsctl.runbooks.verdict import TargetVerdict, Verdict

DOCS = RECORDINGS.parents[1] / "docs"
FIRST_LOOK_S = 12.0
LOOK_EVERY_S = 5.0

INCIDENTS = [name for name, case in cases().items() if case.truth]


def recording(name: str) -> tuple[Observation, ...]:
    return cases()[name].observations


def verdict_on(observations: Sequence[Observation], at: float | None = None) -> TargetVerdict:
    return diagnose_target(
        observations[0].target, observations, shipped_library(), source="recording", at=at
    )


def roots(verdict: TargetVerdict) -> list[str]:
    return [cause.id for cause in verdict.roots]


def looks(case: Case, start: float, end: float) -> list[float]:
    """Moments at which somebody may ask."""
    return [start + LOOK_EVERY_S * step for step in range(int((end - start) // LOOK_EVERY_S) + 1)]


def test_every_recording_has_its_truth() -> None:
    found = {str(p.relative_to(RECORDINGS)) for p in RECORDINGS.rglob("*.jsonl.gz")}

    assert found == {f"{name}.jsonl.gz" for name in cases()}


@pytest.mark.parametrize("name", INCIDENTS)
def test_the_root_cause_of_a_real_incident_is_named(name: str) -> None:
    case = cases()[name]
    assert case.incident is not None
    verdict = case.diagnose(case.incident[1])
    named = roots(verdict)
    severe = any(shipped_library().modes[id_].severity == "critical" for id_ in named)

    assert named
    assert set(named) <= case.accepted
    assert verdict.verdict == ("critical" if severe else "degraded")


@pytest.mark.parametrize("name", cases())
def test_while_nothing_is_wrong_nothing_is_found(name: str) -> None:
    case = cases()[name]
    first = case.observations[0].t + FIRST_LOOK_S
    end = case.incident[0] if case.incident else case.observations[-1].t

    for moment in looks(case, first, end):
        verdict = case.diagnose(moment)
        assert (verdict.verdict, verdict.causes) == ("healthy", ()), f"{moment - first:.0f} s"


@pytest.mark.parametrize("name", INCIDENTS)
def test_at_no_moment_of_an_incident_is_another_one_named(name: str) -> None:
    """Early it may be unknown or unexplained, never wrong; a restart is first seen as a death."""
    case = cases()[name]
    assert case.incident is not None
    start = case.incident[0]

    for moment in looks(case, start, case.observations[-1].t):
        named = set(roots(case.diagnose(moment)))
        assert named <= case.tolerated, f"{moment - start:.0f} s into {name}"


def test_symptoms_stand_below_the_root_that_explains_them() -> None:
    verdict = verdict_on(recording("kv-preemption-thrash"))

    assert [(c.id, c.role) for c in verdict.causes] == [
        ("kv-preemption-thrash", "root"),
        ("ttft-burn", "symptom"),
        ("decode-stalls", "symptom"),
    ]
    assert verdict.causes[0].explains == ("decode-stalls", "ttft-burn")


def test_an_overload_that_follows_a_frozen_engine_is_its_symptom() -> None:
    verdict = verdict_on(recording("second/engine-hung-busy"))

    assert ("queue-overload", "symptom") in [(c.id, c.role) for c in verdict.causes]


def test_look_alikes_are_ruled_out_by_a_fact() -> None:
    verdict = verdict_on(recording("concurrency-cap"))
    because = {entry.id: entry.because for entry in verdict.ruled_out}

    assert "the engine has headroom" in because["queue-overload"]
    assert because["kv-preemption-thrash"] == "0 preemptions"


def test_what_is_configured_and_not_served_is_told() -> None:
    """Adapters loaded at run time are lost with a restart, and nobody has asked for them yet."""
    observed = recording("baseline")
    facts = {
        "models": {"data": [{"id": "chat", "max_model_len": 4096}]},
        "expected_models": ["chat", "chat-de"],
        "expected_max_model_len": 8192,
    }
    told = Observation(observed[-1].t, observed[0].target, "facts", facts)
    verdict = verdict_on([*observed, told])

    assert verdict.verdict == "degraded"
    assert [cause.evidence[0].statement for cause in verdict.causes] == [
        "/v1/models lacks chat-de",
        "the server accepts 4,096 tokens, it should accept 8,192",
    ]


def test_what_metrics_cannot_tell_apart_is_named_with_what_would() -> None:
    (nonce,) = verdict_on(recording("prefix-cache-nonce")).roots

    assert [other.id for other in nonce.alternatives] == ["prefix-cache-salt-isolation"]
    assert "request bodies" in nonce.alternatives[0].apart_by


def test_what_changed_at_the_onset_is_told() -> None:
    changed = {
        c.what: (c.before, c.now) for c in verdict_on(recording("prefix-cache-nonce")).changes
    }

    assert changed["prefix-cache hit ratio"] == ("96.9 %", "0 %")
    assert "arrivals" not in changed


def test_without_a_before_an_overload_says_what_else_it_may_be() -> None:
    case = cases()["output-length-shift"]
    assert case.incident is not None
    start, end = case.incident
    verdict = case.diagnose(end, since=start + 10)

    assert roots(verdict) == ["queue-overload"]
    assert "output-length-shift" in [other.id for other in verdict.roots[0].alternatives]
    assert any("more or heavier" in spot for spot in verdict.blind_spots)


def test_two_independent_roots_stand_side_by_side() -> None:
    case = cases()["third/mixed-nonce-context-length"]
    assert case.incident is not None

    assert set(roots(case.diagnose(case.incident[1]))) == {
        "prefix-cache-nonce",
        "context-length-rejections",
    }


def test_a_canary_of_long_ago_vouches_for_nobody() -> None:
    page = recording("baseline")[-1].text
    idle = [metrics(float(t), "chat-0", page) for t in range(60)]
    answered = Observation(1.0, "chat-0", "probe", {"ok": True, "seconds": 0.05})

    assert verdict_on([idle[0], answered, *idle[1:]]).verdict == "unknown"


def test_the_onset_is_located() -> None:
    observed = recording("queue-overload")
    verdict = verdict_on(observed)

    assert verdict.onset is not None
    assert verdict.onset - observed[0].t == pytest.approx(14.1, abs=2.0)


def test_a_target_that_never_answered_is_unknown_not_dead() -> None:
    dead = [o for o in recording("engine-dead") if o.kind == "error"]
    verdict = verdict_on(dead)

    assert (verdict.verdict, verdict.causes) == ("unknown", ())
    assert "no metrics" in verdict.summary


def test_too_few_pages_are_unknown_not_healthy() -> None:
    assert verdict_on(recording("baseline")[:3]).verdict == "unknown"


def test_an_idle_engine_without_a_canary_is_unknown() -> None:
    page = recording("baseline")[-1].text
    idle = [metrics(float(t), "chat-0", page) for t in range(20)]
    answered = Observation(19.5, "chat-0", "probe", {"ok": True, "seconds": 0.05})

    assert verdict_on(idle).verdict == "unknown"
    assert "look the same" in verdict_on(idle).summary
    assert verdict_on([*idle, answered]).verdict == "healthy"


def test_an_idle_engine_whose_canary_times_out_is_frozen() -> None:
    page = recording("baseline")[-1].text
    idle = [metrics(float(t), "chat-0", page) for t in range(12)]
    lost = Observation(11.5, "chat-0", "probe", {"ok": False, "seconds": 10.0, "reason": "timeout"})

    assert roots(verdict_on([*idle, lost])) == ["engine-hung"]


def test_a_canary_that_waits_in_a_queue_is_no_frozen_engine() -> None:
    observed = [*recording("queue-overload")[:40]]
    lost = Observation(
        observed[-1].t,
        observed[0].target,
        "probe",
        {"ok": False, "seconds": 10.0, "reason": "timeout"},
    )

    assert roots(verdict_on([*observed, lost])) == ["queue-overload"]


@pytest.mark.parametrize("version", ["0.9.2", "0.32.0"])
def test_no_advice_names_a_flag_that_the_version_lacks(version: str) -> None:
    observed = recording("queue-overload")
    facts = Observation(observed[0].t, observed[0].target, "facts", {"version": version})
    texts = [a.text for c in verdict_on([facts, *observed]).roots for a in c.actions]

    assert any("--max-num-queued-reqs" in text for text in texts) == (version == "0.32.0")


def test_no_advice_contradicts_the_engines_facts() -> None:
    texts = [a.text for c in verdict_on(recording("kv-preemption-thrash")).roots for a in c.actions]

    assert any("Remove --num-gpu-blocks-override" in text for text in texts)
    assert not any("--gpu-memory-utilization" in text for text in texts)


@pytest.mark.parametrize("name", ["kv-preemption-thrash", "third/model-not-found", "engine-dead"])
def test_the_json_has_the_documented_shape(name: str) -> None:
    schema = json.loads((DOCS / "verdict.schema.json").read_text())
    data = json.loads(json.dumps(Verdict((verdict_on(recording(name)),)).to_json()))

    jsonschema.validate(data, schema)
    assert data["targets"][0]["causes"][0]["id"] == name.removeprefix("third/")


def test_the_json_of_a_fleet_has_the_documented_shape() -> None:
    schema = json.loads((DOCS / "verdict.schema.json").read_text())
    names = ["baseline", "second/healthy", "queue-overload"]
    fleet = diagnose_fleet(
        {name: recording(name) for name in names},
        shipped_library(),
        Question(source="recording"),
    )
    data = json.loads(json.dumps(fleet.to_json()))

    jsonschema.validate(data, schema)
    assert [cause["id"] for cause in data["fleet"]["causes"]]


def test_the_worst_target_decides_and_unknown_is_not_healthy() -> None:
    healthy = verdict_on(recording("baseline"))
    critical = verdict_on(recording("queue-overload"))
    unknown = verdict_on(recording("baseline")[:2])

    assert Verdict((healthy, unknown)).exit_code == 3
    assert Verdict((healthy, unknown, critical)).exit_code == 2
    assert Verdict((healthy,)).exit_code == 0


@pytest.mark.parametrize("name", ["concurrency-cap", "queue-overload", "kv-preemption-thrash"])
def test_a_recording_without_history_is_judged_by_the_processs_own_past(name: str) -> None:
    """Only the incident was recorded: what the process counted before stands for the reference."""
    observed = recording(name)
    late = [o for o in observed if o.t > observed[0].t + 25]
    verdict = verdict_on(late)

    assert roots(verdict) == [name]
    assert verdict.features["reference.kind"] == "process lifetime"


def test_an_incident_that_was_there_from_the_start_has_no_onset() -> None:
    """Watching began in the middle of it: no change within it is where it began."""
    observed = recording("concurrency-cap")
    verdict = verdict_on([o for o in observed if o.t > observed[0].t + 22])

    assert roots(verdict) == ["concurrency-cap"]
    assert verdict.onset is None
