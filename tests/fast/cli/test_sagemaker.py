"""`opsctl diagnose --sagemaker`: what AWS says of an endpoint becomes the same verdict as any other."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from commands import Opsctl
from jsonschema import validate
from parts.fake_sagemaker import (
    ENDPOINT,
    LOG_GROUP,
    VARIANT,
    Event,
    FakeSageMaker,
    Refusal,
)
from parts.sagemaker_look import TARGET, look, observed, publish, verdict_of
from paths import TESTS
from transcripts import TRANSCRIPTS, written
from truth import cases

from vllm_opsctl.cli.alarm_message import read_alarm
from vllm_opsctl.cli.text import render_text
from vllm_opsctl.errors import AwsError
from vllm_opsctl.exporter.bundle import Scrubber, as_packed
from vllm_opsctl.exporter.recording import format_line, parse_line
from vllm_opsctl.exporter.sources.aws_reading import OPERATIONS
from vllm_opsctl.runbooks.verdict import TargetVerdict

PING = (
    "The primary container for production variant AllTraffic did not pass the ping health check. "
    "Please check CloudWatch logs for this endpoint."
)
CAPACITY = (
    "Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity error."
)
DATA = (
    'Failed to download model data for container "container_1" from URL: "s3://models/chat.tar.gz".'
)
START = "INFO 11-25 13:00:00 [api_server.py:1900] vLLM API server version 0.32.0"
STREAM = f"{VARIANT}/i-0179208609ff7e488"


@pytest.fixture
def now() -> float:
    return time.time()


@pytest.fixture
def healthy(now: float) -> FakeSageMaker:
    """An endpoint in service whose sidecar publishes, and whose log is quiet."""
    fake = FakeSageMaker(now)
    publish(fake, cases()["baseline"].observations)
    fake.aws("ModelLatency", *[2_500_000.0] * 30)
    fake.aws("OverheadLatency", *[12_000.0] * 30)
    fake.logs[LOG_GROUP] = [Event(now - 60, STREAM, "INFO all is well")]
    return fake


def roots(found: TargetVerdict) -> list[str]:
    return [cause.id for cause in found.roots]


def activity(now: float, status: str, message: str = "") -> dict[str, Any]:
    return {
        "ActivityId": "1",
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{ENDPOINT}/variant/{VARIANT}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
        "Description": "Setting desired instance count to 3.",
        "Cause": "monitor alarm in state ALARM",
        "StartTime": datetime.fromtimestamp(now - 300, UTC),
        "StatusCode": status,
        "StatusMessage": message,
    }


# -- healthy, and the shape ------------------------------------------------------------------------


def test_a_healthy_endpoint_is_healthy(healthy: FakeSageMaker) -> None:
    found = look(healthy)

    assert (found.target, found.verdict) == (TARGET, "healthy")
    assert found.platform is not None
    assert "InService, 1 of 1 instances ml.g5.2xlarge" in found.platform


def test_the_verdict_has_the_shape_of_all_others(healthy: FakeSageMaker) -> None:
    schema = json.loads((TESTS.parent / "docs" / "verdict.schema.json").read_text("utf-8"))
    healthy.endpoint["LastModifiedTime"] = datetime.fromtimestamp(healthy.now - 900, UTC)
    answer = verdict_of(observed(healthy)).to_json()

    validate(answer, schema)
    (target,) = answer["targets"]
    assert target["window"]["source"] == "sagemaker"
    assert any("last changed" in event["what"] for event in target["events"])


def test_aws_gives_latencies_in_microseconds(healthy: FakeSageMaker) -> None:
    found = look(healthy)

    assert found.features["sagemaker.latency_mean"] == pytest.approx(2.5)
    assert found.features["sagemaker.latency_max"] == pytest.approx(2.5)
    assert found.features["sagemaker.overhead_mean"] == pytest.approx(0.012)


def test_utilisation_of_gpus_counts_gpus_and_of_memory_is_a_share(healthy: FakeSageMaker) -> None:
    healthy.aws("GPUUtilization", 310.0, 370.0, namespace="/aws/sagemaker/Endpoints")
    healthy.aws("MemoryUtilization", 61.0, namespace="/aws/sagemaker/Endpoints")
    found = look(healthy)

    assert found.features["sagemaker.gpus_busy"] == pytest.approx(3.7)
    assert found.features["sagemaker.memory_max"] == pytest.approx(0.61)


def test_what_was_read_replays_from_a_recording_to_the_same_verdict(healthy: FakeSageMaker) -> None:
    healthy.endpoint |= {"EndpointStatus": "Failed", "FailureReason": PING}
    read = as_packed(observed(healthy), Scrubber(()))
    again = [parse_line(format_line(o), where="line", stem="x") for o in read]

    first, second = verdict_of(read), verdict_of([o for o in again if o is not None])
    assert first.to_json() == second.to_json()
    assert first.targets[0].verdict == "critical"


def test_replicas_share_what_was_counted(now: float) -> None:
    one, two = FakeSageMaker(now), FakeSageMaker(now)
    recorded = cases()["queue-overload"]
    for fake, times in ((one, 1), (two, 2)):
        for _ in range(times):
            publish(fake, recorded.observations, until=(recorded.incident or (0, 0))[1])

    alone, fleet = look(one), look(two)
    assert "objectives missed: e2e by 7" in str(alone.platform)
    assert roots(alone) == roots(fleet) == ["queue-overload"]
    for name in ("queue.waiting_avg", "traffic.started", "ttft.mean", "queue.wait_seconds"):
        assert fleet.features[name] == pytest.approx(alone.features[name]), name


# -- failure modes that only SageMaker knows, and their look-alikes --------------------------------


@pytest.mark.parametrize("status", ["Failed", "OutOfService", "UpdateRollbackFailed"])
@pytest.mark.parametrize(
    ("reason", "named"),
    [
        (PING, "sagemaker-ping-failed"),
        (CAPACITY, "sagemaker-no-capacity"),
        (DATA, "sagemaker-artefacts-unavailable"),
        ("The role arn:aws:iam::1:role/x was deleted.", "sagemaker-endpoint-failed"),
    ],
)
def test_a_failed_endpoint_is_critical_and_its_reason_is_quoted(
    now: float, status: str, reason: str, named: str
) -> None:
    found = look(FakeSageMaker(now, endpoint={"EndpointStatus": status, "FailureReason": reason}))

    assert (roots(found), found.verdict) == ([named], "critical")
    assert any(reason[:60] in line.statement for cause in found.causes for line in cause.evidence)
    assert "sagemaker-endpoint-failed" in [cause.id for cause in found.causes]


@pytest.mark.parametrize("reason", [PING, CAPACITY, DATA])
def test_an_old_reason_on_an_endpoint_in_service_is_a_note(
    healthy: FakeSageMaker, reason: str
) -> None:
    healthy.endpoint["FailureReason"] = reason
    found = look(healthy)

    assert (roots(found), found.verdict) == (["sagemaker-update-undone"], "healthy")


def test_a_first_deployment_that_failed_has_no_variant_yet(now: float) -> None:
    ends = {"EndpointStatus": "Failed", "FailureReason": PING, "ProductionVariants": None}
    found = look(FakeSageMaker(now, endpoint=ends))

    assert (found.target, roots(found)) == (TARGET, ["sagemaker-ping-failed"])


def test_gpu_memory_that_runs_out_explains_the_failed_health_check(now: float) -> None:
    fake = FakeSageMaker(now, endpoint={"EndpointStatus": "Failed", "FailureReason": PING})
    fake.logs[LOG_GROUP] = [
        Event(now - 7200, STREAM, START),
        Event(now - 7190, STREAM, "torch.OutOfMemoryError: CUDA out of memory."),
    ]
    fake.endpoint["LastModifiedTime"] = datetime.fromtimestamp(now - 7000, UTC)
    found = look(fake)

    assert roots(found) == ["gpu-oom-crash-loop"]
    assert {"sagemaker-ping-failed", "sagemaker-endpoint-failed"} <= {c.id for c in found.causes}


def test_a_deployment_in_progress_is_a_note(healthy: FakeSageMaker) -> None:
    began = datetime.fromtimestamp(healthy.now - 240, UTC)
    pending = {"EndpointConfigName": "chat-8", "StartTime": began}
    healthy.endpoint |= {"EndpointStatus": "Updating", "PendingDeploymentSummary": pending}
    found = look(healthy)

    assert (roots(found), found.verdict) == (["sagemaker-deploying"], "healthy")
    assert "a deployment began" in [event.what for event in found.events]


def test_an_endpoint_that_is_being_created_is_not_healthy(now: float) -> None:
    found = look(FakeSageMaker(now, endpoint={"EndpointStatus": "Creating"}))

    assert found.verdict == "unknown"
    assert "being created" in found.summary


def test_missing_instances_are_told_with_the_scaling_that_wants_them(
    healthy: FakeSageMaker,
) -> None:
    healthy.variant["DesiredInstanceCount"] = 3
    healthy.activities.append(activity(healthy.now, "InProgress"))
    found = look(healthy)

    assert (roots(found), found.verdict) == (["sagemaker-below-desired"], "degraded")
    assert "scaling in progress: Setting desired instance count to 3" in found.events[-1].what


def test_a_scaling_that_fails_for_capacity_is_the_reason(healthy: FakeSageMaker) -> None:
    healthy.variant["DesiredInstanceCount"] = 3
    healthy.activities.append(activity(healthy.now, "Failed", CAPACITY))
    found = look(healthy)

    assert roots(found) == ["sagemaker-no-capacity"]
    assert "sagemaker-below-desired" in found.roots[0].explains


def test_a_later_scaling_that_worked_ends_it(healthy: FakeSageMaker) -> None:
    later = activity(healthy.now + 120, "Successful")
    healthy.activities += [later, activity(healthy.now, "Failed", CAPACITY)]

    assert roots(look(healthy)) == []


def test_one_container_that_starts_again_is_no_deployment_of_two(healthy: FakeSageMaker) -> None:
    lines = healthy.logs[LOG_GROUP]
    lines += [Event(healthy.now - 900, f"{VARIANT}/i-{n}", START) for n in (1, 2)]
    assert roots(look(healthy)) == []

    lines.append(Event(healthy.now - 300, f"{VARIANT}/i-1", START))
    found = look(healthy)
    assert roots(found) == ["sagemaker-container-restarts"]
    assert found.vllm_version == "0.32.0"


@pytest.mark.parametrize(
    ("percent", "named"),
    [(97.0, "sagemaker-container-oom"), (45.0, "sagemaker-container-restarts")],
)
def test_full_memory_tells_why_a_container_starts_again(
    healthy: FakeSageMaker, percent: float, named: str
) -> None:
    healthy.logs[LOG_GROUP] += [Event(healthy.now - t, STREAM, START) for t in (900, 300)]
    healthy.aws("MemoryUtilization", percent, namespace="/aws/sagemaker/Endpoints")

    assert roots(look(healthy)) == [named]


def test_errors_of_clients_of_the_server_and_timeouts_are_told_apart(now: float) -> None:
    def felt(**counts: float) -> set[str]:
        fake = FakeSageMaker(now)
        for metric, count in {"Invocations": 1000.0, **counts}.items():
            fake.aws(metric, count)
        return {cause.id for cause in look(fake).causes}

    assert felt() == set()
    assert felt(Invocation4XXErrors=90.0, InvocationModelErrors=90.0) == {"client-errors"}
    assert felt(Invocation5XXErrors=60.0, InvocationModelErrors=60.0) == {"server-errors"}
    assert felt(InvocationModelErrors=40.0) == {"unanswered-invocations"}


# -- logs ------------------------------------------------------------------------------------------


def test_known_lines_of_the_containers_log_are_counted(healthy: FakeSageMaker) -> None:
    healthy.logs[LOG_GROUP] += [
        Event(
            healthy.now - 3500, STREAM, "CUDA out of memory.\nTraceback (most recent call last):"
        ),
        Event(healthy.now - 7300, STREAM, "CUDA out of memory. An hour too old."),
        Event(healthy.now - 100, "Canary/i-9", "CUDA out of memory. Another variant's."),
    ]
    found = look(healthy)

    assert found.features["log.cuda_oom"] == 1
    assert found.features["log.traceback"] == 1


def test_of_a_long_log_the_newest_lines_are_read_page_by_page(healthy: FakeSageMaker) -> None:
    healthy.page_size = 100
    healthy.logs[LOG_GROUP] += [
        Event(healthy.now - 3000 + n / 100, STREAM, "x" * 100) for n in range(50_000)
    ]
    healthy.logs[LOG_GROUP].append(Event(healthy.now - 30, STREAM, "EngineDeadError"))
    found = look(healthy)

    assert found.features["log.engine_died"] == 1
    assert any("log before the newest" in spot for spot in found.blind_spots)


# -- components ------------------------------------------------------------------------------------


def test_inference_components_are_targets_of_their_own(healthy: FakeSageMaker) -> None:
    healthy.component("llama")
    healthy.component(
        "adapter",
        InferenceComponentStatus="Failed",
        FailureReason=DATA,
        RuntimeConfig={"DesiredCopyCount": 2, "CurrentCopyCount": 0},
    )
    healthy.logs["/aws/sagemaker/InferenceComponents/llama"] = [
        Event(healthy.now - 30, "i-1", "EngineDeadError")
    ]
    own = (("InferenceComponentName", "llama"),)
    healthy.aws("Invocations", 30.0, dimensions=own)
    healthy.aws(
        "MemoryUtilizationNormalized",
        72.0,
        namespace="/aws/sagemaker/InferenceComponents",
        dimensions=own,
    )
    by_name = {target.target: target for target in verdict_of(observed(healthy)).targets}
    llama, adapter = (by_name[f"sagemaker:{ENDPOINT}/{name}"] for name in ("llama", "adapter"))

    assert roots(adapter) == ["sagemaker-artefacts-unavailable"]
    assert "0 of 2 copies" in str(adapter.platform)
    assert llama.features["log.engine_died"] == 1
    assert llama.features["sagemaker.invocations"] == 30
    assert llama.features["sagemaker.memory_max"] == pytest.approx(0.72)
    assert any("those of all together" in spot for spot in llama.blind_spots)


# -- what is missing -------------------------------------------------------------------------------


def test_an_endpoint_that_is_not_there_is_said(now: float) -> None:
    with pytest.raises(AwsError, match="no SageMaker endpoint shop in eu-central-1") as caught:
        observed(FakeSageMaker(now), "shop")

    assert caught.value.exit_code == 3


DENIED = Refusal("AccessDeniedException", "User: arn:aws:iam::1:user/x is not authorized")


def test_what_is_essential_and_not_allowed_ends_with_the_action(now: float) -> None:
    with pytest.raises(AwsError, match="sagemaker:DescribeEndpoint is not allowed; grant this"):
        observed(FakeSageMaker(now, refusals={"DescribeEndpoint": DENIED}))


@pytest.mark.parametrize(
    ("service", "operation"),
    [
        (service, operation)
        for service, operations in OPERATIONS.items()
        for operation in operations
        if operation not in ("DescribeEndpoint", "DescribeInferenceComponent")
    ],
)
def test_what_is_not_essential_and_not_allowed_is_not_seen(
    healthy: FakeSageMaker, service: str, operation: str
) -> None:
    healthy.refusals[operation] = DENIED
    found = look(healthy)

    assert any(f"{service}:{operation} is not allowed" in spot for spot in found.blind_spots)
    assert found.verdict in ("healthy", "unknown")


def test_without_metrics_and_logs_nothing_is_called_healthy(now: float) -> None:
    found = look(FakeSageMaker(now))

    assert found.verdict == "unknown"
    missing = " ".join(found.blind_spots)
    assert "namespace vLLM, Service vllm" in missing
    assert f"no log group {LOG_GROUP}" in missing
    assert "no invocations" in missing


def test_a_sidecar_that_fell_silent_is_not_healthy(healthy: FakeSageMaker) -> None:
    found = look(healthy, end=healthy.now + 600)

    assert found.verdict == "unknown"
    assert "no heartbeat for" in found.summary


def test_of_long_ago_todays_status_says_nothing(healthy: FakeSageMaker) -> None:
    healthy.endpoint |= {"EndpointStatus": "Failed", "FailureReason": PING}
    found = look(healthy, end=healthy.now - 1200)

    assert "sagemaker.status" not in found.features
    assert any("those of now alone" in spot for spot in found.blind_spots)


# -- what it calls ---------------------------------------------------------------------------------


def test_it_only_reads_and_the_policy_in_the_documentation_is_what_it_calls(
    healthy: FakeSageMaker,
) -> None:
    healthy.component("llama")
    observed(healthy)
    called = {f"{service}:{operation}" for service, operation in healthy.calls}
    _, _, text = written(TRANSCRIPTS["on-call-policy"]).partition("\n")
    policy = json.loads(text)
    granted = {action for one in policy["Statement"] for action in one["Action"]}

    assert called == granted == {f"{s}:{o}" for s, found in OPERATIONS.items() for o in found}
    assert all(re.search(":(Describe|List|Get|Filter)", action) for action in granted)


def test_one_look_is_few_calls(healthy: FakeSageMaker) -> None:
    observed(healthy)

    assert len(healthy.calls) <= 15


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sidecar", "http://x:1"), "--sidecar and --sagemaker are both given"),
        (("--prometheus", "http://x:1"), "--prometheus and --sagemaker are both given"),
        (("--tap", "."), "--tap and --sagemaker are both given"),
        (("--watch",), "--sagemaker is the past"),
        (("--match", "{a='b'}"), "belong to --prometheus"),
        (("--window", "48h"), "reads 24"),
    ],
)
def test_what_cannot_be_combined_is_said(
    opsctl: Opsctl, arguments: tuple[str, ...], said: str
) -> None:
    shown = opsctl.run("diagnose", "--sagemaker", ENDPOINT, *arguments, env={"AWS_REGION": "x"})

    assert shown.returncode == 64
    assert said in " ".join(shown.stderr.split())


def test_without_credentials_and_region_the_fix_is_named(opsctl: Opsctl, tmp_path: Path) -> None:
    nobody = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }
    no_region = opsctl.run("diagnose", "--sagemaker", ENDPOINT, env=nobody)
    no_keys = opsctl.run("diagnose", "--sagemaker", ENDPOINT, env=nobody | {"AWS_REGION": "x"})

    assert (no_region.returncode, no_keys.returncode) == (64, 3)
    assert "set AWS_REGION" in no_region.stderr
    assert "no AWS credentials; set AWS_PROFILE" in no_keys.stderr


def test_an_alarm_whose_command_names_an_endpoint_is_followed() -> None:
    page = "FIRING critical: x\nDiagnose: opsctl diagnose --sagemaker chat AllTraffic\n"
    found = read_alarm(page, "-")

    assert (found.sagemaker, found.targets) == ("chat", ("AllTraffic",))


@pytest.mark.parametrize("columns", [80, 160])
def test_the_text_fits_the_terminal(
    healthy: FakeSageMaker, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    healthy.variant["DesiredInstanceCount"] = 3
    healthy.activities.append(activity(healthy.now, "Failed", CAPACITY))
    text = click.unstyle(render_text(verdict_of(observed(healthy)), show_features=False))

    prose = [line for line in text.splitlines() if not line.lstrip().startswith("$ ")]
    assert max(map(len, prose)) <= columns
    assert text.startswith("CRITICAL sagemaker-no-capacity on sagemaker:chat/AllTraffic")
