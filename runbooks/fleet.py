"""
A fleet: many targets at once, each compared with its peers, and one view of them all.

Targets are examined in several processes when there are many; only their findings come back. The
comparison needs nothing but findings, so it is made here.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
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
    "kv.capacity_tokens": 1.0,
    "prefix.hit_ratio": 0.2,
    "preempt.count": 5.0,
    "http.client_errors": 10.0,
    "http.server_errors": 3.0,
    "frontend.seconds": 0.1,
}
"""What replicas are compared in, and the least absolute difference worth telling."""

_FACTS = (
    *("block_size", "num_gpu_blocks", "gpu_memory_utilization", "cache_dtype"),
    *("enable_prefix_caching", "kv_cache_memory_bytes"),
)
"""Labels of the cache configuration that replicas of one service should share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """
    What is asked of every target.

    Args:
        source: How the observations were had.
        at: End of the window (unix seconds); None for each target's newest observation.
        window_s: Length of the window in seconds.
    """

    source: str
    at: float | None = None
    window_s: float = 60.0

    def examine(self, target: str, observations: Sequence[Observation]) -> Examined:
        """Look at one target."""
        return examine(target, observations, source=self.source, at=self.at, window_s=self.window_s)


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
    examined = _compared(_examine_all(observed, question))
    targets = tuple(conclude(one, library, runbook_url=runbook_url) for one in examined)
    view = _view(examined, Verdict(targets)) if len(targets) > 1 else None
    return Verdict(targets, fleet=view)


def _examine_all(
    observed: Mapping[str, Sequence[Observation]], question: Question
) -> list[Examined]:
    workers = min(os.cpu_count() or 1, len(observed) // (MANY // 2))
    if len(observed) < MANY or "fork" not in multiprocessing.get_all_start_methods():
        return [question.examine(target, seen) for target, seen in observed.items()]
    # forked workers have the modules already; spawned ones would import them for longer than this takes
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        return list(pool.map(question.examine, observed.keys(), observed.values(), chunksize=4))


def _compared(examined: Sequence[Examined]) -> list[Examined]:
    """Add what only a comparison tells; a target with several engines is its first one to others."""
    return [
        replace(one, engines=tuple(_among(e, _peers(one, examined)) for e in one.engines))
        for one in examined
    ]


def _peers(one: Examined, examined: Sequence[Examined]) -> list[Mapping[str, Value]]:
    """Features of the other targets that serve the same model."""
    model = one.engines[0].model if one.engines else None
    return [
        other.engines[0].features
        for other in examined
        if other is not one and other.engines and other.engines[0].model == model
    ]


def _among(engine: EngineFindings, peers: Sequence[Mapping[str, Value]]) -> EngineFindings:
    compared = compare_with_peers(engine.features, peers)
    return replace(engine, features={**engine.features, **compared}) if compared else engine


def _view(examined: Sequence[Examined], verdict: Verdict) -> FleetView:
    return FleetView(
        common=_common(verdict),
        outliers=_outliers(examined),
        mixed=_mixed(examined),
    )


def _common(verdict: Verdict) -> tuple[CommonCause, ...]:
    """Root causes by the targets that have them, the widest first."""
    where: dict[str, list[str]] = {}
    for target in verdict.targets:
        for cause in target.roots:
            where.setdefault(cause.id, []).append(target.target)
    total = len(verdict.targets)
    found = [
        CommonCause(
            id_, tuple(names), is_common=len(names) > 1 and len(names) >= COMMON_SHARE * total
        )
        for id_, names in where.items()
    ]
    return tuple(sorted(found, key=lambda cause: -len(cause.targets)))


def _outliers(examined: Sequence[Examined]) -> tuple[Outlier, ...]:
    """Which replicas are different from the others, and in what; the furthest first."""
    found: list[tuple[float, Outlier]] = []
    models = {one.engines[0].model for one in examined if one.engines}
    for (name, least), model in itertools.product(_COMPARED.items(), models):
        numbers = {
            one.target: float(value)
            for one in examined
            if one.engines
            and one.engines[0].model == model
            and isinstance(value := one.engines[0].features.get(name), int | float)
        }
        if len(numbers) <= MIN_PEERS:
            continue
        entry = registry()[name]
        for target, number in numbers.items():
            others = statistics.median(v for t, v in numbers.items() if t != target)
            # one of two alike halves is no outlier
            near = sum(_is_near(number, v) for t, v in numbers.items() if t != target)
            if _is_near(number, others) or abs(number - others) < least:
                continue
            if near >= COMMON_SHARE * (len(numbers) - 1) / 2:
                continue
            factor = max(number, 1e-9) / max(others, 1e-9)
            outlier = Outlier(target, name, entry.format(number), entry.format(others))
            found.append((max(factor, 1 / factor), outlier))
    found.sort(key=lambda pair: -pair[0])
    return tuple(outlier for _, outlier in found)


def _is_near(a: float, b: float) -> bool:
    return a == b or (min(a, b) > 0 and max(a, b) / min(a, b) < _DIFFERENT)


def _mixed(examined: Sequence[Examined]) -> tuple[Mixed, ...]:
    """Versions, models and cache settings that differ within the fleet."""
    seen: dict[str, dict[str, list[str]]] = {}
    for one in examined:
        engine = one.engines[0] if one.engines else None
        values = {
            "vLLM version": one.vllm_version,
            "model": engine.model if engine else None,
            **{name: engine.facts.get(name) if engine else None for name in _FACTS},
        }
        length = engine.features.get("model.max_length") if engine else None
        values["max_model_len"] = f"{length:.0f}" if isinstance(length, float) else None
        for name, value in values.items():
            if value is not None:
                seen.setdefault(name, {}).setdefault(value, []).append(one.target)
    return tuple(
        Mixed(name, {value: tuple(targets) for value, targets in values.items()})
        for name, values in seen.items()
        if len(values) > 1
    )
