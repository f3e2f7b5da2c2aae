"""
A fleet: many targets at once, each compared with its peers, and one view of them all.

Targets are examined in several processes when there are many; only their findings come back. The
comparison needs nothing but findings, so it is made here.
"""

from __future__ import annotations

import bisect
import itertools
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.runbooks.diagnosis import conclude
from vllm_opsctl.runbooks.examine import EngineFindings, Examined, examine
from vllm_opsctl.runbooks.features import Value, registry
from vllm_opsctl.runbooks.features_fleet import MIN_PEERS, compare_with_peers
from vllm_opsctl.runbooks.load import Library
from vllm_opsctl.runbooks.verdict import CommonCause, FleetView, Mixed, Outlier, Verdict

MANY = 16
"""From so many targets on a second process pays for its start."""

COMMON_SHARE = 0.5
"""A cause on at least so many of the targets is common to them, not one replica's own."""

_DIFFERENT = 2.0
"""A replica whose number is this factor away from the others' median is different."""

_COMPARED: Mapping[str, float] = {
    "queue.waiting_avg": 2.0,
    "ttft.mean": 0.2,
    "itl.mean": 0.005,
    "traffic.arrived_per_second": 0.5,
    "running.avg": 2.0,
    "kv.usage_avg": 0.2,
    "prefix.hit_ratio": 0.2,
    "preempt.count": 5.0,
    "http.client_errors": 10.0,
    "http.server_errors": 3.0,
    "frontend.seconds": 0.1,
}
"""What replicas are compared in, and the least absolute difference worth telling."""

_FACTS = (
    *("block_size", "gpu_memory_utilization", "cache_dtype"),
    *("enable_prefix_caching", "kv_cache_memory_bytes"),
)
"""Labels of the cache configuration that replicas of one service should share."""

_SAME_SIZE = 1.1
"""KV caches that differ by less are alike: what is left of a GPU's memory is never the same twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """
    What is asked of every target.

    Args:
        source: How the observations were had.
        at: End of the window (unix seconds); None for each target's newest observation.
        window_s: Length of the window in seconds.
        now: Unix seconds, where the question is how the targets are now.
    """

    source: str
    at: float | None = None
    window_s: float = 60.0
    now: float | None = None

    def examine(self, target: str, observations: Sequence[Observation]) -> Examined:
        """Look at one target."""
        return examine(
            target,
            observations,
            source=self.source,
            at=self.at,
            window_s=self.window_s,
            now=self.now,
        )


def diagnose_fleet(
    observed: Mapping[str, Sequence[Observation]],
    library: Library,
    question: Question,
    *,
    runbook_url: str | None = None,
) -> Verdict:
    """
    Diagnose targets together.

    Args:
        observed: Target to its observations, in order.
        library: Failure modes.
        question: What is asked.
        runbook_url: Base of the links to runbook pages.
    """
    return conclude_fleet(_examine_all(observed, question), library, runbook_url=runbook_url)


def conclude_fleet(
    found: Sequence[Examined], library: Library, *, runbook_url: str | None = None
) -> Verdict:
    """
    Judge targets that were examined, each compared with its peers.

    Args:
        found: One for each target.
        library: Failure modes.
        runbook_url: Base of the links to runbook pages.
    """
    examined = _compared(found)
    targets = tuple(conclude(one, library, runbook_url=runbook_url) for one in examined)
    view = _view(examined, Verdict(targets)) if len(targets) > 1 else None
    return Verdict(targets, fleet=view)


def _examine_all(
    observed: Mapping[str, Sequence[Observation]], question: Question
) -> list[Examined]:
    if len(observed) < MANY or not hasattr(os, "fork"):
        return [question.examine(target, seen) for target, seen in observed.items()]
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    workers = min(os.cpu_count() or 1, len(observed) // (MANY // 2))
    # forked workers have the modules already; spawned ones would import them for longer than this takes
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        return list(pool.map(question.examine, observed.keys(), observed.values(), chunksize=4))


def _compared(examined: Sequence[Examined]) -> list[Examined]:
    """Add what only a comparison tells; a target with several engines is its first one to others."""
    peers = {model: dict(_answering(group)) for model, group in _by_model(examined).items()}
    return [
        replace(one, engines=tuple(_among(e, _others(one, peers)) for e in one.engines))
        for one in examined
    ]


def _by_model(examined: Sequence[Examined]) -> dict[str, list[Examined]]:
    """Replicas of one service: those that serve the same model, and of which it is known how they are."""
    groups: dict[str, list[Examined]] = {}
    for one in examined:
        if one.outdated is not None:
            continue
        if one.engines and (model := one.engines[0].model) is not None:
            groups.setdefault(model, []).append(one)
    return groups


def _answering(group: Sequence[Examined]) -> Iterator[tuple[str, Mapping[str, Value]]]:
    """Target and features of those that answer now; what a dead one did last is no comparison."""
    for one in group:
        features = one.engines[0].features
        if features.get("endpoint.answers") is not False:
            yield one.target, features


def _others(
    one: Examined, peers: Mapping[str, Mapping[str, Mapping[str, Value]]]
) -> list[Mapping[str, Value]]:
    group = peers.get(one.engines[0].model or "", {})
    return [features for target, features in group.items() if target != one.target]


def _among(engine: EngineFindings, peers: Sequence[Mapping[str, Value]]) -> EngineFindings:
    compared = compare_with_peers(engine.features, peers)
    return replace(engine, features={**engine.features, **compared}) if compared else engine


def _view(examined: Sequence[Examined], verdict: Verdict) -> FleetView:
    groups = list(_by_model(examined).values())
    return FleetView(
        common=_common(verdict, groups),
        outliers=_outliers(groups),
        mixed=_mixed(examined, groups),
    )


def _common(verdict: Verdict, groups: Sequence[Sequence[Examined]]) -> tuple[CommonCause, ...]:
    """Root causes by the targets that have them, the widest first."""
    where: dict[str, list[str]] = {}
    for target in verdict.targets:
        for cause in target.roots:
            where.setdefault(cause.id, []).append(target.target)
    services = [frozenset(one.target for one in group) for group in groups]
    found = [
        CommonCause(id_, tuple(names), is_common=any(_most_of(s, names) for s in services))
        for id_, names in where.items()
    ]
    return tuple(sorted(found, key=lambda cause: -len(cause.targets)))


def _most_of(service: frozenset[str], names: Sequence[str]) -> bool:
    having = len(service.intersection(names))
    return having > 1 and having >= COMMON_SHARE * len(service)


def _outliers(groups: Sequence[Sequence[Examined]]) -> tuple[Outlier, ...]:
    """Which replicas are different from the others, and in what; the furthest first."""
    found: list[tuple[float, Outlier]] = []
    for group, (name, least) in itertools.product(groups, _COMPARED.items()):
        numbers = {
            target: float(value)
            for target, features in _answering(group)
            if isinstance(value := features.get(name), int | float)
        }
        if len(numbers) <= MIN_PEERS:
            continue
        entry = registry()[name]
        ordered = sorted(numbers.values())
        for target, number in numbers.items():
            others = _median_without(ordered, number)
            if _is_near(number, others) or abs(number - others) < least:
                continue
            # one of two alike halves is no outlier
            near = sum(_is_near(number, other) for other in ordered) - 1
            if near >= COMMON_SHARE * (len(numbers) - 1) / 2:
                continue
            factor = max(number, 1e-9) / max(others, 1e-9)
            outlier = Outlier(target, name, entry.format(number), entry.format(others))
            found.append((max(factor, 1 / factor), outlier))
    found.sort(key=lambda pair: -pair[0])
    return tuple(outlier for _, outlier in found)


def _median_without(ordered: Sequence[float], one: float) -> float:
    """Median of sorted numbers less one of them."""
    index = bisect.bisect_left(ordered, one)
    return statistics.median([*ordered[:index], *ordered[index + 1 :]])


def _is_near(a: float, b: float) -> bool:
    return a == b or (min(a, b) > 0 and max(a, b) / min(a, b) < _DIFFERENT)


def _mixed(examined: Sequence[Examined], groups: Sequence[Sequence[Examined]]) -> tuple[Mixed, ...]:
    """Versions that differ within the fleet, and settings that differ within one service of it."""
    seen: dict[str, Mapping[str, list[str]]] = {
        "vLLM version": _by_value({one.target: one.vllm_version for one in examined}),
        "model": _by_value({one.target: one.engines[0].model for group in groups for one in group}),
    }
    for group in groups:
        of_model = f" of {group[0].engines[0].model}" if len(groups) > 1 else ""
        engines = {one.target: one.engines[0] for one in group}
        for name in _FACTS:
            seen[name + of_model] = _by_value({t: e.facts.get(name) for t, e in engines.items()})
        lengths = _numbers(group, "model.max_length")
        seen["max_model_len" + of_model] = _by_value({t: f"{n:.0f}" for t, n in lengths.items()})
        seen["KV cache, tokens" + of_model] = _alike(_numbers(group, "kv.capacity_tokens"))
    return tuple(
        Mixed(name, {value: tuple(targets) for value, targets in values.items()})
        for name, values in seen.items()
        if len(values) > 1
    )


def _by_value(values: Mapping[str, str | None]) -> dict[str, list[str]]:
    """Targets by what they have; those of which it is not known are left out."""
    found: dict[str, list[str]] = {}
    for target, value in values.items():
        if value is not None:
            found.setdefault(value, []).append(target)
    return found


def _numbers(group: Sequence[Examined], name: str) -> dict[str, float]:
    """A feature of each replica that has it."""
    found = {one.target: one.engines[0].features.get(name) for one in group}
    return {target: float(v) for target, v in found.items() if isinstance(v, int | float)}


def _alike(sizes: Mapping[str, float]) -> dict[str, list[str]]:
    """Targets by the size that they nearly share; a group is called by its smallest and largest."""
    groups: list[list[str]] = []
    for target in sorted(sizes, key=lambda name: sizes[name]):
        if groups and sizes[target] <= _SAME_SIZE * sizes[groups[-1][0]]:
            groups[-1].append(target)
        else:
            groups.append([target])
    spans = [(f"{sizes[group[0]]:,.0f}", f"{sizes[group[-1]]:,.0f}") for group in groups]
    names = [low if low == high else f"{low} to {high}" for low, high in spans]
    return dict(zip(names, groups, strict=True))
