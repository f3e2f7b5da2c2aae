"""AWS through boto3: clients, and what AWS refuses in words that name the fix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vllm_opsctl.errors import AwsError, UsageError
from vllm_opsctl.exporter.config import CloudWatch

_CONNECT_S, _READ_S, _ATTEMPTS = 5, 25, 3

_DENIED = frozenset(
    ("AccessDenied", "AccessDeniedException", "AuthorizationError", "UnauthorizedOperation")
)
_BAD_KEYS = frozenset(("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId"))
_BAD_SIGNATURES = frozenset(("SignatureDoesNotMatch", "RequestExpired", "RequestTimeTooSkewed"))
_EXPIRED = frozenset(("ExpiredToken", "ExpiredTokenException"))


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


def aws_client(service: str, region: str, endpoint_url: str | None = None) -> Any:
    """
    A client of one service; credentials come from the environment, as boto3 finds them.

    Args:
        service: Such as ``sns``.
        region: Such as ``eu-central-1``.
        endpoint_url: For emulators and VPC endpoints; None for AWS's own.

    Raises:
        UsageError: boto3 is not installed, or the region is none.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise UsageError(
            "boto3 is not installed; pip install 'vllm-opsctl[aws]' brings it"
        ) from None
    retries = {"mode": "standard", "max_attempts": _ATTEMPTS}
    settings = Config(connect_timeout=_CONNECT_S, read_timeout=_READ_S, retries=retries)
    with aws_mistakes(service):
        return boto3.client(service, region_name=region, endpoint_url=endpoint_url, config=settings)


@contextmanager
def aws_mistakes(service: str) -> Iterator[None]:
    """
    Turn boto3's errors into ours.

    Args:
        service: Whose calls are made; IAM actions begin with it.

    Raises:
        AwsError: Credentials, permissions, clock, throttling, network, or a refusal.
    """
    from botocore import exceptions

    try:
        yield
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        raise AwsError(
            "no AWS credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "run where there is a role"
        ) from None
    except exceptions.ClientError as problem:
        raise AwsError(_refusal(service, problem)) from None
    except (exceptions.ConnectionError, exceptions.HTTPClientError) as problem:
        raise AwsError(f"AWS does not answer: {problem}") from None
    except exceptions.BotoCoreError as problem:
        raise AwsError(f"boto3: {problem}") from None


def _refusal(service: str, problem: Any) -> str:
    """
    A refusal in words.

    Source:
        Common error codes of AWS's query and JSON protocols
        (https://docs.aws.amazon.com/IAM/latest/APIReference/CommonErrors.html).
    """
    error = problem.response.get("Error", {})
    code, text = str(error.get("Code", "")), str(error.get("Message", ""))
    operation = f"{service}:{problem.operation_name}"
    if code in _DENIED:
        return f"{operation} is not allowed; grant this IAM action ({text or code})"
    if code in _BAD_KEYS:
        return f"{operation}: AWS does not know the access key ({code}); check the credentials"
    if code in _BAD_SIGNATURES:
        return (
            f"{operation}: the signature is refused ({code}: {text}); either the secret key is wrong, or "
            "this machine's clock is off by minutes (timedatectl)"
        )
    if code in _EXPIRED:
        return f"{operation}: the session's credentials have expired; log in again"
    if "Throttl" in code:
        return f"{operation}: throttled by AWS, {_ATTEMPTS} attempts failed; wait and try again"
    return f"{operation} is refused: {code}: {text}"
