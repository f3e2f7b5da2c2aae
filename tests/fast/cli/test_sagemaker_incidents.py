"""
Recorded incidents, published to CloudWatch and read back: which of them a SageMaker endpoint still shows.

The sidecar's own sink makes the data, a fake of AWS holds them, and nothing else of the recording is known.
What cannot be told from there is said in docs/sagemaker.md, and this test holds the page to it.
"""

from __future__ import annotations

import time
from functools import cache

import pytest
from parts.fake_sagemaker import FakeSageMaker
from parts.sagemaker_look import look, publish
from paths import TESTS
from truth import Case, cases

from vllm_opsctl.runbooks.verdict import TargetVerdict

pytestmark = pytest.mark.xdist_group("sagemaker incidents")
"""The last test looks at what came of all others, and they are made once."""

HEALTHY = [name for name, case in cases().items() if not case.truth]
INCIDENTS = [name for name, case in cases().items() if case.truth]


@cache
def verdict(name: str) -> TargetVerdict:
    """What CloudWatch shows at the end of the incident."""
    case = cases()[name]
    fake = FakeSageMaker(now=time.time())
    publish(fake, case.observations, until=case.incident[1] if case.incident else None)
    return look(fake)


def outcome(case: Case) -> str:
    """How much of the truth the verdict has."""
    found = verdict(case.name)
    roots = {cause.id for cause in found.roots}
    if roots:
        if roots <= case.accepted:
            return "named"
        others = {other.id for cause in found.roots for other in cause.alternatives}
        return "twin" if others & case.accepted else "wrong"
    return "felt" if found.verdict != "healthy" else "missed"


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_fleet_is_never_accused(name: str) -> None:
    found = verdict(name)

    assert [cause.id for cause in found.roots] == []
    assert found.verdict in ("healthy", "unknown")


@pytest.mark.parametrize("name", INCIDENTS)
def test_no_incident_is_given_another_root_without_its_twin(name: str) -> None:
    assert outcome(cases()[name]) != "wrong"


def listed() -> list[str]:
    """Failure modes by what their recordings had: always named, also with a twin, at times, never."""
    by_mode: dict[str, set[str]] = {}
    for name in INCIDENTS:
        case = cases()[name]
        by_mode.setdefault(case.truth[0], set()).add(outcome(case))
    found: dict[str, list[str]] = {"always": [], "twin": [], "times": [], "never": []}
    for id_, seen in sorted(by_mode.items()):
        if seen == {"named"}:
            found["always"].append(id_)
        elif seen <= {"named", "twin"}:
            found["twin"].append(id_)
        else:
            found["times" if seen & {"named", "twin"} else "never"].append(id_)
    return [", ".join(f"`{id_}`" for id_ in ids) for ids in found.values()]


def test_the_documentation_says_what_can_be_told_from_cloudwatch() -> None:
    text = " ".join((TESTS.parent / "docs" / "sagemaker.md").read_text("utf-8").split())
    always, twin, at_times, never = listed()

    assert f"Named: {always}." in text
    assert f"Named, or beside a twin that CloudWatch cannot tell apart: {twin}." in text
    assert f"Only at times: {at_times}." in text
    assert f"Not named, at most felt: {never}." in text
