"""The boards as Grafana gets them: what its own models keep, what Prometheus can parse, and house rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
from board_queries import queries_of, selectors_of
from cloudwatch_fleet import config
from example_alarms import STARTER
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from vllm_opsctl.alarms.resource_names import board_prefix, board_uid
from vllm_opsctl.dashboards.build import draw_boards
from vllm_opsctl.dashboards.grafana import SCHEMA_VERSION, Drawn, panels_of
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.config_load import load_config

CONFIGS = {
    "defaults": Config(),
    "two objectives": config(alarms={"runbook_url": "https://runbooks.example.com"}),
    "none": config(objectives=[]),
    "free labels": config(
        exporter={"labels": {"cluster": "eu", "env": "prod"}},
        alarms={"match": '{namespace="llm"}', "read_unlabelled": True},
    ),
}
BOARDS: dict[str, Drawn] = {
    f"{name}, {drawn.uid}, from {source}": drawn
    for name, one in CONFIGS.items()
    for source in ("sidecar", "vllm")
    for drawn in draw_boards(one, source)
}


@pytest.fixture(params=[*BOARDS.values()], ids=[*BOARDS])
def body(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param.body
    return found


def panels(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [*panels_of(body)]


def queries(body: dict[str, Any]) -> Iterator[str]:
    for panel in panels(body):
        yield from (target["expr"] for target in panel["targets"])


def annotated(body: dict[str, Any]) -> dict[str, str]:
    """Those that ask Prometheus, with their queries."""
    return {one["name"]: one["expr"] for one in body["annotations"]["list"] if "expr" in one}


def as_promql(query: str) -> str:
    """With Grafana's variables filled in."""
    return query.replace("$__rate_interval", "1m").replace("$__range", "1h")


def dropped(mine: Any, theirs: Any, path: str) -> Iterator[str]:
    """Keys and values that Grafana's models lose."""
    if isinstance(mine, dict):
        for key, value in mine.items():
            if key not in theirs:
                if value not in (None, [], {}, ""):
                    yield f"{path}.{key}"
            else:
                yield from dropped(value, theirs[key], f"{path}.{key}")
    elif isinstance(mine, list):
        if len(mine) != len(theirs):
            yield path
        for index, (one, other) in enumerate(zip(mine, theirs, strict=False)):
            yield from dropped(one, other, f"{path}[{index}]")
    elif mine is not None and mine != theirs:
        yield path


def test_grafanas_own_models_lose_nothing_of_it(body: dict[str, Any]) -> None:
    plugins.register_default_plugins()
    typed = Dashboard.from_json(json.loads(json.dumps(body)))
    again = json.loads(JSONEncoder().encode(typed))

    assert list(dropped(body, again, "$")) == []


def test_what_is_told_lost_is_lost() -> None:
    """The round trip can fail."""
    assert list(dropped({"a": 1, "old": 2, "list": [1, 2]}, {"a": 3, "list": [1]}, "$")) == [
        "$.a",
        "$.old",
        "$.list",
    ]


def test_every_query_is_promql(body: dict[str, Any]) -> None:
    for query in (*queries(body), *annotated(body).values()):
        promql_parser.parse(as_promql(query))


def test_no_query_reads_all_series(body: dict[str, Any]) -> None:
    """Of metrics a job is chosen; alerts are ours."""
    for where, query in queries_of(body):
        for name, matchers in selectors_of(query):
            if name == "ALERTS":
                assert '=~"LLM.*"' in matchers["alertname"], where
            elif not name.startswith("llm_slo") and where != "variable job":
                assert "job" in matchers, where


def test_rates_take_grafanas_window_and_quantiles_keep_le(body: dict[str, Any]) -> None:
    """A forecast has a window of its own, a sum that of the board."""
    for query in queries(body):
        for function, window in re.findall(r"(\w+)\((?:[^()\[]|\{[^}]*\})*\[([^\]]+)\]", query):
            own = {"predict_linear": "15m", "sum_over_time": "$__range"}
            assert window == own.get(function, "$__rate_interval"), query
        assert query.count("[") == len(re.findall(r"\w+\((?:[^()\[]|\{[^}]*\})*\[", query)), query
        if "histogram_quantile" in query:
            assert re.search(r"sum by \([\w, ]+, le\)", query)


def divisors(query: str) -> Iterator[str]:
    """What a query divides by, up to the end of its operand."""
    for match in re.finditer(r" / ", query):
        depth, end = 0, match.end()
        while end < len(query) and (depth or query[end] not in " ),"):
            depth += {"(": 1, ")": -1}.get(query[end], 0)
            end += 1
        yield query[match.end() : end]


def test_divisions_by_what_may_be_nothing_are_guarded(body: dict[str, Any]) -> None:
    for query in queries(body):
        for divisor in divisors(query):
            # a budget is never nothing, and a count of nothing is no series
            harmless = re.fullmatch(r"[\d.]+|ignoring|count\(.*\)", divisor)
            assert harmless or divisor.endswith("> 0)"), query


def test_a_guard_that_is_missing_is_seen() -> None:
    assert [*divisors("sum(a) / sum(b) + c / (d > 0)")] == ["sum(b)", "(d > 0)"]


def test_every_panel_says_what_it_is(body: dict[str, Any]) -> None:
    for panel in panels(body):
        assert panel["title"]
        good, otherwise = panel["description"].split("\n\n")
        assert re.fullmatch(r"Good: .+\.", good), panel["description"]
        assert re.fullmatch(r"Otherwise: .{20,}\.", otherwise), panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        shown = panel["fieldConfig"]["defaults"] | panel["options"].get("yAxis", {})
        is_alarms = panel["targets"][0]["expr"].endswith("})") and "ALERTS{" in str(
            panel["targets"]
        )
        assert shown.get("unit") or is_alarms


def test_legends_of_a_panel_differ_and_tell_what_they_are_of(body: dict[str, Any]) -> None:
    of_everything = {
        *("Replicas read, a minute", "Objectives", "Promises broken", "Burning now"),
        "Models measured",
    }
    for panel in panels(body):
        labels = [target["legendFormat"] for target in panel["targets"]]
        assert len({*labels}) == len(labels)
        if panel["title"] not in of_everything:
            assert all("{{" in label for label in labels), labels


def test_what_happened_is_annotated(body: dict[str, Any]) -> None:
    names = [one["name"] for one in body["annotations"]["list"]]
    of_a_service = ["Restarts", "New version or settings"] if body["uid"] != "opsctl-fleet" else []

    assert names == ["Alerts", *of_a_service, "Verdicts"]


def test_titles_of_a_board_differ(body: dict[str, Any]) -> None:
    titles = [panel["title"] for panel in panels(body)]

    assert len({*titles}) == len(titles)


def test_ids_are_unique_and_the_schema_is_what_grafana_10_4_reads(body: dict[str, Any]) -> None:
    below = [one for row in body["panels"] for one in row.get("panels", ())]
    ids = [panel["id"] for panel in (*body["panels"], *below)]

    assert len({*ids}) == len(ids)
    assert body["schemaVersion"] == SCHEMA_VERSION == 39


def test_variables_come_one_from_the_other(body: dict[str, Any]) -> None:
    by_name = {one["name"]: one for one in body["templating"]["list"]}
    names = [name for name in by_name if name not in ("objective", "cluster", "env")]

    assert ("objective" in by_name) == body["uid"].endswith("incident")
    if body["uid"] == "opsctl-fleet":
        assert names == ["datasource", "filter"]
        return
    assert names == ["datasource", "job", "model", "target", "filter"]
    assert 'job=~"$job"' in by_name["model"]["query"]["query"]
    assert '=~"$model"' in by_name["target"]["query"]["query"]


def test_what_the_source_cannot_tell_is_left_out_and_told() -> None:
    boards = draw_boards(config(), "vllm")
    told = [line for drawn in boards for line in drawn.left_out]
    there = {panel["title"] for drawn in boards for panel in panels(drawn.body)}

    assert all("is the tap's alone" in line for line in told)
    assert "chat / Objectives, Clients that gave up, gave up" in [
        one.partition(":")[0] for one in told
    ]
    assert not {"Clients that gave up", "Running, by adapter", "Adapters running"} & there


def test_pages_lead_to_the_incident_board_with_its_variables_set() -> None:
    """What alarms append to alarms.dashboard_url are variables that the board has."""
    boards = {drawn.uid: drawn.body for drawn in draw_boards(config(), "sidecar")}
    names = {one["name"] for one in boards["opsctl-chat-incident"]["templating"]["list"]}

    assert {"objective", "model", "target"} <= names
    (link,) = re.findall(r"dashboard_url: \S+/d/(\S+)", STARTER.read_text())
    assert link in {drawn.uid for drawn in draw_boards(load_config(STARTER, {}).config, "sidecar")}


def test_limits_are_lines_and_panels_link_to_runbooks() -> None:
    drawn, *_ = draw_boards(CONFIGS["two objectives"], "sidecar")
    by_title = {panel["title"]: panel for panel in panels(drawn.body)}

    steps = by_title["TTFT"]["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [step["value"] for step in steps] == [None, 1.0]
    links = [link["url"] for link in by_title["Preemptions"]["links"]]
    assert links == ["https://runbooks.example.com/kv-preemption-thrash"]
    for board in draw_boards(CONFIGS["two objectives"], "sidecar"):
        # the board of all services is the same whatever is configured
        linked = not board.of_all_services
        assert all(bool(panel["links"]) is linked for panel in panels(board.body))


# -- ways between boards ---------------------------------------------------------------------------


def test_a_service_s_boards_list_their_own_and_lead_to_all_services(body: dict[str, Any]) -> None:
    of_a_service = body["uid"] != "opsctl-fleet"
    boards, *others = body["links"]

    assert (boards["type"], boards["tags"]) == ("dashboards", body["tags"])
    assert len(body["tags"]) == 1 + of_a_service, "a list shows boards that have all of its tags"
    assert [(one["type"], one["url"], one["keepTime"]) for one in others] == (
        [("link", "/d/opsctl-fleet", True)] if of_a_service else []
    )


def test_a_row_of_all_services_leads_to_its_service_s_board_in_the_same_data_source() -> None:
    *_, fleet = draw_boards(config(), "sidecar")
    (table,) = (panel for panel in panels(fleet.body) if panel["type"] == "table")
    by_column = {
        one["matcher"]["options"]: one["properties"] for one in table["fieldConfig"]["overrides"]
    }
    ((property_of_objective,), (property_of_board,)) = (
        by_column[name] for name in ("objective", "board")
    )
    (link,) = property_of_objective["value"]

    assert link["url"] == (
        "/d/${__data.fields.board}-incident?var-datasource=${datasource}"
        "&var-objective=${__data.fields.objective:percentencode}"
        "&var-model=${__data.fields.model:percentencode}&${__url_time_range}"
    )
    # what is excluded from a frame cannot be in a link, so the column is hidden
    assert property_of_board == {"id": "custom.hidden", "value": True}
    (organize,) = (one for one in table["transformations"] if one["id"] == "organize")
    assert "board" not in organize["options"]["excludeByName"]
    uid = board_uid("chat", "incident")
    assert uid == f"{board_prefix('chat')}-incident"
    assert '"board", "opsctl-$1", "service"' in table["targets"][0]["expr"], "as plain names are"
