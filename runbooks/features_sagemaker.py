"""Features of a SageMaker endpoint: what AWS says, counts and measures around the container."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_opsctl.runbooks.evidence import Evidence
from vllm_opsctl.runbooks.features import Value, feature, quotient
from vllm_opsctl.runbooks.features_endpoint import stalled_since
from vllm_opsctl.runbooks.platform import attempts_since, measured, number_said, said
from vllm_opsctl.runbooks.sagemaker_failures import CAPACITY, kind_of

MOST_CHARACTERS = 300
"""Of a reason that is quoted; SageMaker's are a sentence or two."""


def _said(e: Evidence, name: str) -> object:
    return (said(e) or {}).get(name)


def _text(value: object) -> str | None:
    return value[:MOST_CHARACTERS] if isinstance(value, str) and value else None


def _events(e: Evidence) -> Sequence[Mapping[str, Value]]:
    found = _said(e, "events")
    return found if isinstance(found, list) else ()


# -- status --------------------------------------------------------------------------------------


@feature("sagemaker.status", "text", "Status of the endpoint, or of the inference component.")
def _(e: Evidence) -> str | None:
    return _text(_said(e, "status"))


@feature("sagemaker.failure", "text", "Why it failed, in SageMaker's words.")
def _failure(e: Evidence) -> str | None:
    return _text(_said(e, "failure"))


@feature("sagemaker.failure_kind", "text", "Kind of that reason: capacity, ping, artefacts, other.")
def _(e: Evidence) -> str | None:
    reason = _failure(e)
    return kind_of(reason) if reason is not None else None


@feature("sagemaker.instances", "count", "Instances, or copies of the component, that are there.")
def _instances(e: Evidence) -> float | None:
    return number_said(e, "current")


@feature("sagemaker.instances_wanted", "count", "Instances, or copies, that there should be.")
def _wanted(e: Evidence) -> float | None:
    return number_said(e, "desired")


@feature(
    "sagemaker.instances_missing", "count", "Instances, or copies, that are wanted and not there."
)
def _(e: Evidence) -> float | None:
    current, desired = _instances(e), _wanted(e)
    return max(0.0, desired - current) if current is not None and desired is not None else None


@feature("sagemaker.deploying_seconds", "seconds", "How long a deployment has been in progress.")
def _(e: Evidence) -> float | None:
    return number_said(e, "deploying_s")


@feature("sagemaker.scaling_failure", "text", "The newest scaling activity, where it failed.")
def _scaling_failure(e: Evidence) -> str | None:
    found = [one for one in _events(e) if str(one.get("what")).startswith("scaling ")]
    return _text(found[-1].get("what")) if found and found[-1].get("failure") else None


@feature(
    "sagemaker.no_capacity",
    "text",
    "That AWS has no instances, in its words: of the endpoint's failure or the newest scaling.",
)
def _(e: Evidence) -> str | None:
    if said(e) is None:
        return None
    from vllm_opsctl.exporter.sources.sagemaker import BROKEN

    broken = _said(e, "status") in BROKEN
    reasons = (_failure(e) if broken else None, _scaling_failure(e))
    # nothing that says so is an answer: it is not the capacity
    return next((text for text in reasons if text and kind_of(text) == CAPACITY), "")


@feature("sagemaker.starts", "count", "Starts of vLLM in one container's log, the most of any.")
def _(e: Evidence) -> float | None:
    return number_said(e, "starts")


@feature(
    "sagemaker.asked", "bool", "The numbers are those that CloudWatch holds; many are not there."
)
def _(e: Evidence) -> bool | None:
    return True if said(e) is not None else None


@feature(
    "sagemaker.stall_invocations",
    "count",
    "Invocations, but those answered 4xx, since the engine last did anything.",
)
def _(e: Evidence) -> float | None:
    since = stalled_since(e)
    return attempts_since(e, since) if since is not None else None


# -- what AWS counts and measures ----------------------------------------------------------------


@feature("sagemaker.invocations", "count", "Requests that SageMaker sent to the containers.")
def _invocations(e: Evidence) -> float | None:
    return measured(e, "invocations")


@feature(
    "sagemaker.unanswered",
    "count",
    "Invocations that ended without an HTTP answer: timeout, reset, malformed.",
)
def _unanswered(e: Evidence) -> float | None:
    failed = measured(e, "model_errors")
    if failed is None:
        return None
    answered = (measured(e, "client_errors") or 0.0) + (measured(e, "server_errors") or 0.0)
    return max(0.0, failed - answered)


@feature("sagemaker.unanswered_ratio", "ratio", "Share of the invocations without an answer.")
def _(e: Evidence) -> float | None:
    return quotient(_unanswered(e), _invocations(e))


@feature(
    "sagemaker.latency_mean", "seconds", "Mean ModelLatency: until the container's answer ends."
)
def _(e: Evidence) -> float | None:
    return measured(e, "model_latency_mean")


@feature("sagemaker.latency_max", "seconds", "Longest ModelLatency.")
def _(e: Evidence) -> float | None:
    return measured(e, "model_latency_max")


@feature("sagemaker.overhead_mean", "seconds", "Mean OverheadLatency: SageMaker's own share.")
def _(e: Evidence) -> float | None:
    return measured(e, "overhead_latency_mean")


@feature("sagemaker.concurrent_max", "count", "Most requests at once at one instance's model.")
def _(e: Evidence) -> float | None:
    return measured(e, "concurrent_max")


@feature("sagemaker.memory_max", "ratio", "Highest share of an instance's memory in use.")
def _(e: Evidence) -> float | None:
    return measured(e, "memory")


@feature("sagemaker.disk_max", "ratio", "Highest share of an instance's disk in use.")
def _(e: Evidence) -> float | None:
    return measured(e, "disk")


@feature("sagemaker.gpus_busy", "count", "Highest GPU utilisation of an instance, in whole GPUs.")
def _(e: Evidence) -> float | None:
    return measured(e, "gpus_busy")


@feature("sagemaker.gpu_memory", "count", "Highest GPU memory use of an instance, in whole GPUs.")
def _(e: Evidence) -> float | None:
    return measured(e, "gpu_memory")


@feature("sagemaker.cpus_busy", "cores", "Highest CPU utilisation of an instance.")
def _(e: Evidence) -> float | None:
    return measured(e, "cpus_busy")
