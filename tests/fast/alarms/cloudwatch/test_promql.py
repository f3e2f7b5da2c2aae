"""PromQL alarms: the same rules as for Prometheus, as CloudWatch can ask them where metrics come by OTLP."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cloudwatch_fleet import body_of, config, text_of
from commands import Opsctl
from paths import RECORDINGS
from promql_alarms import OTLP, QUERIES, alarms, query_of

from vllm_opsctl.alarms.cloudwatch.definitions import read_definitions
from vllm_opsctl.alarms.cloudwatch.validate import mistakes
from vllm_opsctl.alarms.rules import build_rules
from vllm_opsctl.exporter.catalogue import catalogue

COLLECTOR = {"cloudwatch": {"sink": "otlp", "endpoint_url": "http://collector:4318/v1/metrics"}}


def test_every_alert_that_notifies_has_an_alarm_and_rows_that_notify_alike_share_one() -> None:
    rules = [
        rule
        for rule in build_rules(OTLP, "sidecar").alerts
        if rule.labels["notify"] in ("page", "ticket")
    ]
    names = {name.partition(" ")[0] for name in alarms()}

    assert names == {rule.alert for rule in rules} - {"LLMSidecarsDown", "LLMSLOHardFloor"}
    assert len([name for name in alarms() if "/availability" in name]) == 2


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_every_selector_is_of_this_service_and_of_what_is_sent(query: str) -> None:
    """As OTLP sends them: counters without ``_total``, histograms whole."""
    sent = {concept.exported_name for concept in catalogue()}
    sent |= {
        "vllm_sli_events",
        "vllm_sli_threshold_seconds",
        "opsctl_target_up",
        "opsctl_build_info",
    }

    names = {*re.findall(r"\b(?:vllm|opsctl)_\w+", query)}
    assert names
    assert names <= sent


@pytest.mark.parametrize("name", alarms())
def test_no_selector_is_without_the_service(name: str) -> None:
    query = query_of(name)

    selectors = re.findall(r"\b(?:vllm|opsctl)_\w+(.{27})", query)
    assert selectors
    assert {*selectors} == {'{"@resource.service.name"="'}


LABELS = {"cluster": "eu (1)", "environment": 'say "prod"'}


@pytest.mark.parametrize("read_unlabelled", [False, True])
def test_the_identity_is_the_resources_and_no_label(read_unlabelled: bool) -> None:
    """By OTLP data points have no label ``service``, and no series lacks the resource's attributes."""
    exporter = {"cloudwatch": {"sink": "otlp", "region": "eu-central-1"}, "labels": LABELS}
    labelled = config(exporter=exporter, alarms={"read_unlabelled": read_unlabelled})

    assert alarms(labelled).keys() == alarms().keys()
    for name in alarms(labelled):
        query = query_of(name, labelled)
        whole = (
            '{"@resource.service.name"="chat", "@resource.cluster"="eu (1)", '
            '"@resource.environment"="say \\"prod\\""'
        )
        assert query.count(whole) == len(re.findall(r"\b(?:vllm|opsctl)_\w+", query)) > 0
        assert query.replace(whole, '{"@resource.service.name"="chat"') == query_of(name)
        assert not re.search(r"\b(service|cluster)=", query)


def test_silence_is_watched_by_a_classic_alarm_where_cloudwatch_is_sent_to() -> None:
    (classic,) = read_definitions(text_of(OTLP)).metric_alarms

    assert classic.name == "LLMSidecarsDown signal/chat/-"
    assert classic.missing == "breaching"


def test_a_collector_takes_no_heartbeat_and_promql_watches_for_a_day() -> None:
    behind = config(exporter=COLLECTOR)

    assert read_definitions(text_of(behind)).metric_alarms == ()
    assert "last_over_time" in query_of("LLMSidecarsDown page/chat/-", behind)


def test_what_prometheus_would_fill_in_is_in_no_text() -> None:
    assert not any("{{" in one["AlarmDescription"] for one in alarms().values())


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        ({"Query": ""}, "Query: 0 characters; 1 to 10000 are allowed"),
        ({"Query": "x" * 10_001}, "Query: 10001 characters"),
        ({"PendingPeriod": 86_401}, "PendingPeriod: 86401 s; 0 to 86400 are allowed"),
        ({"RecoveryPeriod": -1}, "RecoveryPeriod: -1 s"),
        ({"EvaluationInterval": 5}, "EvaluationInterval: 5; 10 to 3600 s are allowed"),
        ({"Threshold": 1}, "Threshold: does not go with EvaluationCriteria"),
    ],
)
def test_the_validator_knows_the_limits(spoil: dict[str, Any], what: str) -> None:
    body = body_of(OTLP)
    one = next(
        r["Properties"]
        for r in body["Resources"].values()
        if "EvaluationCriteria" in r["Properties"]
    )
    criteria = one["EvaluationCriteria"]["PromQLCriteria"]
    for key, value in spoil.items():
        (criteria if key in criteria else one)[key] = value

    assert any(what in line for line in mistakes(body))


def test_a_recording_cannot_be_asked_in_promql(opsctl: Opsctl, tmp_path: Path) -> None:
    path = tmp_path / "opsctl.yaml"
    path.write_text("exporter: {cloudwatch: {sink: otlp, region: eu-central-1}}\n")
    recording = next(RECORDINGS.glob("*.gz"))
    ran = opsctl.run("--config", str(path), "alarms", "test", "--recording", str(recording))

    assert ran.returncode == 64
    assert "PromQL" in ran.stderr
