"""
Draws a board in Grafana: grafanalib builds it, a pass over its JSON makes that what Grafana 10 to 13 read.

grafanalib 0.7.1 writes schema version 12, sources by name, ``maxDataPoints`` 100 and fields that Grafana
dropped long ago; panels of today's kinds are given here.

Source:
    Grafana's dashboard JSON model (schemaVersion 39, Grafana 10.4); a typed round trip through
    grafana-foundation-sdk in the tests drops no key.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from grafanalib.core import (
    Annotations,
    Dashboard,
    GridPos,
    Panel,
    Target,
    Template,
    Templating,
    Time,
)

from vllm_opsctl.alarms.vocabulary import NotMeasured, Vocabulary
from vllm_opsctl.dashboards import model
from vllm_opsctl.dashboards.model import Board, Limit, Unit, placed, rows_of
from vllm_opsctl.dashboards.promql import Promql

SCHEMA_VERSION = 39
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
TAG = "opsctl"

_UNITS: Mapping[Unit, str] = {
    "share": "percentunit",
    "seconds": "s",
    "per second": "ops",
    "count": "short",
    "times": "none",
}

_TRANSPARENT = "transparent"
_GRAVE, _WARNING = "#d55e00", "#e69f00"
"""Vermillion and orange, which colour-blind people tell from the lines' colours."""

_LEGACY = frozenset(
    (
        *("cacheTimeout", "editable", "error", "height", "hideTimeOverride", "maxDataPoints"),
        *("minSpan", "renderer", "span", "intervalFactor", "metric", "step", "target", "useTags"),
        *("sharedCrosshair", "auto", "auto_min", "auto_count", "__inputs", "rows", "gnetId"),
        *("maxPerRow", "repeatDirection", "hideControls", "style", "time_options"),
    )
)
"""What grafanalib writes and today's Grafana does not know, or would take for something else."""


class BoardPanel(Panel):  # type: ignore[misc]  # grafanalib is not typed
    """
    A panel of one of today's kinds.

    Args:
        kind: Grafana's name of it.
        field_config: Units, colours, lines.
        options: Of the kind.
        rest: As grafanalib's panel takes it.
    """

    def __init__(
        self, kind: str, field_config: dict[str, Any], options: dict[str, Any], **rest: Any
    ) -> None:
        super().__init__(**rest)
        self._own = {"type": kind, "options": options}
        self._field_config = field_config

    def to_json_data(self) -> dict[str, Any]:
        """As grafanalib asks for it."""
        found: dict[str, Any] = self.panel_json(self._own)
        return found | {"fieldConfig": self._field_config}


class Row(Panel):  # type: ignore[misc]
    """A heading between panels."""

    def to_json_data(self) -> dict[str, Any]:
        """As grafanalib asks for it."""
        return {
            "type": "row",
            "title": self.title,
            "id": self.id,
            "gridPos": self.gridPos,
            "collapsed": False,
            "panels": [],
        }


@dataclass(frozen=True, slots=True)
class Drawn:
    """
    A board as Grafana takes it.

    Args:
        uid: Its identity, and its file's name.
        body: The JSON model.
        left_out: Panels and lines that the source cannot fill, and why, one line each.
    """

    uid: str
    body: dict[str, Any]
    left_out: tuple[str, ...]


def draw(board: Board, service: str, names: Vocabulary, runbook_url: str | None) -> Drawn:
    """
    Draw a board.

    Args:
        board: What it shows.
        service: Name of the fleet.
        names: The data source's vocabulary.
        runbook_url: Where runbook pages are; None for no links.
    """
    return _Drawing(board, Promql(service, names), service, runbook_url).drawn()


@dataclass(frozen=True, slots=True)
class _Drawing:
    board: Board
    says: Promql
    service: str
    runbook_url: str | None

    def drawn(self) -> Drawn:
        left_out: list[str] = []
        panels: list[Panel] = []
        top = 0
        for section in self.board.sections:
            panels.append(
                Row(
                    id=len(panels) + 1,
                    title=section.title,
                    gridPos=GridPos(1, model.GRID, 0, top),
                )
            )
            top += 1
            for panel, x, y in placed(section.panels, top):
                found = self._panel(panel, len(panels) + 1, (x, y), left_out)
                if found is not None:
                    panels.append(found)
            top += rows_of(section.panels)
        dashboard = Dashboard(
            title=self.board.title,
            uid=f"opsctl-{self.board.name}",
            description=self.board.about,
            tags=[TAG, self.service],
            timezone="",
            refresh="30s",
            time=Time("now-3h", "now"),
            schemaVersion=SCHEMA_VERSION,
            templating=Templating(list=list(self._variables())),
            annotations=Annotations(list=[self._alerts()]),
            links=[self._other_boards()],
            panels=panels,
            graphTooltip=1,
        )
        body = normalised(dashboard.to_json_data())
        assert isinstance(body, dict)
        return Drawn(
            str(dashboard.uid), body | {"editable": False, "liveNow": False}, tuple(left_out)
        )

    # -- panels ------------------------------------------------------------------------------------

    def _panel(
        self, panel: model.Panel, number: int, at: tuple[int, int], left_out: list[str]
    ) -> Panel | None:
        where: dict[str, Any] = {
            "id": number,
            "title": panel.title,
            "description": panel.description,
            "gridPos": GridPos(panel.height, panel.width, *at),
            "dataSource": SOURCE,
            "links": self._links(panel),
        }
        if panel.kind == "alarms":
            return BoardPanel(kind="state-timeline", **_alarms(self.service), **where)
        targets: list[Target] = []
        for line in panel.lines:
            try:
                expression = self.says.expression(line.measure)
            except NotMeasured as problem:
                left_out.append(f"{self.board.title}, {panel.title}, {line.label}: {problem}")
                continue
            of_models = not isinstance(line.measure, model.Reporting)
            label = f"{line.label} {{{{{self._model_of(line)}}}}}" if of_models else line.label
            targets.append(_target(expression, label, len(targets), instant=panel.kind == "number"))
        if not targets:
            return None
        limits = {"thresholds": _thresholds(panel)}
        if panel.kind == "number":
            return BoardPanel(
                kind="stat",
                targets=targets,
                field_config={
                    "defaults": {"unit": _UNITS[panel.unit], "decimals": 1, **limits},
                    "overrides": [],
                },
                options=_STAT,
                **where,
            )
        return BoardPanel(
            kind="timeseries",
            targets=targets,
            field_config={
                "defaults": {
                    "unit": _UNITS[panel.unit],
                    "color": {"mode": "palette-classic-by-name"},
                    "custom": _lines(panel),
                    "noValue": "no data",
                    **limits,
                    "min": 0,
                },
                "overrides": [],
            },
            options=_TIMESERIES,
            timeFrom=None if panel.range_s is None else f"{panel.range_s / 86400:g}d",
            **where,
        )

    def _model_of(self, line: model.Line) -> str:
        """The label of the model: recordings have their own."""
        recorded = (model.BudgetLeft, model.Burn, model.BadShare, model.Events)
        return "model" if isinstance(line.measure, recorded) else self.says.names.labels("model")

    def _links(self, panel: model.Panel) -> list[dict[str, Any]]:
        if self.runbook_url is None:
            return []
        base = self.runbook_url.rstrip("/")
        return [
            {"title": f"Runbook: {mode}", "url": f"{base}/{mode}", "targetBlank": True}
            for mode in panel.modes
        ]

    # -- around them -------------------------------------------------------------------------------

    def _variables(self) -> Iterator[dict[str, Any]]:
        running = self.says.names.selector("requests_running")
        of_model = self.says.names.labels("model")
        replica = "target" if self.says.names.source == "sidecar" else "instance"
        yield {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "current": {},
            "hide": 0,
            "refresh": 1,
            "regex": "",
            "multi": False,
            "includeAll": False,
            "options": [],
        }
        yield _values("job", "Job", running, "job")
        chosen = f'{running}{{job=~"$job"}}'
        yield _values("model", "Model", chosen, of_model)
        yield _values(
            "replica", "Replica", f'{running}{{job=~"$job", {of_model}=~"$model"}}', replica
        )

    def _alerts(self) -> dict[str, Any]:
        return {
            "name": "Alerts",
            "datasource": SOURCE,
            "enable": True,
            "hide": False,
            "iconColor": _GRAVE,
            "expr": f'ALERTS{{alertstate="firing", service="{self.service}"}}',
            "step": "60s",
            "titleFormat": "{{alertname}} {{objective}}",
            "textFormat": "{{model}} {{target}}",
        }

    def _other_boards(self) -> dict[str, Any]:
        return {
            "title": "Boards",
            "type": "dashboards",
            "tags": [TAG, self.service],
            "asDropdown": True,
            "includeVars": True,
            "keepTime": True,
            "targetBlank": False,
            "icon": "external link",
            "tooltip": "",
            "url": "",
        }


_STAT = {
    "colorMode": "background",
    "graphMode": "none",
    "justifyMode": "auto",
    "orientation": "auto",
    "textMode": "value_and_name",
    "wideLayout": True,
    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
}

_TIMESERIES = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
    "tooltip": {"mode": "multi", "sort": "desc"},
}


class Query(Target):  # type: ignore[misc]
    """A query of today's Prometheus data source."""

    def to_json_data(self) -> dict[str, Any]:
        """As grafanalib asks for it."""
        found: dict[str, Any] = super().to_json_data()
        # grafanalib repeats the expression for a data source of the past
        del found["query"]
        return found | {"range": not self.instant}


def _target(expression: str, label: str, index: int, *, instant: bool) -> Target:
    return Query(
        expr=expression,
        legendFormat=label,
        refId=string.ascii_uppercase[index],
        datasource=SOURCE,
        instant=instant,
    )


def _alarms(service: str) -> dict[str, Any]:
    """What fires, over time: one line an alert, objective and model."""
    firing = f'ALERTS{{alertstate="firing", service="{service}", model=~"$model|"}}'
    expression = f"max by (alertname, objective, model, severity) ({firing})"
    return {
        "targets": [_target(expression, "{{alertname}} {{objective}} {{model}}", 0, instant=False)],
        "field_config": {
            "defaults": {
                "noValue": "nothing fires",
                "color": {"mode": "thresholds"},
                "thresholds": {
                    "mode": "absolute",
                    "steps": [
                        {"color": _TRANSPARENT, "value": None},
                        {"color": _GRAVE, "value": 1},
                    ],
                },
                "mappings": [
                    {"type": "value", "options": {"1": {"text": "firing", "index": 0}}},
                ],
                "custom": {"fillOpacity": 80, "lineWidth": 0},
            },
            "overrides": [],
        },
        "options": {
            "mergeValues": True,
            "showValue": "never",
            "alignValue": "left",
            "rowHeight": 0.8,
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
            "tooltip": {"mode": "single", "sort": "none"},
        },
    }


def _lines(panel: model.Panel) -> dict[str, Any]:
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 0,
        "showPoints": "never",
        "spanNulls": False,
        # a share of nothing is drawn at the bottom, not across the middle
        **({"axisSoftMax": 0.01} if panel.unit == "share" else {}),
        "thresholdsStyle": {"mode": "dashed" if panel.limits else "off"},
    }


def _thresholds(panel: model.Panel) -> dict[str, Any]:
    """A number's colours, or the lines across a panel."""
    if panel.kind == "number":
        steps = [
            {"color": _GRAVE, "value": None},
            {"color": _WARNING, "value": 0},
            {"color": "#009e73", "value": 0.25},
        ]
        return {"mode": "absolute", "steps": steps}
    lines = sorted(panel.limits, key=lambda limit: limit.value)
    steps = [{"color": _TRANSPARENT, "value": None}, *map(_step, lines)]
    return {"mode": "absolute", "steps": steps}


def _step(limit: Limit) -> dict[str, Any]:
    return {"color": _GRAVE if limit.grave else _WARNING, "value": limit.value}


def _values(name: str, label: str, series: str, of: str) -> dict[str, Any]:
    """A variable of a label's values; all of them at first."""
    query = f"label_values({series}, {of})"
    found: dict[str, Any] = Template(
        name=name,
        label=label,
        query=query,
        dataSource=SOURCE,
        includeAll=True,
        multi=True,
        allValue=".*",
        refresh=2,
        sort=1,
    ).to_json_data()
    found["query"] = {"query": query, "refId": f"Variable-{name}"}
    found["definition"] = query
    found["current"] = {"selected": True, "text": ["All"], "value": ["$__all"]}
    return found


def normalised(value: Any) -> Any:
    """JSON of grafanalib without what today's Grafana does not know; its objects are written out."""
    if hasattr(value, "to_json_data"):
        return normalised(value.to_json_data())
    if isinstance(value, Mapping):
        return {
            key: normalised(one)
            for key, one in value.items()
            if key not in _LEGACY and not (one is None and key != "value")
        }
    if isinstance(value, list | tuple):
        return [normalised(one) for one in value]
    return value
