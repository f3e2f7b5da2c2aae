"""
The OTLP sink against a server that misbehaves: what is sent arrives, or it is told what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bad_answers import Answer, refuse, refuse_as_aws, reset, slow
from fake_collector import FakeCollector, fake_collector
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)
from ports import reserve_port
from prometheus_client.core import GaugeMetricFamily

from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.sinks.otlp import OtlpPublisher, otlp_publisher

NOW = 1_700_000_100.0
INTERVALS = 4


@pytest.fixture
def collector() -> Iterator[FakeCollector]:
    with fake_collector() as fake:
        yield fake


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")


class Sent:
    """A publisher whose states a test makes, one a minute."""

    def __init__(self, url: str, **more: Any) -> None:
        settings = {"sink": "otlp", "endpoint_url": url, "region": "eu-central-1", **more}
        config = Config.model_validate({"exporter": {"cloudwatch": settings}})
        gauge = GaugeMetricFamily("opsctl_target_up", "", value=1)
        self.publisher: OtlpPublisher = otlp_publisher(config, {}, lambda: [gauge], dict)
        self.now = NOW
        self.publisher._clock = lambda: self.now

    def minutes(self, number: int) -> list[float]:
        """Minutes pass; their times."""
        began = self.now
        for _ in range(number):
            self.publisher.publish()
            self.now += 60
        return [began + 60 * minute for minute in range(number)]


def as_aws(url: str) -> str:
    """The server where the sink takes it for CloudWatch and signs: what counts is the name in the URL."""
    return url.replace("/v1/", "/monitoring.eu-central-1.amazonaws.com/v1/")


FAULTS: dict[str, Answer] = {
    "throttled": refuse_as_aws(400, "ThrottlingException"),
    "throttled by status": refuse(429),
    "server error": refuse_as_aws(500, "InternalServiceFault"),
    "unavailable": refuse(503),
    "expired token": refuse_as_aws(403, "ExpiredTokenException"),
    "skewed clock": refuse_as_aws(403, "InvalidSignatureException"),
    "not allowed": refuse_as_aws(403, "AccessDeniedException"),
    "reset mid-request": reset,
    "slow": slow,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_and_every_time_stays_true(
    collector: FakeCollector, measured: Callable[[str], None], fault: str
) -> None:
    """The first requests meet the fault; in the end every state was taken once, in order."""
    collector.answers += [FAULTS[fault]] * 2
    sent = Sent(as_aws(collector.url))
    expected = sent.minutes(INTERVALS)

    assert collector.answers == []
    assert collector.times() == expected
    assert sent.publisher.lost == {"full": 0, "refused": 0}
    measured(f"OTLP sink, {fault}: 2 requests met it, 0 of {INTERVALS} lost")


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_what_a_collector_refuses_for_now_waits_and_comes_in_order(
    collector: FakeCollector, status: int
) -> None:
    collector.answers += [refuse(status)] * 2
    sent = Sent(collector.url)

    assert sent.minutes(3) == collector.times()


def test_where_nothing_listens_states_wait(caplog: pytest.LogCaptureFixture) -> None:
    sent = Sent(f"http://127.0.0.1:{reserve_port()}/v1/metrics", interval="1m")
    # the SDK's own repetitions are not what is looked at
    sent.publisher._exporter._client._timeout = 0.5
    sent.minutes(1)

    assert len(sent.publisher._waiting) == 1
    assert "OTLP: no answer" in caplog.text
    assert "intervals wait until it is taken" in caplog.text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            refuse_as_aws(400, "InvalidParameterValue"),
            "cloudwatch:PutMetricData is refused: InvalidParameterValue",
        ),
        (
            refuse_as_aws(400, "ValidationException"),
            "cloudwatch:PutMetricData is refused: ValidationException",
        ),
        (refuse(413), "cloudwatch:PutMetricData is refused: 413"),
    ],
)
def test_what_cloudwatch_refuses_for_good_is_told_counted_and_holds_up_nothing(
    collector: FakeCollector, caplog: pytest.LogCaptureFixture, answer: Answer, reason: str
) -> None:
    collector.answers.append(answer)
    sent = Sent(as_aws(collector.url))
    first, *others = sent.minutes(3)

    assert collector.times() == others
    assert sent.publisher.lost == {"full": 0, "refused": 1}
    assert f"the state of {int(first)} is lost, whole or in part: {reason}" in caplog.text


@pytest.mark.parametrize("status", [400, 413])
def test_so_is_what_a_collector_refuses_for_good(
    collector: FakeCollector, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """The OTLP specification forbids to send such a request again."""
    # google.rpc.Status: a code, and a message
    collector.answers.append(refuse(status, "\x08\x03\x12\x09too large"))
    sent = Sent(collector.url)
    _, *others = sent.minutes(3)

    assert collector.times() == others
    assert sent.publisher.lost["refused"] == 1
    assert f"answers {status}" in caplog.text
    assert "too large" in caplog.text


def test_data_points_that_are_left_out_of_a_taken_state_are_told_and_counted(
    collector: FakeCollector, caplog: pytest.LogCaptureFixture
) -> None:
    partial = ExportMetricsPartialSuccess(rejected_data_points=3, error_message="too many labels")
    answer = ExportMetricsServiceResponse(partial_success=partial).SerializeToString().decode()
    collector.answers.append(refuse(200, answer))
    sent = Sent(collector.url)
    _, second = sent.minutes(2)

    assert collector.times() == [second], "the first was not sent again"
    assert sent.publisher.lost["refused"] == 1
    assert "3 data points are refused: too many labels" in caplog.text


def test_an_answer_in_another_encoding_is_no_failure(collector: FakeCollector) -> None:
    collector.answers += [refuse(200, '{"partialSuccess": {}}'), refuse(200, "\xff")]
    sent = Sent(collector.url)
    sent.minutes(2)

    assert sent.publisher.lost == {"full": 0, "refused": 0}


def test_a_state_that_is_too_large_for_the_sdk_holds_up_nothing_either(
    collector: FakeCollector, caplog: pytest.LogCaptureFixture
) -> None:
    sent = Sent(collector.url)
    sent.publisher._exporter._max_request_size = 1
    sent.minutes(1)
    sent.publisher._exporter._max_request_size = 0
    expected = sent.minutes(1)

    assert collector.times() == expected
    assert sent.publisher.lost["refused"] == 1
    assert "the SDK does not send it" in caplog.text


def test_more_than_spool_keep_lets_the_oldest_go_and_says_so(
    collector: FakeCollector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.answers += [refuse(403)] * 3
    sent = Sent(collector.url, interval="1m", spool_keep="2m")
    first, second, *others = sent.minutes(4)

    assert collector.times() == others
    assert sent.publisher.lost == {"full": 2, "refused": 0}
    for t in (first, second):
        assert f"too much waits: the state of {int(t)} is lost" in caplog.text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            refuse_as_aws(403, "AccessDeniedException", "User: x is not authorized"),
            "cloudwatch:PutMetricData is not allowed; grant this IAM action (User: x",
        ),
        (
            refuse(403, '{"Message": "no"}', x_amzn_ErrorType="AccessDeniedException:http://a/"),
            "cloudwatch:PutMetricData is not allowed; grant this IAM action (no)",
        ),
        (
            refuse(403, "<E><Error><Code>AccessDenied</Code><Message>no</Message></Error></E>"),
            "cloudwatch:PutMetricData is not allowed; grant this IAM action (no)",
        ),
        (refuse_as_aws(400, "ThrottlingException"), "cloudwatch:PutMetricData: throttled by AWS"),
        (refuse_as_aws(403, "InvalidSignatureException"), "this machine's clock is off"),
        (refuse_as_aws(403, "ExpiredTokenException"), "the session's credentials have expired"),
        (refuse_as_aws(403, "UnrecognizedClientException"), "does not know the access key"),
        (refuse(403, "go away"), "cloudwatch:PutMetricData is refused: 403: go away"),
    ],
)
def test_a_refusal_of_aws_says_what_to_do_once_while_it_lasts(
    collector: FakeCollector, caplog: pytest.LogCaptureFixture, answer: Answer, words: str
) -> None:
    collector.answers += [answer] * 3
    Sent(as_aws(collector.url)).minutes(3)

    said = [one.getMessage() for one in caplog.records if one.name.startswith("vllm_opsctl")]
    assert len(said) == 1
    assert words in said[0]


def test_without_credentials_the_log_says_where_they_are_looked_for(
    collector: FakeCollector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    sent = Sent(as_aws(collector.url))
    sent.minutes(1)

    assert len(sent.publisher._waiting) == 1
    assert "OTLP: no AWS credentials; set AWS_PROFILE" in caplog.text
