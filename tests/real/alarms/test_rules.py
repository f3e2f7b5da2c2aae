"""promtool accepts the generated rules and runs their unit tests; a spoiled rule is noticed."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rule_books import book

from vllm_opsctl.alarms.build import build_files
from vllm_opsctl.alarms.prometheus.conventions import Source
from vllm_opsctl.alarms.rules import Rulebook
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.yaml_text import read_yaml

TAP: dict[str, Any] = {"exporter": {"tap": {"dir": "/dev/shm/vllm-opsctl"}}}  # noqa: S108
SPECIAL: dict[str, Any] = {
    "objectives": [
        {
            "name": "ttft-strict",
            "sli": "time_to_first_token",
            "threshold": "180ms",
            "target": "90%",
            "bucket_policy": "stricter",
            "model": "org/chat-8b",
        },
        {
            "name": "itl",
            "sli": "inter_token_latency",
            "threshold": "1s",
            "target": "99.9%",
            "notify": "ticket",
        },
        {"name": "all", "sli": "availability", "target": "99%", "model": "org/other"},
    ]
}

SHARED: dict[str, Any] = {
    "service": {"name": "chat"},
    "objectives": [{"name": "availability", "sli": "availability", "target": "99.9%"}],
    "exporter": {"labels": {"cluster": "eu", "team": "search & shop"}},
    "alarms": {"match": '{namespace=~"llm-.*|chat", cluster="eu"}'},
}


def written(folder: Path, config: Config, rulebook: Rulebook) -> Path:
    for name, text in build_files(config, rulebook).items():
        (folder / name).write_text(text)
    return folder


def promtool(binary: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [binary, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=500
    )


@pytest.mark.parametrize(
    ("source", "settings", "version", "scale"),
    [
        ("sidecar", {}, None, "1"),
        ("sidecar", TAP, None, "1/60"),
        ("sidecar", {"objectives": SPECIAL["objectives"]}, None, "1"),
        ("sidecar", {"objectives": []}, None, "1"),
        ("vllm", {}, None, "1"),
        ("vllm", {}, "0.8.5", "1"),
        ("vllm", SPECIAL, "0.10.2", "1/7"),
        (
            "vllm",
            {"objectives": [{"name": "a", "sli": "availability", "target": 0.99}]},
            "0.4.3",
            "1",
        ),
    ],
)
def test_promtool_accepts_the_rules(
    part: Callable[[str], Path],
    tmp_path: Path,
    source: Source,
    settings: dict[str, Any],
    version: str | None,
    scale: str,
) -> None:
    binary = part("promtool")
    config, rulebook = book(source, settings, version, scale)
    written(tmp_path, config, rulebook)

    answer = promtool(binary, tmp_path, "check", "rules", "--lint-fatal", "rules.yaml")

    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("source", "settings", "version", "scale"),
    [
        ("sidecar", {}, None, "1"),
        ("vllm", {}, None, "1"),
        ("vllm", SHARED, None, "1/60"),
        ("sidecar", SPECIAL, None, "1/60"),
    ],
)
def test_every_alert_fires_when_it_should_and_not_else(
    part: Callable[[str], Path],
    tmp_path: Path,
    source: Source,
    settings: dict[str, Any],
    version: str | None,
    scale: str,
) -> None:
    binary = part("promtool")
    config, rulebook = book(source, settings, version, scale)
    written(tmp_path, config, rulebook)

    answer = promtool(binary, tmp_path, "test", "rules", "rules_test.yaml")

    assert answer.returncode == 0, answer.stdout + answer.stderr


def spoiled(
    groups: list[dict[str, Any]], alert: str, change: Callable[[dict[str, Any]], None]
) -> None:
    before = copy.deepcopy(groups)
    for group in groups:
        for rule in group["rules"]:
            if rule.get("alert") == alert:
                change(rule)
    assert groups != before, "nothing was spoiled"


@pytest.mark.parametrize(
    ("alert", "change", "seen_in"),
    [
        ("LLMModelVanished", lambda r: r.update(expr="vector(0) > 1"), "every replica dies"),
        (
            "LLMModelVanished",
            lambda r: r.update(expr=r["expr"].replace("1d", "1h")),
            "every replica",
        ),
        ("LLMEngineStalled", lambda r: r.update({"for": "10m"}), "LLMEngineStalled"),
        ("LLMSLOErrorBudgetBurn", lambda r: r.update({"for": "5h"}), "when each row fires"),
        (
            "LLMSLOErrorBudgetBurn",
            lambda r: r.update(expr=re.sub(r" > [\d.]+$", " > 0.5", r["expr"])),
            "one failed request",
        ),
        ("LLMTargetDown", lambda r: r.pop("for"), "a rolling restart"),
        ("LLMSLOBucketMissing", lambda r: r.update(expr="vector(0) > 1"), "adds a bucket"),
        ("LLMKVPreemptionThrash", lambda r: r["annotations"].update(command="true"), "Thrash"),
    ],
)
def test_the_unit_tests_notice_a_spoiled_rule(
    part: Callable[[str], Path],
    tmp_path: Path,
    alert: str,
    change: Callable[[dict[str, Any]], None],
    seen_in: str,
) -> None:
    binary = part("promtool")
    one = {"name": "ttft", "sli": "time_to_first_token", "threshold": "1s", "target": "99%"}
    config, rulebook = book("vllm", {"objectives": [one]})
    written(tmp_path, config, rulebook)
    rules = read_yaml((tmp_path / "rules.yaml").read_text())
    spoiled(rules["groups"], alert, change)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    tests = read_yaml((tmp_path / "rules_test.yaml").read_text())
    tests["tests"] = [test for test in tests["tests"] if seen_in in test["name"]]
    assert tests["tests"]
    (tmp_path / "rules_test.yaml").write_text(yaml.safe_dump(tests))

    answer = promtool(binary, tmp_path, "test", "rules", "rules_test.yaml")

    assert answer.returncode != 0


@pytest.mark.parametrize(
    ("source", "matcher"),
    [
        ("sidecar", 'service="chat",cluster="eu",team="search & shop"'),
        ("vllm", 'namespace=~"llm-.*|chat",cluster="eu"'),
    ],
)
def test_the_unit_tests_notice_a_rule_that_reads_everybodys_series(
    part: Callable[[str], Path], tmp_path: Path, source: Source, matcher: str
) -> None:
    binary = part("promtool")
    written(tmp_path, *book(source, SHARED))
    rules = (tmp_path / "rules.yaml").read_text()
    assert matcher in rules
    (tmp_path / "rules.yaml").write_text(re.sub(rf"{re.escape(matcher)}(, ?)?", "", rules))
    tests = read_yaml((tmp_path / "rules_test.yaml").read_text())
    tests["tests"] = [test for test in tests["tests"] if "two services" in test["name"]]
    assert len(tests["tests"]) == 2
    (tmp_path / "rules_test.yaml").write_text(yaml.safe_dump(tests))

    answer = promtool(binary, tmp_path, "test", "rules", "rules_test.yaml")

    assert answer.returncode != 0


def test_without_the_guard_a_deploy_of_a_new_bucket_pages_falsely(
    part: Callable[[str], Path], tmp_path: Path
) -> None:
    """The reason for the guard on series that have not had the bound for the whole window."""
    binary = part("promtool")
    one = {"name": "ttft", "sli": "time_to_first_token", "threshold": "1s", "target": "99%"}
    config, rulebook = book("vllm", {"objectives": [one]})
    written(tmp_path, config, rulebook)
    text = (tmp_path / "rules.yaml").read_text()
    unguarded = re.sub(
        r" and ignoring \(le\) \(sum without \(le\).*?\]\)\)(?=, \"model\")",
        "",
        text,
    )
    assert unguarded != text
    (tmp_path / "rules.yaml").write_text(unguarded)
    tests = read_yaml((tmp_path / "rules_test.yaml").read_text())
    tests["tests"] = [test for test in tests["tests"] if "adds a bucket" in test["name"]]
    (tmp_path / "rules_test.yaml").write_text(yaml.safe_dump(tests))

    answer = promtool(binary, tmp_path, "test", "rules", "rules_test.yaml")

    assert answer.returncode != 0
    assert "LLMSLOErrorBudgetBurn" in answer.stdout + answer.stderr


def test_the_unit_tests_take_any_models_name(part: Callable[[str], Path], tmp_path: Path) -> None:
    binary = part("promtool")
    objective = {"name": "a", "sli": "availability", "target": 0.99, "model": 'org\\ch"at'}
    written(tmp_path, *book("vllm", {"objectives": [objective]}))

    answer = promtool(binary, tmp_path, "test", "rules", "rules_test.yaml")

    assert answer.returncode == 0, answer.stdout + answer.stderr
