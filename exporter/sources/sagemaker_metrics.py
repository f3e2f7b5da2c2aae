"""
AWS's own metrics of an endpoint: invocations, latencies, and how busy its instances are.

Source:
    Amazon SageMaker developer guide, metrics for monitoring SageMaker with CloudWatch
    (https://docs.aws.amazon.com/sagemaker/latest/dg/monitoring-cloudwatch.html): latencies are
    microseconds; utilisation of CPU and GPU is 100 for each of them, of memory and disk 100 at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_opsctl.exporter.sources.aws_reading import AwsReader
from vllm_opsctl.exporter.sources.cloudwatch_series import Stat, largest, read, total
from vllm_opsctl.exporter.sources.sagemaker import Part

INVOCATIONS = "AWS/SageMaker"
MICROSECONDS = 1e6
PERCENT = 100.0

_COUNTS: Mapping[str, str] = {
    "invocations": "Invocations",
    "client_errors": "Invocation4XXErrors",
    "server_errors": "Invocation5XXErrors",
    "model_errors": "InvocationModelErrors",
}
_LATENCIES: Mapping[str, str] = {
    "model_latency": "ModelLatency",
    "overhead_latency": "OverheadLatency",
}
_PEAKS: Mapping[str, str] = {
    "gpus_busy": "GPUUtilization",
    "gpu_memory": "GPUMemoryUtilization",
    "memory": "MemoryUtilization",
    "disk": "DiskUtilization",
    "cpus_busy": "CPUUtilization",
}
_COMPONENT_PEAKS: Mapping[str, str] = {"memory": "MemoryUtilizationNormalized"}
"""Of a component, all are shares of what it reserved; of CPUs and GPUs that is no number of them."""


@dataclass(frozen=True, slots=True)
class Measured:
    """
    What AWS published.

    Args:
        numbers: Counts; latencies in seconds (``_mean``, ``_max``); peaks as shares, CPU and GPU in units of
            one; ``concurrent_max``. What AWS did not publish is missing.
        attempts: Start of a minute (unix seconds) to the invocations in it that were not refused with 4xx.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    attempts: Mapping[int, float] = field(default_factory=dict)


def read_metrics(
    reader: AwsReader, endpoint: str, part: Part, start: float, end: float
) -> Measured:
    """
    Read what AWS counted and measured.

    Args:
        reader: Calls AWS.
        endpoint: Its name.
        part: Variant or component.
        start: Unix seconds.
        end: Unix seconds.

    Raises:
        AwsError: They may not be read.
    """
    own = part.dimensions(endpoint)
    instances = f"/aws/sagemaker/{'InferenceComponents' if part.is_component else 'Endpoints'}"

    def stat(metric: str, statistic: str, namespace: str = INVOCATIONS) -> Stat:
        return Stat(namespace, metric, own, statistic)

    peaks = _COMPONENT_PEAKS if part.is_component else _PEAKS
    asked = {
        **{name: stat(metric, "Sum") for name, metric in _COUNTS.items()},
        **{
            f"{name}_{key}": stat(metric, statistic)
            for name, metric in _LATENCIES.items()
            for key, statistic in (("sum", "Sum"), ("count", "SampleCount"), ("max", "Maximum"))
        },
        "concurrent_max": stat("ConcurrentRequestsPerModel", "Maximum"),
        **{name: stat(metric, "Maximum", instances) for name, metric in peaks.items()},
    }
    series = read(reader, asked.values(), start, end)
    known = {name: series[one] for name, one in asked.items() if one in series}
    found = {name: total(known[name]) for name in _COUNTS if name in known}
    for name in _LATENCIES:
        count = total(known.get(f"{name}_count", {}))
        if count > 0:
            found[f"{name}_mean"] = total(known[f"{name}_sum"]) / count / MICROSECONDS
            found[f"{name}_max"] = max(known[f"{name}_max"].values()) / MICROSECONDS
    for name in peaks:
        peak = largest(known.get(name, {}))
        if peak is not None:
            found[name] = peak / PERCENT
    concurrent = largest(known.get("concurrent_max", {}))
    if concurrent is not None and math.isfinite(concurrent):
        found["concurrent_max"] = concurrent
    sent, failed = known.get("invocations", {}), known.get("model_errors", {})
    refused = known.get("client_errors", {})
    attempts = {
        # whether a request that timed out is an invocation of its minute is not documented
        t: max(0.0, max(sent.get(t, 0.0), failed.get(t, 0.0)) - refused.get(t, 0.0))
        for t in sent.keys() | failed.keys()
    }
    return Measured(found, attempts)
