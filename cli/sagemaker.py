"""How `opsctl diagnose --sagemaker` gets observations: endpoint, metrics and logs become those of targets."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_opsctl.cli.common import Progress
from vllm_opsctl.errors import AwsError, UsageError
from vllm_opsctl.exporter.aws import aws_client, region_of
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.observation import Observation, error
from vllm_opsctl.exporter.sources.aws_reading import AwsReader, MakeClient
from vllm_opsctl.exporter.sources.cloudwatch_logs import LogTail, read_tail
from vllm_opsctl.exporter.sources.cloudwatch_pages import (
    LATE_S,
    NOT_IN_CLOUDWATCH,
    Ours,
    Published,
    read_events,
    read_pages,
)
from vllm_opsctl.exporter.sources.sagemaker import Endpoint, Happened, Part, describe, scaling
from vllm_opsctl.exporter.sources.sagemaker_metrics import Measured, read_metrics
from vllm_opsctl.exporter.units import format_duration
from vllm_opsctl.runbooks.evidence import HISTORY_S
from vllm_opsctl.runbooks.log_patterns import count_lines, log_patterns
from vllm_opsctl.runbooks.platform import NOT_IN_SERVICE

WINDOW_S = 3600.0
"""CloudWatch has one value a minute: an hour is as many values as a minute of a sidecar's."""

LONGEST_WINDOW_S = 86400.0

NOW_S = 900.0
"""What SageMaker says now is taken for what was so many seconds ago."""

MOST_EVENTS = 8

_BEFORE_FAILURE_S = 3600.0
"""Log lines of a failed deployment are from before it was given up."""

_NOT_THERE = ("Failed", "OutOfService")

_VERSION = re.compile(r"vLLM API server version v?(\d+\.\d+[\w.+-]*)")

_NO_GROUP = "ResourceNotFoundException"

_START = "server_start"


def target_name(endpoint: str, part: str) -> str:
    """The target of a variant or component."""
    return f"sagemaker:{endpoint}/{part}"


def target_names(endpoint: str, asked: Iterable[str]) -> tuple[str, ...]:
    """Targets as somebody names them: whole, or by the variant alone."""
    return tuple(
        name if name.startswith("sagemaker:") else target_name(endpoint, name) for name in asked
    )


def from_sagemaker(
    endpoint: str, config: Config, *, end: float | None, window_s: float
) -> list[Observation]:
    """
    Look at an endpoint through AWS; nothing is sent to the endpoint itself.

    Args:
        endpoint: Its name.
        config: For the region, the service's name and the namespace of our metrics.
        end: End of the window (unix seconds); None for now.
        window_s: Its length.

    Raises:
        AwsError: The endpoint is not there, or may not be looked at.
        UsageError: No region, no boto3, or too long a window.
    """
    settings = config.exporter.cloudwatch
    if window_s > LONGEST_WINDOW_S:
        longest = format_duration(LONGEST_WINDOW_S)
        raise UsageError(
            f"--window {format_duration(window_s)}: --sagemaker reads {longest} at most"
        )
    region = region_of(settings, os.environ) or _profile_region()
    if region is None:
        raise UsageError(
            "--sagemaker: no AWS region; set AWS_REGION, or exporter.cloudwatch.region"
        )
    own_url = settings.endpoint_url if settings.sink == "put" else None
    urls = {"cloudwatch": own_url}
    ours = Ours(
        namespace=settings.namespace, service=config.service.name, interval_s=settings.interval
    )
    look = _Look(
        region=region,
        make_client=lambda service: aws_client(service, region, urls.get(service)),
        ours=ours,
        end=end,
        window_s=window_s,
    )
    return look.at(endpoint)


def _profile_region() -> str | None:
    """The region of AWS's own configuration file."""
    try:
        import boto3
    except ImportError:
        raise UsageError(
            "boto3 is not installed; pip install 'vllm-opsctl[aws]' brings it"
        ) from None
    found = boto3.Session().region_name
    return found if isinstance(found, str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """One look at one endpoint."""

    region: str
    make_client: MakeClient
    ours: Ours
    end: float | None
    window_s: float

    def at(self, name: str) -> list[Observation]:
        """The observations of all of its targets, ordered by time."""
        now = time.time()
        end = self.end if self.end is not None else now
        reader = AwsReader(self.region, self.make_client)
        endpoint = describe(reader, name)
        if not endpoint.parts:
            raise AwsError(f"{name} is {endpoint.status} and has no variant ({endpoint.failure})")
        progress = Progress(f"reading {name}", len(endpoint.parts), unit="targets")
        published = self._published(reader, endpoint, end)
        common = tuple(reader.not_seen)
        observations: list[Observation] = []
        for index, part in enumerate(endpoint.parts):
            progress.update(index, len(observations))
            own = AwsReader(self.region, self.make_client)
            observations += self._of_part(
                own, endpoint, part, published, common, end=end, is_now=end >= now - NOW_S
            )
        progress.done()
        return sorted(observations, key=lambda observation: observation.t)

    def _published(self, reader: AwsReader, endpoint: Endpoint, end: float) -> Published:
        where = f"namespace {self.ours.namespace}, Service {self.ours.service}"
        found = Published()
        start = end - self.window_s - HISTORY_S
        refused = len(reader.not_seen)
        with reader.optional("the engine's own metrics"):
            found = read_pages(reader, self.ours, endpoint.name, start, end)
            if found.pages:
                events = read_events(reader, self.ours, end - self.window_s, end)
                found = replace(found, events=events)
        first = end - self.window_s
        if any(page.kind == "metrics" and page.t >= first for page in found.pages):
            reader.not_seen.append(NOT_IN_CLOUDWATCH)
        else:
            if len(reader.not_seen) == refused:
                reader.not_seen.append(
                    f"the engine's own metrics: none in CloudWatch ({where}); does the sidecar publish, "
                    "and are service.name and exporter.cloudwatch here those of the sidecar?"
                )
        if found.pages and len(endpoint.parts) > 1:
            reader.not_seen.append(
                f"which variant the engine's metrics are of: {where} holds those of all together"
            )
        return found

    def _of_part(
        self,
        reader: AwsReader,
        endpoint: Endpoint,
        part: Part,
        published: Published,
        common: Sequence[str],
        *,
        end: float,
        is_now: bool,
    ) -> list[Observation]:
        target, start = target_name(endpoint.name, part.name), end - self.window_s
        events, measured = [*_deployments(endpoint), *_gaps(published)], Measured()
        with reader.optional("scaling activities"):
            events += scaling(reader, endpoint.name, part)
        with reader.optional("AWS's own metrics"):
            measured = read_metrics(reader, endpoint.name, part, start, end)
            if not measured.numbers:
                reader.not_seen.append("AWS's own metrics: none in this window, no invocations")
        is_broken = is_now and part.status in _NOT_THERE
        log = self._log(reader, endpoint, part, end, is_broken=is_broken)
        found = [replace(page, target=target) for page in published.pages]
        seen = any(page.kind == "metrics" and page.t >= end - LATE_S for page in found)
        if is_broken and not seen:
            reason = f"the endpoint is {part.status}: {part.failure or 'SageMaker gives no reason'}"
            found.append(error(end, target, NOT_IN_SERVICE, reason))
        if not is_now:
            reader.not_seen.append(
                "status and number of instances then: SageMaker tells those of now alone"
            )
        data = _said(endpoint, part, end) if is_now else {}
        happened = sorted((e for e in events if start <= e.t <= end), key=lambda event: event.t)
        data |= {
            "unit": part.unit,
            "instance_type": part.instance_type,
            "metrics": measured.numbers,
            "objectives": {name: list(pair) for name, pair in published.events.items()},
            "attempts": [list(pair) for pair in sorted(measured.attempts.items())],
            "events": [
                {"t": event.t, "what": event.what, "failure": event.is_failure}
                for event in happened[-MOST_EVENTS:]
            ],
            "not_seen": [*common, *reader.not_seen],
        }
        if log is not None:
            data["starts"] = most_starts(log)
            found += _of_log(log, target, end)
        return [*found, Observation(end, target, "sagemaker", data)]

    def _log(
        self, reader: AwsReader, endpoint: Endpoint, part: Part, end: float, *, is_broken: bool
    ) -> LogTail | None:
        group, start = part.log_group(endpoint.name), end - self.window_s
        if is_broken:
            start = min(start, endpoint.modified - _BEFORE_FAILURE_S)
        try:
            log = read_tail(reader, group, part.log_prefix(), start, end)
        except AwsError as problem:
            why = str(problem)
            if _NO_GROUP in why:
                why = (
                    f"there is no log group {group}; no container has written, or its role may not"
                )
            reader.not_seen.append(f"the containers' log: {why}")
            return None
        if not any(log.lines()):
            reader.not_seen.append(f"the containers' log: nothing in {group} in this window")
            return None
        if log.since > start:
            reader.not_seen.append(
                f"the containers' log before the newest {sum(map(len, log.streams.values()))} lines"
            )
        return log


def _deployments(endpoint: Endpoint) -> list[Happened]:
    found = [Happened(endpoint.modified, f"the endpoint was last changed, now {endpoint.status}")]
    if endpoint.deploying_since is not None:
        found.append(Happened(endpoint.deploying_since, "a deployment began"))
    return found


def _gaps(published: Published) -> Iterator[Happened]:
    for since, until in published.gaps:
        length = format_duration(until - since)
        yield Happened(since, f"no heartbeat of any sidecar for {length}", is_failure=True)


def _said(endpoint: Endpoint, part: Part, end: float) -> dict[str, Any]:
    data: dict[str, Any] = {
        "status": part.status,
        "failure": part.failure,
        "current": part.current,
        "desired": part.desired,
        "weight": part.weight,
        "working": list(part.working),
    }
    if endpoint.deploying_since is not None:
        data["deploying_s"] = max(0.0, end - endpoint.deploying_since)
    return data


def _of_log(log: LogTail, target: str, end: float) -> list[Observation]:
    counts: Mapping[str, int] = count_lines(log.lines())
    found = [Observation(end, target, "log", {"counts": counts})]
    versions = Counter(match[1] for line in log.lines() if (match := _VERSION.search(line)))
    if len(versions) == 1:
        found.append(Observation(end, target, "facts", {"version": next(iter(versions))}))
    return found


def most_starts(log: LogTail) -> int:
    """
    How often vLLM started in one container's log: a new instance starts once, in a stream of its own.

    Args:
        log: The lines by stream.
    """
    pattern = log_patterns()[_START].pattern
    return max(
        (sum(pattern.search(line) is not None for line in lines) for lines in log.streams.values()),
        default=0,
    )
