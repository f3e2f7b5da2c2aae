"""The SLO board as CloudWatch draws it: what stands in the template, and what the validator catches."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from cloudwatch_fleet import body_of, config

from vllm_opsctl.alarms.cloudwatch.definitions import COMPOSITE_ALARM, Resolver
from vllm_opsctl.alarms.cloudwatch.metric_math import evaluate, parse
from vllm_opsctl.alarms.cloudwatch.validate import mistakes
from vllm_opsctl.dashboards.cloudwatch import LOGICAL_ID
from vllm_opsctl.dashboards.slo_board import slo_board
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.sinks.cloudwatch.curated import curated

TWO_MODELS = config(
    targets=[
        {"name": f"chat-{index}", "url": f"http://chat-{index}:8000", "models": [model]}
        for index, model in enumerate(("tiny", "org/large"))
    ]
)


def dashboard(one: Config) -> dict[str, Any]:
    """The board's body, as CloudWatch gets it."""
    body = body_of(one)
    properties = body["Resources"][LOGICAL_ID]["Properties"]
    found: dict[str, Any] = json.loads(
        Resolver(body, {"Model": "m"}).text(properties["DashboardBody"])
    )
    return found


def titled(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        one["properties"]["title"]: one["properties"]
        for one in body["widgets"]
        if "title" in one["properties"]
    }


WIDGETS = titled(dashboard(config()))


def test_it_has_the_panels_of_the_board_in_its_order() -> None:
    board = slo_board("chat", config().objectives)

    assert list(WIDGETS) == [panel.title for panel in board.panels]


def test_what_a_widget_has_no_place_for_stands_below() -> None:
    last = dashboard(config(alarms={"runbook_url": "https://runbooks.example.com"}))["widgets"][-1]
    text = last["properties"]["markdown"]

    for panel in slo_board("chat", config().objectives).panels:
        assert f"**{panel.title}**: {panel.good} *Otherwise:* {panel.otherwise}" in text
    assert "[queue-overload](https://runbooks.example.com/queue-overload)" in text


def test_the_state_of_every_alarm_that_notifies_is_shown() -> None:
    body = body_of(config())
    resolver = Resolver(body, {})
    composites = [
        resolver.ref(f"{name}.Arn")
        for name, one in body["Resources"].items()
        if one["Type"] == COMPOSITE_ALARM
    ]

    assert WIDGETS["Alarms"]["alarms"] == composites


def test_objectives_are_lines_across_the_panels() -> None:
    def lines(title: str) -> list[tuple[str, float]]:
        found = WIDGETS[title]["annotations"]["horizontal"]
        return [(one["label"], one["value"]) for one in found]

    assert lines("TTFT") == [("ttft: 95 % below", 1.0)]
    assert lines("availability: bad events") == [("objective 99.9 %", 0.1)]
    assert lines("Burn rate, 1h") == [("pages above 14.4", 14.4), ("sustainable", 1)]


def test_budgets_are_of_30_days_whatever_the_boards_range_is() -> None:
    left = WIDGETS["Error budget left, 30 days"]

    assert (left["start"], left["end"], left["setPeriodToTimeRange"]) == ("-P30D", "P0D", True)
    assert left["view"] == "singleValue"


def numbers(title: str, good: float, bad: float) -> dict[str, float]:
    """What a panel's expressions say of so many events, each point of one period."""
    found = {}
    for *_, options in WIDGETS[title]["metrics"]:
        if "expression" in options:
            index = options["id"].removeprefix("line")
            series = {f"good{index}": (good,), f"bad{index}": (bad,)}
            value = evaluate(parse(options["expression"]), series)
            assert isinstance(value, tuple)
            assert value[0] is not None
            found[options["label"]] = value[0]
    return found


def test_the_numbers_are_those_of_the_objectives() -> None:
    """99.9 % and 95 %; one in a hundred events is bad."""
    assert numbers("Burn rate, 1h", 99, 1) == pytest.approx({"availability": 10, "ttft": 0.2})
    left = numbers("Error budget left, 30 days", 99, 1)
    assert left == pytest.approx({"availability": -900, "ttft": 80})
    assert numbers("ttft: bad events", 99, 1) == pytest.approx({"bad": 1.0})
    assert numbers("Requests", 540, 60) == pytest.approx({"all": 10, "failed": 1})


def test_only_what_is_published_is_drawn() -> None:
    published = {one.metric for one in curated()}
    drawn = {
        one[1] for widget in WIDGETS.values() for one in widget.get("metrics", ()) if len(one) > 1
    }

    assert drawn <= published


def test_each_model_has_its_own_sections() -> None:
    body = dashboard(TWO_MODELS)
    headings = [one["properties"]["markdown"] for one in body["widgets"] if one["type"] == "text"]

    assert [text for text in headings if text.startswith("## Error budgets")] == [
        "## Error budgets: tiny",
        "## Error budgets: org/large",
    ]
    assert sum(text.startswith("## On fire") for text in headings) == 1
    assert mistakes(body_of(TWO_MODELS)) == []


def test_stacks_of_different_models_have_boards_of_different_names() -> None:
    properties = body_of(Config())["Resources"][LOGICAL_ID]["Properties"]

    assert properties["DashboardName"] == {"Fn::Sub": "${AWS::StackName}-${AWS::Region}-slo"}
    named = body_of(config())["Resources"][LOGICAL_ID]["Properties"]["DashboardName"]
    assert named == {"Fn::Sub": "chat-${AWS::Region}-slo"}


def test_a_configurations_own_board_is_valid() -> None:
    for one in (Config(), config(), config(objectives=[])):
        assert mistakes(body_of(one)) == []


Widgets = dict[str, dict[str, Any]]


def _set(title: str, **more: Any) -> Callable[[Widgets], None]:
    return lambda widgets: widgets[title]["properties"].update(more)


def _place(title: str, **more: Any) -> Callable[[Widgets], None]:
    return lambda widgets: widgets[title].update(more)


def _option(title: str, **more: Any) -> Callable[[Widgets], None]:
    return lambda widgets: widgets[title]["properties"]["metrics"][-1][-1].update(more)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (_place("TTFT", type="metrics"), "TTFT: type: 'metrics' is none of text, metric, alarm"),
        (_place("TTFT", x=20), "TTFT: x 20 and width 8: a row has 24 columns"),
        (_place("TTFT", x=0), "TTFT: it lies over Requests"),
        (_place("TTFT", height=None), "TTFT: x, y, width and height must be whole numbers"),
        (_set("TTFT", region=""), "TTFT: region is missing"),
        (_set("TTFT", view="lines"), "TTFT: view: 'lines' is none of timeSeries"),
        (_set("TTFT", period=90), "TTFT: period: 90; whole minutes are allowed"),
        (_set("TTFT", start="-P1D"), "TTFT: start and end go together"),
        (_set("TTFT", start="3h", end="P0D"), "TTFT: start: '3h'; write it like -PT3H"),
        (_set("TTFT", annotations={"horizontal": [{"value": "1 s"}]}), "has no number"),
        (_option("TTFT", stat="pp99"), "line1: 'pp99' is no statistic"),
        (_option("TTFT", id="line0"), "TTFT: metrics: an id stands twice"),
        (_option("Requests", expression="good7 / 60"), "'good7' is no id of the widget"),
        (_option("Requests", expression="good0 /"), "Requests: line1: 'good0 /'"),
        (_set("Alarms", alarms=["arn:aws:x"]), "Alarms: alarms: arn:aws:x is no alarm"),
        (_set("TTFT", metrics=[["vLLM", "A", "Service", {}]]), "namespace, name, then pairs"),
        (_set("TTFT", metrics=[["vLLM", "A", {"visible": False}]]), "all are hidden"),
    ],
)
def test_the_validator_catches_what_cloudwatch_would_not_draw(
    spoil: Callable[[Widgets], None], what: str
) -> None:
    body = body_of(config())
    board = dashboard(config())
    spoil({one["properties"].get("title", ""): one for one in board["widgets"]})
    body["Resources"][LOGICAL_ID]["Properties"]["DashboardBody"] = json.dumps(board)

    assert any(what in line for line in mistakes(body)), mistakes(body)


def test_a_name_and_a_body_that_cannot_be_are_refused() -> None:
    body = body_of(config())
    properties = body["Resources"][LOGICAL_ID]["Properties"]
    properties.update(DashboardName="chat slo", DashboardBody="{")

    assert [line.partition(";")[0].partition(" (")[0] for line in mistakes(body)] == [
        f"{LOGICAL_ID}: DashboardName: 'chat slo'",
        f"{LOGICAL_ID}: DashboardBody: no JSON",
    ]
