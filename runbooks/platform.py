"""What the platform says of a target, in words: a SageMaker endpoint's status, events, and what is hidden."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_opsctl.exporter.units import format_duration, format_number, format_percent
from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import Value
from vllm_opsctl.runbooks.verdict import Event, Health

NOT_IN_SERVICE = "not-in-service"
"""Reason of an error observation that the platform is the source of: nothing was read."""

LONG_IDLE_S = 180.0
"""Three values of CloudWatch: a minute without a first token is nothing."""

_NOT_SERVING = {
    "Creating": "the endpoint is being created, it serves nothing yet",
    "Deleting": "the endpoint is being deleted",
}


def said(evidence: Evidence) -> Mapping[str, Any] | None:
    """
    What AWS said of a SageMaker endpoint.

    Args:
        evidence: Of one engine.

    Returns:
        None where AWS was not asked.
    """
    last = evidence.last("sagemaker")
    return last.data if last is not None else None


def number_said(evidence: Evidence, name: str) -> float | None:
    """
    One of the numbers that AWS said.

    Args:
        evidence: Of one engine.
        name: Of the field.
    """
    return _number((said(evidence) or {}).get(name))


def measured(evidence: Evidence, name: str) -> float | None:
    """
    One of the numbers that AWS published of the endpoint.

    Args:
        evidence: Of one engine.
        name: As exporter/sources/sagemaker_metrics.py names it.
    """
    return _number((said(evidence) or {}).get("metrics", {}).get(name))


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def attempts_since(evidence: Evidence, t: float) -> float | None:
    """
    Invocations since a time that were not refused with 4xx.

    Args:
        evidence: Of one engine.
        t: Unix seconds; the minute in which it lies is left out.

    Returns:
        None where AWS published none at all.
    """
    minutes = (said(evidence) or {}).get("attempts") or []
    return math.fsum(count for at, count in minutes if at >= t) if minutes else None


def platform_of(evidence: Evidence) -> str | None:
    """
    The platform's part of the verdict's head.

    Args:
        evidence: Of one engine.

    Returns:
        None where no platform was asked.
    """
    found = said(evidence)
    return f"SageMaker: {', '.join(_parts(found))}" if found is not None else None


def _parts(found: Mapping[str, Any]) -> Iterator[str]:
    yield str(found.get("status") or "status unknown")
    kind = f" {found['instance_type']}" if found.get("instance_type") else ""
    if found.get("current") is not None and found.get("desired") is not None:
        yield f"{found['current']} of {found['desired']} {found.get('unit', 'instances')}{kind}"
    elif kind:
        yield kind.strip()
    yield from (f"now {what}" for what in found.get("working", ()))
    counts = found.get("metrics", {})
    if "invocations" in counts:
        errors = [
            f"{format_number(counts[name])} {label}"
            for name, label in (("client_errors", "4xx"), ("server_errors", "5xx"))
            if name in counts
        ]
        tail = f" ({', '.join(errors)})" if errors else ""
        yield f"{format_number(counts['invocations'])} invocations{tail}"
    missed = [
        f"{objective} by {format_percent(bad / (good + bad))}"
        for objective, (good, bad) in found.get("objectives", {}).items()
        if bad
    ]
    if missed:
        yield f"objectives missed: {', '.join(missed)}"
    if "model_latency_mean" in counts and "model_latency_max" in counts:
        mean, most = counts["model_latency_mean"], counts["model_latency_max"]
        yield f"ModelLatency {format_duration(mean)} on average, {format_duration(most)} at most"


def events_of(evidence: Evidence) -> tuple[Event, ...]:
    """
    What the platform did, oldest first.

    Args:
        evidence: Of one engine.
    """
    found = (said(evidence) or {}).get("events", ())
    return tuple(Event(float(one["t"]), str(one["what"])) for one in found)


def blind_spots_of(evidence: Evidence) -> tuple[str, ...]:
    """
    What could not be had of the platform.

    Args:
        evidence: Of one engine.
    """
    return tuple((said(evidence) or {}).get("not_seen", ()))


def without_engine(evidence: Evidence) -> str | None:
    """
    The sentence of a target of which the platform alone says anything.

    Args:
        evidence: Of one engine.

    Returns:
        None where no platform was asked.
    """
    found = said(evidence)
    if found is None:
        return None
    status = str(found.get("status"))
    return _NOT_SERVING.get(
        status, "nothing that AWS says is wrong, but the engine inside was not seen"
    )


def of_stall(evidence: Evidence, features: Mapping[str, Value]) -> tuple[Health, str] | None:
    """
    What a long time without progress means on SageMaker, where no canary can be sent.

    Args:
        evidence: Of one engine.
        features: Its features.

    Returns:
        None where there is no such stall, or AWS was not asked.
    """
    stalled = features.get("progress.stalled_seconds", 0.0)
    if said(evidence) is None or not features.get("progress.stall_ongoing"):
        return None
    if not isinstance(stalled, float) or stalled < LONG_IDLE_S:
        return None
    asked, since = features.get("sagemaker.stall_invocations"), format_duration(stalled)
    if asked == 0:
        return "unknown", (
            f"idle for {since}: SageMaker sent nothing meanwhile, so whether the engine would answer was "
            "not seen; send it a request"
        )
    if asked is None:
        return "unknown", (
            f"nothing was generated for {since}, and AWS counts no invocations: an idle engine and a "
            "frozen one look the same"
        )
    return "unknown", f"{asked:.0f} invocations came in {since} without a token; look again"
