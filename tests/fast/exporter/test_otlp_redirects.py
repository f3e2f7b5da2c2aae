"""The OTLP sink sends to its own URL alone: no redirect is followed, no password of ~/.netrc sent."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import pytest
from bad_answers import refuse
from canaries import thief_and_bad_server
from fake_collector import fake_collector
from misbehaving import misbehaving, saying
from prometheus_client.core import GaugeMetricFamily

from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.sinks.otlp import OtlpPublisher, otlp_publisher


def publisher_to(url: str) -> OtlpPublisher:
    settings = {"sink": "otlp", "endpoint_url": url, "region": "eu-central-1"}
    config = Config.model_validate({"exporter": {"cloudwatch": settings}})
    gauge = GaugeMetricFamily("opsctl_target_up", "", value=1)
    return otlp_publisher(config, {}, lambda: [gauge], dict)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("is_aws", [True, False])
def test_a_redirect_is_a_failure_and_is_not_followed(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    status: int,
    is_aws: bool,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "sk-session")
    with thief_and_bad_server() as (thief, _), fake_collector() as collector:
        collector.answers += [refuse(status, Location=f"{thief.url}/?token=hunter2")]
        part = "/monitoring.eu-central-1.amazonaws.com/v1/" if is_aws else "/v1/"
        publisher = publisher_to(collector.url.replace("/v1/", part))
        publisher.publish()

        assert thief.asked == []
        assert collector.received == []
        assert "hunter2" not in caplog.text
        # what was not taken waits, and is sent when it is taken
        publisher.publish()
        assert len(collector.received) == 2


def test_the_body_of_a_redirect_is_not_unpacked_as_a_whole() -> None:
    body = gzip.compress(bytes(2**26))
    head = (
        "HTTP/1.1 302 Found\r\nLocation: http://elsewhere.invalid/\r\n"
        f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    tracemalloc.start()
    try:
        with misbehaving(saying(head.encode() + body)) as url:
            publisher_to(f"{url}/v1/metrics").publish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2**25


def test_no_password_of_the_machine_goes_to_a_collector(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with fake_collector() as collector:
        publisher_to(collector.url).publish()

        (headers,) = collector.headers
    assert "Authorization" not in headers
