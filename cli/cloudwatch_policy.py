"""opsctl cloudwatch policy: the fewest permissions that each part needs, as IAM takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

from vllm_opsctl.cli.common import emit, load, mistakes_of, note
from vllm_opsctl.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from vllm_opsctl.exporter.cloudwatch_cost import Sink
    from vllm_opsctl.exporter.config import Alarms, CloudWatch

Role = Literal["ec2", "eks", "sagemaker"]

VERSION = "2012-10-17"
"""Of IAM's policy language, the newest."""

AGENT_LOG_GROUP = "emf/logs/default"
"""Where the CloudWatch agent puts lines that name no group (amazon-cloudwatch-agent, emf_logs translator)."""

SAGEMAKER_LOG_GROUP = "/aws/sagemaker/Endpoints/*"

_TRUSTED: dict[Role, tuple[str, tuple[str, ...]]] = {
    "ec2": ("ec2.amazonaws.com", ("sts:AssumeRole",)),
    # EKS Pod Identity hands tags of the pod along
    "eks": ("pods.eks.amazonaws.com", ("sts:AssumeRole", "sts:TagSession")),
    "sagemaker": ("sagemaker.amazonaws.com", ("sts:AssumeRole",)),
}

_ENCRYPTED = (
    "a topic that is encrypted with a key of your own also wants kms:Decrypt and kms:GenerateDataKey "
    "on that key; opsctl alarms build --to cloudwatch makes one"
)


_NO_NAMESPACE = (
    "metrics by OTLP have no namespace, so the policy cannot name one; the heartbeat is put into that of "
    "exporter.cloudwatch.namespace"
)


@click.command()
@click.option(
    "--for",
    "whom",
    type=click.Choice(
        [
            "sidecar",
            "alertmanager",
            "drill",
            "alarms",
            "cloudwatch-drill",
            "autoscale",
            "sagemaker",
        ]
    ),
    default="sidecar",
    show_default=True,
    help="Who gets it; drills are those of opsctl alarms test; alarms and autoscale are what apply needs; "
    "sagemaker is opsctl diagnose --sagemaker.",
)
@click.option(
    "--sink",
    type=click.Choice(["put", "emf", "otlp"]),
    help="For the sidecar [default: exporter.cloudwatch.sink, put when that is off].",
)
@click.option(
    "--log-group",
    metavar="NAME",
    help="With emf: where lines arrive, * at the end allowed [default: the agent's, or SageMaker's].",
)
@click.option(
    "--role",
    type=click.Choice(["ec2", "eks", "sagemaker"]),
    help="Print the trust policy of a role for this service instead.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["json"]),
    default="json",
    show_default=True,
    expose_value=False,
    help="Format of the answer on stdout.",
)
@click.pass_context
def policy(
    ctx: click.Context,
    whom: str,
    sink: Sink | None,
    log_group: str | None,
    role: Role | None,
) -> None:
    """
    Print the minimal IAM policy, JSON for aws iam put-role-policy.

    What it is for, and what it leaves out, is told on stderr.
    """
    from vllm_opsctl.cli.alarms_policy import (
        alarms_statements,
        drill_alarm_statements,
        topics_heard,
    )
    from vllm_opsctl.cli.autoscale_policy import autoscale_statements
    from vllm_opsctl.cli.sagemaker_policy import sagemaker_statements

    if role is not None:
        emit(_as_json([trust_statement(role)]))
        return
    loaded = load(ctx)
    settings, alarms = loaded.config.exporter.cloudwatch, loaded.config.alarms
    if sink is not None and whom != "sidecar":
        raise UsageError("--sink goes with --for sidecar")
    how: Sink = sink or ("put" if settings.sink == "off" else settings.sink)
    by_lines = whom == "sidecar" and how == "emf"
    if log_group is not None and not by_lines:
        raise UsageError("--log-group goes with --for sidecar and --sink emf")
    with mistakes_of(loaded):
        if whom == "alertmanager":
            statements = alertmanager_statements(alarms)
            note(_ENCRYPTED)
        elif whom == "drill":
            statements = drill_statements(_topics(alarms))
        elif whom == "alarms":
            statements = alarms_statements(loaded.config, _partition(settings.region))
        elif whom == "cloudwatch-drill":
            partition = _partition(settings.region)
            statements = [
                *drill_alarm_statements(loaded.config, partition),
                *drill_statements(topics_heard(loaded.config, partition)),
            ]
        elif whom == "autoscale":
            statements = autoscale_statements(loaded.config, _partition(settings.region))
        elif whom == "sagemaker":
            statements = sagemaker_statements(loaded.config, _partition(settings.region))
        elif by_lines:
            statements = [logs_statement(settings, log_group)]
            note(_who_ships(settings))
        elif how == "otlp":
            statements = [otlp_statement(settings)]
            note(_NO_NAMESPACE)
        else:
            statements = [metrics_statement(settings)]
            if sink is None and settings.sink == "off":
                note("exporter.cloudwatch.sink is off; this is for put")
    emit(_as_json(statements))


def _as_json(statements: Sequence[dict[str, Any]]) -> str:
    return json.dumps({"Version": VERSION, "Statement": list(statements)}, indent=2)


def metrics_statement(settings: CloudWatch) -> dict[str, Any]:
    """
    PutMetricData into one namespace.

    Args:
        settings: For the namespace.

    Source:
        CloudWatch user guide, using condition keys to limit access to namespaces: the action has no resource
        but ``*``.
    """
    return {
        "Sid": "PutMetrics",
        "Effect": "Allow",
        "Action": "cloudwatch:PutMetricData",
        "Resource": "*",
        "Condition": {"StringEquals": {"cloudwatch:namespace": settings.namespace}},
    }


def otlp_statement(settings: CloudWatch) -> dict[str, Any]:
    """
    Everything by OTLP, and the heartbeat besides.

    Args:
        settings: For the endpoint.

    Raises:
        ConfigError: It is a collector's.
    """
    from vllm_opsctl.exporter.aws import sends_heartbeat
    from vllm_opsctl.exporter.sinks.otlp_session import ACTION

    if not sends_heartbeat(settings):
        raise ConfigError(
            [
                f"exporter.cloudwatch.endpoint_url: {settings.endpoint_url} is a collector, and the sidecar "
                "asks AWS for nothing; unset it to see what the collector needs"
            ]
        )
    return {"Sid": "PutMetrics", "Effect": "Allow", "Action": ACTION, "Resource": "*"}


def logs_statement(settings: CloudWatch, log_group: str | None) -> dict[str, Any]:
    """
    Log lines into one group; CloudWatch itself makes metrics of them.

    Args:
        settings: Where lines go.
        log_group: Where they arrive; None for the usual one.

    Raises:
        ConfigError: Lines go to a file, whose group is known to its reader alone.
    """
    usual = SAGEMAKER_LOG_GROUP if settings.emf_to == "stdout" else AGENT_LOG_GROUP
    if log_group is None and settings.emf_to.startswith("/"):
        raise ConfigError(
            [
                f"exporter.cloudwatch.emf_to: lines go to {settings.emf_to}; name the group that its reader "
                "sends them to with --log-group"
            ]
        )
    partition = _partition(settings.region)
    group = f"arn:{partition}:logs:{settings.region or '*'}:*:log-group:{log_group or usual}"
    return {
        "Sid": "PutLines",
        "Effect": "Allow",
        "Action": [
            "logs:CreateLogGroup",
            "logs:CreateLogStream",
            "logs:DescribeLogStreams",
            "logs:PutLogEvents",
        ],
        "Resource": [group, f"{group}:*"],
    }


def _partition(region: str | None) -> str:
    if region is not None and region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region is not None and region.startswith("us-gov-") else "aws"


def _who_ships(settings: CloudWatch) -> str:
    if settings.emf_to == "stdout":
        whom = (
            "whoever takes stdout to CloudWatch Logs; on SageMaker that is the endpoint's execution "
            "role"
        )
    elif settings.emf_to.startswith("/"):
        whom = "the agent that reads the file"
    else:
        whom = f"the CloudWatch agent at {settings.emf_to}"
    return f"emf: the sidecar itself needs no permission; this is for {whom}"


def alertmanager_statements(alarms: Alarms) -> list[dict[str, Any]]:
    """
    Publishing to the configured topics.

    CloudWatch's own alarms need nothing here: the topic's policy lets them publish.

    Args:
        alarms: For the topics.

    Raises:
        ConfigError: There is none.
    """
    return [
        {
            "Sid": "Publish",
            "Effect": "Allow",
            "Action": "sns:Publish",
            "Resource": _topics(alarms),
        }
    ]


def drill_statements(topics: Sequence[str]) -> list[dict[str, Any]]:
    """
    What opsctl alarms test does: a queue of its own hears of the topics for a while.

    Args:
        topics: Their ARNs.

    Source:
        Unsubscribe has no resource type, so a policy that names the topic does not allow it: third-party text
        (https://github.com/danilop/yas3fs/issues/57).
    """
    # SQS subscribers of a topic are looked for in its region and account
    places = sorted({topic.rpartition(":")[0].replace(":sns:", ":sqs:") for topic in topics})
    return [
        {
            "Sid": "Listen",
            "Effect": "Allow",
            "Action": ["sns:ListSubscriptionsByTopic", "sns:Subscribe"],
            "Resource": list(topics),
        },
        {"Sid": "Leave", "Effect": "Allow", "Action": "sns:Unsubscribe", "Resource": "*"},
        {
            "Sid": "Queue",
            "Effect": "Allow",
            "Action": [
                "sqs:CreateQueue",
                "sqs:DeleteQueue",
                "sqs:GetQueueAttributes",
                "sqs:ReceiveMessage",
                "sqs:SetQueueAttributes",
                "sqs:TagQueue",
            ],
            "Resource": [f"{place}:opsctl-drill-*" for place in places],
        },
    ]


def _topics(alarms: Alarms) -> list[str]:
    topics = [topic for topic in (alarms.page_topic, alarms.ticket_topic) if topic is not None]
    if not topics:
        raise ConfigError(
            ["alarms.page_topic: not set, and neither is ticket_topic; name the topic's ARN"]
        )
    return list(dict.fromkeys(topics))


def trust_statement(role: Role) -> dict[str, Any]:
    """
    Who may take a role.

    Args:
        role: Where the sidecar runs.

    Source:
        EKS user guide, Pod Identity: the principal pods.eks.amazonaws.com needs sts:TagSession besides.
    """
    service, actions = _TRUSTED[role]
    return {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": list(actions),
    }
