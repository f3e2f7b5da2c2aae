"""opsctl cloudwatch policy --for autoscale: what plan, apply and destroy do, on what is configured alone."""

from __future__ import annotations

import json
import re
from typing import Any

from commands import Opsctl
from example_alarms import AUTOSCALING_EXAMPLE

from vllm_opsctl.alarms.autoscale import account

POLICY = ("cloudwatch", "policy", "--for", "autoscale")


def statements(opsctl: Opsctl, **env: str) -> dict[str, dict[str, Any]]:
    answer = opsctl.run(*POLICY, env={**AUTOSCALING_EXAMPLE, **env})
    assert answer.returncode == 0, answer.stderr
    return {one["Sid"]: one for one in json.loads(answer.stdout)["Statement"]}


def test_every_request_that_is_made_is_allowed(opsctl: Opsctl) -> None:
    """The account module names each operation in its source; none is called under another name."""
    assert account.__file__ is not None
    with open(account.__file__, encoding="utf-8") as source:
        text = source.read()
    services = {
        "_SCALING": "application-autoscaling",
        "_GROUPS": "autoscaling",
        "_ALARMS": "cloudwatch",
    }
    found = re.findall(r"(_SCALING|_GROUPS|_ALARMS),\s*\"(\w+)\"", text)
    called = {(services[name], operation) for name, operation in found}
    called |= {("cloudwatch", "put_metric_alarm"), ("cloudwatch", "put_composite_alarm")}
    allowed = {action for one in statements(opsctl).values() for action in one["Action"]}

    assert len(called) >= 14
    for service, operation in called:
        name = "".join(word.title() for word in operation.split("_"))
        assert f"{service}:{name}" in allowed
    of_others = ("ecs:", "sagemaker:", "iam:")
    extra = {action for action in allowed if not action.startswith(of_others)} - {
        f"{service}:{''.join(word.title() for word in operation.split('_'))}"
        for service, operation in called
    }
    assert extra == set()


def test_permissions_are_for_what_is_configured(opsctl: Opsctl) -> None:
    found = statements(opsctl, OPSCTL_EXPORTER__CLOUDWATCH__REGION="eu-central-1")
    resources = {name: one["Resource"] for name, one in found.items()}

    (ecs,) = [name for name in resources if name.startswith("ResourceEcsServiceLlmChat")]
    assert resources[ecs] == ["arn:aws:ecs:eu-central-1:*:service/llm/chat"]
    assert resources["ScaleGroups"] == [
        "arn:aws:autoscaling:eu-central-1:*:autoScalingGroup:*:autoScalingGroupName/embed"
    ]
    assert not any(
        action.partition(":")[2] == "*" for one in found.values() for action in one["Action"]
    )


def test_two_resources_of_like_names_have_two_statements(opsctl: Opsctl) -> None:
    both = """
    - {kind: ecs-service, name: llm/chat-eu, model: a, max_num_seqs: 8, max: 2}
    - {kind: ecs-service, name: llm/chateu, model: b, max_num_seqs: 8, max: 2}
    """
    found = statements(opsctl, OPSCTL_AUTOSCALING__RESOURCES=both)

    assert len([name for name in found if name.startswith("Resource")]) == 2


def test_the_service_linked_role_is_made_for_these_services_alone(opsctl: Opsctl) -> None:
    role = statements(opsctl)["FirstTime"]

    assert role["Action"] == ["iam:CreateServiceLinkedRole"]
    assert role["Condition"] == {
        "StringEquals": {
            "iam:AWSServiceName": [
                "ecs.application-autoscaling.amazonaws.com",
                "sagemaker.application-autoscaling.amazonaws.com",
            ]
        }
    }
    assert all("/aws-service-role/" in resource for resource in role["Resource"])


def test_a_group_alone_needs_nothing_of_application_auto_scaling_but_to_look(
    opsctl: Opsctl,
) -> None:
    group = "[{kind: auto-scaling-group, name: embed, max_num_seqs: 8, max: 2}]"
    found = statements(opsctl, OPSCTL_AUTOSCALING__RESOURCES=group)

    assert set(found) == {"Compare", "ScaleGroups", "Alarms", "Composites"}
