"""The boards as Grafana gets them: what its own models keep, what Prometheus can parse, and house rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from cloudwatch_fleet import config
from commands import Opsctl
from example_alarms import EXAMPLE, STARTER
from example_boards import GENERATED, kept
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from vllm_opsctl.dashboards.build import board_files, draw_boards
from vllm_opsctl.dashboards.grafana import SCHEMA_VERSION, Drawn, panels_of
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.config_load import load_config

CONFIGS = {
    "defaults": Config(),
    "two objectives": config(alarms={"runbook_url": "https://runbooks.example.com"}),
    "none": config(objectives=[]),
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
    """Of metrics a job is chosen; alerts are ours, and of one service, as recordings, but for the fleet's."""
    of_one_service = body["uid"] != "opsctl-fleet"
    for query in (*queries(body), *annotated(body).values()):
        for name, matchers in re.findall(r"([A-Za-z][\w:]+)(\{[^}]*\})", query):
            if name == "ALERTS":
                assert 'alertname=~"LLM' in matchers, query
            if not name.startswith("llm_slo:") and name != "ALERTS":
                assert "job=~" in matchers, query
            elif of_one_service:
                assert re.search(r'service="\w+"', matchers), query
        bare = re.findall(r"\b(?:vllm[:_]|opsctl_|http_|process_)\w+(?!\w*[{\w])", query)
        assert not bare, query


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
            harmless = re.fullmatch(r"[\d.]+|on|count\(.*\)", divisor)
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
    names = [name for name in by_name if name != "objective"]

    assert ("objective" in by_name) == body["uid"].endswith("incident")
    if body["uid"] == "opsctl-fleet":
        assert names == ["datasource"]
        return
    assert names == ["datasource", "job", "model", "target"]
    assert 'job=~"$job"' in by_name["model"]["query"]["query"]
    assert '=~"$model"' in by_name["target"]["query"]["query"]


def test_what_the_source_cannot_tell_is_left_out_and_told() -> None:
    boards = draw_boards(config(), "vllm")
    told = [line for drawn in boards for line in drawn.left_out]
    there = {panel["title"] for drawn in boards for panel in panels(drawn.body)}

    assert all("is the tap's alone" in line for line in told)
    assert "chat: objectives, Clients that gave up, gave up" in [
        one.partition(":")[0] + ":" + one.split(":")[1] for one in told
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
        assert all(panel["links"] for panel in panels(board.body))


# -- files -----------------------------------------------------------------------------------------


def test_the_committed_boards_are_up_to_date(opsctl: Opsctl, tmp_path: Path) -> None:
    command = ("dashboards", "build", "--out", str(tmp_path))
    answer = opsctl.run("--config", str(STARTER), *command, env=EXAMPLE)

    assert answer.returncode == 0, answer.stderr
    assert kept(GENERATED) == kept(tmp_path), "run make dashboards"


def test_config_maps_carry_the_label_that_grafanas_loader_looks_for() -> None:
    files = board_files(config(), draw_boards(config(), "sidecar"))
    maps = found, *others = [*yaml.safe_load_all(files["configmaps.yaml"])]

    assert len(others) + 3 == len(files)
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    # kubectl apply keeps the whole of each in an annotation of at most 256 KiB
    assert all(len(json.dumps(one)) < 256 * 1024 for one in maps)
    assert json.loads(found["data"]["opsctl-chat-slo.json"])["uid"] == "opsctl-chat-slo"


def test_a_build_is_repeated_without_a_change_and_checked(opsctl: Opsctl, tmp_path: Path) -> None:
    def build(*options: str) -> tuple[int, str]:
        link = {"OPSCTL_ALARMS__RUNBOOK_URL": "https://runbooks.example.com"}
        ran = opsctl.run("dashboards", "build", "--out", "out", *options, env=link, cwd=tmp_path)
        return ran.returncode, ran.stdout + ran.stderr

    assert "9 files, 9 changed" in build()[1]
    assert "9 files, 0 changed" in build()[1]
    (tmp_path / "out" / "provisioning.yaml").write_text("# written by opsctl dashboards build\n")
    assert build("--check") == (1, "out: not up to date: provisioning.yaml\n")


def test_without_runbooks_panels_link_nowhere_and_that_is_told(
    opsctl: Opsctl, tmp_path: Path
) -> None:
    ran = opsctl.run("dashboards", "build", "--out", "out", cwd=tmp_path)

    assert ran.returncode == 0
    assert "Note: alarms.runbook_url is not set: no panel links" in ran.stderr


@pytest.mark.parametrize("name", ["opsctl-vllm-slo.json", "configmaps.yaml"])
def test_somebody_elses_file_is_left_alone(opsctl: Opsctl, tmp_path: Path, name: str) -> None:
    theirs = tmp_path / name
    theirs.write_text('{"uid": "mine"}\n')
    ran = opsctl.run("dashboards", "build", "--out", str(tmp_path))

    assert ran.returncode == 64
    assert f"{theirs}: not written by opsctl" in ran.stderr
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert theirs.read_text() == '{"uid": "mine"}\n'
