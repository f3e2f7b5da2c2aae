"""The boards that are data: boards/*.yaml, read and checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vllm_opsctl.alarms.prometheus.conventions import Source
from vllm_opsctl.alarms.resource_names import board_title
from vllm_opsctl.dashboards.model import (
    AlertGroup,
    Board,
    Kind,
    Limit,
    Line,
    Panel,
    Query,
    Section,
    Unit,
)
from vllm_opsctl.dashboards.slo_board import promised_limits, slo_board
from vllm_opsctl.exporter.config import SLI_CONCEPTS, Config, Objective
from vllm_opsctl.exporter.yaml_text import read_yaml

NAMES = ("service", "engine", "prefix", "lora", "incident")
"""A service's boards, in the order in which one looks at them."""

FLEET = "fleet"
"""The board of all services."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Line(_Strict):
    label: str
    expr: str
    chosen: Literal["model", "replica"] = "model"
    unit: Unit | None = None
    values: tuple[str, ...] | Literal["objectives"] = ()


class _Limit(_Strict):
    value: float
    label: str
    grave: bool = False


class _Panel(_Strict):
    title: str
    good: str
    otherwise: str
    kind: Kind
    unit: Unit
    lines: tuple[_Line, ...] = ()
    limits: tuple[_Limit, ...] = ()
    objectives_of: str | None = None
    width: int = 8
    height: int = 7
    modes: tuple[str, ...] = ()
    worse: Literal["up", "down"] = "down"
    of: Source | None = None
    alerts: AlertGroup | None = None
    leads_to: str | None = None
    points: int | None = None


class _Section(_Strict):
    title: str
    panels: tuple[_Panel, ...]
    closed: bool = False


class _Board(_Strict):
    name: str
    title: str
    about: str
    sections: tuple[_Section, ...]
    variables: tuple[Literal["objective"], ...] = ()
    with_panels_of_the_others: bool = False


def fleet_board() -> Board:
    """The board of all services: the same one whoever draws it."""
    read = _read(FLEET)
    return Board(
        name=read.name,
        subject=read.title,
        title=read.title,
        about=read.about,
        sections=_sections(read, (), "sidecar"),
        of_all_services=True,
    )


def load_boards(service: str, objectives: Sequence[Objective], source: Source) -> Iterator[Board]:
    """
    A service's boards of the files, with the objectives' thresholds as lines.

    Args:
        service: Name of the fleet.
        objectives: What is promised.
        source: Whose metrics there are; panels of the other's alone are left out.
    """
    before: list[Board] = []
    for name in NAMES:
        read = _read(name)
        sections = _sections(read, objectives, source)
        if read.with_panels_of_the_others:
            sections += _of_failure_modes(before, sections)
        board = Board(
            name=read.name,
            subject=read.title,
            title=board_title(service, read.title),
            about=read.about,
            sections=sections,
            choose_objective="objective" in read.variables,
        )
        before.append(board)
        yield board


def _read(name: str) -> _Board:
    path = files("vllm_opsctl.dashboards").joinpath("boards", f"{name}.yaml")
    return _Board.model_validate(read_yaml(path.read_text(encoding="utf-8")))


def _sections(read: _Board, objectives: Sequence[Objective], source: Source) -> tuple[Section, ...]:
    return tuple(
        Section(
            section.title,
            tuple(
                _panel(panel, objectives) for panel in section.panels if panel.of in (None, source)
            ),
            closed=section.closed,
        )
        for section in read.sections
    )


def _of_failure_modes(boards: Sequence[Board], there: Sequence[Section]) -> tuple[Section, ...]:
    """Panels that failure modes' pages name and that are not there yet, closed, by where they are from."""
    titles = {panel.title for section in there for panel in section.panels}
    return tuple(
        Section(f"{board.subject}: {section.title}", panels, closed=True)
        for board in boards
        for section in board.sections
        if (panels := tuple(p for p in section.panels if p.modes and p.title not in titles))
    )


def _panel(panel: _Panel, objectives: Sequence[Objective]) -> Panel:
    promised = promised_limits(
        [one for one in objectives if SLI_CONCEPTS.get(one.sli) == panel.objectives_of]
    )
    return Panel(
        title=panel.title,
        good=panel.good,
        otherwise=panel.otherwise,
        kind=panel.kind,
        unit=panel.unit,
        lines=tuple(
            Line(
                Query(line.expr, line.chosen),
                line.label,
                line.unit,
                tuple(one.name for one in objectives)
                if line.values == "objectives"
                else line.values,
            )
            for line in panel.lines
        ),
        limits=(*(Limit(one.value, one.label, one.grave) for one in panel.limits), *promised),
        width=panel.width,
        height=panel.height,
        modes=panel.modes,
        more_is_worse=panel.worse == "up",
        alerts=panel.alerts,
        leads_to=panel.leads_to,
        points=panel.points,
    )


def panels_by_mode() -> dict[str, list[str]]:
    """Where boards show each failure mode: the board's subject and the panel, in the boards' order."""
    config = Config()
    service = config.service.name
    boards = (
        slo_board(service, config.objectives),
        fleet_board(),
        *load_boards(service, config.objectives, "sidecar"),
    )
    found: dict[str, list[str]] = {}
    for board in boards:
        # what is closed on the incident's board stands open on the board that it is from
        shown = [s for s in board.sections if not (s.closed and board.choose_objective)]
        for panel in (panel for section in shown for panel in section.panels):
            for mode in panel.modes:
                found.setdefault(mode, []).append(f"{board.subject}: {panel.title}")
    return found
