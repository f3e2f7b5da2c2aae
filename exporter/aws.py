"""AWS through boto3: clients, and what AWS refuses in words that name the fix."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from vllm_opsctl.errors import AwsError, NeverTaken, UsageError
from vllm_opsctl.exporter import credentials
from vllm_opsctl.exporter.config import CloudWatch
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.redaction import without_secrets

AWS_HOST = ".amazonaws.com"

_CONNECT_S, _READ_S, _ATTEMPTS = 5, 25, 3

_DENIED = frozenset(
    (
        "AccessDenied",
        "AccessDeniedException",
        "AuthorizationError",
        "NotAuthorized",
        "OptInRequired",
        "UnauthorizedOperation",
    )
)
_BAD_KEYS = frozenset(
    (
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "UnrecognizedClientException",
    )
)
_BAD_SIGNATURES = frozenset(
    (
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidSignatureException",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    )
)
_EXPIRED = frozenset(("ExpiredToken", "ExpiredTokenException"))
_THROTTLED = re.compile(r"Throttl|TooManyRequests|(Request|Bandwidth)LimitExceeded|SlowDown")
_OF_THE_MOMENT = frozenset(
    (
        "LimitExceeded",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "RequestTimeout",
        "RequestTimeoutException",
    )
)
"""What AWS says with status 400 and takes a little later."""


def region_of(settings: CloudWatch, environment: Mapping[str, str]) -> str | None:
    """
    The region to send metrics to, as the configuration or else AWS's own variables say.

    Args:
        settings: ``exporter.cloudwatch``.
        environment: For the variables.
    """
    named = (settings.region, *map(environment.get, ("AWS_REGION", "AWS_DEFAULT_REGION")))
    return next((region for region in named if region), None)


def required_region(settings: CloudWatch, environment: Mapping[str, str]) -> str:
    """
    The region, where nothing can be done without one.

    Args:
        settings: ``exporter.cloudwatch``.
        environment: For the variables.

    Raises:
        UsageError: There is none.
    """
    region = region_of(settings, environment)
    if region is None:
        raise UsageError(
            "no AWS region; set exporter.cloudwatch.region in opsctl.yaml, or AWS_REGION"
        )
    return region


def sends_heartbeat(settings: CloudWatch) -> bool:
    """
    Whether OTLP goes to CloudWatch itself and no collector; then a classic heartbeat goes besides.

    Absent series count as recovered in PromQL; only a classic alarm treats silence as breaching.

    Args:
        settings: ``exporter.cloudwatch``.
    """
    return settings.endpoint_url is None or AWS_HOST in settings.endpoint_url


def has_classic_metrics(settings: CloudWatch) -> bool:
    """
    Whether any metric is made of the targets' pages: the curated set, or beside OTLP the heartbeat.

    Args:
        settings: ``exporter.cloudwatch``.
    """
    if settings.sink == "otlp":
        return sends_heartbeat(settings)
    return settings.sink in ("put", "emf")


def aws_client(
    service: str,
    region: str,
    endpoint_url: str | None = None,
    *,
    retry: Literal["standard", "adaptive"] = "standard",
) -> Any:
    """
    A client of one service; credentials come from the environment, as boto3 finds them.

    Args:
        service: Such as ``sns``.
        region: Such as ``eu-central-1``.
        endpoint_url: For emulators and VPC endpoints; None for AWS's own.
        retry: How botocore repeats; adaptive also sends more slowly once it was throttled, which makes
            who waits for an answer wait.

    Raises:
        UsageError: boto3 is not installed, the region is none, or a key can be no header.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise UsageError(
            "boto3 is not installed; pip install 'vllm-opsctl[aws]' brings it"
        ) from None
    credentials.check_of_aws(os.environ)
    retries = {"mode": retry, "max_attempts": _ATTEMPTS}
    settings = Config(connect_timeout=_CONNECT_S, read_timeout=_READ_S, retries=retries)
    from vllm_opsctl.exporter.sources.deadline import guard_aws

    with aws_mistakes(service):
        client = boto3.client(
            service, region_name=region, endpoint_url=endpoint_url, config=settings
        )
    guard_aws(client, _CONNECT_S + _READ_S)
    return client


@contextmanager
def aws_mistakes(service: str) -> Iterator[None]:
    """
    Turn boto3's errors into ours.

    Args:
        service: Whose calls are made; IAM actions begin with it.

    Raises:
        AwsError: Credentials, permissions, clock, throttling, network, or a refusal.
        NeverTaken: The same request would be refused again.
    """
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    try:
        yield
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        raise AwsError(
            "no AWS credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "run where there is a role"
        ) from None
    except exceptions.ClientError as problem:
        error = problem.response.get("Error", {})
        status = problem.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise refusal(
            f"{service}:{problem.operation_name}",
            status,
            str(error.get("Code", "")),
            str(error.get("Message", "")),
        ) from None
    except (exceptions.ConnectionError, exceptions.HTTPClientError) as problem:
        if "nvalid header" in str(problem):
            # it has the key in it
            raise AwsError("the AWS credentials hold a character that no header can have") from None
        raise AwsError(f"AWS does not answer: {problem}") from None
    except ResponseParserError:
        raise AwsError(
            f"{service}: what answers is not AWS; check the endpoint (AWS_ENDPOINT_URL, and the keys "
            "endpoint_url and api_url)"
        ) from None
    except exceptions.ParamValidationError as problem:
        raise NeverTaken(f"{service}: boto3 does not send it: {problem}") from None
    except exceptions.BotoCoreError as problem:
        raise AwsError(f"boto3: {problem}") from None


def refusal(action: str, status: int, code: str, text: str) -> AwsError:
    """
    A refusal in words that name the fix.

    Args:
        action: The call, which is also the IAM action, such as ``sns:Publish``.
        status: HTTP's.
        code: AWS's name of the error; empty when the answer was none of AWS's.
        text: What it says besides.

    Source:
        Common error codes of AWS's query and JSON protocols
        (https://docs.aws.amazon.com/IAM/latest/APIReference/CommonErrors.html).
    """
    # what stands before AWS may repeat the headers that it was sent
    text = plain(without_secrets(text, credentials.read_so_far(os.environ)))
    if code in _DENIED:
        return AwsError(f"{action} is not allowed; grant this IAM action ({text or code})")
    if code in _BAD_KEYS:
        return AwsError(
            f"{action}: AWS does not know the access key ({code}); check the credentials"
        )
    if code in _BAD_SIGNATURES:
        return AwsError(
            f"{action}: the signature is refused ({code}: {text}); either the secret key is wrong, or "
            "this machine's clock is off by minutes (timedatectl)"
        )
    if code in _EXPIRED:
        return AwsError(f"{action}: the session's credentials have expired; log in again")
    if _THROTTLED.search(code) or status == 429:
        return AwsError(f"{action}: throttled by AWS; wait and try again")
    said = f"{action} is refused: {code or status}: {text}"
    # 400 and 413 are about what was sent; whatever else is wrong may be mended without it. A number for
    # a code is botocore's stand-in where the answer is none of AWS's, but a proxy's
    wrong = status == 400 and code not in _OF_THE_MOMENT and not code.isdigit()
    if status == 413 or wrong:
        return NeverTaken(said)
    return AwsError(said)
