"""
Draws a board in Grafana: grafanalib builds it, a pass over its JSON makes that what Grafana 10 to 13 read.

grafanalib 0.7.1 writes schema version 12, sources by name, ``maxDataPoints`` 100 and fields that Grafana
dropped long ago; panels of today's kinds are given here.

Source:
    Grafana's dashboard JSON model (schemaVersion 39, Grafana 10.4); a typed round trip through
    grafana-foundation-sdk in the tests drops no key.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from grafanalib.core import Annotations, Dashboard, GridPos, Panel, Template, Templating, Time

from vllm_opsctl.alarms.vocabulary import NotMeasured, Vocabulary
from vllm_opsctl.dashboards import model
from vllm_opsctl.dashboards.annotations import VERDICT_TAG
from vllm_opsctl.dashboards.colours import COLOURS, GRAVE, WARNING
from vllm_opsctl.dashboards.grafana_panels import (
    SOURCE,
    Query,
    Row,
    alarms_panel,
    drawn_panel,
    query,
)
from vllm_opsctl.dashboards.model import Board, placed, rows_of
from vllm_opsctl.dashboards.promql import Promql

SCHEMA_VERSION = 39
TAG = "opsctl"

_JUST_NOW = "2m"
"""Two evaluations of an annotation."""

_LEGACY = frozenset(
    (
        *("cacheTimeout", "editable", "error", "height", "hideTimeOverride"),
        *("minSpan", "renderer", "span", "intervalFactor", "metric", "useTags"),
        *("sharedCrosshair", "auto", "auto_min", "auto_count", "__inputs", "rows", "gnetId"),
        *("maxPerRow", "repeatDirection", "hideControls", "style", "time_options"),
    )
)
"""What grafanalib writes and today's Grafana does not know, or would take for something else."""


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


def panels_of(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel of a board's JSON model but headings, those below closed headings too."""
    for panel in body["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


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
        numbers = itertools.count(1)
        top = 0
        for section in self.board.sections:
            heading = {
                "id": next(numbers),
                "title": section.title,
                "gridPos": GridPos(1, model.GRID, 0, top),
            }
            top += 1
            # panels of closed sections stand elsewhere, and what they lack is told there
            told: list[str] = [] if section.closed else left_out
            drawn = [
                found
                for panel, x, y in placed(section.panels, top)
                if (found := self._panel(panel, next(numbers), (x, y), told)) is not None
            ]
            if section.closed:
                panels.append(Row(drawn, **heading))
            else:
                panels += [Row(**heading), *drawn]
                top += rows_of(section.panels)
        dashboard = Dashboard(
            title=self.board.title,
            uid=self._uid,
            description=self.board.about,
            tags=self._tags,
            timezone="",
            refresh="30s",
            time=Time("now-3h", "now"),
            schemaVersion=SCHEMA_VERSION,
            templating=Templating(list=list(self._variables())),
            annotations=Annotations(list=list(self._annotations())),
            links=[self._other_boards()],
            panels=panels,
            graphTooltip=1,
        )
        body = normalised(dashboard.to_json_data())
        assert isinstance(body, dict)
        return Drawn(
            str(dashboard.uid), body | {"editable": False, "liveNow": False}, tuple(left_out)
        )

    @property
    def _uid(self) -> str:
        """The SLO board's name has its service; boards of one service each need it too."""
        name = self.board.name
        if self.board.of_all_services or name.startswith(f"{self.service}-"):
            return f"opsctl-{name}"
        return model.uid_of(self.service, name)

    @property
    def _tags(self) -> list[str]:
        return [TAG, *([] if self.board.of_all_services else [self.service])]

    # -- panels ------------------------------------------------------------------------------------

    def _panel(
        self, panel: model.Panel, number: int, at: tuple[int, int], left_out: list[str]
    ) -> Panel | None:
        where: dict[str, Any] = {
            "id": number,
            "title": panel.title,
            "description": f"Good: {panel.good}\n\nOtherwise: {panel.otherwise}",
            "gridPos": GridPos(panel.height, panel.width, *at),
            "dataSource": SOURCE,
            "links": self._links(panel),
        }
        if panel.kind == "alarms":
            matchers = self._alerts_of()
            if panel.alerts is not None:
                matchers = f'alertname=~"{panel.alerts}", {matchers}'
            return alarms_panel(where, matchers, of_all_services=self.board.of_all_services)
        targets: list[Query] = []
        drawn: list[model.Line] = []
        for line in panel.lines:
            try:
                expression = self.says.expression(line.measure)
            except NotMeasured as problem:
                left_out.append(f"{self.board.title}, {panel.title}, {line.label}: {problem}")
                continue
            targets.append(query(expression, self._legend(line), len(targets), panel.kind))
            drawn.append(line)
        return drawn_panel(replace(panel, lines=tuple(drawn)), targets, where) if targets else None

    def _alerts_of(self) -> str:
        """Matchers of the alerts that a board is about."""
        if self.board.of_all_services:
            return 'alertname=~"LLM.*", service=~".+"'
        ours = f'alertname=~"LLM.*", service="{self.service}", model=~"$model|"'
        return f'{ours}, objective=~"$objective|"' if self.board.choose_objective else ours

    def _legend(self, line: model.Line) -> str:
        if isinstance(line.measure, model.Query):
            return self.says.label(line.label)
        if isinstance(line.measure, model.Reporting):
            return line.label
        return f"{line.label} {{{{{self._model_of(line)}}}}}"

    def _model_of(self, line: model.Line) -> str:
        """The label of the model: recordings have their own."""
        recorded = (model.BudgetLeft, model.Burn, model.BadShare, model.Events)
        return "model" if isinstance(line.measure, recorded) else self.says.names.labels("model")

    def _links(self, panel: model.Panel) -> list[dict[str, Any]]:
        if self.runbook_url is None:
            return []
        base = self.runbook_url.rstrip("/")
        # the index is by subject
        pages = {f"Runbook: {mode}": mode for mode in panel.modes} or {"Runbooks": "index"}
        return [
            {"title": title, "url": f"{base}/{page}", "targetBlank": True}
            for title, page in pages.items()
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
        if self.board.of_all_services:
            return
        if self.board.choose_objective:
            promised = f'llm_slo:objective:ratio{{service="{self.service}"}}'
            yield _values("objective", "Objective", promised, "objective")
        yield _values("job", "Job", running, "job")
        chosen = f'{running}{{job=~"$job"}}'
        yield _values("model", "Model", chosen, of_model)
        yield _values(
            "target", "Replica", f'{running}{{job=~"$job", {of_model}=~"$model"}}', replica
        )

    def _annotations(self) -> Iterator[dict[str, Any]]:
        """What happened: alerts, restarts, what a deploy changed, and verdicts that somebody wrote there."""
        alerts = f'ALERTS{{alertstate="firing", role!="watchdog", {self._alerts_of()}}}'
        yield _annotation(
            "Alerts", GRAVE, alerts, "{{alertname}} {{objective}}", "{{model}} {{target}}"
        )
        if not self.board.of_all_services:
            restarts = self.says.query(
                model.Query(f"changes(${{process_start_time_seconds}}[{_JUST_NOW}]) > 0", "replica")
            )
            yield _annotation("Restarts", WARNING, restarts, "restart", "{{target}} {{instance}}")
            info = self._settings()
            new = f"{info} unless {info} offset {_JUST_NOW}"
            text = "{{vllm_version}} {{num_gpu_blocks}} blocks of {{block_size}}"
            yield _annotation("New version or settings", COLOURS[0], new, "deploy", text)
        yield {
            "name": "Verdicts",
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "enable": True,
            "hide": False,
            "iconColor": COLOURS[3],
            "target": {
                "limit": 100,
                "matchAny": False,
                "tags": [VERDICT_TAG, *([] if self.board.of_all_services else [self.service])],
                "type": "tags",
            },
        }

    def _settings(self) -> str:
        """What an engine says of itself; the sidecar tells its version too."""
        if self.says.names.source == "vllm":
            return self.says.query(model.Query("${kv_config}", "replica"))
        return 'vllm_engine_info{job=~"$job", model=~"$model", target=~"$target"}'

    def _other_boards(self) -> dict[str, Any]:
        return {
            "title": "Boards",
            "type": "dashboards",
            "tags": [TAG],
            "asDropdown": True,
            "includeVars": True,
            "keepTime": True,
            "targetBlank": False,
            "icon": "external link",
            "tooltip": "",
            "url": "",
        }


def _annotation(name: str, color: str, expression: str, title: str, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": color,
        "expr": expression,
        "step": "60s",
        "titleFormat": title,
        "textFormat": text,
    }


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
