"""A real Prometheus reads CloudWatch's PromQL alarms, and they burn as its own rules do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml
from promql_alarms import QUERIES


def test_prometheus_can_read_them(part: Callable[[str], Path], tmp_path: Path) -> None:
    rules = [
        {"record": f"test:{index}", "expr": query} for index, query in enumerate(QUERIES.values())
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    ran = subprocess.run(
        [part("promtool"), "check", "rules", path], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr
    assert f"{len(QUERIES)} rules found" in ran.stdout


def events(bad_each_minute: str, good_each_minute: str = "0+10x4400") -> list[dict[str, str]]:
    name = 'vllm_sli_events{model="tiny", objective="availability", outcome='
    return [
        {"series": f'{name}"good"}}', "values": good_each_minute},
        {"series": f'{name}"bad"}}', "values": bad_each_minute},
    ]


def ask(
    binary: Path,
    folder: Path,
    series: list[dict[str, str]],
    expected: Mapping[tuple[str, str], bool],
) -> str:
    """What promtool has to say against whether an alarm's query returns the model at a time."""
    tests = [
        {
            "expr": f"count(({QUERIES[name]})) or vector(0)",
            "eval_time": at,
            "exp_samples": [{"labels": "{}", "value": int(returned)}],
        }
        for (name, at), returned in expected.items()
    ]
    whole = {
        "rule_files": [],
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(whole))
    ran = subprocess.run(
        [binary, "test", "rules", folder / "test.yaml"], capture_output=True, text=True, check=False
    )
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


PAGE, TICKET = (f"LLMSLOErrorBudgetBurn {way}/chat/availability" for way in ("page", "ticket"))


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ("0+0x4400", {(PAGE, "3h"): False, (TICKET, "73h"): False}),
        # 9 %: far above 14.4 times 0.1 %; whoever is paged gets no ticket
        ("0+1x4400", {(PAGE, "1h10m"): True, (PAGE, "25h"): True, (TICKET, "25h"): False}),
        # one in 250 is 4 times too fast: not for a page, but for a ticket after a day
        ("0+0.04x4400", {(PAGE, "25h"): False, (TICKET, "25h"): True}),
        # repaired after an hour and a half: the short windows end it
        ("0+1x90 90+0x4400", {(PAGE, "1h20m"): True, (PAGE, "2h30m"): False}),
    ],
    ids=("healthy", "fast", "slow", "repaired"),
)
def test_objectives_burn_in_them_as_in_the_rules(
    bad: str, expected: Mapping[tuple[str, str], bool], part: Callable[[str], Path], tmp_path: Path
) -> None:
    said = ask(part("promtool"), tmp_path, events(bad), expected)
    assert not said, said
