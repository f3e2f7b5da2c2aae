"""
Draws a board with CloudWatch: one dashboard of a service, in the template of its alarms.

Source:
    Dashboard body structure and syntax, CloudWatch API reference (CloudWatch-Dashboard-Body-Structure.html);
    a widget's own time range and setPeriodToTimeRange, AWS CDK's SingleValueWidgetProps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_opsctl.alarms.burn import budget_of
from vllm_opsctl.alarms.cloudwatch.definitions import BOARD, COMPOSITE_ALARM
from vllm_opsctl.alarms.cloudwatch.models import models_of
from vllm_opsctl.alarms.cloudwatch.ownership import STACK_REFERENCE, board_mark
from vllm_opsctl.alarms.cloudwatch.resources import sub
from vllm_opsctl.alarms.cloudwatch.template import Template, build_template
from vllm_opsctl.alarms.resource_names import dashboard_name
from vllm_opsctl.dashboards.colours import COLOURS, GRAVE
from vllm_opsctl.dashboards.model import (
    GRID,
    BadShare,
    Board,
    BudgetLeft,
    Burn,
    Counted,
    Events,
    Gauge,
    Line,
    Panel,
    Quantile,
    Query,
    Reporting,
    Section,
    Share,
    Unit,
    placed,
    rows_of,
)
from vllm_opsctl.dashboards.slo_board import slo_board
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.identity import identity_of
from vllm_opsctl.exporter.sinks.cloudwatch.curated import curated
from vllm_opsctl.exporter.sinks.cloudwatch.datum import Dimensions
from vllm_opsctl.exporter.sinks.cloudwatch.interval import HEARTBEAT, Labels
from vllm_opsctl.exporter.sli import measured

_LIMIT = "#7f7f7f"

_HEADING_ROWS, _HELP_ROWS = 2, 12

_EVENTS_PERIOD_S = 300
"""A share is of some events then, and as fine as the shortest alarm's."""

_MINUTE_S = 60

_AXES: dict[Unit, dict[str, Any]] = {
    "share": {"label": "%", "showUnits": False},
    "seconds": {"label": "seconds", "showUnits": False, "min": 0},
    "per second": {"label": "per second", "showUnits": False, "min": 0},
    "count": {"showUnits": False, "min": 0},
    "times": {"label": "times", "showUnits": False, "min": 0},
}

_REGION = "${AWS::Region}"

LOGICAL_ID = "SloBoard"


def service_template(config: Config, models: Sequence[str] = ()) -> Template:
    """
    The alarms of a configuration, and the board that shows them.

    Args:
        config: The whole of it.
        models: When targets name none: these, instead of a parameter.

    Raises:
        ConfigError: Something in it does not go with CloudWatch.
    """
    template = build_template(config, models)
    if config.exporter.cloudwatch.sink == "otlp":
        missing = "the board: its widgets read classic metrics, and only the heartbeat is one"
        return replace(template, left_out=[*template.left_out, missing])
    found = models_of(config, models)
    alarms = [
        name for name, one in template.body["Resources"].items() if one["Type"] == COMPOSITE_ALARM
    ]
    name = dashboard_name(config.service.name, _REGION)
    if found.are_a_parameter:
        # of stacks that are apart by the model alone, each needs a name of its own
        name = f"{STACK_REFERENCE}-{_REGION}-slo"
    drawn = _Drawing(config, alarms).dashboard(
        slo_board(config.service.name, measured(config)), found.all
    )
    board = {
        "Type": BOARD,
        "Properties": {"DashboardName": sub(name), "DashboardBody": {"Fn::Sub": json.dumps(drawn)}},
    }
    resources = {**template.body["Resources"], LOGICAL_ID: board}
    return replace(template, body={**template.body, "Resources": resources})


@dataclass(frozen=True, slots=True)
class _Drawing:
    config: Config
    alarms: Sequence[str]

    def dashboard(self, board: Board, models: Sequence[str]) -> dict[str, Any]:
        """A dashboard's body; sections of a model come once for each."""
        widgets = [self._heading(board)]
        top = _HEADING_ROWS
        for section, model in _expanded(board, models):
            title = f"## {section.title}{f': {model}' if model is not None else ''}"
            widgets.append(_widget("text", 0, top, GRID, 1, {"markdown": title}))
            top += 1
            for panel, x, y in placed(section.panels, top):
                kind, properties = self._panel(panel, model)
                widgets.append(_widget(kind, x, y, panel.width, panel.height, properties))
            top += rows_of(section.panels)
        text = "\n".join(["## How to read it", *map(self._told, board.panels)])
        widgets.append(_widget("text", 0, top, GRID, _HELP_ROWS, {"markdown": text}))
        return {"start": "-PT3H", "periodOverride": "inherit", "widgets": widgets}

    def _heading(self, board: Board) -> dict[str, Any]:
        alarms = self.config.alarms
        links = [f"[Runbooks]({alarms.runbook_url})"] if alarms.runbook_url is not None else []
        mark = board_mark(identity_of(self.config), _REGION, STACK_REFERENCE)
        text = f"# {board.title}\n{' '.join([board.about, *links, mark])}"
        return _widget("text", 0, 0, GRID, _HEADING_ROWS, {"markdown": text})

    def _told(self, panel: Panel) -> str:
        """A panel's description, which a widget has no place for, and where to read on."""
        base = self.config.alarms.runbook_url
        pages = [f"[{mode}]({base.rstrip('/')}/{mode})" for mode in panel.modes] if base else []
        return f"- **{panel.title}**: {panel.good} *Otherwise:* {panel.otherwise} {', '.join(pages)}".rstrip()

    def _panel(self, panel: Panel, model: str | None) -> tuple[str, dict[str, Any]]:
        if panel.kind == "alarms":
            arns = [f"${{{name}.Arn}}" for name in self.alarms]
            return "alarm", {
                "title": panel.title,
                "alarms": arns,
                "sortBy": "stateUpdatedTimestamp",
            }
        interval_s = panel.interval_s or self.config.exporter.cloudwatch.interval
        period_s = _MINUTE_S * math.ceil(interval_s / _MINUTE_S)
        if any(isinstance(line.measure, BadShare) for line in panel.lines):
            period_s = _EVENTS_PERIOD_S
        metrics = [
            one
            for index, line in enumerate(panel.lines)
            for one in self._line(line, model, index, period_s)
        ]
        properties: dict[str, Any] = {
            "title": panel.title,
            "region": _REGION,
            "metrics": metrics,
            "view": "singleValue" if panel.kind == "number" else "timeSeries",
            "period": period_s,
        }
        if panel.kind == "number":
            properties |= {"setPeriodToTimeRange": True, "sparkline": False}
        else:
            properties |= {"stacked": False, "yAxis": {"left": _AXES[panel.unit]}}
            properties |= _annotations(panel)
        if panel.range_s is not None:
            days = panel.range_s / 86400
            properties |= {"start": f"-P{days:g}D", "end": "P0D"}
        return "metric", properties

    def _line(
        self, line: Line, model: str | None, index: int, period_s: int
    ) -> Iterator[list[Any]]:
        """The metrics of a line: hidden ones, and the one that is seen."""
        shown = {"label": line.label, "color": COLOURS[index % len(COLOURS)]}
        measure = line.measure
        if isinstance(measure, BudgetLeft | Burn | BadShare | Events):
            dimensions = self._labels.of(model, measure.objective.name)
            good, bad = f"good{index}", f"bad{index}"
            for name, metric in ((good, "GoodEvents"), (bad, "BadEvents")):
                yield self._metric(
                    metric, dimensions, {"id": name, "stat": "Sum", "visible": False}
                )
            text = _of_events(measure, good, bad, period_s)
            yield [{"expression": text, "id": f"line{index}", **shown}]
            return
        assert not isinstance(measure, Query), "the SLO board alone has a twin"
        metric, statistic = _metric_of(measure)
        dimensions = self._labels.of(None if isinstance(measure, Reporting) else model)
        yield self._metric(metric, dimensions, {"id": f"line{index}", "stat": statistic, **shown})

    @property
    def _labels(self) -> Labels:
        return Labels(self.config.service.name, None)

    def _metric(self, name: str, dimensions: Dimensions, options: dict[str, Any]) -> list[Any]:
        namespace = self.config.exporter.cloudwatch.namespace
        return [namespace, name, *(text for pair in dimensions for text in pair), options]


def _expanded(board: Board, models: Sequence[str]) -> Iterator[tuple[Section, str | None]]:
    """Sections that stand once, then those of each model."""
    for section in board.sections:
        if not section.per_model:
            yield section, None
    for model in models:
        for section in board.sections:
            if section.per_model:
                yield section, model


def _widget(
    kind: str, x: int, y: int, width: int, height: int, properties: dict[str, Any]
) -> dict[str, Any]:
    return {
        "type": kind,
        "x": x,
        "y": y,
        "width": width,
        "height": height,
        "properties": properties,
    }


def _annotations(panel: Panel) -> dict[str, Any]:
    """The panel's limits; shares are percent here."""
    if not panel.limits:
        return {}
    scale = 100 if panel.unit == "share" else 1
    lines = [
        {
            "label": limit.label,
            "value": round(scale * limit.value, 6),
            "color": GRAVE if limit.grave else _LIMIT,
        }
        for limit in panel.limits
    ]
    return {"annotations": {"horizontal": lines}}


def _of_events(
    measure: BudgetLeft | Burn | BadShare | Events, good: str, bad: str, period_s: int
) -> str:
    """The expression of what is made of good and bad events; shares are percent."""
    share = f"{bad} / ({good} + {bad})"
    budget = f"{budget_of(measure.objective.target):.12g}"
    if isinstance(measure, BudgetLeft):
        return f"100 * (1 - {share} / {budget})"
    if isinstance(measure, Burn):
        return f"{share} / {budget}"
    if isinstance(measure, BadShare):
        return f"100 * {share}"
    return f"{bad if measure.bad else f'({good} + {bad})'} / {period_s}"


def _metric_of(measure: Gauge | Quantile | Counted | Share | Reporting) -> tuple[str, str]:
    """
    Metric and statistic; the curated set tells which metric is a concept's.

    A share is published as often as there was something to share, so its average is the fleet's.
    """
    if isinstance(measure, Reporting):
        return HEARTBEAT, "Sum"
    concept = measure.part if isinstance(measure, Share) else measure.concept
    metric = next(one.metric for one in curated() if one.concept == concept)
    if isinstance(measure, Gauge):
        return metric, "Maximum" if measure.of == "peak" else "Average"
    if isinstance(measure, Quantile):
        return metric, f"p{100 * measure.quantile:g}"
    return metric, "Average" if isinstance(measure, Share) else "Sum"
