"""
Requests of the OTLP sink: signed where AWS wants that, and what came of them.

The OpenTelemetry SDK's exporter tells whether it was successful and logs a status; what the answer says,
and whether it is worth asking again, it keeps to itself.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any

import requests
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError

from vllm_opsctl.errors import AwsError, NeverTaken
from vllm_opsctl.exporter.aws import aws_mistakes, refusal
from vllm_opsctl.exporter.credentials import check_of_aws
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.redaction import shown_url, without_secrets
from vllm_opsctl.exporter.sources.deadline import Deadline, GuardedSession

ACTION = "cloudwatch:PutMetricData"
"""
What IAM has to allow.

Source:
    Setting up bearer token authentication for metrics, CloudWatch user guide: the managed policy
    CloudWatchAPIKeyAccess.
"""

_MISDIRECTED = 421
"""A status that the SDK neither takes for a success nor repeats at once (RFC 9110, 15.5.20)."""

_MOST_SAID = 500
"""Characters of an answer that go to the log."""

_MOST_READ = 2**20
"""Bytes of an answer; partial success takes a few hundred."""

_TIMEOUT_S = 10.0
"""The SDK's own, where it gives none."""

_XML = re.compile(r"<Code>([^<]+)</Code>(?:.*?<Message>([^<]*)</Message>)?", re.DOTALL)


class SigV4(AuthBase):
    """
    Signs requests for AWS.

    Args:
        region: AWS region.
        service: Name of the service in the signature.

    Raises:
        UsageError: A key in the environment can be no header.
    """

    def __init__(self, region: str, service: str = "monitoring") -> None:
        from botocore.session import get_session

        check_of_aws(os.environ)
        self._region, self._service = region, service
        self._session = get_session()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the signature; credentials are asked for each time, for they expire."""
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import NoCredentialsError

        with aws_mistakes(self._service):
            credentials = self._session.get_credentials()
            if credentials is None:
                raise NoCredentialsError
            signed = AWSRequest(request.method, request.url, data=request.body)
            SigV4Auth(credentials, self._service, self._region).add_auth(signed)
        request.headers.update(dict(signed.headers))
        return request


@dataclass(frozen=True, slots=True)
class Failure:
    """
    Why data were not taken, or not all of them.

    Args:
        why: For people, with the fix.
        is_final: The same data would be refused again.
    """

    why: str
    is_final: bool


class WatchedSession(GuardedSession):
    """
    A session that remembers the newest failure.

    Args:
        auth: Signs requests to AWS; None for a collector.
    """

    def __init__(self, auth: SigV4 | None = None) -> None:
        super().__init__()
        self._signs = auth is not None
        # without any, requests would look for a password of that host in ~/.netrc
        self.auth = auth or _unchanged
        self.failure: Failure | None = None
        """Of the newest request; None when all of it was taken, or there was none."""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request, and keep what came of it; the answer is bounded."""
        # a redirect would take the headers along, the session token of AWS's among them
        kwargs |= {"allow_redirects": False, "stream": True}
        try:
            with Deadline(float(kwargs.get("timeout") or _TIMEOUT_S)):
                answer = super().request(*args, **kwargs)
                answer._content = answer.raw.read(_MOST_READ, decode_content=True)
                answer.close()
        except AwsError as problem:
            self.failure = Failure(str(problem), is_final=False)
            raise
        except (requests.RequestException, HTTPError, OSError) as problem:
            why = plain(without_secrets(str(problem)), _MOST_SAID)
            self.failure = Failure(f"no answer: {why}", is_final=False)
            if isinstance(problem, requests.RequestException):
                raise
            # the only kind that the SDK expects
            raise requests.ConnectionError(why) from problem
        if 300 <= answer.status_code < 400:
            to = shown_url(answer.headers.get("Location", "")) or "nowhere"
            why = f"{shown_url(answer.url)} redirects to {to}, which is not followed; configure that URL"
            self.failure = Failure(why, is_final=False)
            # to the SDK a redirect would be a success
            answer.status_code = _MISDIRECTED
            return answer
        self.failure = _left_out(answer) if answer.ok else self._failure(answer)
        return answer

    def _failure(self, answer: requests.Response) -> Failure:
        code, text = _said(answer)
        if self._signs:
            error = refusal(ACTION, answer.status_code, code, text)
            return Failure(str(error), isinstance(error, NeverTaken))
        said = f"{shown_url(answer.url)} answers {answer.status_code} {answer.reason}"
        # all others may be about now, about this sender or about the collector's own upstream
        return Failure(f"{said}: {text}" if text else said, answer.status_code in (400, 413))


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _left_out(answer: requests.Response) -> Failure | None:
    """
    What of a request was refused although the answer is 200.

    Source:
        OTLP specification, partial success: such a request must not be sent again.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceResponse,
    )

    try:
        partial = ExportMetricsServiceResponse.FromString(answer.content).partial_success
    except DecodeError:
        # an answer in JSON, or none of OTLP's: it was 200
        return None
    if not partial.rejected_data_points:
        return None
    why = f"{partial.rejected_data_points} data points are refused: {partial.error_message}"
    return Failure(why[:_MOST_SAID], is_final=True)


def _said(answer: requests.Response) -> tuple[str, str]:
    """Code and text of an answer in AWS's JSON or XML; else no code, and what can be read of it."""
    code, text = answer.headers.get("x-amzn-ErrorType", ""), _readable(answer.content)
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if isinstance(body, dict):
        code = code or str(body.get("__type") or body.get("code") or body.get("Code") or "")
        text = str(body.get("message") or body.get("Message") or text)
    elif (found := _XML.search(text)) is not None:
        code, text = code or found[1], found[2] or ""
    # com.amazonaws.cloudwatch#AccessDeniedException:http://…
    return code.rpartition("#")[2].partition(":")[0], text[:_MOST_SAID]


def _readable(content: bytes) -> str:
    """Text, and of a collector's google.rpc.Status its message, for all else in it cannot be printed."""
    return "".join(c for c in content.decode(errors="ignore") if c.isprintable())
