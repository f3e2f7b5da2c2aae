"""Features of one replica among its peers, and of one data-parallel engine among its siblings."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from vllm_opsctl.exporter.window import Window
from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import Feature, Unit, Value, feature, quotient, register

MIN_PEERS = 2
"""With fewer others nobody can say which one is different."""

Features = Mapping[str, Value]
_Compare = Callable[[Features, Sequence[Features]], float | None]

_COMPARISONS: dict[str, _Compare] = {}


def compare_with_peers(own: Features, peers: Sequence[Features]) -> dict[str, Value]:
    """
    Features that only a fleet has.

    Args:
        own: Features of one replica.
        peers: Features of each of the others.

    Returns:
        Those that could be computed; empty with fewer than two peers.
    """
    if len(peers) < MIN_PEERS:
        return {}
    found = {name: compare(own, peers) for name, compare in _COMPARISONS.items()}
    return {name: value for name, value in found.items() if value is not None}


def _fleet_feature(name: str, unit: Unit, meaning: str) -> Callable[[_Compare], _Compare]:
    """Register a feature that :func:`compare_with_peers` computes."""

    def decorate(compare: _Compare) -> _Compare:
        _COMPARISONS[name] = compare
        register(Feature(name, unit, meaning, lambda _: None))
        return compare

    return decorate


def _number(features: Features, name: str) -> float | None:
    value = features.get(name)
    return float(value) if isinstance(value, int | float) else None


def _of_peers(peers: Sequence[Features], name: str) -> list[float]:
    """A number of the peers; empty when too few of them have it."""
    found = [value for peer in peers if (value := _number(peer, name)) is not None]
    return found if len(found) >= MIN_PEERS else []


def _vs_peers(own: Features, peers: Sequence[Features], name: str) -> float | None:
    others = _of_peers(peers, name)
    return quotient(_number(own, name), statistics.median(others)) if others else None


@_fleet_feature(
    "fleet.peers", "count", "Other replicas that were diagnosed together with this one."
)
def _(own: Features, peers: Sequence[Features]) -> float | None:
    return float(len(peers))


@_fleet_feature("fleet.peers_waiting", "count", "Requests waiting at all the other replicas.")
def _(own: Features, peers: Sequence[Features]) -> float | None:
    others = _of_peers(peers, "queue.waiting_avg")
    return sum(others) if others else None


@_fleet_feature("fleet.ttft_vs_peers", "factor", "Mean TTFT against the median of the others.")
def _(own: Features, peers: Sequence[Features]) -> float | None:
    return _vs_peers(own, peers, "ttft.mean")


@_fleet_feature("fleet.itl_vs_peers", "factor", "Median inter-token latency against the others'.")
def _(own: Features, peers: Sequence[Features]) -> float | None:
    return _vs_peers(own, peers, "itl.p50")


@_fleet_feature("fleet.arrivals_vs_peers", "factor", "Arrival rate against the others' median.")
def _(own: Features, peers: Sequence[Features]) -> float | None:
    return _vs_peers(own, peers, "traffic.arrived_per_second")


@_fleet_feature("fleet.kv_capacity_vs_peers", "factor", "Size of the KV cache against the others'.")
def _(own: Features, peers: Sequence[Features]) -> float | None:
    return _vs_peers(own, peers, "kv.capacity_tokens")


@_fleet_feature("fleet.hit_ratio_peers", "ratio", "Median prefix-cache hit ratio of the others.")
def _(own: Features, peers: Sequence[Features]) -> float | None:
    others = _of_peers(peers, "prefix.hit_ratio")
    return statistics.median(others) if others else None


@_fleet_feature("fleet.hit_lost_share", "ratio", "Share of the others whose hit ratio fell too.")
def _(own: Features, peers: Sequence[Features]) -> float | None:
    others = _of_peers(peers, "prefix.hit_vs_before")
    return sum(value <= 0.8 for value in others) / len(others) if others else None


# -- data parallel -------------------------------------------------------------------------------


def _ranks(e: Evidence) -> list[Window]:
    """Windows of the engines that serve the same model on the same page; empty for a single one."""
    model = e.key.model if e.key else None
    same = [w for w in e.siblings if w.samples and w.samples[0].key.model == model]
    return [e.asked, *same] if same else []


@feature("dp.waiting_max", "count", "Mean queue of the data-parallel engine with the longest one.")
def _(e: Evidence) -> float | None:
    return max(_waiting(e), default=None)


@feature("dp.waiting_min", "count", "Mean queue of the data-parallel engine with the shortest one.")
def _(e: Evidence) -> float | None:
    return min(_waiting(e), default=None)


@feature("dp.kv_spread", "ratio", "Coefficient of variation of KV-cache usage between the engines.")
def _(e: Evidence) -> float | None:
    found = [w.gauge_mean("kv_cache_usage_ratio") for w in _ranks(e)]
    usage = [value for value in found if value is not None]
    mean = statistics.fmean(usage) if len(usage) >= 2 else 0.0
    return statistics.pstdev(usage) / mean if mean > 0 else None


def _waiting(e: Evidence) -> list[float]:
    found = [w.gauge_mean("requests_waiting") for w in _ranks(e)]
    return [value for value in found if value is not None]
