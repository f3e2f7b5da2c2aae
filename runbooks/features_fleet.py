"""Features of one replica among its peers, and of one data-parallel engine among its siblings."""

from __future__ import annotations

import statistics

from vllm_opsctl.exporter.window import Window
from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import feature, quotient

MIN_PEERS = 2
"""With fewer others nobody can say which one is different."""


def _others(e: Evidence, name: str) -> list[float]:
    """A number of the other replicas; empty when too few of them have it."""
    found = [peer[name] for peer in e.peers if isinstance(peer.get(name), int | float)]
    return [float(value) for value in found] if len(found) >= MIN_PEERS else []


@feature("fleet.peers", "count", "Other replicas that were diagnosed together with this one.")
def _(e: Evidence) -> float | None:
    return float(len(e.peers)) if e.peers else None


@feature("fleet.peers_waiting", "count", "Requests waiting at the other replicas, all together.")
def _(e: Evidence) -> float | None:
    others = _others(e, "queue.waiting_avg")
    return sum(others) if others else None


@feature("fleet.ttft_vs_peers", "factor", "Mean TTFT against the median of the other replicas.")
def _(e: Evidence) -> float | None:
    return _own_vs_peers(e, "ttft.mean")


@feature("fleet.arrivals_vs_peers", "factor", "Arrival rate against the median of the others.")
def _(e: Evidence) -> float | None:
    return _own_vs_peers(e, "traffic.arrived_per_second")


@feature("fleet.hit_ratio_peers", "ratio", "Median prefix-cache hit ratio of the other replicas.")
def _(e: Evidence) -> float | None:
    return _median(_others(e, "prefix.hit_ratio"))


@feature("fleet.hit_ratio_total", "ratio", "Prefix-cache hit ratio of all replicas together.")
def _(e: Evidence) -> float | None:
    value = e.own.get("prefix.hit_ratio")
    others = _others(e, "prefix.hit_ratio")
    return statistics.fmean([float(value), *others]) if others and value is not None else None


@feature(
    "fleet.hit_lost_share", "ratio", "Share of the replicas whose hit ratio fell at the onset."
)
def _(e: Evidence) -> float | None:
    others = _others(e, "prefix.hit_vs_before")
    return sum(value <= 0.7 for value in others) / len(others) if others else None


@feature("fleet.kv_capacity_vs_peers", "factor", "Size of the KV cache against the others' median.")
def _(e: Evidence) -> float | None:
    return _own_vs_peers(e, "kv.capacity_tokens")


@feature("fleet.itl_vs_peers", "factor", "Median inter-token latency against the others' median.")
def _(e: Evidence) -> float | None:
    return _own_vs_peers(e, "itl.p50")


def _own_vs_peers(e: Evidence, name: str) -> float | None:
    value = e.own.get(name)
    return quotient(float(value), _median(_others(e, name))) if value is not None else None


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


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
