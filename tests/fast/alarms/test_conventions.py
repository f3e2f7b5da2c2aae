"""Names and matchers stand in one place, and any service's name is legal wherever it goes."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from vllm_opsctl.alarms import resource_names
from vllm_opsctl.alarms.prometheus import conventions
from vllm_opsctl.alarms.prometheus.conventions import EVERY_SERVICE, Scope
from vllm_opsctl.alarms.rules import build_rules
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.identity import Identity

SLUGS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}", fullmatch=True)

KINDS: dict[str, tuple[Callable[[str], str], str]] = {
    "uid": (lambda s: resource_names.board_uid(s, "incident"), r"[a-zA-Z0-9_-]{1,40}"),
    "object": (
        lambda s: resource_names.object_name("vllm-slo", s),
        r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
    ),
    "topic": (lambda s: resource_names.topic_name(s, "ticket"), r"[A-Za-z0-9_-]{1,256}"),
    "alias": (resource_names.key_alias, r"alias/[A-Za-z0-9/_-]{1,250}"),
    "dashboard": (
        lambda s: resource_names.dashboard_name(s, "ap-southeast-1"),
        r"[A-Za-z0-9_-]{1,255}",
    ),
    "alarm": (resource_names.alarm_part, r"[A-Za-z0-9_.:-]{1,48}"),
    "policies": (resource_names.scaling_policy_prefix, r"[A-Za-z0-9_-]{1,240}"),
}


@pytest.mark.parametrize("kind", KINDS)
@given(one=SLUGS, other=SLUGS)
def test_names_are_legal_and_different_for_different_services(
    kind: str, one: str, other: str
) -> None:
    name, legal = KINDS[kind]

    assert re.fullmatch(legal, name(one)), name(one)
    assert (name(one) == name(other)) == (one == other)


@pytest.mark.parametrize(
    "pair", [("chat.v2", "chat-v2"), ("Chat", "chat"), ("a:b", "a_b"), ("a-", "a")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_names_that_differ_in_what_is_illegal_stay_apart(kind: str, pair: tuple[str, str]) -> None:
    name, _ = KINDS[kind]

    assert name(pair[0]) != name(pair[1])


def test_a_name_that_is_legal_is_that_of_0_1() -> None:
    assert resource_names.board_uid("chat", "slo") == "opsctl-chat-slo"
    assert resource_names.topic_name("chat", "page") == "chat-page"
    assert resource_names.key_alias("chat") == "alias/opsctl-chat"
    assert resource_names.object_name("vllm-slo", "chat-eu") == "vllm-slo-chat-eu"


SPELLED = re.compile(
    r"llm_slo[:_]|vllm_sli_|opsctl_(?:target_up|build_info)\b|vllm_engine_info|ALERTS\{|\"LLM[A-Z]|service=[\"~]"
)
MAY_SPELL = ("alarms/prometheus/conventions.py", "exporter/own_series.py", "exporter/identity.py")


def sources() -> list[Path]:
    folders = ("alarms", "dashboards", "exporter", "cli", "runbooks")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_spells_a_name_or_a_matcher(path: Path) -> None:
    if str(path.relative_to(ROOT)) in MAY_SPELL:
        return
    code = re.sub(r'"""(?s:.*?)"""', "", path.read_text(encoding="utf-8"))

    assert SPELLED.findall(code) == []


def test_every_rule_is_in_a_group_of_its_service_and_carries_its_identity() -> None:
    config = Config.model_validate(
        {"service": {"name": "chat"}, "exporter": {"labels": {"cluster": "eu west/1"}}}
    )

    for group in build_rules(config, "sidecar").groups:
        assert re.fullmatch(r"llm-[a-z-]+@chat@cluster=eu-west-1-[0-9a-f]{8}", group["name"])
        for rule in group["rules"]:
            assert rule["labels"].items() >= {"service": "chat", "cluster": "eu west/1"}.items()


@pytest.mark.parametrize("source", ["sidecar", "vllm"])
def test_every_selector_of_a_rule_is_of_the_service(source: str) -> None:
    """But for what no service has: other programs' own metrics."""
    config = Config.model_validate(
        {"service": {"name": "chat"}, "alarms": {"match": '{namespace="llm"}'}}
    )
    name = r"(?:vllm|llm_slo|opsctl)[\w:]*|http_requests_total|process_\w+|up"
    selector = re.compile(rf"(?<![\w:{{,.-])({name})(\{{[^}}]*\}})?(?![\w:(])")
    for group in build_rules(config, "vllm" if source == "vllm" else "sidecar").groups:
        for rule in group["rules"]:
            for series, matchers in selector.findall(rule["expr"]):
                raw = source == "vllm" and not series.startswith("llm_slo")
                wanted = 'namespace="llm"' if raw else 'service="chat"'
                assert wanted in matchers, f"{rule.get('alert', rule.get('record'))}: {series}"


def test_rule_failures_are_those_of_the_services_own_groups() -> None:
    (pattern,) = re.findall(r'rule_group=~"(.*)"', Scope(Identity("chat")).rule_failures)
    pattern = pattern.replace("\\\\", "\\")

    assert re.fullmatch(pattern, "/etc/prometheus/chat.yaml;llm-slo-short@chat")
    assert not re.fullmatch(pattern, "/etc/prometheus/code.yaml;llm-slo-short@code")
    assert not re.fullmatch(pattern, "/etc/prometheus/code.yaml;llm-slo-short@chat-eu")
    assert not re.fullmatch(pattern, "/etc/prometheus/other.yaml;somebody-elses")


def test_the_examples_are_right() -> None:
    assert doctest.testmod(conventions).failed == 0
    assert doctest.testmod(resource_names).failed == 0


def test_rules_are_of_one_service() -> None:
    with pytest.raises(ValueError, match="one service"):
        EVERY_SERVICE.group("slo-short")
