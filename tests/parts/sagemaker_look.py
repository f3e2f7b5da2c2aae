"""One look at the fake endpoint, as `opsctl diagnose --sagemaker` takes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from unittest import mock

from parts.emulated_aws import REGION
from parts.fake_sagemaker import ENDPOINT, VARIANT, FakeSageMaker
from parts.slow_motion import invocations, slow_motion
from vllm_opsctl.cli import sagemaker
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.sinks.cloudwatch.interval import Labels
from vllm_opsctl.exporter.sinks.cloudwatch.put import as_metric_datum
from vllm_opsctl.runbooks.fleet import Question, diagnose_fleet
from vllm_opsctl.runbooks.load import shipped_library
from vllm_opsctl.runbooks.verdict import TargetVerdict, Verdict

TARGET = f"sagemaker:{ENDPOINT}/{VARIANT}"


def observed(
    fake: FakeSageMaker, name: str = ENDPOINT, *, end: float | None = None, window_s: float = 3600.0
) -> list[Observation]:
    """What is read of the endpoint."""
    with (
        mock.patch.object(sagemaker, "aws_client", lambda service, *_: fake.client(service)),
        mock.patch.dict(os.environ, {"AWS_REGION": REGION}),
    ):
        return sagemaker.from_sagemaker(name, Config(), end=end, window_s=window_s)


def verdict_of(observations: Sequence[Observation], *, window_s: float = 3600.0) -> Verdict:
    """The verdict on all targets."""
    by_target: dict[str, list[Observation]] = {}
    for observation in observations:
        by_target.setdefault(observation.target, []).append(observation)
    question = Question(source="sagemaker", window_s=window_s)
    return diagnose_fleet(by_target, shipped_library(), question)


def look(fake: FakeSageMaker, *, end: float | None = None) -> TargetVerdict:
    """The verdict on the one variant."""
    (target,) = verdict_of(observed(fake, end=end)).targets
    return target


def publish(
    fake: FakeSageMaker, observations: Sequence[Observation], *, until: float | None = None
) -> None:
    """Bring a recording into CloudWatch as the sidecar's PutMetricData sink does, and AWS's own counts."""
    known = [o for o in observations if until is None or o.t <= until]
    for _, data in slow_motion(known, fake.now, Labels("vllm", None)):
        fake.put("vLLM", [as_metric_datum(datum) for datum in data])
    invocations(fake, known)
