"""Rules survive what happens to series: HA pairs, replaced pods, global views, an upgrade from 0.1."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from rule_books import book

from vllm_opsctl.alarms.build import build_files
from vllm_opsctl.alarms.fleet import HEALTHY, REPLICAS, Phase, series_of
from vllm_opsctl.alarms.made_up import own_service
from vllm_opsctl.alarms.prometheus.conventions import Source
from vllm_opsctl.alarms.rule_tests import unit_tests
from vllm_opsctl.alarms.rules import Rulebook
from vllm_opsctl.exporter.series import labels_text

SETTINGS: dict[str, Any] = {
    "service": {"name": "chat"},
    "objectives": [
        {"name": "availability", "sli": "availability", "target": "99.9%"},
        {"name": "ttft", "sli": "time_to_first_token", "threshold": "1s", "target": "95%"},
    ],
}
BUSY = HEALTHY.changed({"requests_waiting": 90, "preemptions": 30, "kv_cache_usage_ratio": 0.99})

InputSeries = list[dict[str, str]]

ONE = {"labels": "{}", "value": 1}


@dataclass(frozen=True)
class Promtool:
    """Evaluates rules on series."""

    binary: Path
    folder: Path

    def run(self, books: Sequence[Rulebook], tests: Sequence[Mapping[str, Any]]) -> str:
        """What fails, as promtool says it; empty when nothing does."""
        names = []
        for number, rulebook in enumerate(books):
            files = build_files(rulebook.links.config, rulebook)
            names.append(f"rules-{number}.yaml")
            (self.folder / names[-1]).write_text(files["rules.yaml"])
        body = {
            "rule_files": names,
            "evaluation_interval": "1m",
            "group_eval_order": [group["name"] for one in books for group in one.groups],
            "tests": list(tests),
        }
        (self.folder / "test.yaml").write_text(yaml.safe_dump(body))
        ran = subprocess.run(
            [self.binary, "test", "rules", "test.yaml"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        return "" if ran.returncode == 0 else ran.stdout + ran.stderr


@pytest.fixture
def promtool(part: Callable[[str], Path], tmp_path: Path) -> Promtool:
    return Promtool(part("promtool"), tmp_path)


def one_test(
    series: InputSeries, checks: Mapping[str, float | None], minute: int
) -> dict[str, Any]:
    """A test of promtool's: what expressions give at a minute; None for nothing."""
    return {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            {
                "expr": expr,
                "eval_time": f"{minute}m",
                "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
            }
            for expr, value in checks.items()
        ],
    }


def labelled(series: InputSeries, **labels: str) -> InputSeries:
    """Series with more labels."""
    more = ",".join(f'{name}="{value}"' for name, value in labels.items())

    def one(name: str) -> str:
        return f"{name[:-1]},{more}}}" if name.endswith("}") else f"{name}{{{more}}}"

    return [{**entry, "series": one(entry["series"])} for entry in series]


def fleet(rulebook: Rulebook, *course: Phase, **labels: str) -> InputSeries:
    """Two replicas that do the same."""
    service = own_service(rulebook)
    assert service is not None
    return series_of(
        {replica: course for replica in REPLICAS},
        rulebook.names,
        rulebook.indicators,
        labels={**service.labels, **labels},
    )


def firing(**labels: str) -> str:
    matchers = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f'count(count by (alertname, window) (ALERTS{{alertstate="firing",{matchers}}}))'


@pytest.mark.parametrize("source", ["sidecar", "vllm"])
def test_both_halves_of_an_ha_pair_under_one_ruler(promtool: Promtool, source: Source) -> None:
    """Every series comes twice, and every test of the rules has the same outcome."""
    _, rulebook = book(source, SETTINGS)
    own = own_service(rulebook)
    assert own is not None
    tests: list[dict[str, Any]] = unit_tests(own, None)["tests"]
    chosen = [
        {**one, "input_series": [s for r in "AB" for s in labelled(one["input_series"], replica=r)]}
        for one in tests
        if one["name"].startswith(("silent: busy", "silent: no", "everything fails: when"))
    ]

    assert len(chosen) == 3
    assert promtool.run([rulebook], chosen) == ""


@pytest.mark.parametrize("source", ["sidecar", "vllm"])
def test_causes_that_compare_series_survive_an_ha_pair(promtool: Promtool, source: Source) -> None:
    _, rulebook = book(source, SETTINGS)
    course = fleet(rulebook, Phase(40, BUSY))
    pair = [series for half in "AB" for series in labelled(course, replica=half)]
    checks = {firing(alertname=name): 1.0 for name in ("LLMKVPreemptionThrash",)}

    assert promtool.run([rulebook], [one_test(pair, checks, 39)]) == ""


def test_a_deploy_that_keeps_the_instance(promtool: Promtool) -> None:
    """The old pod's series are in every window still; the new pod fails, and that pages within the hour."""
    _, rulebook = book("vllm", SETTINGS)
    gone, back = 60, 62
    bad = BUSY.changed({"bad_share": 1.0})
    old = fleet(rulebook, Phase(gone, BUSY), pod="chat-a")
    new = fleet(rulebook, Phase(180, bad), pod="chat-b")
    late = [{**one, "values": f"_x{back} {one['values']}"} for one in new]
    ended = [{**one, "values": f"{one['values']} stale"} for one in old]
    ratio = 'llm_slo:error:ratio_rate5m{service="chat",objective="ttft"}'
    checks = {
        firing(alertname="LLMSLOErrorBudgetBurn", objective="ttft", window="1h"): 1.0,
        firing(alertname="LLMSLOErrorBudgetBurn", objective="availability", window="1h"): 1.0,
        f"count({ratio} == 1)": 1.0,
    }

    assert promtool.run([rulebook], [one_test([*ended, *late], checks, back + 50)]) == ""


@pytest.mark.parametrize("source", ["sidecar", "vllm"])
def test_two_clusters_with_the_same_addresses_in_one_global_view(
    promtool: Promtool, source: Source
) -> None:
    """Pod addresses overlap; each cluster's rules see their own series, and one alone pages."""
    books = [
        book(
            source,
            {
                **SETTINGS,
                "exporter": {"labels": {"cluster": cluster}},
                "alarms": {"match": f'{{cluster="{cluster}"}}'},
            },
        )[1]
        for cluster in ("eu", "us")
    ]
    fails = fleet(books[0], Phase(30, HEALTHY), Phase(60, HEALTHY.changed({"bad_share": 1.0})))
    serves = fleet(books[1], Phase(90, HEALTHY))
    other = 'ALERTS{alertstate="firing",cluster="us",alertname!="LLMWatchdog"}'
    checks = {
        firing(
            alertname="LLMSLOErrorBudgetBurn", cluster="eu", notify="page", objective="ttft"
        ): 3.0,
        f"count(count_over_time({other}[89m]))": None,
        'count(llm_slo:error:ratio_rate5m{cluster="us"} == 0)': 2.0,
    }

    assert promtool.run(books, [one_test([*fails, *serves], checks, 89)]) == ""


# -- the upgrade from 0.1 --------------------------------------------------------------------------

BAD_THEN = 0.05


def recorded_by_0_1(days: int) -> InputSeries:
    """Two events a second, of which some were bad, as the rules of 0.1 recorded them."""
    where = '{objective="availability",service="chat",model="org/chat-8b"}'
    minutes = days * 1440
    return [
        {"series": f"llm_slo:total:rate5m{where}", "values": f"2x{minutes}"},
        {"series": f"llm_slo:bad:rate5m{where}", "values": f"{2 * BAD_THEN:g}x{minutes}"},
    ]


@pytest.mark.parametrize(
    "labels", [{}, {"cluster": "eu", "environment": "prod"}], ids=["as it was", "labels were added"]
)
def test_what_0_1_recorded_counts_in_the_budget(promtool: Promtool, labels: dict[str, str]) -> None:
    """The 30 days of a budget go on; only one evaluation is needed, so the past is long and coarse."""
    objective = {"name": "availability", "sli": "availability", "target": "90%"}
    settings = {
        "service": {"name": "chat"},
        "objectives": [objective],
        "exporter": {"labels": labels},
    }
    _, rulebook = book("sidecar", settings)
    kept = [group for group in rulebook.groups if "slo-period" in group["name"]]
    period = Rulebook(
        kept, rulebook.alerts, rulebook.indicators, [], rulebook.names, rulebook.links
    )
    left = 'llm_slo:error_budget_remaining:ratio{service="chat",objective="availability"}'
    days = 2
    checks = {f"round(max by () ({left}), 0.001)": 0.5}
    test = one_test(recorded_by_0_1(days), checks, days * 1440 - 1)

    assert promtool.run([period], [test]) == ""


def test_every_rule_survives_the_upgrade_of_the_sidecars(promtool: Promtool) -> None:
    """For a while each window has the same series with and without the labels that the upgrade brought."""
    labels = {"exporter": {"labels": {"cluster": "eu"}}, "alarms": {"read_unlabelled": True}}
    _, rulebook = book("sidecar", {**SETTINGS, **labels})
    everything = BUSY.changed(
        {
            "corrupted": 2,
            "transfer_failures": 3,
            "acceptance": 0.1,
            "rejections": 20,
            "bad_share": 0.5,
        }
    )
    switch = 61
    new = fleet(rulebook, Phase(60, everything))
    own = labels_text({"service": "chat", "cluster": "eu"})
    old = [
        {
            "series": one["series"].replace(own, "").replace("{,", "{"),
            "values": f"{one['values']} stale",
        }
        for one in new
    ]
    late = [{**one, "values": f"_x{switch} {one['values']}"} for one in new]
    burning = firing(alertname="LLMSLOErrorBudgetBurn", window="1h", objective="availability")
    thrash = firing(alertname="LLMKVPreemptionThrash")
    twice = 'count(ALERTS{alertstate="firing",alertname="LLMKVPreemptionThrash"})'
    checks = [
        one_test([*old, *late], {burning: 1.0, thrash: 1.0, twice: 2.0}, minute)
        for minute in (switch - 2, switch + 3, switch + 20)
    ]

    assert promtool.run([rulebook], checks) == ""


@pytest.mark.parametrize(
    ("source", "label"),
    [("sidecar", "role"), ("sidecar", "replica"), ("vllm", "service"), ("vllm", "cluster")],
)
def test_no_rule_fails_when_series_come_twice(
    promtool: Promtool, source: Source, label: str
) -> None:
    """Whatever they differ in, also a label that the rule itself sets."""
    _, rulebook = book(source, {**SETTINGS, "exporter": {"labels": {"cluster": "eu"}}})
    own = own_service(rulebook)
    assert own is not None
    tests = [
        one_test(
            [s for half in "AB" for s in labelled(one["input_series"], **{label: half})], {}, 1
        )
        | {"promql_expr_test": [{"expr": "vector(1)", "eval_time": "60m", "exp_samples": [ONE]}]}
        for one in unit_tests(own, None)["tests"]
        if one["name"].startswith("LLM")
    ]

    assert promtool.run([rulebook], tests) == ""


def test_sidecars_of_0_1_are_read_where_the_configuration_says_so(promtool: Promtool) -> None:
    """Their counters carry no service: unread they are nobody's, and read they burn this service's budget."""
    where = 'job="s",instance="i",target="chat-0",model="org/chat-8b",objective="availability"'
    old = [
        {"series": f'vllm_sli_events_total{{{where},outcome="good"}}', "values": "0+60x60"},
        {"series": f'vllm_sli_events_total{{{where},outcome="bad"}}', "values": "0+60x60"},
    ]
    _, strict = book("sidecar", SETTINGS)
    _, lenient = book("sidecar", {**SETTINGS, "alarms": {"read_unlabelled": True}})
    page = firing(alertname="LLMSLOErrorBudgetBurn", notify="page", service="chat")

    assert promtool.run([strict], [one_test(old, {page: None}, 60)]) == ""
    assert promtool.run([lenient], [one_test(old, {page: 3.0}, 60)]) == ""
