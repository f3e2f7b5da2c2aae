"""
Failure modes that no recording shows: each signature fires on the numbers that it is written for.

They need a GPU, a fleet, a gateway's log or hours. The numbers are such as reports of them tell; a
healthy engine's stand around them, so that a signature which fires alone on them fires for its own
reason.
"""

from __future__ import annotations

import pytest
from truth import cases

from vllm_opsctl.runbooks.diagnosis import conclude
from vllm_opsctl.runbooks.examine import EngineFindings, Examined
from vllm_opsctl.runbooks.features import Value
from vllm_opsctl.runbooks.load import shipped_library

HEALTHY: dict[str, Value] = {
    "window.asked_seconds": 60.0,
    "window.seconds": 30.0,
    "reference.kind": "earlier window",
    "endpoint.answers": True,
    "endpoint.answered_before": True,
    "endpoint.failures": 0.0,
    "progress.stalled_seconds": 0.0,
    "progress.stall_ongoing": False,
    "engine.awake": True,
    "engine.uptime_seconds": 86400.0,
    "restart.count": 0.0,
    "restart.recent": 0.0,
    "http.requests": 200.0,
    "http.client_errors": 0.0,
    "http.server_errors": 0.0,
    "http.server_error_ratio": 0.0,
    "queue.waiting_avg": 0.0,
    "queue.waiting_max": 0.0,
    "queue.waiting_last": 0.0,
    "queue.busy_share": 0.0,
    "queue.deferred_avg": 0.0,
    "queue.deferred_share": 0.0,
    "queue.wait_seconds": 0.0,
    "running.avg": 10.0,
    "running.max": 14.0,
    "running.vs_before": 1.0,
    "kv.usage_avg": 0.3,
    "kv.usage_max": 0.4,
    "kv.block_tokens": 16.0,
    "preempt.count": 0.0,
    "preempt.per_request": 0.0,
    "prefix.enabled": True,
    "prefix.hit_ratio": 0.7,
    "prefix.hit_ratio_before": 0.7,
    "prefix.hit_vs_before": 1.0,
    "traffic.started": 200.0,
    "traffic.finished": 200.0,
    "traffic.lost_ratio": 0.0,
    "traffic.arrived_vs_before": 1.0,
    "ttft.mean": 0.15,
    "ttft.p95": 0.3,
    "ttft.vs_before": 1.0,
    "itl.mean": 0.012,
    "itl.p50": 0.011,
    "itl.vs_before": 1.0,
    "itl.p50_vs_before": 1.0,
    "itl.stall_share": 0.01,
    "step.tokens_vs_before": 1.0,
    "step.big_count": 0.0,
    "frontend.seconds": 0.005,
    "frontend.vs_before": 1.0,
    "api.cpu": 0.3,
}

FROZEN: dict[str, Value] = {
    "progress.stalled_seconds": 40.0,
    "progress.stall_ongoing": True,
    "progress.stall_clients": 30.0,
    "progress.stall_cpu": 0.02,
    "traffic.started": 0.0,
}

UNRECORDED: dict[str, dict[str, Value]] = {
    "idle-overprovisioned": {
        "window.asked_seconds": 86400.0,
        "kv.usage_max": 0.05,
        "running.avg": 0.04,
    },
    "kv-too-small": {
        "restart.recent": 1.0,
        "kv.capacity_vs_before": 0.32,
        "kv.usage_max": 0.97,
    },
    "kv-request-never-fits": {
        **FROZEN,
        "running.max": 0.0,
        "kv.usage_max": 0.0,
        "queue.waiting_last": 9.0,
        "progress.stall_waiting_growth": 8.0,
    },
    "kv-offload-slow": {
        "kv.offload_bytes_per_second": 2e8,
        "ttft.mean": 1.8,
        "ttft.vs_before": 12.0,
    },
    "prefix-below-granularity": {
        "prefix.hit_ratio": 0.0,
        "prefix.hit_ratio_before": 0.0,
        "prefix.never_hit": True,
        "prefix.queried_tokens": 50000.0,
        "kv.block_tokens": 784.0,
    },
    "routing-without-affinity": {
        "fleet.peers": 7.0,
        "fleet.hit_lost_share": 1.0,
        "prefix.hit_ratio": 0.2,
        "prefix.hit_vs_before": 0.28,
        "traffic.arrived_vs_before": 0.5,
    },
    "jit-compile-stall": {"log.jit_compile": 3.0, "itl.stall_share": 0.15},
    "gpu-throttled-or-degraded": {
        "itl.mean": 0.034,
        "itl.vs_before": 1.7,
        "itl.p50_vs_before": 1.7,
        "prefill.per_token_vs_before": 1.6,
    },
    "multimodal-preprocess": {
        "mm.queried_items": 80.0,
        "mm.hit_ratio": 0.1,
        "mm.hit_vs_before": 0.15,
        "api.cpu": 0.9,
    },
    "keepalive-mismatch": {"log.upstream_reset": 12.0},
    "nccl-collective-hang": {
        **FROZEN,
        "progress.stall_running": 8.0,
        "log.nccl_timeout": 1.0,
        "log.broadcast_wait": 4.0,
    },
    "gpu-oom-crash-loop": {"log.cuda_oom": 2.0, "restart.recent": 2.0},
    "liveness-probe-kill": {
        "restart.count": 1.0,
        "restart.recent": 1.0,
        "restart.age_seconds": 200.0,
        "restart.busy_before": True,
        "restart.slow_before": 2.5,
    },
    "cold-start": {
        "endpoint.answers": False,
        "endpoint.answered_before": False,
        "endpoint.error": "refused",
        "log.loading": 2.0,
    },
    "host-memory-leak": {"memory.growth_per_hour": 0.11},
    "server-errors-5xx": {"http.server_errors": 12.0, "http.server_error_ratio": 0.06},
    "corrupted-output": {"finish.corrupted": 4.0},
    "kv-transfer-stall": {
        "queue.deferred_avg": 6.0,
        "queue.deferred_share": 0.9,
        "kv.fetching_avg": 5.0,
        "kv.transfer_failures": 2.0,
    },
    "dp-rank-imbalance": {"dp.waiting_max": 14.0, "dp.waiting_min": 0.0, "dp.kv_spread": 0.8},
    "replica-imbalance": {
        "fleet.peers": 3.0,
        "fleet.peers_waiting": 0.0,
        "fleet.arrivals_vs_peers": 2.4,
        "fleet.ttft_vs_peers": 20.0,
        "queue.busy_share": 1.0,
        "queue.waiting_avg": 30.0,
    },
    "metrics-stale-or-wrong": {"page.counter_flips": 6.0},
    "clock-skew": {"clock.steps": 1.0},
    "sagemaker-endpoint-failed": {
        "sagemaker.status": "OutOfService",
        "sagemaker.failure": "The role was deleted.",
        "sagemaker.failure_kind": "other",
    },
    "sagemaker-ping-failed": {
        "sagemaker.status": "Failed",
        "sagemaker.failure": "The primary container did not pass the ping health check.",
        "sagemaker.failure_kind": "ping",
    },
    "sagemaker-no-capacity": {
        "sagemaker.status": "InService",
        "sagemaker.instances": 1.0,
        "sagemaker.instances_wanted": 3.0,
        "sagemaker.instances_missing": 2.0,
        "sagemaker.no_capacity": "scaling failed: InsufficientInstanceCapacity",
    },
    "sagemaker-artefacts-unavailable": {
        "sagemaker.status": "Failed",
        "sagemaker.failure": "Failed to download model data.",
        "sagemaker.failure_kind": "artefacts",
    },
    "sagemaker-below-desired": {
        "sagemaker.status": "InService",
        "sagemaker.instances": 1.0,
        "sagemaker.instances_wanted": 2.0,
        "sagemaker.instances_missing": 1.0,
    },
    "sagemaker-update-undone": {
        "sagemaker.status": "InService",
        "sagemaker.failure": "The update failed and was rolled back.",
        "sagemaker.failure_kind": "other",
    },
    "sagemaker-deploying": {"sagemaker.status": "Updating", "sagemaker.deploying_seconds": 240.0},
    "sagemaker-container-restarts": {"sagemaker.starts": 3.0, "sagemaker.memory_max": 0.4},
    "sagemaker-container-oom": {"sagemaker.starts": 2.0, "sagemaker.memory_max": 0.97},
}


def roots(features: dict[str, Value]) -> list[str]:
    findings = EngineFindings(
        label=None,
        model="chat",
        features=features,
        is_long_enough=True,
        onset=None,
        trouble_since=None,
        changes=(),
        fallback=("healthy", "no failure mode is active"),
        blind_spots=(),
        troubled_blind_spots=(),
        several_servers=False,
    )
    examined = Examined(
        target="chat-0",
        source="scrape",
        start=0.0,
        end=60.0,
        samples=60,
        vllm_version="0.32.0",
        engines=(findings,),
    )
    return [cause.id for cause in conclude(examined, shipped_library()).roots]


def test_a_healthy_engine_has_none_of_them() -> None:
    assert roots(HEALTHY) == []


@pytest.mark.parametrize("id_", UNRECORDED)
def test_a_failure_mode_without_a_recording_is_named_by_its_numbers(id_: str) -> None:
    assert roots(HEALTHY | UNRECORDED[id_]) == [id_]


def test_every_failure_mode_is_shown_by_a_recording_or_by_its_numbers() -> None:
    recorded = {id_ for case in cases().values() for id_ in case.accepted}

    assert shipped_library().modes.keys() - recorded - UNRECORDED.keys() == set()
