"""autoscale plan and apply on an account that moto keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from commands import Opsctl
from parts.emulated_aws import REGION, EmulatedAws
from ports import reserve_port
from scaled_fleet import ECS, RESOURCES, TOPIC, account_of, planned, scaled

from vllm_opsctl.alarms.autoscale.changes import (
    ScalingPlan,
    carry_out,
    removal,
)
from vllm_opsctl.exporter.identity import Identity

# -- over a real socket ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedAws]:
    found = EmulatedAws(tmp_path_factory.mktemp("moto"), reserve_port())
    found.start()
    ecs = found.client("ecs")
    ecs.create_cluster(clusterName="llm")
    container = {"name": "vllm", "image": "vllm", "memory": 128}
    ecs.register_task_definition(family="chat", containerDefinitions=[container])
    ecs.create_service(cluster="llm", serviceName="chat", taskDefinition="chat", desiredCount=1)
    groups = found.client("autoscaling")
    groups.create_launch_configuration(
        LaunchConfigurationName="l", ImageId="ami-12c6146b", InstanceType="t2.micro"
    )
    groups.create_auto_scaling_group(
        AutoScalingGroupName="embed",
        LaunchConfigurationName="l",
        MinSize=1,
        MaxSize=8,
        AvailabilityZones=[f"{REGION}a"],
    )
    yield found
    found.stop()


def test_moto_has_what_was_applied(moto: EmulatedAws, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moto knows neither composites nor inference components."""
    for name, text in moto.env.items():
        monkeypatch.setenv(name, text)
    one = scaled([one for one in RESOURCES if one["min"] > 0])

    def without_composites(found: ScalingPlan) -> ScalingPlan:
        kept = [one for one in found.changes if one.thing.kind != "composite alarm"]
        return ScalingPlan(found.service, tuple(kept), found.notes)

    first = without_composites(planned(one))
    list(carry_out(account_of(), first))
    again = without_composites(planned(one))

    assert {one.action for one in first.changes} == {"create"}
    assert {one.action for one in again.changes} == {"unchanged"}
    assert first.notes == ()
    targets = moto.client("application-autoscaling").describe_scalable_targets(
        ServiceNamespace="ecs"
    )["ScalableTargets"]
    assert [(t["MinCapacity"], t["MaxCapacity"]) for t in targets] == [(1, 4)]
    list(carry_out(account_of(), removal(account_of(), Identity("chat"))))
    assert removal(account_of(), Identity("chat")).to_do == ()


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


def test_the_plan_is_told_to_people_and_to_programs(
    opsctl: Opsctl, moto: EmulatedAws, settings: Any
) -> None:
    env = {**moto.env, "COLUMNS": "80"}
    text = opsctl.run("autoscale", "plan", env=env, cwd=settings)
    checked = opsctl.run("autoscale", "plan", "--check", env=env, cwd=settings)
    answer = opsctl.run("autoscale", "plan", "-o", "json", env=env, cwd=settings)

    assert (text.returncode, checked.returncode) == (0, 1)
    assert "+ policy opsctl-shop-demand of service/llm/chat" in text.stdout
    assert text.stdout.splitlines()[-1] == "8 to create, 0 to change, 0 to delete, 0 unchanged"
    found = json.loads(answer.stdout)
    assert {one["action"] for one in found["changes"]} == {"create"}
    assert found["changes"][0]["resource"] == "service/llm/chat"


def test_nobody_who_can_be_asked_means_yes(
    opsctl: Opsctl, moto: EmulatedAws, settings: Any
) -> None:
    answer = opsctl.run("autoscale", "apply", env=dict(moto.env), cwd=settings)

    assert answer.returncode == 64
    assert "--yes is needed where nobody can be asked; nothing was changed" in answer.stderr
