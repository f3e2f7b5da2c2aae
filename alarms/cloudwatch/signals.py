"""
The alarms beside the burn rates that the curated metrics can carry, of the fleet and of each model.

They are the fleet's counterparts of companions.yaml and causes.yaml: what these say of one replica cannot be
said here, for the metrics have no dimension for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from vllm_opsctl.alarms.alerts import shipped_alerts
from vllm_opsctl.alarms.burn import Notify
from vllm_opsctl.alarms.cloudwatch.evaluator import MissingData
from vllm_opsctl.alarms.prometheus.conventions import (
    CACHE_FULL_ALERT,
    HITS_FELL_ALERT,
    QUEUE_ALERT,
    SIDECARS_ALERT,
    STALLED_ALERT,
    TARGET_ALERT,
    THRASH_ALERT,
    VANISHED_ALERT,
)
from vllm_opsctl.exporter.sinks.cloudwatch.curated import curated

SILENT_IS_FINE = (
    f"what is silent has no load, and a sidecar that died is told by {SIDECARS_ALERT} alone"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """
    One alarm of the fleet or of a model.

    Args:
        alert: Its name, as the Prometheus alert of the same kind has it.
        per: What it is about.
        notify: What it does.
        modes: Failure modes behind it; the first one's runbook is linked.
        reads: Id, metric and statistic of each metric.
        expression: What is compared; None for the one metric itself.
        comparison: CloudWatch's operator.
        threshold: What it is compared with.
        period_s: Length of a data point, seconds; longer where data come more seldom.
        periods: N.
        to_alarm: M.
        missing: The missing-data setting.
        because: Why this setting.
        summary: One sentence; ``{model}`` and ``{service}`` are replaced.
        number: What the number in the notification is.
        muted_by: The alert that keeps it from notifying: as suppressor, or in its rule for a page.
    """

    alert: str
    per: Literal["service", "model"] = "model"
    notify: Notify = "ticket"
    modes: tuple[str, ...] = ()
    reads: tuple[tuple[str, str, str], ...]
    expression: str | None = None
    comparison: str = "GreaterThanThreshold"
    threshold: float
    period_s: int = 60
    periods: int
    to_alarm: int
    missing: MissingData = "notBreaching"
    because: str = SILENT_IS_FINE
    summary: str
    number: str
    muted_by: str | None = None


SIGNALS: tuple[Signal, ...] = (
    Signal(
        alert=SIDECARS_ALERT,
        per="service",
        notify="page",
        reads=(("beats", "Heartbeat", "SampleCount"),),
        comparison="LessThanThreshold",
        threshold=1,
        periods=1,
        to_alarm=1,
        missing="breaching",
        because="a dead sidecar publishes nothing; CloudWatch waits until its whole evaluation range, "
        "three minutes for N = 1, is empty",
        summary="No opsctl sidecar of {service} publishes; objectives are not measured.",
        number="how many heartbeats came in a minute",
    ),
    Signal(
        alert=VANISHED_ALERT,
        notify="page",
        modes=("engine-dead", "process-restart", "liveness-probe-kill"),
        reads=(("readings", "RequestsRunning", "SampleCount"),),
        comparison="LessThanThreshold",
        threshold=1,
        periods=2,
        to_alarm=2,
        missing="breaching",
        because="an engine that cannot be read has no gauges; N = 2 is a minute longer than "
        f"{SIDECARS_ALERT}, which mutes this",
        summary="No replica of {model} reports any more.",
        number="how many readings came in a minute",
        muted_by=SIDECARS_ALERT,
    ),
    Signal(
        alert=STALLED_ALERT,
        notify="page",
        modes=("engine-hung", "nccl-collective-hang"),
        reads=(
            ("running", "RequestsRunning", "Maximum"),
            ("waiting", "RequestsWaiting", "Maximum"),
            ("first", "TimeToFirstToken", "SampleCount"),
            ("gaps", "InterTokenLatency", "SampleCount"),
            ("whole", "EndToEndLatency", "SampleCount"),
        ),
        expression="IF(running + waiting > 0 "
        "AND FILL(first, 0) + FILL(gaps, 0) + FILL(whole, 0) == 0, 1, 0)",
        comparison="GreaterThanOrEqualToThreshold",
        threshold=1,
        periods=5,
        to_alarm=5,
        because=f"without gauges nothing is known to wait; {VANISHED_ALERT} tells that",
        summary="{model} holds requests, but no token has come for five minutes.",
        number="1 while requests are held and nothing is observed",
    ),
    Signal(
        alert=THRASH_ALERT,
        modes=("kv-preemption-thrash",),
        reads=(
            ("preempted", "Preemptions", "Sum"),
            ("started", "TimeToFirstToken", "SampleCount"),
            ("kv", "KVCacheUsage", "Maximum"),
        ),
        expression="IF(FILL(preempted, 0) >= 5 AND kv >= 95, "
        "preempted / IF(FILL(started, 0) > 0, started, 1), 0)",
        threshold=0.1,
        period_s=300,
        periods=2,
        to_alarm=2,
        summary="Requests of {model} preempt each other, the KV cache is full.",
        number="preemptions per started request over five minutes",
    ),
    Signal(
        alert=QUEUE_ALERT,
        modes=("queue-overload", "concurrency-cap", "output-length-shift", "prompt-length-shift"),
        reads=(
            ("waiting", "RequestsWaiting", "Average"),
            ("running", "RequestsRunning", "Maximum"),
        ),
        expression="IF(running > 0, waiting / running, 0)",
        threshold=1,
        periods=15,
        to_alarm=12,
        summary="More requests come to {model} than it can serve.",
        number="the queue's length in whole batches",
        muted_by=THRASH_ALERT,
    ),
    Signal(
        alert=CACHE_FULL_ALERT,
        modes=("kv-too-small", "kv-preemption-thrash", "output-length-shift"),
        reads=(("kv", "KVCacheUsage", "Average"),),
        threshold=95,
        periods=30,
        to_alarm=25,
        summary="The KV cache of {model} has been full for half an hour.",
        number="the KV cache's usage, percent",
        muted_by=THRASH_ALERT,
    ),
)


def signals(interval_s: float) -> tuple[Signal, ...]:
    """
    The signals, with points at least as long as the interval in which data come.

    Args:
        interval_s: exporter.cloudwatch.interval, seconds.
    """
    shortest = -int(-interval_s // 60) * 60
    return tuple(replace(signal, period_s=max(signal.period_s, shortest)) for signal in SIGNALS)


_NO_COUNTERPART = {
    HITS_FELL_ALERT: "it compares with an hour ago, which metric math cannot look at",
    TARGET_ALERT: "the metrics are the fleet's; one replica is not told apart",
}


def not_covered() -> list[str]:
    """The Prometheus alerts without a counterpart, and why, one line each."""
    there = {metric.concept for metric in curated()} | {metric.of for metric in curated()}
    # its count is that of the first tokens
    there.add("time_to_first_token_seconds_count")
    covered = {signal.alert for signal in SIGNALS}
    found = []
    for spec in (one for specs in shipped_alerts().values() for one in specs):
        if spec.alert in covered:
            continue
        reason = _NO_COUNTERPART.get(spec.alert)
        absent = [concept for concept in spec.concepts if concept not in there]
        if spec.role == "forecast":
            reason = "metric math cannot extrapolate"
        elif spec.role in ("pager", "watchdog"):
            reason = "it watches Prometheus and Alertmanager"
        elif reason is None:
            verb = "does" if len(absent) == 1 else "do"
            reason = f"{' and '.join(absent)} {verb} not go to CloudWatch"
        found.append(f"alert {spec.alert}: {reason}")
    return found
