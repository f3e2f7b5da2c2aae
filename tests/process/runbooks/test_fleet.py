"""A large fleet is judged by several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from truth import cases

from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.runbooks.fleet import MANY, Question, diagnose_fleet
from vllm_opsctl.runbooks.load import shipped_library
from vllm_opsctl.runbooks.verdict import Verdict

Fleet = dict[str, Sequence[Observation]]


def fleet(*names: str) -> Fleet:
    """Replicas chat-0, chat-1, … each of which is a recording up to the end of its incident."""
    return {f"chat-{index}": replica(f"chat-{index}", name) for index, name in enumerate(names)}


def replica(target: str, name: str) -> list[Observation]:
    case = cases()[name]
    end = case.incident[1] if case.incident else case.observations[-1].t
    return [replace(o, target=target) for o in case.observations if o.t <= end]


def diagnose(observed: Mapping[str, Sequence[Observation]]) -> Verdict:
    return diagnose_fleet(observed, shipped_library(), Question(source="scrape"))


def roots(verdict: Verdict) -> dict[str, list[str]]:
    return {t.target: [cause.id for cause in t.roots] for t in verdict.targets if t.roots}


def test_a_large_fleet_is_judged_as_each_of_its_replicas_would_be() -> None:
    """From MANY targets on several processes examine them."""
    names = ["baseline"] * (MANY - 2) + ["engine-dead", "prefix-cache-nonce"]
    verdict = diagnose(fleet(*names))

    assert len(verdict.targets) == MANY
    assert roots(verdict) == {
        f"chat-{MANY - 2}": ["engine-dead"],
        f"chat-{MANY - 1}": ["prefix-cache-nonce"],
    }
