"""Scaling in an account: compared, made as it shall be, ours alone; what AWS takes, and what it has after."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from cloudwatch_fleet import config
from commands import Opsctl
from parts.emulated_aws import REGION
from scaled_fleet import ACCOUNT, ECS, RESOURCES, TOPIC, account_of, planned, scaled

from vllm_opsctl.alarms.autoscale import account as account_module
from vllm_opsctl.alarms.autoscale.account import ScalingAccount, Thing
from vllm_opsctl.alarms.autoscale.changes import (
    ScalingPlan,
    carry_out,
    differing,
    plan,
    removal,
)
from vllm_opsctl.alarms.autoscale.parts import Part
from vllm_opsctl.alarms.autoscale.template import scaling_of
from vllm_opsctl.alarms.cloudwatch.account import Pace
from vllm_opsctl.alarms.differences import Difference
from vllm_opsctl.errors import AwsError, UsageError
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.identity import Identity

# -- an account that takes what botocore takes ------------------------------------------------------


class Aws:
    """Three services in memory; every answer of a list has one entry, so that all pages are asked for."""

    def __init__(self) -> None:
        self.targets: dict[str, dict[str, Any]] = {}
        self.policies: dict[tuple[str, str], dict[str, Any]] = {}
        self.group_policies: dict[tuple[str, str], dict[str, Any]] = {}
        self.alarms: dict[str, dict[str, Any]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.changes: list[str] = []
        self._session = botocore.session.get_session()

    def client(self, service: str, _region: str, _url: str | None = None) -> Any:
        model = self._session.get_service_model(service)
        aws = self

        class Client:
            def __getattr__(self, name: str) -> Any:
                operation = "".join(word.title() for word in name.split("_"))
                shape = model.operation_model(operation).input_shape

                def call(**given: Any) -> Any:
                    report = ParamValidator().validate(given, shape)
                    assert not report.has_errors(), report.generate_report()
                    if not name.startswith(("describe", "list")):
                        aws.changes.append(operation)
                    return getattr(aws, f"{service.replace('-', '_')}_{name}")(**given)

                return call

        return Client()

    def _page(self, key: str, entries: list[Any], token: str | None) -> dict[str, Any]:
        start = int(token or 0)
        more = {"NextToken": str(start + 1)} if start + 1 < len(entries) else {}
        return {key: entries[start : start + 1], **more}

    # Application Auto Scaling

    def application_autoscaling_register_scalable_target(self, **given: Any) -> Any:
        where = given["ResourceId"]
        arn = f"arn:aws:application-autoscaling:{ACCOUNT}:scalable-target/{len(self.tags):036}"
        if where in self.targets:
            assert "Tags" not in given, "AWS refuses tags of what is there"
            arn = self.targets[where]["ScalableTargetARN"]
        else:
            self.tags[arn] = given.pop("Tags", {})
        self.targets[where] = {**given, "ScalableTargetARN": arn}
        return {"ScalableTargetARN": arn}

    def application_autoscaling_deregister_scalable_target(self, **given: Any) -> Any:
        del self.targets[given["ResourceId"]]
        self.policies = {k: v for k, v in self.policies.items() if k[0] != given["ResourceId"]}
        return {}

    def application_autoscaling_put_scaling_policy(self, **given: Any) -> Any:
        where, name = given["ResourceId"], given["PolicyName"]
        assert where in self.targets, "a target is registered first"
        arn = f"arn:aws:autoscaling:{ACCOUNT}:scalingPolicy:x:resource/{where}:policyName/{name}"
        self.policies[where, name] = {**given, "PolicyARN": arn, "Alarms": []}
        return {"PolicyARN": arn}

    def application_autoscaling_delete_scaling_policy(self, **given: Any) -> Any:
        del self.policies[given["ResourceId"], given["PolicyName"]]
        return {}

    def application_autoscaling_describe_scaling_policies(self, **given: Any) -> Any:
        found = [
            p for p in self.policies.values() if p["ServiceNamespace"] == given["ServiceNamespace"]
        ]
        return self._page("ScalingPolicies", found, given.get("NextToken"))

    def application_autoscaling_describe_scalable_targets(self, **given: Any) -> Any:
        found = [self.targets[name] for name in given["ResourceIds"] if name in self.targets]
        return self._page("ScalableTargets", found, given.get("NextToken"))

    def application_autoscaling_tag_resource(self, **given: Any) -> Any:
        self.tags[given["ResourceARN"]] |= given["Tags"]

    def application_autoscaling_list_tags_for_resource(self, **given: Any) -> Any:
        return {"Tags": self.tags.get(given["ResourceARN"], {})}

    # EC2 Auto Scaling

    def autoscaling_put_scaling_policy(self, **given: Any) -> Any:
        self.group_policies[given["AutoScalingGroupName"], given["PolicyName"]] = {
            "Enabled": True,
            **given,
            "PolicyARN": f"arn:{given['PolicyName']}",
        }
        return {"PolicyARN": f"arn:{given['PolicyName']}"}

    def autoscaling_delete_policy(self, **given: Any) -> Any:
        del self.group_policies[given["AutoScalingGroupName"], given["PolicyName"]]
        return {}

    def autoscaling_describe_policies(self, **given: Any) -> Any:
        found = [
            policy
            for (group, name), policy in self.group_policies.items()
            if name in given.get("PolicyNames", [name])
            and group == given.get("AutoScalingGroupName", group)
        ]
        return self._page("ScalingPolicies", found, given.get("NextToken"))

    def autoscaling_describe_auto_scaling_groups(self, **given: Any) -> Any:
        groups = {"embed": {"AutoScalingGroupName": "embed", "MinSize": 1, "MaxSize": 2}}
        found = [groups[name] for name in given["AutoScalingGroupNames"] if name in groups]
        return {"AutoScalingGroups": found}

    # CloudWatch

    def _put(self, kind: str, given: dict[str, Any]) -> Any:
        name = given["AlarmName"]
        arn = f"arn:aws:cloudwatch:{ACCOUNT}:alarm:{name}"
        tags = {one["Key"]: one["Value"] for one in given.pop("Tags", ())}
        self.tags.setdefault(arn, tags)
        self.alarms[name] = {"ActionsEnabled": True, **given, "AlarmArn": arn, "kind": kind}
        return {}

    def cloudwatch_put_metric_alarm(self, **given: Any) -> Any:
        return self._put("MetricAlarms", given)

    def cloudwatch_put_composite_alarm(self, **given: Any) -> Any:
        return self._put("CompositeAlarms", given)

    def cloudwatch_delete_alarms(self, **given: Any) -> Any:
        (name,) = given["AlarmNames"]
        del self.alarms[name]
        return {}

    def cloudwatch_describe_alarms(self, **given: Any) -> Any:
        found = [
            one for name, one in self.alarms.items() if name.startswith(given["AlarmNamePrefix"])
        ]
        page = self._page("entries", found, given.get("NextToken"))
        return {**{one["kind"]: [one] for one in page.pop("entries")}, **page}

    def cloudwatch_tag_resource(self, **given: Any) -> Any:
        self.tags[given["ResourceARN"]] |= {one["Key"]: one["Value"] for one in given["Tags"]}

    def cloudwatch_list_tags_for_resource(self, **given: Any) -> Any:
        tags = self.tags[given["ResourceARN"]]
        return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Aws:
    found = Aws()
    monkeypatch.setattr(account_module, "aws_client", found.client)
    return found


def applied(one: Config) -> ScalingPlan:
    found = planned(one)
    assert not found.foreign
    list(carry_out(account_of(), found))
    return found


def actions(found: ScalingPlan) -> set[tuple[str, str]]:
    return {(one.action, one.thing.kind) for one in found.to_do}


# -- from one to the other -------------------------------------------------------------------------


def test_what_was_applied_is_unchanged(aws: Aws) -> None:
    first = applied(scaled())
    again = planned(scaled())

    assert {one.action for one in first.changes} == {"create"}
    assert {one.action for one in again.changes} == {"unchanged"}
    assert len(again.changes) == len(first.changes)
    aws.changes.clear()
    applied(scaled())
    assert aws.changes == []


def test_the_waking_alarm_names_the_policy_that_was_just_made(aws: Aws) -> None:
    applied(scaled())

    (alarm,) = [one for name, one in aws.alarms.items() if name.startswith("AutoscalingWake")]
    policy = aws.policies["inference-component/draft", "opsctl-chat-wake"]
    assert alarm["AlarmActions"] == [policy["PolicyARN"]]
    assert policy["PolicyType"] == "StepScaling"


def test_targets_come_first_and_composites_last(aws: Aws) -> None:
    applied(scaled())

    assert aws.changes[:3] == ["RegisterScalableTarget"] * 3
    assert aws.changes[-1] == "PutCompositeAlarm"


@pytest.mark.parametrize(
    ("change", "kind", "paths"),
    [
        ({"resources": [{**ECS[0], "max": 6, "max_num_seqs": 64}]}, "target", {"MaxCapacity"}),
        (
            {"demand_target": "50%"},
            "policy",
            {"TargetTrackingScalingPolicyConfiguration.TargetValue"},
        ),
        (
            {"scale_in_cooldown": "1h"},
            "policy",
            {"TargetTrackingScalingPolicyConfiguration.ScaleInCooldown"},
        ),
    ],
)
@pytest.mark.usefixtures("aws")
def test_a_changed_configuration_changes_what_it_is_about(
    change: dict[str, Any], kind: str, paths: set[str]
) -> None:
    applied(scaled(ECS))
    section = dict(change)
    resources = section.pop("resources", ECS)
    found = planned(scaled(resources, **section))

    (first, *_) = [one for one in found.to_do if one.thing.kind == kind]
    assert first.action == "change"
    assert {one.path for one in first.differences} == paths
    applied(scaled(resources, **section))
    assert planned(scaled(resources, **section)).to_do == ()


def test_a_hand_that_stopped_scaling_in_is_seen(aws: Aws) -> None:
    applied(scaled(ECS))
    policy = aws.policies["service/llm/chat", "opsctl-chat-demand"]
    policy["TargetTrackingScalingPolicyConfiguration"]["DisableScaleIn"] = True
    aws.targets["service/llm/chat"]["SuspendedState"] = {"DynamicScalingOutSuspended": True}
    name = "AutoscalingCeiling ticket/chat/ecs-service:llm:chat/a"
    aws.alarms[name]["ActionsEnabled"] = False

    found = {one.thing.name: one.differences for one in planned(scaled(ECS)).to_do}

    assert found["opsctl-chat-demand"] == (
        Difference("TargetTrackingScalingPolicyConfiguration.DisableScaleIn", True, False),
    )
    assert found["service/llm/chat"] == (
        Difference("SuspendedState.DynamicScalingOutSuspended", True, False),
    )
    assert found[name] == (Difference("ActionsEnabled", False, True),)


@pytest.mark.usefixtures("aws")
def test_what_is_no_longer_wanted_goes() -> None:
    applied(scaled())
    found = applied(scaled(ECS))

    assert {one.action for one in found.to_do} == {"delete"}
    assert ("delete", "target") in actions(found)
    assert ("delete", "group policy") in actions(found)
    assert planned(scaled(ECS)).to_do == ()


def test_destroying_leaves_nothing_of_ours_and_all_of_others(aws: Aws) -> None:
    applied(scaled())
    stranger = "AutoscalingCeiling ticket/chat-de/ecs-service:llm:chat/a"
    aws.alarms[stranger] = {**next(iter(aws.alarms.values())), "AlarmName": stranger}
    place = {k: aws.targets["service/llm/chat"][k] for k in ("ServiceNamespace", "ResourceId")}
    aws.policies["service/llm/chat", "theirs"] = {**place, "PolicyName": "theirs", "PolicyARN": "x"}

    found = removal(account_of(), Identity("chat"))
    list(carry_out(account_of(), found))

    assert set(aws.alarms) == {stranger}
    assert set(aws.policies) == {("service/llm/chat", "theirs")}
    assert set(aws.targets) == {"service/llm/chat"}, "deregistering would delete their policy too"
    assert "target service/llm/chat: stays registered" in found.notes[0]
    assert not aws.group_policies
    assert removal(account_of(), Identity("chat")).to_do == ()


def test_a_target_of_somebody_else_is_not_touched(aws: Aws) -> None:
    theirs = {
        "ServiceNamespace": "ecs",
        "ResourceId": "service/llm/chat",
        "ScalableDimension": "ecs:service:DesiredCount",
        "MinCapacity": 2,
        "MaxCapacity": 9,
    }
    aws.application_autoscaling_register_scalable_target(**theirs)

    (foreign,) = planned(scaled(ECS)).foreign

    assert foreign.thing.kind == "target"
    assert "registered by somebody else" in foreign.why
    assert "tag-resource" in foreign.why
    arn = aws.targets["service/llm/chat"]["ScalableTargetARN"]
    aws.tags[arn] = {"managed-by": "opsctl", "opsctl:service": "chat"}
    assert planned(scaled(ECS)).foreign == ()


def test_what_a_stack_made_is_left_to_it(aws: Aws) -> None:
    applied(scaled(ECS))
    aws.changes.clear()
    for tags in aws.tags.values():
        tags["aws:cloudformation:stack-name"] = "chat-scaling"

    with pytest.raises(UsageError, match="the CloudFormation stack chat-scaling scales chat"):
        planned(scaled())
    with pytest.raises(UsageError, match="change or delete it there"):
        removal(account_of(), Identity("chat"))
    assert aws.changes == []


def test_an_alarm_of_somebody_else_is_not_touched(aws: Aws) -> None:
    applied(scaled(ECS))
    name = "AutoscalingStuck ticket/chat/ecs-service:llm:chat/a"
    aws.alarms[name]["Threshold"] = 5
    aws.tags[aws.alarms[name]["AlarmArn"]] = {}

    (foreign,) = planned(scaled(ECS)).foreign

    assert foreign.thing.name == name
    assert removal(account_of(), Identity("chat")).notes == (
        f"metric alarm {name}: left alone, not made by opsctl; rename or delete it, or choose another "
        "service.name",
    )


def of(one: Config, service: str = "chat", **labels: str) -> Config:
    """The configuration of another service, or of one with free labels."""
    return one.model_copy(
        update={
            "service": one.service.model_copy(update={"name": service}),
            "exporter": one.exporter.model_copy(update={"labels": labels}),
        }
    )


def test_a_resource_is_scaled_by_one_service_alone(aws: Aws) -> None:
    applied(scaled(ECS))
    before = copy.deepcopy((aws.targets, aws.policies, aws.alarms))
    (foreign,) = planned(of(scaled(ECS), "shop")).foreign

    assert foreign.thing.kind == "target"
    assert "another service, whose policy opsctl-chat-" in foreign.why
    assert removal(account_of(), Identity("shop")).to_do == ()
    # of a stack, whose targets have no tags
    aws.tags = {arn: {} for arn in aws.tags}
    assert planned(of(scaled(ECS), "shop")).foreign
    assert (aws.targets, aws.policies, aws.alarms) == before


@pytest.mark.usefixtures("aws")
def test_a_group_is_scaled_by_one_service_alone() -> None:
    applied(scaled(RESOURCES[3:]))
    found = planned(of(scaled(RESOURCES[3:]), "shop"))

    assert {one.thing.kind for one in found.foreign} == {"group policy"}
    assert "embed belongs to another service, whose policy opsctl-chat-" in found.foreign[0].why
    assert planned(scaled(RESOURCES[3:])).foreign == ()


def test_a_target_of_another_service_is_refused_by_name(aws: Aws) -> None:
    applied(scaled(ECS))
    aws.policies.clear()
    (foreign,) = planned(of(scaled(ECS), "shop")).foreign

    assert foreign.why == "belongs to service chat; rename or delete it there"


@pytest.mark.usefixtures("aws")
def test_another_environment_of_the_service_is_refused_and_left_alone() -> None:
    applied(of(scaled(ECS), environment="staging"))

    for other in (scaled(ECS), of(scaled(ECS), environment="prod")):
        found = planned(other)
        assert len(found.foreign) == len(found.changes), "policies too, which have no tags"
        assert all(
            one.why.startswith("belongs to chat (environment staging); ") for one in found.foreign
        )
    left = removal(account_of(), Identity("chat", (("environment", "prod"),)))
    assert left.to_do == ()
    assert planned(of(scaled(ECS), environment="staging")).to_do == ()


def test_what_has_no_labels_gets_them_once(aws: Aws) -> None:
    applied(scaled(ECS))
    labelled = of(scaled(ECS), environment="prod")
    found = applied(labelled)

    assert {one.action for one in found.to_do} == {"change"}
    assert {d.path for one in found.to_do for d in one.differences} == {"Tags.opsctl:environment"}
    assert all(tags["opsctl:environment"] == "prod" for tags in aws.tags.values())
    assert planned(labelled).to_do == ()


def test_0_1s_names_become_legal_ones_and_nothing_is_left(aws: Aws) -> None:
    service = "chat.v2:" + "x" * 60
    one = of(scaled(), service)
    old = replace(
        scaling_of(one),
        parts=tuple(
            replace(part, name=part.was, properties=renamed(part)) for part in scaling_of(one).parts
        ),
    )
    list(carry_out(account_of(), plan(account_of(), old, None)))
    names = {*aws.alarms, *(name for _, name in aws.policies)}
    assert all(f"/{service}/" in name or f"opsctl-{service}-" in name for name in names)

    found = applied(one)
    created = {change.thing.name: change.was for change in found.to_do if change.was}
    deleted = {change.thing.name: change.why for change in found.to_do if change.action == "delete"}
    assert {*created.values()} == {*deleted} >= names
    assert all(deleted[was] == f"renamed to {name}" for name, was in created.items())
    assert planned(one).to_do == ()
    assert not names & {*aws.alarms, *(name for _, name in aws.policies)}


def renamed(part: Part) -> dict[str, Any]:
    """A part's properties as 0.1 had them."""
    found = dict(part.properties)
    if "PolicyName" in found:
        found["PolicyName"] = part.was
    if "AlarmName" in found:
        found["AlarmName"] = part.was
    if "AlarmRule" in found:
        found["AlarmRule"] = "FALSE"
    return found


@pytest.mark.usefixtures("aws")
def test_a_groups_own_bounds_are_told_and_left_alone() -> None:
    (told,) = planned(scaled(RESOURCES[3:])).notes
    nowhere = {**RESOURCES[3], "name": "nowhere"}

    assert "it has MinSize 1 and MaxSize 2, the configuration says 1 and 8" in told
    assert planned(scaled([nowhere])).notes == (
        "auto-scaling-group nowhere: there is none of this name in this region",
    )


@pytest.mark.usefixtures("aws")
def test_what_has_no_default_is_asked_for() -> None:
    nameless = [{k: v for k, v in ECS[0].items() if k != "model"} | {"max_num_seqs": 64}]
    section = {"cold_start": "6m", "resources": nameless}
    targets = [{"name": "chat-0", "url": "http://chat-0:8000"}]
    one = config(autoscaling=section, targets=targets, alarms={"ticket_topic": TOPIC})

    with pytest.raises(UsageError, match="--model"):
        planned(one)
    with pytest.raises(UsageError, match="cannot be a dimension"):
        planned(one, 'a"b')
    with pytest.raises(UsageError, match=r"alarms.ticket_topic is not set"):
        planned(config(autoscaling=section, targets=targets), "tiny")
    alarm = next(one for one in planned(one, "tiny").to_do if "alarm" in one.thing.kind)
    assert alarm.thing.name.endswith("/tiny")


def test_a_failure_in_the_middle_is_told_and_the_rest_is_done_later(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Aws.cloudwatch_put_metric_alarm

    def broken(self: Aws, **given: Any) -> Any:
        raise AwsError("cloudwatch:PutMetricAlarm: throttled")

    monkeypatch.setattr(Aws, "cloudwatch_put_metric_alarm", broken)
    with pytest.raises(AwsError, match=r"metric alarm Autoscaling.*throttled\nWhat is told above"):
        applied(scaled(ECS))
    monkeypatch.setattr(Aws, "cloudwatch_put_metric_alarm", put)

    assert {kind for _, kind in actions(planned(scaled(ECS)))} == {
        "metric alarm",
        "composite alarm",
    }
    applied(scaled(ECS))
    assert planned(scaled(ECS)).to_do == ()
    assert len(aws.policies) == 2


def test_numbers_are_compared_as_numbers_and_lists_without_an_order() -> None:
    one = Thing(
        kind="metric alarm",
        name="a",
        properties={
            "Threshold": 1,
            "Dimensions": [{"Name": "a", "Value": "1"}, {"Name": "b", "Value": "2"}],
        },
    )
    same = {
        "Threshold": 1.0,
        "Dimensions": [{"Name": "b", "Value": "2"}, {"Name": "a", "Value": "1"}],
        "StateValue": "OK",
    }
    other = Thing(kind="metric alarm", name="a", properties=same)

    assert list(differing(other, one)) == []


def test_requests_are_three_a_second_at_most(aws: Aws) -> None:
    slept: list[float] = []
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    slow = ScalingAccount(REGION, pace=Pace(now=lambda: now, sleep=sleep))
    found = plan(slow, scaling_of(scaled(ECS)), None)
    asked = 1 + len(slept)
    list(carry_out(slow, found))

    assert len(aws.changes) == len(found.to_do)
    assert now >= (asked + len(aws.changes) - 1) / 3 - 1e-6


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Any) -> Any:
    entries = [{"max_num_seqs": 64, **one} for one in ECS]
    data = {
        "service": {"name": "shop"},
        "exporter": {"cloudwatch": {"sink": "put", "region": REGION}},
        "alarms": {"ticket_topic": TOPIC},
        "autoscaling": {"cold_start": "6m", "resources": entries},
    }
    (tmp_path / "opsctl.yaml").write_text(yaml.safe_dump(data))
    return tmp_path


@pytest.mark.parametrize(
    ("env", "code", "said"),
    [
        (
            {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"},
            3,
            "no AWS credentials",
        ),
        (
            {
                "AWS_ACCESS_KEY_ID": "x",
                "AWS_SECRET_ACCESS_KEY": "x",
                "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            },
            3,
            "AWS does not answer",
        ),
    ],
)
def test_an_account_that_cannot_be_asked(
    opsctl: Opsctl, settings: Any, env: dict[str, str], code: int, said: str
) -> None:
    answer = opsctl.run("autoscale", "plan", env=env, cwd=settings)

    assert (answer.returncode, answer.stdout) == (code, "")
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def test_without_a_region_nobody_is_asked(opsctl: Opsctl, settings: Any) -> None:
    env = {
        "OPSCTL_EXPORTER__CLOUDWATCH__REGION": "null",
        "AWS_REGION": "",
        "AWS_DEFAULT_REGION": "",
    }
    answer = opsctl.run("autoscale", "plan", env=env, cwd=settings)

    assert answer.returncode == 64
    assert "no AWS region; set exporter.cloudwatch.region" in answer.stderr
