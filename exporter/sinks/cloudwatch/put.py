"""PutMetricData: data become requests within its limits, and requests get there or come back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from vllm_opsctl.errors import NeverTaken
from vllm_opsctl.exporter.aws import aws_client, aws_mistakes
from vllm_opsctl.exporter.sinks.cloudwatch.datum import Datum, accepted

MAX_METRICS = 1000
"""Data of one request."""

MAX_BYTES = 900_000
"""Of a request's data as JSON: the limit is 1 MB of the request's own encoding, which is no longer."""


def as_metric_datum(datum: Datum) -> dict[str, Any]:
    """As botocore takes it."""
    found: dict[str, Any] = {
        "MetricName": datum.metric,
        "Dimensions": [{"Name": name, "Value": text} for name, text in datum.dimensions],
        "Timestamp": datum.t,
        "Unit": datum.unit,
    }
    if datum.statistics is not None:
        one = datum.statistics
        found["StatisticValues"] = {
            "Minimum": one.least,
            "Maximum": one.most,
            "Sum": one.total,
            "SampleCount": one.count,
        }
    else:
        found |= {"Values": list(datum.values), "Counts": list(datum.counts)}
    return found


def requests_of(data: Sequence[Datum], now: float) -> Iterator[list[dict[str, Any]]]:
    """
    Data in requests.

    Args:
        data: Of any number.
        now: Unix seconds.
    """
    batch: list[dict[str, Any]] = []
    size = 0
    for datum in accepted(data, now):
        one = as_metric_datum(datum)
        length = len(json.dumps(one))
        if batch and (len(batch) == MAX_METRICS or size + length > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += length
    if batch:
        yield batch


class PutSender:
    """
    Sends by PutMetricData; botocore compresses with gzip what is worth it.

    Args:
        namespace: Of all metrics.
        region: AWS region.
        endpoint_url: For emulators and VPC endpoints; None for AWS's own.

    Raises:
        UsageError: boto3 is not installed.
    """

    def __init__(self, namespace: str, region: str, endpoint_url: str | None) -> None:
        self._namespace = namespace
        # many sidecars share an account's quota: who is throttled goes on more slowly
        self._client = aws_client("cloudwatch", region, endpoint_url, retry="adaptive")

    def send(self, data: Sequence[Datum], now: float) -> None:
        """
        Send the data of one interval.

        Args:
            data: Of any number.
            now: Unix seconds.

        Raises:
            AwsError: It was not taken, or not all of it.
            NeverTaken: Some of it never will be; the rest was taken.
        """
        refused = []
        for request in requests_of(data, now):
            try:
                with aws_mistakes("cloudwatch"):
                    self._client.put_metric_data(Namespace=self._namespace, MetricData=request)
            except NeverTaken as problem:
                # the interval's other requests may be good
                names = ", ".join(sorted({one["MetricName"] for one in request}))
                refused.append(f"{len(request)} data ({names}): {problem}")
        if refused:
            raise NeverTaken("; ".join(refused))
