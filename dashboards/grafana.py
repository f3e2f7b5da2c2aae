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

from vllm_opsctl.alarms.prometheus.conventions import EVERY_SERVICE
from vllm_opsctl.alarms.resource_names import FLEET_BOARD, board_uid
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
from vllm_opsctl.dashboards.model import AlertGroup, Board, placed, rows_of
from vllm_opsctl.dashboards.promql import USUAL_LABELS, Promql
from vllm_opsctl.exporter.identity import SERVICE

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

    @property
    def of_all_services(self) -> bool:
        """Whether it is of no service in particular."""
        return self.uid == FLEET_BOARD


def panels_of(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel of a board's JSON model but headings, those below closed headings too."""
    for panel in body["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def draw(board: Board, says: Promql, service: str, runbook_url: str | None) -> Drawn:
    """
    Draw a board of a service.

    Args:
        board: What it shows.
        says: What its measures are in the data source.
        service: Name of the fleet.
        runbook_url: Where runbook pages are; None for no links.
    """
    return _Drawing(board, says, service, runbook_url).drawn()


def draw_fleet(board: Board) -> Drawn:
    """
    Draw the board of all services.

    Every service pushes it, so nothing of any configuration is in it.
    """
    return _Drawing(board, _EVERYTHING, None, None).drawn()


_EVERYTHING = Promql(Vocabulary("sidecar", scope=EVERY_SERVICE), USUAL_LABELS)


@dataclass(frozen=True, slots=True)
class _Drawing:
    board: Board
    says: Promql
    service: str | None
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
            links=[*self._other_boards()],
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
        return FLEET_BOARD if self.service is None else board_uid(self.service, self.board.name)

    @property
    def _tags(self) -> list[str]:
        return [TAG, *([] if self.service is None else [self.service])]

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
            told = ["alertname", "objective", "model", "target", *self.says.free]
            if self.service is None:
                told.insert(0, SERVICE)
            return alarms_panel(where, self._alerts(panel.alerts), told)
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

    def _alerts(self, group: AlertGroup | None = None) -> str:
        """The alerts that a board is about, without the watchdog: it fires while all is well."""
        matchers = ['role!="watchdog"']
        if self.service is not None:
            matchers.append('model=~"$model|"')
        if self.board.choose_objective:
            matchers.append('objective=~"$objective|"')
        return self.says.alerts(group, ",".join(matchers))

    def _legend(self, line: model.Line) -> str:
        if isinstance(line.measure, model.Query):
            return self.says.label(line.label)
        if isinstance(line.measure, model.Reporting):
            return line.label
        labels = (self._model_of(line), *(self.says.free if self._is_recorded(line) else ()))
        return " ".join((line.label, *(f"{{{{{label}}}}}" for label in labels)))

    def _model_of(self, line: model.Line) -> str:
        """The label of the model: recordings have their own."""
        return "model" if self._is_recorded(line) else self.says.names.labels("model")

    @staticmethod
    def _is_recorded(line: model.Line) -> bool:
        recorded = (model.BudgetLeft, model.Burn, model.BadShare, model.Events)
        return isinstance(line.measure, recorded)

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
        if self.service is not None:
            yield from self._choices()
        # for labels that no configuration names, such as external ones
        yield {
            "name": "filter",
            "label": "Filter",
            "type": "adhoc",
            "datasource": SOURCE,
            "filters": [],
            "current": {},
            "hide": 0,
        }

    def _choices(self) -> Iterator[dict[str, Any]]:
        """What is chosen of a service: its fleets, objectives, models and replicas."""
        names = self.says.names
        of_model = names.labels("model")
        replica = "target" if names.source == "sidecar" else "instance"
        every, chosen = (self.says.promises(chosen=chosen) for chosen in (False, True))
        for label in self.says.free:
            yield _values(label, label, every, label)
        if self.board.choose_objective:
            yield _values("objective", "Objective", chosen, "objective")
        matchers: list[str] = []
        for name, shown, label in (
            ("job", "Job", "job"),
            ("model", "Model", of_model),
            ("target", "Replica", replica),
        ):
            running = names.selector("requests_running", matchers=", ".join(matchers))
            yield _values(name, shown, running, label)
            matchers.append(f'{label}=~"${name}"')

    def _annotations(self) -> Iterator[dict[str, Any]]:
        """What happened: alerts, restarts, what a deploy changed, and verdicts that somebody wrote there."""
        yield _annotation(
            "Alerts", GRAVE, self._alerts(), "{{alertname}} {{objective}}", "{{model}} {{target}}"
        )
        if self.service is not None:
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
                "tags": [VERDICT_TAG, *([] if self.service is None else [self.service])],
                "type": "tags",
            },
        }

    def _settings(self) -> str:
        """What an engine says of itself; the sidecar tells its version too."""
        if self.says.names.source == "vllm":
            return self.says.query(model.Query("${kv_config}", "replica"))
        chosen = 'job=~"$job",model=~"$model",target=~"$target"'
        return self.says.query(model.Query(f"${{engine_info:{chosen}}}"))

    def _other_boards(self) -> Iterator[dict[str, Any]]:
        """A list of the service's other boards, and a way to all services."""
        link = {
            "tags": [],
            "asDropdown": False,
            "includeVars": True,
            "keepTime": True,
            "targetBlank": False,
            "icon": "external link",
            "tooltip": "",
            "url": "",
        }
        yield link | {
            "title": "Boards",
            "type": "dashboards",
            "tags": self._tags,
            "asDropdown": True,
        }
        if self.service is not None:
            yield link | {
                "title": "All services",
                "type": "link",
                "icon": "dashboard",
                "url": f"/d/{FLEET_BOARD}",
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
