"""The template of scaling: which policies on what, what is refused and why, and when its alarms go off."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from cloudwatch_fleet import MINUTE, config
from commands import Opsctl
from example_alarms import AUTOSCALING_EXAMPLE, GENERATED, STARTER
from paths import RECORDINGS
from scaled_resource import ECS, KINDS, TOPIC, scaled

from vllm_opsctl.alarms.autoscale.metrics import REPLICAS_METRIC
from vllm_opsctl.alarms.autoscale.template import scaling_of, template_text
from vllm_opsctl.alarms.cloudwatch.definitions import read_definitions
from vllm_opsctl.alarms.cloudwatch.metric_math import Series, Value, evaluate, parse
from vllm_opsctl.alarms.cloudwatch.metrics import Metrics
from vllm_opsctl.alarms.cloudwatch.timeline import Timeline
from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.recording import read_recording
from vllm_opsctl.exporter.sinks.cloudwatch.curated import curated
from vllm_opsctl.exporter.sinks.cloudwatch.interval import Labels, data_of
from vllm_opsctl.exporter.yaml_text import read_yaml


def body_of(one: Config) -> dict[str, Any]:
    found: dict[str, Any] = read_yaml(template_text(scaling_of(one)))
    return found


def of_type(body: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [
        one["Properties"] for one in body["Resources"].values() if one["Type"] == f"AWS::{kind}"
    ]


def policies(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target-tracking configuration."""
    return [
        one["TargetTrackingScalingPolicyConfiguration"]
        for one in of_type(body, "ApplicationAutoScaling::ScalingPolicy")
        if one["PolicyType"] == "TargetTrackingScaling"
    ] + [one["TargetTrackingConfiguration"] for one in of_type(body, "AutoScaling::ScalingPolicy")]


# -- what is built ---------------------------------------------------------------------------------


def test_the_committed_example_is_what_a_build_writes(opsctl: Opsctl) -> None:
    arguments = ("autoscale", "build", "--out", str(GENERATED), "--check")
    answer = opsctl.run("--config", str(STARTER), *arguments, env=AUTOSCALING_EXAMPLE)

    assert answer.returncode == 0, f"run make alarms: {answer.stderr}"


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("ecs-service", ("ecs", "service/llm/chat", "ecs:service:DesiredCount")),
        (
            "sagemaker-variant",
            (
                "sagemaker",
                "endpoint/chat/variant/AllTraffic",
                "sagemaker:variant:DesiredInstanceCount",
            ),
        ),
        (
            "sagemaker-inference-component",
            (
                "sagemaker",
                "inference-component/chat",
                "sagemaker:inference-component:DesiredCopyCount",
            ),
        ),
    ],
)
def test_a_target_and_its_policies_name_the_resource(
    kind: str, place: tuple[str, str, str]
) -> None:
    body = body_of(scaled(KINDS[kind]))
    keys = ("ServiceNamespace", "ResourceId", "ScalableDimension")
    (target,) = of_type(body, "ApplicationAutoScaling::ScalableTarget")

    assert tuple(target[key] for key in keys) == place
    assert (target["MinCapacity"], target["MaxCapacity"]) == (KINDS[kind]["min"], 4)
    for policy in of_type(body, "ApplicationAutoScaling::ScalingPolicy"):
        assert tuple(policy[key] for key in keys) == place
        assert policy["PolicyName"].startswith("opsctl-chat-")


def test_a_group_has_policies_of_its_own_service_and_no_target() -> None:
    body = body_of(scaled(KINDS["auto-scaling-group"]))
    found = of_type(body, "AutoScaling::ScalingPolicy")

    assert not of_type(body, "ApplicationAutoScaling::ScalableTarget")
    assert {one["AutoScalingGroupName"] for one in found} == {"chat"}
    assert {one["EstimatedInstanceWarmup"] for one in found} == {420}


@pytest.mark.parametrize("kind", KINDS)
def test_botocore_takes_every_policy(kind: str) -> None:
    session = botocore.session.get_session()
    shapes = {
        "ApplicationAutoScaling::ScalableTarget": (
            "application-autoscaling",
            "RegisterScalableTarget",
        ),
        "ApplicationAutoScaling::ScalingPolicy": ("application-autoscaling", "PutScalingPolicy"),
        "AutoScaling::ScalingPolicy": ("autoscaling", "PutScalingPolicy"),
    }
    for resource, (service, operation) in shapes.items():
        shape = session.get_service_model(service).operation_model(operation).input_shape
        for properties in of_type(body_of(scaled(KINDS[kind])), resource):
            named = {"PolicyName": "p", **properties} if service == "autoscaling" else properties
            report = ParamValidator().validate(named, shape)
            assert not report.has_errors(), report.generate_report()


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_one_query_of_a_policy_returns_data_and_none_says_its_period(kind: str) -> None:
    for policy in policies(body_of(scaled(KINDS[kind]))):
        queries = policy["CustomizedMetricSpecification"]["Metrics"]

        assert sum(query["ReturnData"] for query in queries) == 1
        assert all("Period" not in query.get("MetricStat", {}) for query in queries)


def test_policies_read_what_the_sidecars_send_and_nothing_of_gpus() -> None:
    names = {metric.metric for metric in curated()}
    read = {
        (stat["Metric"]["Namespace"], stat["Metric"]["MetricName"], stat["Stat"])
        for policy in policies(body_of(scaled()))
        for query in policy["CustomizedMetricSpecification"]["Metrics"]
        if (stat := query.get("MetricStat")) is not None
    }

    assert read == {
        ("vLLM", name, "Average") for name in ("RequestsRunning", "RequestsWaiting", "KVCacheUsage")
    }
    assert {name for _, name, _ in read} <= names


def demand(body: dict[str, Any]) -> str:
    (text,) = [
        query["Expression"]
        for policy in policies(body)
        for query in policy["CustomizedMetricSpecification"]["Metrics"]
        if "Expression" in query
    ]
    assert isinstance(text, str)
    return text


def test_demand_is_percent_of_the_batch_and_goes_on_growing_with_the_queue() -> None:
    node = parse(demand(body_of(scaled())))

    def at(running: float, waiting: float) -> Value:
        return evaluate(node, {"running": (running,), "waiting": (waiting,)})

    assert at(32.0, 0.0) == (50.0,)
    assert at(64.0, 64.0) == (200.0,), (
        "twice the load of a full batch, where utilisation stays 100 %"
    )


def test_what_is_missing_stays_missing() -> None:
    """A fleet that is not seen has no demand, rather than one of 0, which would shrink it."""
    text = demand(body_of(scaled()))
    series: dict[str, Series] = {"running": (None, 3.0), "waiting": (None, 0.0)}

    assert "FILL" not in text
    assert evaluate(parse(text), series) == (None, 100 * 3 / 64)


def test_cooldowns_outlast_the_cold_start_by_the_minute_in_which_it_shows() -> None:
    (first, _) = policies(body_of(scaled(cold_start="400.5s")))
    (slow, _) = policies(body_of(scaled(cold_start="20m")))

    assert (first["ScaleOutCooldown"], first["ScaleInCooldown"]) == (461, 921)
    assert (slow["ScaleOutCooldown"], slow["ScaleInCooldown"]) == (1260, 2520)


def test_only_what_scales_to_zero_is_woken() -> None:
    body = body_of(scaled(KINDS["sagemaker-inference-component"]))
    (step,) = [
        one
        for one in of_type(body, "ApplicationAutoScaling::ScalingPolicy")
        if one["PolicyType"] == "StepScaling"
    ]
    (alarm,) = [a for a in of_type(body, "CloudWatch::Alarm") if "MetricName" in a]
    (policy,) = [i for i, one in body["Resources"].items() if one["Properties"] == step]

    assert step["StepScalingPolicyConfiguration"]["StepAdjustments"] == [
        {"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}
    ]
    assert step["StepScalingPolicyConfiguration"]["Cooldown"] == 420
    assert (alarm["Namespace"], alarm["MetricName"]) == (
        "AWS/SageMaker",
        "NoCapacityInvocationFailures",
    )
    assert alarm["Dimensions"] == [{"Name": "InferenceComponentName", "Value": "chat"}]
    assert alarm["AlarmActions"] == [{"Ref": policy}]
    one_copy = {**KINDS["sagemaker-inference-component"], "min": 1}
    assert "StepScaling" not in template_text(scaling_of(scaled(one_copy)))


def test_model_and_topic_are_parameters_where_they_are_not_known() -> None:
    one = config(
        targets=[{"name": "chat-0", "url": "http://chat-0:8000"}],
        autoscaling={"cold_start": "6m", "resources": [ECS]},
    )
    body = body_of(one)

    assert set(body["Parameters"]) == {"Model", "TicketTopic"}
    (metric, *_) = policies(body)[0]["CustomizedMetricSpecification"]["Metrics"]
    assert {"Name": "Model", "Value": {"Ref": "Model"}} in metric["MetricStat"]["Metric"][
        "Dimensions"
    ]
    assert "Parameters" not in body_of(scaled())


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"signals": ["gpu_utilization"]}, "near 100 % with one request as with a hundred"),
        ({"signals": ["DCGM_FI_DEV_GPU_UTIL"]}, "does not tell load"),
        ({"signals": ["ECSServiceAverageCPUUtilization"]}, "does not tell load"),
        ({"signals": ["waiting"]}, "is 0 until the batch is full"),
        ({"signals": ["queue"]}, "is 0 until the batch is full"),
        ({"signals": ["ttft"]}, "there are demand, kv_cache"),
        ({"signals": []}, "at least 1 item"),
        ({"cold_start": None}, "cold_start is missing: measure"),
        ({"scale_out_cooldown": "5m"}, "shorter than cold_start"),
        ({"scale_in_cooldown": "6m"}, "is not longer than"),
        ({"demand_target": "5%"}, "greater than or equal to 0.1"),
        ({"resources": [ECS, ECS]}, "stands twice"),
    ],
)
def test_a_section_that_would_scale_wrongly(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scaled(**section)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("ecs-service", {"min": 0}, "nothing would wake it"),
        ("sagemaker-variant", {"min": 0}, "only inference components go to 0"),
        ("auto-scaling-group", {"min": 0}, "nothing would wake it"),
        ("ecs-service", {"min": 5}, "min: 5 is more than max, 4"),
        ("ecs-service", {"name": "chat"}, "write cluster/service"),
        ("sagemaker-variant", {"name": "chat"}, "write endpoint/variant"),
        ("sagemaker-inference-component", {"name": "a/b"}, "the component's name"),
        ("ecs-service", {"max_num_seqs": 0}, "greater than 0"),
    ],
)
def test_a_resource_that_cannot_be(kind: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scaled({**KINDS[kind], **change})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"autoscaling": {}}, "autoscaling.resources: none"),
        ({"exporter": {"cloudwatch": {"sink": "otlp"}}}, "reads no others; set put or emf"),
        (
            {"exporter": {"cloudwatch": {"per_target": True}}},
            "exporter.cloudwatch.per_target: scaling reads the fleet's",
        ),
        (
            {"exporter": {"cloudwatch": {"interval": "2m"}}},
            "exporter.cloudwatch.interval: 120 s; target tracking judges every minute",
        ),
        ({"exporter": {"cloudwatch": {"interval": "45s"}}}, "exporter.cloudwatch.interval: 45 s"),
        (
            {
                "exporter": {"cloudwatch": {"region": "us-east-1"}},
                "alarms": {"ticket_topic": TOPIC},
            },
            "alarms.ticket_topic: alarms of us-east-1",
        ),
        (
            {
                "targets": [
                    {"name": "a", "url": "http://a:1", "models": ["a"]},
                    {"name": "b", "url": "http://b:1", "models": ["b"]},
                ]
            },
            r"autoscaling.resources\[0\].model: the service has the models a, b",
        ),
        (
            {
                "autoscaling": {
                    "cold_start": "6m",
                    "resources": [ECS, KINDS["auto-scaling-group"]],
                }
            },
            r"autoscaling.resources\[1\].model: tiny scales another resource already",
        ),
    ],
)
def test_a_configuration_that_does_not_go_with_scaling(more: dict[str, Any], said: str) -> None:
    given = {"autoscaling": {"cold_start": "6m", "resources": [ECS]}, **more}

    with pytest.raises(ConfigError, match=said):
        scaling_of(config(**given))


# -- alarms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["baseline", "queue-overload", "gpu/healthy-busy"])
@pytest.mark.parametrize("interval_s", [60.0, 30.0])
def test_every_engine_sends_one_sample_of_the_metric_that_counts_them(
    name: str, interval_s: float
) -> None:
    pages = [
        read_page(o.text, t=o.t, target=o.target)
        for o in read_recording(RECORDINGS / f"{name}.jsonl.gz")
        if o.kind == "metrics"
    ]
    inside = [page for page in pages if page.t < pages[0].t + interval_s]
    data = data_of(None, inside, t=0.0, labels=Labels("chat", None), objectives=())

    (one,) = [datum for datum in data if datum.metric == REPLICAS_METRIC]
    assert one.counts == (1.0,)


class Replicas:
    """A fleet that publishes, and the alarms of its template."""

    def __init__(self, one: Config) -> None:
        self.metrics = Metrics("vLLM")
        definitions = read_definitions(template_text(scaling_of(one)))
        self.notify = definitions.notify
        self.timeline = Timeline(definitions.metric_alarms, definitions.composites, self.metrics)
        self._t = 0.0

    def minutes(self, number: int, replicas: int, *, load: float = 0.5) -> set[str]:
        """Minutes of an even load, requests over the batch: what goes off by their end."""
        dimensions = (("Service", "chat"), ("Model", "tiny"))
        began, start = len(self.timeline.actions), self._t
        for _ in range(number):
            for _ in range(replicas):
                self.metrics.put("RequestsRunning", dimensions, self._t, 64 * min(load, 1))
                self.metrics.put("RequestsWaiting", dimensions, self._t, 64 * max(load - 1, 0))
                self.metrics.put("KVCacheUsage", dimensions, self._t, 30.0)
                self.metrics.put("Preemptions", dimensions, self._t, 0.0)
            self._t += MINUTE
        self.timeline.run(start + MINUTE, self._t)
        return {
            action.alarm.partition(" ")[0]
            for action in self.timeline.actions[began:]
            if action.state == "ALARM" and action.alarm in self.notify
        }


def test_the_ceiling_is_told_when_all_replicas_are_not_enough() -> None:
    fleet = Replicas(scaled())

    assert fleet.minutes(60, 4, load=0.6) == set()
    assert fleet.minutes(14, 4, load=1.4) == set()
    assert fleet.minutes(3, 4, load=1.4) == {"AutoscalingCeiling"}


def test_capacity_that_does_not_come_is_told_apart_from_the_ceiling() -> None:
    fleet = Replicas(scaled())

    assert fleet.minutes(30, 2) == set()
    assert fleet.minutes(20, 2, load=1.4) == {"AutoscalingStuck"}


def test_two_turns_are_flapping_and_growth_in_steps_is_not() -> None:
    steady = Replicas(scaled())
    for replicas in (1, 2, 3, 4):
        assert steady.minutes(20, replicas) == set()

    flapping = Replicas(scaled())
    told = [flapping.minutes(18, replicas) for replicas in (1, 2, 1, 2, 1)]
    assert told[:4] == [set()] * 4
    assert told[4] == {"AutoscalingFlapping"}


def test_silence_is_no_alarm_of_scaling() -> None:
    fleet = Replicas(scaled())
    fleet.minutes(30, 2)

    assert fleet.minutes(60, 0) == set()


# -- the command -----------------------------------------------------------------------------------

BUILD = ("autoscale", "build", "--out", "out")


def test_a_build_is_repeatable_and_checked(opsctl: Opsctl, tmp_path: Path) -> None:
    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return opsctl.run(
            "--config", str(STARTER), *BUILD, *more, cwd=tmp_path, env=AUTOSCALING_EXAMPLE
        )

    missing, first, again, check = run("--check"), run(), run(), run("--check")
    path = tmp_path / "out" / "autoscaling.yaml"

    assert [missing.returncode, first.returncode, again.returncode, check.returncode] == [
        1,
        0,
        0,
        0,
    ]
    assert "not up to date: autoscaling.yaml" in missing.stderr
    assert "9 policies, 21 alarms" in first.stdout
    assert "; unchanged" in again.stdout
    assert "ManagedInstanceScaling.MinInstanceCount 0" in first.stderr
    assert "MinSize and MaxSize" in first.stderr

    path.write_text("Resources: {}\n")
    other = run()
    assert other.returncode == 64
    assert "not written by opsctl, it is left alone" in other.stderr


def test_a_mistake_is_told_with_file_and_key(opsctl: Opsctl, tmp_path: Path) -> None:
    section = {"cold_start": "6m", "signals": ["gpu_utilization"]}
    (tmp_path / "opsctl.yaml").write_text(yaml.safe_dump({"autoscaling": section}))

    answer = opsctl.run(*BUILD, cwd=tmp_path)

    assert answer.returncode == 64
    assert answer.stderr.startswith("Error: opsctl.yaml: autoscaling.signals[0]: 'gpu_utilization'")
    assert not (tmp_path / "out").exists()


def test_a_choice_that_is_none_is_told_with_the_choices(opsctl: Opsctl, tmp_path: Path) -> None:
    section = {"cold_start": "6m", "resources": [{**ECS, "kind": "ecs"}]}
    (tmp_path / "opsctl.yaml").write_text(yaml.safe_dump({"autoscaling": section}))

    answer = opsctl.run(*BUILD, cwd=tmp_path)

    assert "autoscaling.resources[0].kind: 'ecs' is not one of sagemaker-variant" in answer.stderr
    assert "did you mean 'ecs-service'?" in answer.stderr
