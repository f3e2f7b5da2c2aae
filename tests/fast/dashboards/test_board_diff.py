"""What a hand changes on a board is told in words; what Grafana adds by itself is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
from cloudwatch_fleet import config
from fake_grafana import add_defaults
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from vllm_opsctl.dashboards.board_diff import Difference, differences
from vllm_opsctl.dashboards.build import draw_boards

BOARDS = {one.uid: one.body for one in draw_boards(config(), "sidecar")}
Body = dict[str, Any]

SMALL: Body = {
    "uid": "b",
    "title": "Board",
    "schemaVersion": 39,
    "refresh": "30s",
    "tags": ["opsctl"],
    "annotations": {"list": []},
    "templating": {
        "list": [
            {"name": "model", "query": {"query": "label_values(up, model)"}, "current": {}},
        ]
    },
    "links": [{"title": "Boards", "url": "", "targetBlank": False}],
    "panels": [
        {"type": "row", "id": 1, "title": "Load", "collapsed": False, "panels": []},
        {
            "type": "timeseries",
            "id": 2,
            "title": "TTFT",
            "gridPos": {"h": 8, "w": 12, "x": 0, "y": 1},
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "links": [{"title": "Runbook", "url": "https://r/ttft"}],
            "options": {"legend": {"showLegend": True}},
            "fieldConfig": {
                "defaults": {
                    "unit": "s",
                    "custom": {"spanNulls": False, "drawStyle": "line"},
                    "thresholds": {
                        "mode": "absolute",
                        "steps": [{"color": "green", "value": None}, {"color": "red", "value": 2}],
                    },
                },
                "overrides": [
                    {
                        "matcher": {"id": "byName", "options": "p99"},
                        "properties": [{"id": "color", "value": {"mode": "fixed"}}],
                    }
                ],
            },
            "targets": [
                {"refId": "A", "expr": "ttft", "legendFormat": "p99", "hide": False},
                {"refId": "B", "expr": "itl", "legendFormat": "p50", "hide": False},
            ],
        },
    ],
}


def told(change: Callable[[Body], object], board: Body = SMALL) -> list[Difference]:
    """What is said of a board that somebody changed so."""
    now = copy.deepcopy(board)
    change(now)
    return differences(now, board)


def ttft(body: Body) -> Body:
    found: Body = body["panels"][1]
    return found


def defaults(body: Body) -> Body:
    found: Body = ttft(body)["fieldConfig"]["defaults"]
    return found


@pytest.mark.parametrize("uid", BOARDS)
def test_a_board_does_not_differ_from_itself(uid: str) -> None:
    assert differences(copy.deepcopy(BOARDS[uid]), BOARDS[uid]) == []


@pytest.mark.parametrize("uid", BOARDS)
def test_what_grafana_adds_is_no_difference(uid: str) -> None:
    now = copy.deepcopy(BOARDS[uid])
    now |= {"id": 7, "version": 3}
    add_defaults(now)

    assert differences(now, BOARDS[uid]) == []


@pytest.mark.parametrize("uid", BOARDS)
def test_what_grafanas_own_models_fill_in_is_no_difference(uid: str) -> None:
    plugins.register_default_plugins()
    typed = Dashboard.from_json(json.loads(json.dumps(BOARDS[uid])))
    filled_in = json.loads(JSONEncoder().encode(typed))

    # the models have one value for it only, and no way to say none
    assert [
        one for one in differences(filled_in, BOARDS[uid]) if not one.path.endswith("placement")
    ] == []
    assert filled_in != BOARDS[uid]


@pytest.mark.parametrize("uid", BOARDS)
def test_every_query_of_every_panel_counts(uid: str) -> None:
    for index, panel in enumerate(BOARDS[uid]["panels"]):
        for number, target in enumerate(panel.get("targets", ())):
            now = copy.deepcopy(BOARDS[uid])
            now["panels"][index]["targets"][number]["expr"] = "other"
            (one,) = differences(now, BOARDS[uid])

            assert (one.is_, one.shall) == ("other", target["expr"])
            assert panel["title"] in one.path


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda b: ttft(b)["targets"][0].update(expr="up"),
            Difference("~", 'panel "TTFT", query A', "up", "ttft"),
        ),
        (
            lambda b: ttft(b)["targets"][0].update(legendFormat="x"),
            Difference("~", 'panel "TTFT", query A, legend', "x", "p99"),
        ),
        (
            lambda b: ttft(b)["targets"].pop(),
            Difference("+", 'panel "TTFT", query B', None, "itl"),
        ),
        (
            lambda b: ttft(b)["targets"].append({"refId": "C", "expr": "up"}),
            Difference("-", 'panel "TTFT", query C', "up", None),
        ),
        (
            lambda b: ttft(b)["targets"][1].update(hide=True),
            Difference("~", 'panel "TTFT", query B, hide', True, False),
        ),
        (
            lambda b: defaults(b).update(unit="ms"),
            Difference("~", 'panel "TTFT", unit', "ms", "s"),
        ),
        (
            lambda b: defaults(b).update(max=0),
            Difference("~", 'panel "TTFT", max', 0, None),
        ),
        (
            lambda b: defaults(b)["thresholds"]["steps"].pop(),
            Difference("~", 'panel "TTFT", thresholds', "green", "green, red from 2"),
        ),
        (
            lambda b: defaults(b)["thresholds"].update(mode="percentage"),
            Difference(
                "~",
                'panel "TTFT", thresholds',
                "green, red from 2 (percent)",
                "green, red from 2",
            ),
        ),
        (
            lambda b: defaults(b)["custom"].update(spanNulls=True),
            Difference("~", 'panel "TTFT", spanNulls', True, False),
        ),
        (
            lambda b: ttft(b)["fieldConfig"]["overrides"].clear(),
            Difference("+", 'panel "TTFT", override of "p99"', None, None),
        ),
        (
            lambda b: ttft(b)["datasource"].update(uid="mine"),
            Difference("~", 'panel "TTFT", data source, uid', "mine", "${datasource}"),
        ),
        (
            lambda b: ttft(b)["links"].clear(),
            Difference("+", 'panel "TTFT", link "Runbook"', None, "https://r/ttft"),
        ),
        (
            lambda b: ttft(b)["options"]["legend"].update(showLegend=False),
            Difference("~", 'panel "TTFT", legend, showLegend', False, True),
        ),
        (
            lambda b: ttft(b).update(type="stat"),
            Difference("~", 'panel "TTFT", type', "stat", "timeseries"),
        ),
        (
            lambda b: b["panels"].pop(),
            Difference("+", 'panel "TTFT"', None, "timeseries of 2 queries"),
        ),
        (
            lambda b: b["panels"].append({"type": "text", "title": "Mine"}),
            Difference("-", 'panel "Mine"', "text", None),
        ),
        (
            lambda b: ttft(b)["gridPos"].update(h=20),
            Difference("~", "layout", "1 elsewhere or of another size", "in their places"),
        ),
        (
            lambda b: b["templating"]["list"][0]["query"].update(query="x"),
            Difference("~", 'variable "model", query', "x", "label_values(up, model)"),
        ),
        (
            lambda b: b["templating"]["list"].append({"name": "mine", "query": "a,b"}),
            Difference("-", 'variable "mine"', "a,b", None),
        ),
        (
            lambda b: b["annotations"]["list"].append({"name": "mine", "expr": "up"}),
            Difference("-", 'annotation "mine"', "up", None),
        ),
        (lambda b: b.update(title="Mine"), Difference("~", "title", "Mine", "Board")),
        (
            lambda b: b.update(schemaVersion=16),
            Difference("~", "schema version", 16, 39),
        ),
        (lambda b: b.update(refresh="5s"), Difference("~", "refresh", "5s", "30s")),
    ],
)
def test_a_change_by_hand_is_told(change: Callable[[Body], object], expected: Difference) -> None:
    assert told(change) == [expected]


def test_a_collapsed_rows_panels_are_compared_as_if_they_stood_below_it() -> None:
    def collapse(body: Body) -> None:
        row, panel = body["panels"]
        row |= {"collapsed": True, "panels": [panel]}
        body["panels"] = [row]

    assert [one.path for one in told(collapse)] == ['row "Load", collapsed']


def test_panels_of_one_title_are_told_apart_by_their_order() -> None:
    board = copy.deepcopy(SMALL)
    board["panels"].append(copy.deepcopy(ttft(board)))

    (one,) = told(lambda body: body["panels"][2].update(description="x"), board)

    assert one.path == 'panel "TTFT" (2), description'


@pytest.mark.parametrize(
    "change",
    [
        lambda b: [panel.update(id=panel["id"] + 5) for panel in b["panels"]],
        lambda b: b.update(schemaVersion=42),
        lambda b: b.update(refresh="1m0s"),
        lambda b: b.update(refresh=""),
        lambda b: ttft(b)["targets"][0].pop("hide"),
        lambda b: defaults(b)["custom"].clear(),
        lambda b: defaults(b)["thresholds"]["steps"][0].pop("value"),
        lambda b: b["templating"]["list"][0].update(options=[{"text": "a"}], hide=0),
    ],
    ids=[
        *("renumbered", "newer schema", "a slower refresh", "no refresh", "false is left out"),
        *("defaults are left out", "the first step's null", "what a variable found"),
    ],
)
def test_what_says_the_same_is_no_difference(change: Callable[[Body], object]) -> None:
    assert told(change) == []


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inside:
        yield (*at, key)
        if isinstance(one, dict | list):
            yield from places(one, (*at, key))


@pytest.mark.parametrize("value", [None, 7, "x", [], ["x"], {}, {"x": [1]}], ids=repr)
def test_whatever_somebody_writes_into_the_json_can_be_compared(value: Any) -> None:
    for *above, key in places(SMALL):
        now = copy.deepcopy(SMALL)
        inside: Any = now
        for one in above:
            inside = inside[one]
        inside[key] = value

        json.dumps([asdict(one) for one in differences(now, SMALL)])
