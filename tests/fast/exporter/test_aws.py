"""What AWS refuses is told in words that name the fix; the answers come from a server that says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from loopback import serving

from vllm_opsctl.errors import AwsError, NeverTaken
from vllm_opsctl.exporter.aws import aws_client, aws_mistakes, refusal

_ERROR = (
    '<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><Error><Type>Sender</Type>'
    "<Code>{code}</Code><Message>{text}</Message></Error><RequestId>1</RequestId></ErrorResponse>"
)


@contextmanager
def fake_aws(status: int, body: str) -> Iterator[str]:
    """A server that answers every call with one error, in the form of AWS's query protocol."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")


@pytest.fixture(autouse=True)
def _retries_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto tries again after seconds that say nothing about what is said in the end."""
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)


def publish(url: str) -> str:
    """Publish to a topic there; what our error says."""
    sns = aws_client("sns", "eu-central-1", url)
    with pytest.raises(AwsError) as caught, aws_mistakes("sns"):
        sns.publish(TopicArn="arn:aws:sns:eu-central-1:123456789012:t", Message="m")
    assert caught.value.exit_code == 3
    return str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "AuthorizationError", "sns:Publish is not allowed; grant this IAM action"),
        (403, "AccessDenied", "sns:Publish is not allowed; grant this IAM action"),
        (403, "InvalidClientTokenId", "does not know the access key"),
        (403, "SignatureDoesNotMatch", "this machine's clock is off"),
        (403, "ExpiredToken", "the session's credentials have expired"),
        (400, "Throttling", "sns:Publish: throttled by AWS"),
        (400, "RequestLimitExceeded", "sns:Publish: throttled by AWS"),
        (403, "InvalidSignatureException", "this machine's clock is off"),
        (404, "NotFound", "sns:Publish is refused: NotFound: because"),
        (500, "InternalFailure", "sns:Publish is refused: InternalFailure: because"),
    ],
)
def test_a_refusal_says_what_to_do(status: int, code: str, words: str) -> None:
    with fake_aws(status, _ERROR.format(code=code, text="because")) as url:
        assert words in publish(url)


@pytest.mark.parametrize(
    ("status", "code", "is_final"),
    [
        (400, "InvalidParameterValue", True),
        (400, "InvalidParameterCombination", True),
        (400, "MissingParameter", True),
        (400, "ValidationError", True),
        (413, "RequestEntityTooLarge", True),
        (400, "ThrottlingException", False),
        (400, "ExpiredTokenException", False),
        (400, "InvalidSignatureException", False),
        (400, "AccessDeniedException", False),
        (400, "UnrecognizedClientException", False),
        (400, "LimitExceeded", False),
        (400, "400", False),
        (403, "Forbidden", False),
        (404, "NotFound", False),
        (408, "RequestTimeout", False),
        (429, "TooManyRequests", False),
        (500, "InternalFailure", False),
        (503, "ServiceUnavailable", False),
    ],
)
def test_only_what_is_wrong_with_the_request_itself_is_refused_for_good(
    status: int, code: str, is_final: bool
) -> None:
    """Everything else may be over in a while, or be mended without changing what is sent."""
    assert isinstance(refusal("cloudwatch:PutMetricData", status, code, ""), NeverTaken) is is_final


def test_what_boto3_does_not_even_send_is_refused_for_good() -> None:
    sns = aws_client("sns", "eu-central-1", "http://127.0.0.1:1")

    with pytest.raises(NeverTaken, match="Message"), aws_mistakes("sns"):
        sns.publish(TopicArn="t")


def test_a_client_repeats_as_it_is_asked_to() -> None:
    assert aws_client("sns", "eu-central-1").meta.config.retries["mode"] == "standard"
    adaptive = aws_client("cloudwatch", "eu-central-1", retry="adaptive")
    assert adaptive.meta.config.retries["mode"] == "adaptive"


def test_no_answer_is_told_as_that() -> None:
    assert "AWS does not answer" in publish("http://127.0.0.1:1")


def test_an_answer_that_is_none_of_aws_is_no_traceback() -> None:
    with fake_aws(502, "<html>Bad Gateway</html>") as url:
        assert "sns:Publish" in publish(url)
