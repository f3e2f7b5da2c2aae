"""`opsctl diagnose --sagemaker` over a real socket: the installed command against moto's server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Opsctl
from parts.emulated_aws import REGION, EmulatedAws
from parts.fake_sagemaker import ENDPOINT, LOG_GROUP, VARIANT
from parts.slow_motion import slow_motion
from ports import reserve_port
from truth import cases

from vllm_opsctl.exporter.sinks.cloudwatch.interval import Labels
from vllm_opsctl.exporter.sinks.cloudwatch.put import PutSender

STREAM = f"{VARIANT}/i-0179208609ff7e488"


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedAws]:
    """moto with an endpoint, a sidecar's metrics of an overload, and a log."""
    emulator = EmulatedAws(tmp_path_factory.mktemp("moto"), reserve_port())
    emulator.start()
    deploy(emulator.client("sagemaker"))
    write_log(emulator.client("logs"), ["INFO all is well", "EngineDeadError: it died"])
    yield emulator
    emulator.stop()


def deploy(client: Any) -> None:
    role = "arn:aws:iam::123456789012:role/chat"
    client.create_model(ModelName="chat", ExecutionRoleArn=role, PrimaryContainer={"Image": "vllm"})
    variant = {
        "VariantName": VARIANT,
        "ModelName": "chat",
        "InitialInstanceCount": 1,
        "InstanceType": "ml.g4dn.2xlarge",
        "InitialVariantWeight": 1.0,
    }
    client.create_endpoint_config(EndpointConfigName="chat-7", ProductionVariants=[variant])
    client.create_endpoint(EndpointName=ENDPOINT, EndpointConfigName="chat-7")


def write_log(client: Any, lines: list[str]) -> None:
    client.create_log_group(logGroupName=LOG_GROUP)
    client.create_log_stream(logGroupName=LOG_GROUP, logStreamName=STREAM)
    at = int((time.time() - 60) * 1000)
    client.put_log_events(
        logGroupName=LOG_GROUP,
        logStreamName=STREAM,
        logEvents=[{"timestamp": at + n, "message": line} for n, line in enumerate(lines)],
    )


def asked(aws: EmulatedAws, opsctl: Opsctl, *arguments: str) -> tuple[int, str, str]:
    shown = opsctl.run("diagnose", "--sagemaker", *arguments, env={**aws.env, "AWS_REGION": REGION})
    return shown.returncode, shown.stdout, shown.stderr


def test_an_endpoint_without_a_sidecar_is_not_called_healthy(
    aws: EmulatedAws, opsctl: Opsctl
) -> None:
    status, out, _ = asked(aws, opsctl, ENDPOINT, "--output", "json")
    (target,) = json.loads(out)["targets"]

    assert (status, target["verdict"]) == (3, "unknown")
    assert target["features"]["sagemaker.status"] == "InService"
    assert target["features"]["log.engine_died"] == 1
    # moto knows neither components nor scaling activities: that is said, and no reason to stop
    assert any("inference components" in spot for spot in target["blind_spots"])


def test_an_endpoint_that_is_not_there_is_said(aws: EmulatedAws, opsctl: Opsctl) -> None:
    status, _, err = asked(aws, opsctl, "shop")

    assert status == 3
    assert f"no SageMaker endpoint shop in {REGION}" in " ".join(err.split())


def test_what_the_sidecar_put_is_read_back_to_its_root_and_packed(
    aws: EmulatedAws, opsctl: Opsctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in aws.env.items():
        monkeypatch.setenv(name, value)
    case, now = cases()["kv-preemption-thrash"], time.time()
    known = [o for o in case.observations if o.t <= (case.incident or (0, 0))[1]]
    sender = PutSender("vLLM", REGION, aws.url)
    for _, data in slow_motion(known, now, Labels("vllm", None), times=1):
        sender.send(data, now)
    bundle = tmp_path / "ticket.tar.gz"

    status, out, err = asked(
        aws, opsctl, ENDPOINT, VARIANT, "--output", "json", "--bundle", str(bundle)
    )
    again = opsctl.run("diagnose", "--recording", str(bundle), "--output", "json")

    assert status == 2, err
    (target,) = json.loads(out)["targets"]
    assert target["causes"][0]["id"] == "kv-preemption-thrash"
    assert json.loads(again.stdout) == json.loads(out)
