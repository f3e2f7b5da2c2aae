"""Fleets of recorded replicas: who is different, what is common, and who is compared with whom."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from truth import cases

from vllm_opsctl.exporter.observation import Observation, metrics
from vllm_opsctl.runbooks.fleet import Question, diagnose_fleet
from vllm_opsctl.runbooks.load import shipped_library
from vllm_opsctl.runbooks.verdict import Verdict

Fleet = dict[str, Sequence[Observation]]

HEALTHY = ("baseline", "baseline", "baseline")
"""All recordings of one server's configuration, as replicas of a service are."""


def fleet(*names: str) -> Fleet:
    """Replicas chat-0, chat-1, … each of which is a recording up to the end of its incident."""
    return {f"chat-{index}": replica(f"chat-{index}", name) for index, name in enumerate(names)}


def replica(target: str, name: str) -> list[Observation]:
    case = cases()[name]
    end = case.incident[1] if case.incident else case.observations[-1].t
    return [replace(o, target=target) for o in case.observations if o.t <= end]


def serving(model: str, observations: Sequence[Observation]) -> list[Observation]:
    """The same pages of a server whose model is called otherwise."""
    return [changed(o, 'model_name="tiny"', f'model_name="{model}"') for o in observations]


def changed(observation: Observation, old: str, new: str) -> Observation:
    if observation.kind != "metrics":
        return observation
    return metrics(observation.t, observation.target, observation.text.replace(old, new))


def diagnose(observed: Mapping[str, Sequence[Observation]]) -> Verdict:
    return diagnose_fleet(observed, shipped_library(), Question(source="scrape"))


def roots(verdict: Verdict) -> dict[str, list[str]]:
    return {t.target: [cause.id for cause in t.roots] for t in verdict.targets if t.roots}


def common(verdict: Verdict) -> dict[str, tuple[tuple[str, ...], bool]]:
    assert verdict.fleet is not None
    return {c.id: (c.targets, c.is_common) for c in verdict.fleet.common}


def test_a_replica_that_gets_more_than_its_share_is_an_imbalance() -> None:
    verdict = diagnose(fleet(*HEALTHY, "queue-overload"))
    assert verdict.fleet is not None
    overloaded = verdict.targets[3]

    assert common(verdict) == {"replica-imbalance": (("chat-3",), False)}
    assert ("queue-overload", "symptom") in [(c.id, c.role) for c in overloaded.causes]
    assert {o.target for o in verdict.fleet.outliers} == {"chat-3"}
    assert {o.feature for o in verdict.fleet.outliers} >= {
        "queue.waiting_avg",
        "ttft.mean",
        "traffic.arrived_per_second",
    }
    assert verdict.fleet.outliers[0].others == "0"


def test_alone_the_same_replica_is_overloaded() -> None:
    assert roots(diagnose(fleet("queue-overload"))) == {"chat-0": ["queue-overload"]}


@pytest.mark.parametrize("name", ["prefix-cache-nonce", "engine-hung", "context-length-rejections"])
def test_one_replicas_own_trouble_is_its_own(name: str) -> None:
    verdict = diagnose(fleet(*HEALTHY, name))

    assert roots(verdict) == {"chat-3": [name]}
    assert common(verdict) == {name: (("chat-3",), False)}
    assert [t.verdict for t in verdict.targets[:3]] == ["healthy"] * 3


def test_an_incident_of_all_replicas_is_common() -> None:
    verdict = diagnose(fleet(*["queue-overload"] * 4))
    assert verdict.fleet is not None

    assert common(verdict) == {"queue-overload": (("chat-0", "chat-1", "chat-2", "chat-3"), True)}
    assert verdict.fleet.outliers == ()


def test_the_one_replica_that_is_well_is_the_outlier() -> None:
    verdict = diagnose(fleet(*["prefix-cache-nonce"] * 3, "baseline"))
    assert verdict.fleet is not None

    assert common(verdict)["prefix-cache-nonce"] == (("chat-0", "chat-1", "chat-2"), True)
    assert {o.target for o in verdict.fleet.outliers} == {"chat-3"}


def test_of_two_alike_halves_neither_is_an_outlier() -> None:
    verdict = diagnose(fleet("queue-overload", "queue-overload", "baseline", "baseline"))
    assert verdict.fleet is not None

    assert verdict.fleet.outliers == ()


def test_a_dead_replica_is_found_and_not_compared() -> None:
    verdict = diagnose(fleet(*HEALTHY, "engine-dead"))
    assert verdict.fleet is not None

    assert roots(verdict) == {"chat-3": ["engine-dead"]}
    assert verdict.health == "critical"
    assert verdict.fleet.outliers == ()
    # what it did before it died is no peer's present
    assert verdict.targets[0].features["fleet.peers"] == 2.0


def test_with_two_targets_nobody_can_say_which_one_is_different() -> None:
    verdict = diagnose(fleet("baseline", "queue-overload"))
    assert verdict.fleet is not None

    assert roots(verdict) == {"chat-1": ["queue-overload"]}
    assert verdict.fleet.outliers == ()
    assert not any(name.startswith("fleet.") for name in verdict.targets[1].features)


def test_a_single_target_is_no_fleet() -> None:
    verdict = diagnose(fleet("baseline"))

    assert verdict.fleet is None
    assert "fleet" not in verdict.to_json()


def test_other_models_are_no_peers() -> None:
    observed = fleet(*HEALTHY, "queue-overload")
    observed["chat-3"] = serving("large", observed["chat-3"])
    verdict = diagnose(observed)
    assert verdict.fleet is not None

    assert roots(verdict) == {"chat-3": ["queue-overload"]}
    assert verdict.fleet.outliers == ()
    assert [m.what for m in verdict.fleet.mixed] == ["model"]


def test_a_cause_of_one_whole_service_is_common_though_the_fleet_has_others() -> None:
    observed = fleet(*HEALTHY, *HEALTHY, "queue-overload", "queue-overload")
    for target in ("chat-6", "chat-7"):
        observed[target] = serving("large", observed[target])

    assert common(diagnose(observed)) == {"queue-overload": (("chat-6", "chat-7"), True)}


def test_mixed_versions_and_settings_are_told() -> None:
    observed = fleet(*HEALTHY)
    for target, version in zip(observed, ("0.32.0", "0.32.0", "0.31.1"), strict=True):
        first = observed[target][0]
        facts = Observation(first.t, target, "facts", {"version": version})
        observed[target] = [facts, *observed[target]]
    dtype = ('cache_dtype="auto"', 'cache_dtype="fp8"')
    observed["chat-0"] = [changed(o, *dtype) for o in observed["chat-0"]]
    verdict = diagnose(observed)
    assert verdict.fleet is not None

    assert {m.what: dict(m.values) for m in verdict.fleet.mixed} == {
        "vLLM version": {"0.32.0": ("chat-0", "chat-1"), "0.31.1": ("chat-2",)},
        "cache_dtype": {"fp8": ("chat-0",), "auto": ("chat-1", "chat-2")},
    }


def with_blocks(observations: Sequence[Observation], blocks: int) -> list[Observation]:
    """The same pages of a server with another size of KV cache (blocks of 32 tokens)."""
    label = re.compile(r'(num_gpu_blocks|kv_cache_size_tokens|kv_cache_max_concurrency)="[^"]+"')
    values = {
        "num_gpu_blocks": blocks,
        "kv_cache_size_tokens": 32 * blocks,
        "kv_cache_max_concurrency": 32 * blocks / 8192,
    }
    return [
        metrics(o.t, o.target, label.sub(lambda found: f'{found[1]}="{values[found[1]]}"', o.text))
        for o in observations
    ]


def test_kv_caches_of_other_sizes_are_told_but_not_the_noise_between_gpus() -> None:
    observed = fleet(*HEALTHY, "baseline")
    sizes = {"chat-0": 4096, "chat-1": 4101, "chat-2": 4088, "chat-3": 1024}
    noisy = {t: with_blocks(observed[t], n) for t, n in sizes.items() if t != "chat-3"}
    alike = diagnose(noisy)
    mixed = diagnose(noisy | {"chat-3": with_blocks(observed["chat-3"], sizes["chat-3"])})
    assert alike.fleet is not None
    assert mixed.fleet is not None

    assert alike.fleet.mixed == ()
    told = {m.what: dict(m.values) for m in mixed.fleet.mixed}
    assert told["KV cache, tokens"] == {
        "32,768": ("chat-3",),
        "130,816 to 131,232": ("chat-2", "chat-0", "chat-1"),
    }


def test_the_json_of_a_fleet_has_the_documented_shape() -> None:
    data = diagnose(fleet(*HEALTHY, "kv-preemption-thrash")).to_json()["fleet"]
    json.dumps(data)

    assert data.keys() == {"causes", "outliers", "mixed"}
    assert {"id", "targets", "common"} <= data["causes"][0].keys()
    assert {"target", "feature", "value", "others"} <= data["outliers"][0].keys()
    assert data["mixed"][0].keys() == {"what", "values"}
