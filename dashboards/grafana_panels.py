"""
Today's panel kinds of Grafana, for grafanalib.

Source:
    Grafana's dashboard JSON model (schemaVersion 39, Grafana 10.4).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from grafanalib.core import Panel, Target

from vllm_opsctl.dashboards import model
from vllm_opsctl.dashboards.colours import GOOD, GRAVE, WARNING, overrides, shades
from vllm_opsctl.dashboards.model import Kind, Limit, Unit

SOURCE = {"type": "prometheus", "uid": "${datasource}"}

UNITS: Mapping[Unit, str] = {
    "share": "percentunit",
    "seconds": "s",
    "per second": "ops",
    "tokens per second": "si:tok/s",
    "tokens": "short",
    "count": "short",
    "times": "none",
    "bytes": "bytes",
}

_TRANSPARENT = "transparent"
_TIGHT, _NOTHING = 0.25, 0.000001
"""Shares of a budget left below which a number is yellow, and red."""

_TOO_FAST, _PAGES = 1.0, 6.0
"""Burn rates from which a number is yellow, and red (alarms/burn.py, its slowest row that pages)."""


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
        self._points = rest.get("maxDataPoints")
        self._own = {"type": kind, "options": options}
        self._field_config = field_config

    def to_json_data(self) -> dict[str, Any]:
        """As grafanalib asks for it."""
        found: dict[str, Any] = self.panel_json(self._own)
        # grafanalib writes one of its own where none is given
        if self._points is None:
            del found["maxDataPoints"]
        return found | {"fieldConfig": self._field_config}


class Row(Panel):  # type: ignore[misc]
    """
    A heading between panels.

    Args:
        below: Panels that are hidden until it is opened; of an open one they stand beside it.
        rest: As grafanalib's panel takes it.
    """

    def __init__(self, below: Sequence[Panel] = (), **rest: Any) -> None:
        super().__init__(**rest)
        self._below = list(below)

    def to_json_data(self) -> dict[str, Any]:
        """As grafanalib asks for it."""
        return {
            "type": "row",
            "title": self.title,
            "id": self.id,
            "gridPos": self.gridPos,
            "collapsed": bool(self._below),
            "panels": self._below,
        }


class Query(Target):  # type: ignore[misc]
    """A query of today's Prometheus data source."""

    def to_json_data(self) -> dict[str, Any]:
        """As grafanalib asks for it."""
        found: dict[str, Any] = super().to_json_data()
        # what was for data sources of the past
        for key in ("query", "target", "step"):
            del found[key]
        return found | {"range": not self.instant}


def query(expression: str, label: str, index: int, kind: Kind) -> Query:
    """
    One query of a panel.

    Args:
        expression: PromQL.
        label: Legend.
        index: Which of the panel's.
        kind: The panel's; numbers are asked once, a table and a heatmap in their own formats.
    """
    formats = {"table": "table", "heatmap": "heatmap"}
    return Query(
        expr=expression,
        legendFormat=label,
        refId=string.ascii_uppercase[index],
        datasource=SOURCE,
        instant=kind in ("number", "bars", "table"),
        format=formats.get(kind, "time_series"),
    )


def drawn_panel(panel: model.Panel, targets: Sequence[Query], where: dict[str, Any]) -> BoardPanel:
    """
    A panel of Grafana.

    Args:
        panel: What it shows.
        targets: Its queries.
        where: Title, place, links.
    """
    where = {**where, "targets": list(targets)}
    if panel.range_s is not None and panel.kind != "number":
        where["timeFrom"] = f"{panel.range_s / 86400:g}d"
    if panel.points is not None:
        where["maxDataPoints"] = panel.points
    return _DRAW[panel.kind](panel, where)


def _time(panel: model.Panel, where: dict[str, Any]) -> BoardPanel:
    stacked = panel.kind == "stacked"
    custom = {
        "drawStyle": "line",
        # the outline of nothing would lie on what is below it, and look like something
        "lineWidth": 0 if stacked else 1,
        "fillOpacity": 70 if stacked else 0,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        # nothing at all is drawn at the bottom of a scale that is no hundred
        "axisSoftMax": 0.01 if panel.unit in ("share", "seconds") else 1,
        "thresholdsStyle": {"mode": "dashed" if panel.limits else "off"},
    }
    defaults = {
        **_defaults(panel),
        # of what has no colour by its name
        "color": shades(-1),
        "custom": custom,
        # a budget may be overspent
        **({} if any(limit.value == 0 for limit in panel.limits) else {"min": 0}),
    }
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    config = {
        "defaults": defaults,
        "overrides": overrides(panel, [one.refId for one in where["targets"]]),
    }
    return BoardPanel("timeseries", config, options, **where)


def _number(panel: model.Panel, where: dict[str, Any]) -> BoardPanel:
    steps = _LASTS if panel.unit == "seconds" else _BUDGET
    if panel.more_is_worse:
        steps = [(None, GOOD), (1.0, GRAVE)]
    defaults = {
        **_defaults(panel),
        "color": {"mode": "thresholds"},
        "thresholds": _steps(steps),
        **({"decimals": 1} if panel.unit == "share" else {}),
    }
    options = {
        "colorMode": "background",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "value_and_name" if len(where["targets"]) > 1 or panel.width > 4 else "value",
        "wideLayout": True,
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return BoardPanel("stat", {"defaults": defaults, "overrides": []}, options, **where)


def _bars(panel: model.Panel, where: dict[str, Any]) -> BoardPanel:
    defaults = {**_defaults(panel), "color": {"mode": "fixed", "fixedColor": WARNING}, "min": 0}
    options = {
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": False,
        "minVizWidth": 0,
        "minVizHeight": 10,
        "valueMode": "color",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return BoardPanel("bargauge", {"defaults": defaults, "overrides": []}, options, **where)


def _table(panel: model.Panel, where: dict[str, Any]) -> BoardPanel:
    columns = {
        f"Value #{string.ascii_uppercase[index]}" if len(panel.lines) > 1 else "Value": line
        for index, line in enumerate(panel.lines)
    }
    of_columns = [
        {
            "matcher": {"id": "byName", "options": line.label},
            "properties": [
                {"id": "unit", "value": UNITS[line.unit or panel.unit]},
                {"id": "thresholds", "value": _steps(_BURN if line.unit == "times" else _BUDGET)},
                {"id": "custom.cellOptions", "value": {"type": "color-text"}},
            ],
        }
        for line in columns.values()
    ]
    if panel.leads_to is not None:
        of_columns += _link_of_a_row(panel.leads_to)
    hidden = {name: True for name in ("Time", "__name__", "job", "instance")}
    renamed = {name: line.label for name, line in columns.items()}
    where["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": hidden, "renameByName": renamed}},
    ]
    thresholds = {"color": {"mode": "thresholds"}}
    defaults = {
        **_defaults(panel),
        **thresholds,
        "decimals": 2,
        "custom": {"align": "auto", "filterable": True},
    }
    options = {
        "showHeader": True,
        "cellHeight": "sm",
        "sortBy": [{"displayName": panel.lines[0].label, "desc": False}],
        "footer": {"show": False, "reducer": ["sum"], "fields": ""},
    }
    return BoardPanel("table", {"defaults": defaults, "overrides": of_columns}, options, **where)


def _link_of_a_row(board: str) -> Iterator[dict[str, Any]]:
    """
    What an objective leads to: the board of the row's service, with the row's variables set.

    The row's ``board`` is what the uids of its service's boards begin with.
    """
    chosen = "&".join(
        f"var-{name}=${{__data.fields.{name}:percentencode}}" for name in ("objective", "model")
    )
    url = f"/d/${{__data.fields.board}}-{board}?var-datasource=${{datasource}}&{chosen}&${{__url_time_range}}"
    links = [{"title": f"Open the {board} board", "url": url}]
    for column, shown in (
        ("objective", {"id": "links", "value": links}),
        ("board", {"id": "custom.hidden", "value": True}),
    ):
        yield {"matcher": {"id": "byName", "options": column}, "properties": [shown]}


def _states(panel: model.Panel, where: dict[str, Any]) -> BoardPanel:
    color = "thresholds" if panel.limits else "continuous-BlPu"
    defaults = {
        **_defaults(panel),
        "color": {"mode": color},
        "custom": {"fillOpacity": 80, "lineWidth": 0},
        "decimals": 1,
    }
    if panel.limits:
        defaults["thresholds"]["steps"][0] = {"color": GOOD, "value": None}
    options = {**_STATES, "mergeValues": True, "showValue": "never"}
    return BoardPanel("state-timeline", {"defaults": defaults, "overrides": []}, options, **where)


def _heatmap(panel: model.Panel, where: dict[str, Any]) -> BoardPanel:
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "mode": "scheme",
            "scheme": "Blues",
            "scale": "exponential",
            "exponent": 0.5,
            "steps": 64,
            "reverse": False,
            "fill": WARNING,
        },
        "exemplars": {"color": GRAVE},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": UNITS[panel.unit]},
    }
    return BoardPanel("heatmap", {"defaults": {}, "overrides": []}, options, **where)


def alarms_panel(where: dict[str, Any], firing: str, told: Sequence[str]) -> BoardPanel:
    """
    Which alerts are on, over time.

    Args:
        where: Title, place, links.
        firing: Selector of the alerts.
        told: Labels that have a line each.
    """
    expression = f"max by ({', '.join(told)}) ({firing})"
    label = " ".join(f"{{{{{name}}}}}" for name in told)
    where = {**where, "targets": [query(expression, label, 0, "alarms")]}
    steps = [{"color": _TRANSPARENT, "value": None}, {"color": GRAVE, "value": 1}]
    defaults = {
        "noValue": "nothing is on",
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [{"type": "value", "options": {"1": {"text": "on", "index": 0}}}],
        "custom": {"fillOpacity": 80, "lineWidth": 0},
    }
    options = {**_STATES, "mergeValues": True, "showValue": "never"}
    return BoardPanel("state-timeline", {"defaults": defaults, "overrides": []}, options, **where)


_STATES = {
    "alignValue": "left",
    "rowHeight": 0.8,
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
    "tooltip": {"mode": "single", "sort": "none"},
}

_DRAW: Mapping[Kind, Callable[[model.Panel, dict[str, Any]], BoardPanel]] = {
    "time": _time,
    "stacked": _time,
    "number": _number,
    "bars": _bars,
    "table": _table,
    "states": _states,
    "heatmap": _heatmap,
}


def _defaults(panel: model.Panel) -> dict[str, Any]:
    lines = sorted(panel.limits, key=lambda limit: limit.value)
    steps = [{"color": _TRANSPARENT, "value": None}, *map(_step, lines)]
    return {
        "unit": UNITS[panel.unit],
        "noValue": "no data",
        "thresholds": {"mode": "absolute", "steps": steps},
    }


_BUDGET = [(None, GRAVE), (_NOTHING, WARNING), (_TIGHT, GOOD)]
_LASTS = [(None, GRAVE), (3600.0, WARNING), (86400.0, GOOD)]
"""An hour is what finding a cause takes; a day, what shedding load can wait for."""

_BURN = [(None, GOOD), (_TOO_FAST, WARNING), (_PAGES, GRAVE)]


def _steps(steps: Sequence[tuple[float | None, str]]) -> dict[str, Any]:
    """Colours from values on."""
    found = [{"color": color, "value": value} for value, color in steps]
    return {"mode": "absolute", "steps": found}


def _step(limit: Limit) -> dict[str, Any]:
    return {"color": GRAVE if limit.grave else WARNING, "value": limit.value}
