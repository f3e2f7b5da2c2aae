"""The OTLP sink: everything that the sidecar's page says reaches a collector, and says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
from commands import Opsctl
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)

from vllm_opsctl.exporter.identity import Identity
from vllm_opsctl.exporter.sinks.otlp import metrics_data
from vllm_opsctl.exporter.sinks.otlp_session import SigV4

NOW, BEGAN, START = 1_700_000_100.0, 1_700_000_000.0, 1_699_999_000.0


def encoded(*families: Any) -> dict[str, Any]:
    """Families through the SDK's own encoder."""
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

    data = metrics_data(
        families, identity=Identity("shop"), starts={"chat-0": START}, began=BEGAN, now=NOW
    )
    (resource,) = encode_metrics(data).resource_metrics
    return {metric.name: metric for metric in resource.scope_metrics[0].metrics}


def test_a_counter_begins_when_its_process_did() -> None:
    engine = CounterMetricFamily("vllm_engine_preemptions", "", labels=("target",))
    engine.add_metric(["chat-0"], 7)
    ours = CounterMetricFamily("vllm_sli_events", "", labels=("target",))
    ours.add_metric(["chat-0"], 3)
    found = encoded(engine, ours)

    (point,) = found["vllm_engine_preemptions"].sum.data_points
    assert (point.as_double, point.start_time_unix_nano) == (7, int(START * 1e9))
    assert found["vllm_engine_preemptions"].sum.is_monotonic
    assert found["vllm_engine_preemptions"].sum.aggregation_temporality == 2, "cumulative"
    (point,) = found["vllm_sli_events"].sum.data_points
    assert point.start_time_unix_nano == int(BEGAN * 1e9)


def test_a_histogram_keeps_its_buckets_and_says_no_least_and_most() -> None:
    family = HistogramMetricFamily("vllm_engine_queue_seconds", "", labels=("target",))
    family.add_metric(["chat-0"], buckets=[("0.1", 2), ("1.0", 5), ("+Inf", 6)], sum_value=4.5)
    (point,) = encoded(family)["vllm_engine_queue_seconds"].histogram.data_points

    assert list(point.explicit_bounds) == [0.1, 1.0]
    assert list(point.bucket_counts) == [2, 3, 1]
    assert (point.count, point.sum) == (6, 4.5)
    assert not point.HasField("min")
    assert not point.HasField("max")


def test_a_summary_is_a_histogram_without_bounds_and_a_gauge_a_gauge() -> None:
    summary = SummaryMetricFamily("vllm_engine_step_tokens", "", labels=("target",))
    summary.add_metric(["chat-0"], count_value=9, sum_value=90)
    gauge = GaugeMetricFamily("opsctl_target_up", "", labels=("target",))
    gauge.add_metric(["chat-0"], 1)
    found = encoded(summary, gauge)

    (point,) = found["vllm_engine_step_tokens"].histogram.data_points
    assert (point.count, point.sum, list(point.explicit_bounds)) == (9, 90, [])
    assert found["opsctl_target_up"].gauge.data_points[0].as_double == 1


def test_requests_to_aws_are_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    url = "https://monitoring.eu-central-1.amazonaws.com/v1/metrics"
    request = requests.Request("POST", url, data=b"x", auth=SigV4("eu-central-1")).prepare()

    authorization = request.headers["Authorization"]
    assert authorization.startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
    assert "/eu-central-1/monitoring/aws4_request" in authorization


def test_without_endpoint_and_region_the_error_names_both(opsctl: Opsctl, tmp_path: Path) -> None:
    (tmp_path / "opsctl.yaml").write_text("exporter: {cloudwatch: {sink: otlp}}\n")
    none = {"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}
    ran = opsctl.run("exporter", "run", "http://127.0.0.1:1", env=none, cwd=tmp_path)

    assert ran.returncode == 64
    assert "exporter.cloudwatch.region: not set" in ran.stderr
    assert "endpoint_url of a collector" in " ".join(ran.stderr.split())
