"""The template: what is in it, what is left out and told, whose models, and the file in its folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from cloudwatch_fleet import body_of, config, text_of
from commands import Opsctl
from example_alarms import CLOUDWATCH_EXAMPLE, EXAMPLE, GENERATED, STARTER

from vllm_opsctl.alarms.burn import ROWS
from vllm_opsctl.alarms.cloudwatch.build import template_text
from vllm_opsctl.alarms.cloudwatch.definitions import Resolver, read_definitions
from vllm_opsctl.alarms.cloudwatch.template import build_template
from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.sinks.cloudwatch.curated import curated
from vllm_opsctl.exporter.sinks.cloudwatch.interval import Labels
from vllm_opsctl.exporter.yaml_text import read_yaml

LINKS = {
    "runbook_url": "https://runbooks.example.com/vllm",
    "dashboard_url": "https://grafana.example.com/d/opsctl-chat-incident",
    "sidecar_url": "http://sidecar.internal:9836",
}
NO_MODELS = [{"name": "chat-0", "url": "http://chat-0:8000"}]
BARE = Config()


def of_type(body: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {
        name: one["Properties"]
        for name, one in body["Resources"].items()
        if one["Type"] == f"AWS::{kind}"
    }


def plain(value: Any, resolver: Resolver) -> Any:
    """A value with its functions resolved, as CloudFormation hands it to CloudWatch."""
    if isinstance(value, dict):
        if set(value) <= {"Ref", "Fn::Sub"}:
            return resolver.text(value)
        return {key: plain(one, resolver) for key, one in value.items()}
    return [plain(one, resolver) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("one", [BARE, config(alarms=LINKS)])
def test_botocore_would_send_every_alarm(one: Config) -> None:
    model = botocore.session.get_session().get_service_model("cloudwatch")
    body = body_of(one)
    resolver = Resolver(body, {"Model": "tiny"})
    shapes = {
        "CloudWatch::Alarm": model.operation_model("PutMetricAlarm").input_shape,
        "CloudWatch::CompositeAlarm": model.operation_model("PutCompositeAlarm").input_shape,
    }
    for kind, shape in shapes.items():
        for properties in of_type(body, kind).values():
            report = ParamValidator().validate(plain(properties, resolver), shape)
            assert not report.has_errors(), report.generate_report()


def test_every_row_is_two_windows_and_an_objective_one_page_and_one_ticket() -> None:
    alarms = of_type(body_of(config()), "CloudWatch::Alarm")
    composites = of_type(body_of(config()), "CloudWatch::CompositeAlarm")
    of_burn = [a for a in alarms.values() if a["AlarmName"].startswith("LLMSLOWindow burn")]
    rules = {c["AlarmName"]: c["AlarmRule"] for c in composites.values()}

    assert len(of_burn) == 2 * 2 * len(ROWS)
    assert {a["Metrics"][0]["MetricStat"]["Period"] for a in of_burn} == {
        int(window) for row in ROWS for window in (row.long_s, row.short_s)
    }
    pages = sum(row.notify == "page" for row in ROWS)
    page = rules["LLMSLOErrorBudgetBurn page/chat/availability/tiny"]["Fn::Sub"]
    ticket = rules["LLMSLOErrorBudgetBurn ticket/chat/availability/tiny"]["Fn::Sub"]
    assert page.count(" AND ") == pages
    assert page.count(" OR ") == pages - 1
    assert " AND NOT ALARM(" in ticket
    assert len(of_type(body_of(config()), "SNS::Topic")) == 2


def test_only_composites_notify_and_tell_of_their_end() -> None:
    body = body_of(config())

    assert not any("AlarmActions" in one for one in of_type(body, "CloudWatch::Alarm").values())
    for one in of_type(body, "CloudWatch::CompositeAlarm").values():
        assert one["AlarmActions"] == one["OKActions"]
        way = one["AlarmName"].partition("/")[0].rpartition(" ")[2]
        assert one["AlarmActions"] == [{"Ref": {"page": "PageTopic", "ticket": "TicketTopic"}[way]}]


def test_no_alarm_is_on_a_percentile() -> None:
    for one in of_type(body_of(config()), "CloudWatch::Alarm").values():
        statistics = {q["MetricStat"]["Stat"] for q in one["Metrics"] if "MetricStat" in q}
        assert statistics <= {"Sum", "SampleCount", "Average", "Minimum", "Maximum"}


def test_alarms_read_the_metrics_that_the_sidecar_sends_with_its_dimensions() -> None:
    names = {metric.metric for metric in curated()}
    labels = Labels("chat", None)
    known = {
        frozenset(labels.of(None)),
        frozenset(labels.of("tiny")),
        *(frozenset(labels.of("tiny", objective)) for objective in ("availability", "ttft")),
    }
    for alarm in read_definitions(text_of(config())).metric_alarms:
        for stat in alarm.stats:
            assert stat.metric.namespace == "vLLM"
            assert stat.metric.name in names
            assert stat.metric.dimensions in known


def test_every_alarm_says_why_missing_data_is_treated_so() -> None:
    definitions = read_definitions(text_of(config()))

    treated = {alarm.missing for alarm in definitions.metric_alarms}
    assert treated == {"breaching", "notBreaching"}
    for alarm in definitions.metric_alarms:
        assert f"Missing data: {alarm.missing}; " in definitions.descriptions[alarm.name]


def test_a_notification_carries_summary_number_command_runbook_and_board() -> None:
    definitions = read_definitions(text_of(config(alarms=LINKS)))

    lines = definitions.descriptions["LLMSLOErrorBudgetBurn page/chat/ttft/tiny"].splitlines()
    assert lines.pop(2).startswith("It goes off at 14.4x over 1h and 5m, or ")
    assert lines == [
        "tiny burns the error budget of ttft too fast.",
        "Too many of the events of tiny waited longer than 1 s for their first token; 95 % must not.",
        "Diagnose: opsctl diagnose --sidecar http://sidecar.internal:9836",
        "Runbook: https://runbooks.example.com/vllm/index",
        "Board: https://grafana.example.com/d/opsctl-chat-incident?var-objective=ttft&var-model=tiny",
    ]
    for name in definitions.notify:
        text = definitions.descriptions[name]
        assert "\nDiagnose: opsctl diagnose --sidecar http://sidecar.internal:9836\n" in text
        assert "{{" not in text, "no template of Prometheus is left"
        assert re.search("number", text)


def test_preemptions_keep_their_symptoms_tickets_silent() -> None:
    composites = read_definitions(text_of(config())).composites
    thrash = "LLMKVPreemptionThrash signal/chat/-/tiny"

    muted = {c.name.partition("/")[0] for c in composites if c.suppressor == thrash}
    pages = {c.name for c in composites if c.suppressor and " page/" in c.name}

    assert muted == {
        "LLMSLOErrorBudgetBurn ticket",
        "LLMQueueOverload ticket",
        "LLMKVCacheFull ticket",
    }
    assert pages == set()


def test_topics_let_this_accounts_alarms_publish_under_a_key_that_cloudwatch_may_use() -> None:
    resources = body_of(config())["Resources"]
    (statement,) = resources["PageTopicPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    key = resources["TopicKey"]["Properties"]["KeyPolicy"]["Statement"][1]

    assert statement["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
    assert statement["Action"] == "sns:Publish"
    assert statement["Condition"] == {
        "StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}},
        "ArnLike": {
            "aws:SourceArn": {
                "Fn::Sub": "arn:${AWS::Partition}:cloudwatch:${AWS::Region}:${AWS::AccountId}:alarm:*"
            }
        },
    }
    assert resources["PageTopic"]["Properties"]["KmsMasterKeyId"] == {"Ref": "TopicKey"}
    assert key["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
    assert key["Action"] == ["kms:Decrypt", "kms:GenerateDataKey*"]


def test_a_configured_topic_is_used_and_not_made() -> None:
    arn = "arn:aws:sns:eu-central-1:123456789012:llm-page"
    body = body_of(config(alarms={"page_topic": arn}))

    assert list(of_type(body, "SNS::Topic")) == ["TicketTopic"]
    page = of_type(body, "CloudWatch::CompositeAlarm")
    assert [arn] in [one["AlarmActions"] for one in page.values()]
    assert any(
        "alarms.page_topic is used as it is" in n
        for n in build_template(config(alarms={"page_topic": arn})).notes
    )


def test_everything_is_tagged() -> None:
    for name, one in body_of(config())["Resources"].items():
        # a board says in its text whose it is: CloudFormation gives it no tags
        if one["Type"] not in ("AWS::SNS::TopicPolicy", "AWS::CloudWatch::Dashboard"):
            tags = {tag["Key"]: tag["Value"] for tag in one["Properties"]["Tags"]}
            assert tags["managed-by"] == "opsctl", name
            assert tags["opsctl:service"] == "chat"


def test_an_objective_of_tickets_pages_nobody() -> None:
    quiet = [
        {
            "name": "q",
            "sli": "queue_time",
            "threshold": "300ms",
            "target": "95%",
            "notify": "ticket",
        }
    ]
    composites = of_type(body_of(config(objectives=quiet)), "CloudWatch::CompositeAlarm")

    burning = [c for c in composites.values() if c["AlarmName"].startswith("LLMSLO")]
    assert [c["AlarmName"] for c in burning] == ["LLMSLOErrorBudgetBurn ticket/chat/q/tiny"]
    assert "Floor" in burning[0]["AlarmRule"]["Fn::Sub"]


def test_what_cannot_be_is_told_in_the_head() -> None:
    low = [{"name": "a", "sli": "availability", "target": "90%"}]
    head = [line for line in text_of(config(objectives=low)).splitlines() if line.startswith("#")]

    assert head[0] == "# written by opsctl alarms build --to cloudwatch"
    assert any(
        "objective a, row 5m/1h: 14.4x of a budget of 10 % is 144 %" in line for line in head
    )
    assert "# not in here: alert LLMQueueFullSoon: metric math cannot extrapolate" in head
    assert (
        "# not in here: alert LLMAdmissionRejections: admission_rejections does not go to CloudWatch"
        in head
    )


# -- models ----------------------------------------------------------------------------------------


def models_in(one: Config) -> set[str]:
    return {
        value
        for alarm in read_definitions(text_of(one), {"Model": "asked-for"}).metric_alarms
        for stat in alarm.stats
        for key, value in stat.metric.dimensions
        if key == "Model"
    }


def test_models_are_the_objectives_then_the_first_of_each_target() -> None:
    targets = [
        {"name": "a", "url": "http://a:8000", "models": ["chat", "chat-de"]},
        {"name": "b", "url": "http://b:8000", "models": ["chat"]},
        {"name": "c", "url": "http://c:8000", "models": ["org/embed"]},
    ]
    objectives = [
        {"name": "all", "sli": "availability", "target": "99.9%"},
        {"name": "own", "sli": "availability", "target": "99%", "model": "chat"},
    ]
    one = config(targets=targets, objectives=objectives)
    names = [alarm.name for alarm in read_definitions(text_of(one)).composites]

    assert models_in(one) == {"chat", "org/embed"}
    assert "LLMSLOErrorBudgetBurn page/chat/own/chat" in names
    assert "LLMSLOErrorBudgetBurn page/chat/own/org/embed" not in names
    assert any("model chat-de: not the first" in note for note in build_template(one).notes)


def test_without_names_the_model_is_a_parameter_and_stacks_do_not_meet() -> None:
    one = config(targets=NO_MODELS)
    body = body_of(one)

    assert body["Parameters"]["Model"]["Type"] == "String"
    assert models_in(one) == {"asked-for"}
    names = [alarm.name for alarm in read_definitions(text_of(one), {"Model": "m"}).composites]
    assert all(name.endswith("/m") for name in names), "two stacks of a service share no name"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"targets": [*NO_MODELS, {"name": "b", "url": "http://b:1", "models": ["m"]}]},
            "targets: chat-0 does not name its models, others do",
        ),
        (
            {
                "targets": NO_MODELS,
                "objectives": [
                    {"name": "a", "sli": "availability", "target": "99%"},
                    {"name": "b", "sli": "availability", "target": "99%", "model": "m"},
                ],
            },
            r"targets: none names its models, and only some objectives do \(m\)",
        ),
        (
            {"targets": [{"name": "b", "url": "http://b:1", "models": ['m"${x}']}]},
            r"targets\[0\].models\[0\]: .* cannot be a dimension and a tag",
        ),
        (
            {"exporter": {"cloudwatch": {"per_target": True}}},
            "exporter.cloudwatch.per_target: alarms watch the fleet's metrics",
        ),
        (
            {"exporter": {"cloudwatch": {"interval": "10m"}}},
            "exporter.cloudwatch.interval: data must come every 5 minutes",
        ),
        (
            {
                "exporter": {"cloudwatch": {"region": "us-east-1"}},
                "alarms": {"page_topic": "arn:aws:sns:eu-central-1:123456789012:p"},
            },
            "alarms.page_topic: alarms of us-east-1",
        ),
    ],
)
def test_mistakes_are_told_with_their_place(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_template(config(**more))


def test_data_that_come_every_two_minutes_are_judged_in_two_minutes() -> None:
    slow = config(exporter={"cloudwatch": {"sink": "put", "interval": "90s"}})
    (heartbeat,) = [
        a
        for a in read_definitions(text_of(slow)).metric_alarms
        if a.name.startswith("LLMSidecarsDown")
    ]

    assert heartbeat.period_s == 120


# -- the command -----------------------------------------------------------------------------------

BUILD = ("alarms", "build", "--to", "cloudwatch", "--out", "out")


def test_the_committed_example_is_what_a_build_writes(opsctl: Opsctl) -> None:
    out = ("--out", str(GENERATED), "--check")
    answer = opsctl.run("--config", str(STARTER), *BUILD[:4], *out, env=CLOUDWATCH_EXAMPLE)

    assert answer.returncode == 0, f"run make alarms: {answer.stderr}"


def test_a_build_is_repeatable_checked_and_leaves_prometheus_files_alone(
    opsctl: Opsctl, tmp_path: Path
) -> None:
    opsctl.run("alarms", "build", "--out", "out", cwd=tmp_path, env=EXAMPLE)
    first = opsctl.run("--config", str(STARTER), *BUILD, cwd=tmp_path, env=EXAMPLE)
    again = opsctl.run("--config", str(STARTER), *BUILD, cwd=tmp_path, env=EXAMPLE)
    check = opsctl.run("--config", str(STARTER), *BUILD, "--check", cwd=tmp_path, env=EXAMPLE)
    path = tmp_path / "out" / "cloudwatch.yaml"

    assert first.returncode == again.returncode == check.returncode == 0
    assert "metric alarms on" in first.stdout
    assert "; unchanged" in again.stdout
    assert "up to date" in check.stdout
    assert (tmp_path / "out" / "rules.yaml").exists()
    assert "Note: alert LLMCrashLoop: process_start_time_seconds does not go to" in first.stderr

    path.write_text(path.read_text().replace("14.4", "15"))
    stale = opsctl.run("--config", str(STARTER), *BUILD, "--check", cwd=tmp_path, env=EXAMPLE)
    assert stale.returncode == 1
    assert "out: not up to date: cloudwatch.yaml" in stale.stderr

    opsctl.run("alarms", "build", "--out", "out", cwd=tmp_path, env=EXAMPLE)
    assert path.exists(), "a build for Prometheus leaves it alone too"


NEW_BOARD = "${AWS::StackName}-${AWS::Region}-slo"


def test_a_build_over_a_template_of_0_1_says_what_deploying_it_replaces(
    opsctl: Opsctl, tmp_path: Path
) -> None:
    opsctl.run("--config", str(STARTER), *BUILD, cwd=tmp_path, env=EXAMPLE)
    path = tmp_path / "out" / "cloudwatch.yaml"
    path.write_text(path.read_text().replace(NEW_BOARD, "${AWS::StackName}-slo"))

    first = opsctl.run("--config", str(STARTER), *BUILD, cwd=tmp_path, env=EXAMPLE)
    again = opsctl.run("--config", str(STARTER), *BUILD, cwd=tmp_path, env=EXAMPLE)

    assert f"dashboard ${{AWS::StackName}}-slo -> {NEW_BOARD}: " in first.stderr
    assert first.stderr.count(" -> ") == 1
    assert " -> " not in again.stderr


@pytest.mark.parametrize("body", ["", "Resources: 5\n", "Resources: {A: 5}\n", "]\n"])
def test_an_edited_template_is_replaced_whatever_it_has(
    opsctl: Opsctl, tmp_path: Path, body: str
) -> None:
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "cloudwatch.yaml"
    path.write_text(f"# written by opsctl alarms build --to cloudwatch\n{body}")

    answer = opsctl.run("--config", str(STARTER), *BUILD, cwd=tmp_path, env=EXAMPLE)

    assert answer.returncode == 0, answer.stderr
    assert NEW_BOARD in path.read_text()


def test_a_file_of_somebody_else_is_left_alone(opsctl: Opsctl, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cloudwatch.yaml").write_text("Resources: {}\n")

    answer = opsctl.run(*BUILD, cwd=tmp_path)

    assert answer.returncode == 64
    assert "not written by opsctl, it is left alone" in answer.stderr
    assert (tmp_path / "out" / "cloudwatch.yaml").read_text() == "Resources: {}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "vllm"), "--from vllm is for --to prometheus"),
        (("--scale", "1/60"), "--scale is for --to prometheus"),
    ],
)
def test_options_of_prometheus_are_refused(
    opsctl: Opsctl, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    answer = opsctl.run(*BUILD, *arguments, cwd=tmp_path)

    assert answer.returncode == 64
    assert said in answer.stderr
    assert not (tmp_path / "out").exists()


def test_the_file_is_what_was_built() -> None:
    template = build_template(config())

    assert read_yaml(template_text(template)) == template.body
