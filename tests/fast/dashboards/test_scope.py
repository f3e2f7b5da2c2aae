"""Boards read the series of their service alone, and names stand where names of series are made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from board_queries import queries_of, selectors_of, values_of
from cloudwatch_fleet import config

from vllm_opsctl import dashboards
from vllm_opsctl.alarms.prometheus.conventions import Scope, Source, named_series
from vllm_opsctl.alarms.vocabulary import Vocabulary
from vllm_opsctl.dashboards import build
from vllm_opsctl.dashboards.boards import fleet_board
from vllm_opsctl.dashboards.build import board_files, draw_boards
from vllm_opsctl.dashboards.grafana import Drawn, draw_fleet
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.identity import RESERVED_LABELS, Identity
from vllm_opsctl.exporter.sinks.prometheus import own_metrics

SOURCES: tuple[Source, ...] = ("sidecar", "vllm")
EU = {"exporter": {"labels": {"cluster": "eu", "env": "prod"}}}
US = {"exporter": {"labels": {"cluster": "us", "env": "dev"}}}
MATCH = {"alarms": {"match": '{namespace="llm"}'}}
CHOSEN = {"cluster": '=~"$cluster"', "env": '=~"$env"'}
RECORDED = re.compile(r"llm_slo(:[\w:]+|_info)|ALERTS")


def service_boards(one: Config, source: Source) -> list[Drawn]:
    return [drawn for drawn in draw_boards(one, source) if not drawn.of_all_services]


def unscoped(
    drawn: Drawn, source: Source, scope: dict[str, str], page: dict[str, str]
) -> list[str]:
    """
    Queries of a service's board that read what is not the service's.

    Args:
        drawn: The board.
        source: Where it reads.
        scope: Matchers of recordings, alerts and the sidecar's series.
        page: Matchers of the series on vLLM's own page.
    """
    found = []
    for where, query in queries_of(drawn.body):
        own = (
            {"service": scope["service"]}
            if where in ("variable cluster", "variable env")
            else scope
        )
        for name, matchers in selectors_of(query):
            wanted = own if RECORDED.fullmatch(name) or source == "sidecar" else page
            if not all(matcher in matchers.get(label, ()) for label, matcher in wanted.items()):
                found.append(f"{where}: {name}")
    return found


@pytest.mark.parametrize("source", SOURCES)
def test_every_selector_is_of_the_service_and_of_what_is_chosen(source: Source) -> None:
    for drawn in service_boards(config(**EU, **MATCH), source):
        scope = {"service": '="chat"', **CHOSEN}

        assert unscoped(drawn, source, scope, {"namespace": '="llm"'}) == []


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dropped", [{"identity": None}, {"chosen": ""}, {"match": ""}], ids=str)
def test_a_scope_that_is_dropped_is_seen(
    monkeypatch: pytest.MonkeyPatch, source: Source, dropped: dict[str, Any]
) -> None:
    whole: dict[str, Any] = {
        "identity": Identity("chat"),
        "match": 'namespace="llm"',
        "chosen": 'cluster=~"$cluster",env=~"$env"',
    }
    monkeypatch.setattr(build, "board_scope", lambda _: Scope(**{**whole, **dropped}))
    scope = {"service": '="chat"', **CHOSEN}
    wrong = [
        line
        for drawn in service_boards(config(**EU, **MATCH), source)
        for line in unscoped(drawn, source, scope, {"namespace": '="llm"'})
    ]

    assert bool(wrong) is not ("match" in dropped and source == "sidecar"), wrong


def test_series_without_the_label_are_read_when_that_is_set() -> None:
    alarms = {"alarms": {"read_unlabelled": True}}
    for drawn in service_boards(config(**alarms), "sidecar"):
        for _, query in queries_of(drawn.body):
            for name, matchers in selectors_of(query):
                recorded = RECORDED.fullmatch(name) is not None
                assert matchers["service"] == ['="chat"' if recorded else '=~"chat|"']


def test_the_board_of_all_services_reads_recordings_and_alerts_of_every_service() -> None:
    for where, query in queries_of(draw_fleet(fleet_board()).body):
        for name, matchers in selectors_of(query):
            assert RECORDED.fullmatch(name), where
            assert matchers.get("service", []) in ([], ['=~".+"'])


# -- one service in several clusters -------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_clusters_of_a_service_have_the_same_boards(source: Source) -> None:
    eu, us = (board_files(one, draw_boards(one, source)) for one in (config(**EU), config(**US)))

    assert eu == us
    assert "eu" not in re.findall(r"\w+", json.dumps([*eu.values()]))


def test_each_free_label_is_a_variable_with_the_values_that_rules_recorded() -> None:
    for drawn in service_boards(config(**EU), "sidecar"):
        names = [name for name, _, _ in values_of(drawn.body)]
        by_label = {label: series for _, series, label in values_of(drawn.body)}
        variables = {one["name"]: one for one in drawn.body["templating"]["list"]}

        assert names[:2] == ["cluster", "env"], "before what depends on them"
        for label in ("cluster", "env"):
            assert by_label[label] == 'llm_slo:objective:ratio{service="chat"}'
            assert (variables[label]["multi"], variables[label]["allValue"]) == (True, ".*")
            assert variables[label]["current"]["value"] == ["$__all"]


def test_lines_of_two_clusters_are_told_apart() -> None:
    boards = {one.body["title"]: one for one in service_boards(config(**EU), "sidecar")}
    for where, query in queries_of(boards["chat / Incident"].body):
        if "{{target}}" in where or "{{objective}}" in where:
            assert "{{cluster}} {{env}}" in where
            assert "by (" not in query or re.search(r"by \([^)]*cluster, env[,)]", query), query


def test_no_free_label_takes_the_name_of_another_variable() -> None:
    names = {
        variable["name"]
        for source in SOURCES
        for drawn in draw_boards(config(), source)
        for variable in drawn.body["templating"]["list"]
    }

    assert names <= RESERVED_LABELS


def test_what_no_configuration_names_can_be_filtered() -> None:
    for drawn in draw_boards(config(**EU), "sidecar"):
        (one,) = (v for v in drawn.body["templating"]["list"] if v["type"] == "adhoc")
        assert one["name"] == "filter"
        assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


# -- all services --------------------------------------------------------------------------------------


def test_the_board_of_all_services_is_the_same_from_every_configuration() -> None:
    configs = [
        Config(),
        config(alarms={"runbook_url": "https://runbooks.example.com", "match": '{a="b"}'}),
        config(**EU, objectives=[], service={"name": "code"}),
    ]
    fleets = {
        text
        for one in configs
        for source in SOURCES
        for name, text in board_files(one, draw_boards(one, source)).items()
        if name.startswith("fleet/opsctl-fleet")
    }

    assert len(fleets) == 1


# -- where names stand ---------------------------------------------------------------------------------


def sources() -> Iterator[Path]:
    folder = Path(dashboards.__file__).parent
    yield from (path for path in folder.glob("*.py") if path.name != "cloudwatch.py")
    yield from (folder / "boards").glob("*.yaml")


SPELLED = re.compile(
    "|".join((r"llm_slo", r"\bALERTS\b", r"\bLLM[A-Z]\w+", r"\bservice=~?\\?[\"']", *own_metrics()))
)


@pytest.mark.parametrize("path", [*sources()], ids=lambda path: path.name)
def test_names_and_matchers_are_spelled_by_the_conventions_alone(path: Path) -> None:
    assert SPELLED.findall(path.read_text(encoding="utf-8")) == []


def test_a_name_that_is_spelled_is_seen() -> None:
    for text in ("llm_slo:bad:rate5m", "ALERTS{", "LLMWatchdog", 'service="x"', "opsctl_target_up"):
        assert SPELLED.search(text), text


@pytest.mark.parametrize(
    "name", ["kv_cache_capacity", "lora_adapters_running", "engine_info", "target_up"]
)
def test_placeholders_of_the_sidecars_series_are_on_its_page(name: str) -> None:
    series = named_series(name, "", Scope(), "sidecar")

    assert series in own_metrics()
    with pytest.raises(KeyError):
        Vocabulary("sidecar").selector(name)
