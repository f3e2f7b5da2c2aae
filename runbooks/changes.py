"""What changed at the onset: load, lengths, hit ratio, latencies, restarts, configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import Value, registry
from vllm_opsctl.runbooks.verdict import Change

WORTH_TELLING = 1.5
"""By this factor, up or down."""

_COMPARED: tuple[tuple[str, str, str], ...] = (
    ("arrivals", "traffic.arrived_per_second", "traffic.arrived_vs_before"),
    ("prompt length (tokens)", "prompt.tokens_mean", "prompt.tokens_vs_before"),
    ("prompt tokens computed", "prompt.computed_mean", "prompt.computed_vs_before"),
    ("output length (tokens)", "output.per_start", "output.per_start_vs_before"),
    ("prefix-cache hit ratio", "prefix.hit_ratio", "prefix.hit_vs_before"),
    ("multimodal hit ratio", "mm.hit_ratio", "mm.hit_vs_before"),
    ("draft acceptance", "spec.acceptance", "spec.acceptance_vs_before"),
    ("running requests", "running.avg", "running.vs_before"),
    ("engine steps", "step.rate", "step.rate_vs_before"),
    ("TTFT", "ttft.mean", "ttft.vs_before"),
    ("inter-token latency", "itl.mean", "itl.vs_before"),
    ("time outside the engine", "frontend.seconds", "frontend.vs_before"),
)
"""What it is, the feature that says how much it is now, and the one that compares with before."""


def changes(evidence: Evidence, features: Mapping[str, Value]) -> tuple[Change, ...]:
    """
    Compare with before; nothing where no onset or restart separates a before.

    Args:
        evidence: Of one engine.
        features: Its features.
    """
    return tuple(_changes(evidence, features))


def _changes(evidence: Evidence, features: Mapping[str, Value]) -> Iterator[Change]:
    if evidence.onset is not None:
        for what, now_name, factor_name in _COMPARED:
            now, factor = features.get(now_name), features.get(factor_name)
            if not isinstance(now, int | float) or not isinstance(factor, int | float):
                continue
            if factor > 0 and 1 / WORTH_TELLING < factor < WORTH_TELLING:
                continue
            known = registry()[now_name]
            if factor > 0:
                yield Change(what, known.format(now / factor), known.format(now))
            elif f"{now_name}_before" in features:
                yield Change(what, known.format(features[f"{now_name}_before"]), known.format(now))
    if evidence.restarts and evidence.predecessor is not None and evidence.newest is not None:
        yield Change("server process", "the old one", "a new one")
        before, after = evidence.predecessor.facts, evidence.newest.facts
        for name in sorted(before.keys() & after.keys()):
            if before[name] != after[name] and not name.startswith("lora."):
                yield Change(name, before[name], after[name])
