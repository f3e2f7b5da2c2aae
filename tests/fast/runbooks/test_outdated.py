"""A question about now is not answered with what was read long ago, whatever it showed."""

from __future__ import annotations

import pytest
from fake_vllm import page
from paths import RECORDINGS

from vllm_opsctl.exporter.observation import Observation, error, metrics
from vllm_opsctl.exporter.recording import read_recording
from vllm_opsctl.runbooks.diagnosis import diagnose_target
from vllm_opsctl.runbooks.examine import STALE_S
from vllm_opsctl.runbooks.fleet import Question, diagnose_fleet
from vllm_opsctl.runbooks.load import shipped_library
from vllm_opsctl.runbooks.verdict import TargetVerdict


def pages(step_s: float = 1.0, number: int = 30) -> list[Observation]:
    return [metrics(step_s * n, "chat-0", page(tokens=100.0 * n)) for n in range(number)]


def verdict(seen: list[Observation], now: float | None, window_s: float = 60.0) -> TargetVerdict:
    return diagnose_target(
        seen[0].target, seen, shipped_library(), source="sidecar", window_s=window_s, now=now
    )


def test_what_was_read_just_now_is_judged() -> None:
    assert verdict(pages(), now=29.0 + STALE_S).verdict == "healthy"


def test_what_was_read_long_ago_is_unknown() -> None:
    found = verdict(pages(), now=29.0 + STALE_S + 1)

    assert found.verdict == "unknown"
    assert found.summary == (
        "nothing was read for 16 s, so how it is now is unknown (after 15 s without a read)"
    )


def test_what_was_read_later_than_now_is_unknown() -> None:
    """A clock that was set back, or one that lies."""
    found = verdict(pages(), now=29.0 - STALE_S - 1)

    assert found.verdict == "unknown"
    assert found.summary.startswith("what was read last is 16 s later than now")


def test_the_past_is_judged_as_it_was() -> None:
    assert verdict(pages(), now=None).verdict == "healthy"


@pytest.mark.parametrize(("after_s", "health"), [(110.0, "healthy"), (130.0, "unknown")])
def test_a_target_that_is_scraped_rarely_is_given_its_time(after_s: float, health: str) -> None:
    seen = pages(step_s=30.0)

    assert verdict(seen, seen[-1].t + after_s, window_s=600.0).verdict == health


def test_a_failed_read_is_a_read() -> None:
    seen = [*pages(), *(error(30.0 + t, "chat-0", "timeout", "no answer") for t in range(30))]

    assert "nothing was read" not in verdict(seen, now=61.0).summary


def test_no_incident_of_the_past_is_told_in_the_present() -> None:
    seen = read_recording(RECORDINGS / "queue-overload.jsonl.gz")
    newest = max(o.t for o in seen)
    then, now = verdict(seen, now=newest), verdict(seen, now=newest + 90)

    assert then.causes
    assert (now.verdict, now.causes, now.changes) == ("unknown", (), ())


def test_a_target_that_nobody_reads_is_no_peer_of_those_that_are_read() -> None:
    fresh = {f"chat-{n}": [o for o in pages()] for n in range(1, 4)}
    old = [metrics(o.t - 3000, "chat-0", o.text) for o in pages()]
    found = diagnose_fleet(
        {"chat-0": old, **fresh}, shipped_library(), Question(source="sidecar", now=30.0)
    )

    assert [target.verdict for target in found.targets] == ["unknown", *["healthy"] * 3]
    assert found.fleet is not None
    assert all(outlier.target != "chat-0" for outlier in found.fleet.outliers)
