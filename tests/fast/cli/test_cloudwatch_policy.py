"""opsctl cloudwatch policy: what is done is allowed, and nothing else."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch, fnmatchcase
from typing import Any

import botocore.session
import click
import pytest
from botocore.utils import ArnParser
from commands import Opsctl
from example_alarms import AUTOSCALING_EXAMPLE
from moto import mock_aws
from paths import ROOT
from transcripts import TRANSCRIPTS, written

from vllm_opsctl.alarms.autoscale.parts import CEILING
from vllm_opsctl.alarms.cloudwatch import account
from vllm_opsctl.alarms.prometheus.conventions import BURN_ALERT, DRILL_ALERT
from vllm_opsctl.alarms.resource_names import alarm_part, dashboard_name, key_alias, topic_name
from vllm_opsctl.alarms.sns_topic import Topic
from vllm_opsctl.cli.cloudwatch_policy import policy as policy_command
from vllm_opsctl.exporter import aws
from vllm_opsctl.exporter.sources.aws_reading import OPERATIONS
from vllm_opsctl.exporter.sources.sagemaker import Part

DOCS = ROOT / "docs"

PAGE = "arn:aws:sns:eu-central-1:123456789012:llm-page"
TICKET = "arn:aws:sns:us-east-2:123456789012:llm-ticket"

TOPICS = {"OPSCTL_ALARMS__PAGE_TOPIC": PAGE, "OPSCTL_ALARMS__TICKET_TOPIC": TICKET}
SOCKET = {"OPSCTL_EXPORTER__CLOUDWATCH__EMF_TO": "tcp://127.0.0.1:25888"}
FILE = {"OPSCTL_EXPORTER__CLOUDWATCH__EMF_TO": "/var/log/vllm.emf"}

COLLECTOR = {
    "OPSCTL_EXPORTER__CLOUDWATCH__SINK": "otlp",
    "OPSCTL_EXPORTER__CLOUDWATCH__ENDPOINT_URL": "http://collector:4318/v1/metrics",
}

VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "put": (("--sink", "put"), {}),
    "emf": (("--sink", "emf"), {}),
    "agent": (("--sink", "emf"), SOCKET),
    "file": (("--sink", "emf", "--log-group", "/shop/vllm"), FILE),
    "alertmanager": (("--for", "alertmanager"), TOPICS),
    "drill": (("--for", "drill"), TOPICS),
    "alarms": (("--for", "alarms"), {}),
    "cloudwatch-drill": (("--for", "cloudwatch-drill"), {}),
    "autoscale": (("--for", "autoscale"), AUTOSCALING_EXAMPLE),
    "otlp": (("--sink", "otlp"), {}),
    "sagemaker": (("--for", "sagemaker"), {}),
}


def policy(opsctl: Opsctl, *arguments: str, env: dict[str, str]) -> list[dict[str, Any]]:
    ran = opsctl.run("cloudwatch", "policy", *arguments, env=env)
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert document.keys() == {"Version", "Statement"}
    assert document["Version"] == "2012-10-17"
    statements = document["Statement"]
    assert isinstance(statements, list)
    return statements


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def actions(statements: list[dict[str, Any]]) -> set[str]:
    return {action for one in statements for action in listed(one["Action"])}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_policy_allows_known_actions_on_well_formed_resources(
    opsctl: Opsctl, variant: str
) -> None:
    arguments, env = VARIANTS[variant]
    session = botocore.session.get_session()
    without_resource_type = {
        "application-autoscaling:DescribeScalableTargets",
        "application-autoscaling:DescribeScalingActivities",
        "application-autoscaling:DescribeScalingPolicies",
        "autoscaling:DescribeAutoScalingGroups",
        "autoscaling:DescribePolicies",
        "cloudwatch:DescribeAlarms",
        "cloudwatch:GetMetricData",
        "cloudwatch:ListMetrics",
        # it has one, and must be allowed for all the same
        "cloudwatch:PutCompositeAlarm",
        "cloudwatch:PutMetricData",
        "kms:CreateKey",
        "sagemaker:ListInferenceComponents",
        "sns:Unsubscribe",
    }

    for one in policy(opsctl, *arguments, env=env):
        assert one["Effect"] == "Allow"
        for action in listed(one["Action"]):
            service, _, operation = action.partition(":")
            assert operation in session.get_service_model(service).operation_names
        for resource in listed(one["Resource"]):
            if resource == "*":
                assert set(listed(one["Action"])) <= without_resource_type
                continue
            parts = ArnParser().parse_arn(resource)
            assert parts["service"] in {a.partition(":")[0] for a in listed(one["Action"])}
            assert parts["resource"] not in ("", "*")


def test_the_sidecar_puts_metrics_into_its_own_namespace_only(opsctl: Opsctl) -> None:
    env = {"OPSCTL_EXPORTER__CLOUDWATCH__NAMESPACE": "Shop/vLLM"}

    (statement,) = policy(opsctl, env=env)

    assert statement["Action"] == "cloudwatch:PutMetricData"
    assert statement["Condition"] == {"StringEquals": {"cloudwatch:namespace": "Shop/vLLM"}}


@pytest.mark.parametrize(
    ("variant", "group", "whom"),
    [
        ("emf", "/aws/sagemaker/Endpoints/*", "the endpoint's execution role"),
        ("agent", "emf/logs/default", "the CloudWatch agent at tcp://127.0.0.1:25888"),
        ("file", "/shop/vllm", "the agent that reads the file"),
    ],
)
def test_lines_are_sent_by_somebody_else_who_is_named(
    opsctl: Opsctl, variant: str, group: str, whom: str
) -> None:
    arguments, env = VARIANTS[variant]
    ran = opsctl.run("cloudwatch", "policy", *arguments, env=env)

    (statement,) = json.loads(ran.stdout)["Statement"]
    assert statement["Resource"][0] == f"arn:aws:logs:*:*:log-group:{group}"
    assert "the sidecar itself needs no permission" in ran.stderr
    assert whom in ran.stderr


def test_other_partitions_have_other_arns(opsctl: Opsctl) -> None:
    env = {"OPSCTL_EXPORTER__CLOUDWATCH__REGION": "cn-north-1"}

    (statement,) = policy(opsctl, "--sink", "emf", env=env)

    assert statement["Resource"][0].startswith("arn:aws-cn:logs:cn-north-1:")


def test_by_otlp_metrics_have_no_namespace_to_be_held_to(opsctl: Opsctl) -> None:
    ran = opsctl.run("cloudwatch", "policy", env={"OPSCTL_EXPORTER__CLOUDWATCH__SINK": "otlp"})

    (statement,) = json.loads(ran.stdout)["Statement"]
    assert statement["Action"] == "cloudwatch:PutMetricData"
    assert "Condition" not in statement
    assert "no namespace" in " ".join(ran.stderr.split())


def test_a_diagnosis_of_an_endpoint_may_call_what_it_calls_and_nothing_else(
    opsctl: Opsctl,
) -> None:
    statements = policy(opsctl, "--for", "sagemaker", env={})

    assert actions(statements) == {
        f"{service}:{operation}" for service, found in OPERATIONS.items() for operation in found
    }
    (logs,) = [one for one in statements if one["Sid"] == "FilterLogEvents"]
    for part in (
        Part(name="all", status="InService"),
        Part(name="llama", status="InService", is_component=True),
    ):
        arn = f"arn:aws:logs:eu-central-1:123456789012:log-group:{part.log_group('chat')}"
        assert any(fnmatch(arn, allowed) for allowed in logs["Resource"]), arn


def test_the_policy_in_the_docs_is_the_commands_answer(opsctl: Opsctl) -> None:
    _, _, block = written(TRANSCRIPTS["on-call-policy"]).partition("\n")

    assert json.loads(block)["Statement"] == policy(opsctl, "--for", "sagemaker", env={})


def test_the_docs_have_every_choice() -> None:
    """Of whom a policy is for, and of the sidecar's sinks."""
    table = (DOCS / "cloudwatch-cost.md").read_text().partition("## Permissions")[2]
    options = {option.name: option.type for option in policy_command.params}

    for name, flag in (("whom", "--for"), ("sink", "--sink")):
        kind = options[name]
        assert isinstance(kind, click.Choice)
        assert [one for one in kind.choices if not re.search(rf"{flag} {one}\b", table)] == []


def test_alertmanager_publishes_to_the_topics(opsctl: Opsctl) -> None:
    (statement,) = policy(opsctl, "--for", "alertmanager", env=TOPICS)

    assert (statement["Action"], statement["Resource"]) == ("sns:Publish", [PAGE, TICKET])


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """IAM actions of every call that is made meanwhile; of an emulator."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    found: set[str] = set()
    client_of = aws.aws_client

    def watched(service: str, region: str, endpoint_url: str | None = None) -> Any:
        client = client_of(service, region, endpoint_url)

        def note(model: Any, params: dict[str, Any], **_: Any) -> None:
            found.add(f"{service}:{model.name}")
            # tags of a new queue are a permission of their own
            if "tags" in json.loads(params["body"] or "{}"):
                found.add(f"{service}:TagQueue")

        client.meta.events.register("before-call.sqs.CreateQueue", note)
        client.meta.events.register(
            "before-call", lambda model, **_: found.add(f"{service}:{model.name}")
        )
        return client

    monkeypatch.setattr("vllm_opsctl.alarms.sns_topic.aws_client", watched)
    with mock_aws():
        yield found


def test_a_drill_is_allowed_what_it_does_and_nothing_else(opsctl: Opsctl, called: set[str]) -> None:
    aws.aws_client("sns", "eu-central-1").create_topic(Name="llm-page")
    topic = Topic(PAGE, "eu-central-1", None)
    topic.subscriptions()
    with topic.listener("opsctl-drill-1", {"model": "x"}) as listener:
        listener.receive()

    statements = policy(opsctl, "--for", "drill", env=TOPICS)

    assert topic.left_behind == []
    assert actions(statements) == called
    (queues,) = [one["Resource"] for one in statements if one["Sid"] == "Queue"]
    assert queues == [
        "arn:aws:sqs:eu-central-1:123456789012:opsctl-drill-*",
        "arn:aws:sqs:us-east-2:123456789012:opsctl-drill-*",
    ]


@pytest.mark.parametrize(
    ("role", "service", "allowed"),
    [
        ("ec2", "ec2.amazonaws.com", ["sts:AssumeRole"]),
        ("eks", "pods.eks.amazonaws.com", ["sts:AssumeRole", "sts:TagSession"]),
        ("sagemaker", "sagemaker.amazonaws.com", ["sts:AssumeRole"]),
    ],
)
def test_a_role_trusts_one_service(
    opsctl: Opsctl, role: str, service: str, allowed: list[str]
) -> None:
    (statement,) = policy(opsctl, "--role", role, "-o", "json", env={})

    assert statement["Principal"] == {"Service": service}
    assert statement["Action"] == allowed
    assert "Resource" not in statement


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (("--for", "drill"), {}, "alarms.page_topic: not set"),
        (("--for", "alertmanager"), {}, "alarms.page_topic: not set"),
        (("--for", "autoscale"), {}, "autoscaling.resources: none"),
        (("--sink", "emf"), FILE, "--log-group"),
        (("--log-group", "/shop"), {}, "--log-group goes with"),
        (("--sink", "off"), {}, "--sink"),
        (("--for", "sagemaker", "--sink", "put"), {}, "--sink goes with --for sidecar"),
        ((), COLLECTOR, "is a collector, and the sidecar asks AWS for nothing"),
        (("--role", "lambda"), {}, "--role"),
    ],
)
def test_a_policy_that_cannot_be_written(
    opsctl: Opsctl, arguments: tuple[str, ...], env: dict[str, str], said: str
) -> None:
    ran = opsctl.run("cloudwatch", "policy", *arguments, env=env)

    assert (ran.returncode, ran.stdout) == (64, "")
    assert said in ran.stderr


def test_every_request_of_plan_apply_and_destroy_is_allowed(opsctl: Opsctl) -> None:
    """Who is asking needs no permission."""
    source = inspect.getsource(account)
    asked = {*re.findall(r'_(?:ask|maybe)\(\s*"(\w+)",\s*"(\w+)"', source)}
    asked |= {("cloudwatch", name) for name in re.findall(r'"(put_\w+_alarm)"', source)}
    asked -= {("sts", "get_caller_identity"), ("cloudwatch", "set_alarm_state")}
    assert len(asked) > 20
    operations = {
        f"{service}:{xform_name_back(service, operation)}" for service, operation in asked
    }
    allowed = {
        action
        for statement in policy(opsctl, "--for", "alarms", env={})
        for action in listed(statement["Action"])
    }

    # to tag on creation is a permission of its own
    assert operations | {"sns:TagResource", "kms:TagResource"} == allowed


@pytest.mark.parametrize("service", ["chat", "chat.v2", "c" * 70])
def test_a_service_may_change_its_own_alone(opsctl: Opsctl, service: str) -> None:
    """Matched as IAM does: * stands for anything."""
    account = "eu-central-1:123456789012"

    def allowed(name: str, whom: str, action: str, service: str) -> bool:
        env = {
            "OPSCTL_SERVICE__NAME": service,
            "OPSCTL_EXPORTER__CLOUDWATCH__REGION": "eu-central-1",
            **AUTOSCALING_EXAMPLE,
        }
        return any(
            fnmatchcase(name, resource)
            for one in policy(opsctl, "--for", whom, env=env)
            if action in listed(one["Action"])
            for resource in listed(one["Resource"])
        )

    part = alarm_part(service)
    alarm = f"arn:aws:cloudwatch:{account}:alarm:"
    own = [
        (f"{alarm}{BURN_ALERT} page/{part}/ttft/tiny", "alarms", "cloudwatch:DeleteAlarms"),
        (f"{alarm}{BURN_ALERT} page/{service}/ttft/tiny", "alarms", "cloudwatch:DeleteAlarms"),
        (
            f"arn:aws:cloudwatch::123456789012:dashboard/{dashboard_name(service, 'eu-central-1')}",
            "alarms",
            "cloudwatch:PutDashboard",
        ),
        (
            f"arn:aws:sns:{account}:{topic_name(service, 'page')}",
            "alarms",
            "sns:SetTopicAttributes",
        ),
        (f"arn:aws:kms:{account}:{key_alias(service)}", "alarms", "kms:DeleteAlias"),
        (
            f"{alarm}{DRILL_ALERT} page/{part}/1f2e3d4c",
            "cloudwatch-drill",
            "cloudwatch:SetAlarmState",
        ),
        (f"{alarm}{CEILING} ticket/{part}/x/tiny", "autoscale", "cloudwatch:DeleteAlarms"),
    ]
    for name, whom, action in own:
        assert allowed(name, whom, action, service), name
        for other in ("chat-eu", "cha", "chat.v"):
            assert not allowed(name, whom, action, other), f"{name} of {other}"
    drilled = f"{alarm}{BURN_ALERT} page/{part}/ttft/tiny"
    assert not allowed(drilled, "cloudwatch-drill", "cloudwatch:SetAlarmState", service)


def test_0_1s_board_is_allowed_until_it_has_its_new_name(opsctl: Opsctl) -> None:
    env = {"OPSCTL_SERVICE__NAME": "chat", "OPSCTL_EXPORTER__CLOUDWATCH__REGION": "eu-central-1"}
    (board,) = [one for one in policy(opsctl, "--for", "alarms", env=env) if one["Sid"] == "Board"]

    assert board["Resource"] == [
        "arn:aws:cloudwatch::*:dashboard/chat-eu-central-1-slo",
        "arn:aws:cloudwatch::*:dashboard/chat-slo",
    ]


@pytest.mark.parametrize("whom", ["alarms", "cloudwatch-drill", "autoscale"])
def test_composite_alarms_are_allowed_everywhere_and_alone(opsctl: Opsctl, whom: str) -> None:
    """AWS takes no narrower scope (PutCompositeAlarm, CloudWatch API reference)."""
    statements = policy(opsctl, "--for", whom, env=AUTOSCALING_EXAMPLE)
    (one,) = [one for one in statements if "cloudwatch:PutCompositeAlarm" in listed(one["Action"])]

    assert one == {
        "Sid": "Composites",
        "Effect": "Allow",
        "Action": ["cloudwatch:PutCompositeAlarm"],
        "Resource": "*",
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_ids_of_statements_are_legal_and_differ(opsctl: Opsctl, variant: str) -> None:
    arguments, env = VARIANTS[variant]
    ids = [one["Sid"] for one in policy(opsctl, *arguments, env=env)]

    assert all(re.fullmatch(r"[A-Za-z0-9]+", sid) for sid in ids)
    assert len({*ids}) == len(ids)


def xform_name_back(service: str, method: str) -> str:
    """The operation behind a boto3 method."""
    names = botocore.session.get_session().get_service_model(service).operation_names
    (found,) = (name for name in names if botocore.xform_name(name) == method)
    return str(found)
