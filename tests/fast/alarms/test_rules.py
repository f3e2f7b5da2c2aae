"""The rules: promtool accepts them, their unit tests hold, and they fail when a rule is spoiled."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from rule_books import book

from vllm_opsctl.alarms import fleet, sli, vocabulary
from vllm_opsctl.alarms.alerts import AlertSpec, shipped_alerts
from vllm_opsctl.alarms.build import build_files
from vllm_opsctl.alarms.prometheus.conventions import Source
from vllm_opsctl.alarms.vocabulary import Vocabulary, concepts_in
from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter import series
from vllm_opsctl.exporter.catalogue import catalogue, parse_version
from vllm_opsctl.exporter.config import Config, Objective
from vllm_opsctl.exporter.yaml_text import read_yaml
from vllm_opsctl.runbooks.load import shipped_library

TAP: dict[str, Any] = {"exporter": {"tap": {"dir": "/dev/shm/vllm-opsctl"}}}  # noqa: S108


def test_every_alert_has_labels_texts_and_a_unit_test() -> None:
    links = {
        "alarms": {
            "runbook_url": "https://runbooks.example.com/vllm",
            "dashboard_url": "https://grafana.example.com/d/x",
        }
    }
    sources: tuple[Source, ...] = ("sidecar", "vllm")
    for source in sources:
        config, rulebook = book(source, links)
        tests = read_yaml(build_files(config, rulebook)["rules_test.yaml"])
        tested = str(tests)
        for rule in rulebook.alerts:
            assert {"severity", "notify", "role", "service"} <= set(rule.labels)
            assert {"summary", "description", "command", "runbook_url"} <= set(rule.annotations)
            assert rule.alert in tested
            assert "$value" not in str(rule.labels)


@pytest.mark.parametrize("source", ["sidecar", "vllm"])
def test_an_alert_about_the_monitoring_asks_what_still_answers(source: Source) -> None:
    """No sidecar can be asked why no sidecar answers, and no diagnosis explains the pager."""
    targets = ["http://chat-0:8000", "http://chat-1:8000"]
    _, rulebook = book(source, {"targets": targets})
    commands = {rule.alert: rule.annotations["command"] for rule in rulebook.alerts}

    drill = "opsctl alarms test" + (" --from vllm" if source == "vllm" else "")
    for alert in ("LLMPagerFailing", "LLMRulesFailing", "LLMWatchdog"):
        assert commands[alert] == drill
    if source == "sidecar":
        assert commands["LLMSidecarsDown"] == f"opsctl diagnose {' '.join(targets)}"
    assert commands["LLMModelVanished"].startswith("opsctl diagnose")


@pytest.mark.parametrize(
    ("per", "command"), [("none", "diagnose"), ("model", "drill"), ("engine", "targets")]
)
def test_a_command_of_its_own_is_for_what_is_about_no_server(per: str, command: str) -> None:
    (spec,) = (one for one in shipped_alerts()["companions"] if one.alert == "LLMSidecarsDown")

    with pytest.raises(ValidationError, match="names its command"):
        AlertSpec.model_validate(spec.model_dump(by_alias=True) | {"per": per, "command": command})


def test_names_are_the_fields_and_no_expression_divides_by_nothing() -> None:
    for source in ("sidecar", "vllm"):
        _, rulebook = book(source)
        for group in rulebook.groups:
            for rule in group["rules"]:
                name = rule.get("record")
                assert name is None or re.fullmatch(r"llm_slo(:[a-z_]+:[a-z0-9_]+|_info)", name)
                divisors = re.findall(r"/ (\(?\S+)", rule["expr"]) if name else []
                assert all(d.startswith("(") or re.fullmatch(r"[\d.e-]+", d) for d in divisors)


def test_the_shipped_alerts_name_what_there_is() -> None:
    concepts = {concept.concept for concept in catalogue()}
    modes = shipped_library().modes
    for specs in shipped_alerts().values():
        for spec in specs:
            texts = [spec.expr] if isinstance(spec.expr, str) else list(spec.expr.values())
            assert {c for text in texts for c in concepts_in(text)} <= concepts
            assert set(spec.modes) <= set(modes)
    assert all(spec.modes for spec in shipped_alerts()["causes"])


def test_a_threshold_between_bounds_is_refused_with_the_whole_flag() -> None:
    objectives = [
        {"name": "t", "sli": "time_to_first_token", "threshold": "180ms", "target": "95%"},
        {"name": "e", "sli": "e2e_latency", "threshold": "1.4s", "target": "99%"},
        {"name": "q", "sli": "queue_time", "threshold": "0.1s", "target": "99%"},
    ]
    for source in ("sidecar", "vllm"):
        with pytest.raises(ConfigError) as caught:
            book(source, {"objectives": objectives})

        lines = caught.value.problems
        assert lines[0] == (
            "objectives[0] (t).threshold: 0.18 s is no bucket bound; the nearest are 0.1 s and 0.25 s"
        )
        assert '"request_latency":[0.1,0.3,0.5,0.8,1,1.4,1.5,2,' in lines[3]
        assert '"time_to_first_token":[0.001,' in lines[3]
        assert "0.1,0.18,0.25" in lines[3]
        assert "tap" in lines[4]


def test_bounds_given_to_vllm_and_the_tap_make_a_threshold_exact() -> None:
    objective = {"name": "t", "sli": "time_to_first_token", "threshold": "180ms", "target": "95%"}
    given = {"alarms": {"histogram_buckets": {"time_to_first_token": [0.1, 0.18, 1]}}}

    _, from_vllm = book("vllm", {"objectives": [objective], **given})
    _, from_tap = book("sidecar", {"objectives": [objective], **TAP})

    assert [one.bound for one in from_vllm.indicators] == [0.18]
    assert [one.bound for one in from_tap.indicators] == [0.18]
    with pytest.raises(ConfigError):
        book("vllm", {"objectives": [objective], **TAP})


@pytest.mark.parametrize(("policy", "used"), [("stricter", 0.1), ("looser", 0.25)])
def test_a_moved_threshold_is_labelled(policy: str, used: float) -> None:
    objective = {
        "name": "t",
        "sli": "time_to_first_token",
        "threshold": "180ms",
        "target": "95%",
        "bucket_policy": policy,
    }
    _, rulebook = book("vllm", {"objectives": [objective]})
    rules = [rule for group in rulebook.groups for rule in group["rules"]]
    info = next(rule for rule in rules if rule.get("record") == "llm_slo_info")

    assert rulebook.indicators[0].bound == used
    assert info["labels"]["threshold_asked"] == "0.18"
    assert info["labels"]["threshold_used"] == f"{used:g}"
    assert "(180 ms was asked for)" in str(rules)


def test_what_cannot_be_measured_or_fire_is_told() -> None:
    lax = {"name": "t", "sli": "time_to_first_token", "threshold": "1s", "target": "90%"}
    _, rulebook = book("vllm", {"objectives": [lax]}, "0.6.0")

    told = "\n".join(rulebook.left_out)
    assert "objective t, row 5m/1h: 14.4x of a budget of 10 % is 144 %" in told
    assert "alert LLMEngineStalled: vLLM 0.6.0 does not expose step_tokens" in told
    assert not any(rule.labels.get("window") == "1h" for rule in rulebook.alerts)
    assert any(rule.alert == "LLMSLOHardFloor" for rule in rulebook.alerts)


def test_an_engine_without_sleep_mode_can_stall_too() -> None:
    _, rulebook = book("vllm", {}, "0.9.2")

    assert "LLMEngineStalled" in [rule.alert for rule in rulebook.alerts]


def test_names_follow_the_release() -> None:
    old, new = (Vocabulary("vllm", parse_version(v)) for v in ("0.9.1", "0.33.0"))

    assert old.selector("kv_cache_usage_ratio") == "vllm:gpu_cache_usage_perc"
    assert new.selector("kv_cache_usage_ratio") == "vllm:kv_cache_usage_perc"
    assert Vocabulary("vllm").selector("inter_token_latency_seconds", "_count") == (
        "vllm:inter_token_latency_seconds_count"
    )
    assert Vocabulary("sidecar").selector("preemptions") == "vllm_engine_preemptions_total"


def test_a_scaled_build_says_so_everywhere() -> None:
    config, rulebook = book("sidecar", {}, None, "1/60")
    files = build_files(config, rulebook)

    assert all("FOR TESTS" in text.splitlines()[0] for text in files.values())
    assert all(rule.labels["scale"] == "1/60" for rule in rulebook.alerts)
    assert "[5s]" in files["rules.yaml"]
    assert "[5m]" not in files["rules.yaml"]


def test_an_objective_of_one_model_reads_that_model_alone() -> None:
    objective = Objective(name="a", sli="queue_time", threshold=0.3, target=0.95, model="m")
    config = Config(objectives=(objective,))
    one = sli.indicator(objective, Vocabulary("vllm"), config)

    assert one.total(300).count('model_name="m"') == 3


def matched_models(node: Any) -> Iterator[str]:
    """The values of all matchers of ``model_name`` in an expression."""
    for matcher in getattr(getattr(node, "matchers", None), "matchers", ()):
        if matcher.name == "model_name":
            yield matcher.value
    for name in ("expr", "lhs", "rhs", "vector_selector", "args"):
        child = getattr(node, name, None)
        for one in child if isinstance(child, list) else [child]:
            if one is not None:
                yield from matched_models(one)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@example('org/ch"at')
@example("a\\b\nc")
def test_a_model_may_be_called_as_it_likes(model: str) -> None:
    """Served names are free text: rules ask for just this one, and none is broken PromQL."""
    objectives = [
        {"name": "a", "sli": "availability", "target": 0.99, "model": model},
        {"name": "q", "sli": "queue_time", "threshold": "0.3s", "target": 0.95, "model": model},
    ]
    for version in (None, "0.5.0"):
        _, rulebook = book("vllm", {"objectives": objectives}, version)
        for group in rulebook.groups:
            for rule in group["rules"]:
                tree = promql_parser.parse(rule["expr"])
                if rule.get("record") == "llm_slo:total:rate5m":
                    assert set(matched_models(tree)) == {model}


def test_examples_in_the_docstrings() -> None:
    for module in (fleet, series, sli, vocabulary):
        assert doctest.testmod(module).failed == 0
