"""
What a board shows, whatever draws it: panels of measures in the project's own words.

A renderer (Grafana, CloudWatch) knows how its data source says each measure, and says which it cannot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from vllm_opsctl.exporter.config import Objective

GRID = 24
"""Columns; Grafana and CloudWatch have as many."""

Unit = Literal[
    "share", "seconds", "per second", "tokens per second", "tokens", "count", "times", "bytes"
]
AlertGroup = Literal["burning_alerts", "blind_alerts"]
"""Placeholders of alarms/prometheus/conventions.py."""
Kind = Literal["time", "stacked", "number", "bars", "table", "states", "heatmap", "alarms"]


@dataclass(frozen=True, slots=True)
class BudgetLeft:
    """The share of an objective's error budget of 30 days that is left; below 0 it is overspent."""

    objective: Objective


@dataclass(frozen=True, slots=True)
class Burn:
    """How many times too fast the budget goes over a window of seconds; at 1 it lasts 30 days."""

    objective: Objective
    window_s: float


@dataclass(frozen=True, slots=True)
class BadShare:
    """The share of bad events of an objective."""

    objective: Objective


@dataclass(frozen=True, slots=True)
class Events:
    """Events of an objective a second: all, or the bad ones."""

    objective: Objective
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Gauge:
    """A gauge of the catalogue over all engines: its peak, or what it is on average of an engine."""

    concept: str
    of: Literal["peak", "mean"]


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of a latency of the catalogue, seconds."""

    concept: str
    quantile: float


@dataclass(frozen=True, slots=True)
class Counted:
    """What a counter of the catalogue counted, in each interval."""

    concept: str


@dataclass(frozen=True, slots=True)
class Share:
    """One counter's increase over another's."""

    part: str
    whole: str


@dataclass(frozen=True, slots=True)
class Reporting:
    """How many replicas' pages sidecars have read in the last minute."""


@dataclass(frozen=True, slots=True)
class Query:
    """
    PromQL with the placeholders of alarms/vocabulary.py: of boards that Prometheus alone can fill.

    Args:
        template: The expression.
        of: What is chosen among its series; what a process counts knows no model.
    """

    template: str
    of: Literal["model", "replica"] = "model"


Measure = (
    BudgetLeft | Burn | BadShare | Events | Gauge | Quantile | Counted | Share | Reporting | Query
)


@dataclass(frozen=True, slots=True)
class Line:
    """
    One series of a panel.

    Args:
        measure: What it shows.
        label: Its legend; of a query with labels in braces, ``{model}`` in the source's own name.
        unit: Of a table's column, when it is not the panel's.
        values: Words of the legend that tell its series apart; each has a colour of its own.
    """

    measure: Measure
    label: str
    unit: Unit | None = None
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Limit:
    """
    A line across a panel.

    Args:
        value: In the panel's unit.
        label: What it is: ``objective``, ``pages above``.
        grave: Whether crossing it pages; else it is a promise or a warning.
    """

    value: float
    label: str
    grave: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """
    One panel.

    Args:
        title: What it shows.
        good: What good looks like.
        otherwise: What to do when it does not look so.
        kind: Lines over time, or stacked; the newest numbers, as bars, or in a table; states or a heatmap
            over time; which alarms are on.
        unit: Of all its lines.
        lines: None for alarms.
        limits: Lines across it.
        width: Columns of 24.
        height: Rows.
        range_s: It shows so many seconds, whatever the board's range is.
        interval_s: Each point is of so many seconds; None for what suits the range.
        modes: Failure modes to read about.
        more_is_worse: Of numbers: which end is bad.
        alerts: Of alarms: which, ``burning_alerts`` or ``blind_alerts``; None for all that the board is
            about.
        leads_to: Of a table: the service's board that a row opens.
        points: At most so many over the range, where each costs much; None for one a pixel.
    """

    title: str
    good: str
    otherwise: str
    kind: Kind
    unit: Unit
    lines: tuple[Line, ...] = ()
    limits: tuple[Limit, ...] = ()
    width: int = 8
    height: int = 6
    range_s: float | None = None
    interval_s: float | None = None
    modes: tuple[str, ...] = ()
    more_is_worse: bool = False
    alerts: AlertGroup | None = None
    leads_to: str | None = None
    points: int | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """
    Panels under one heading.

    Args:
        title: The heading.
        panels: In order, left to right and down.
        per_model: It is of one model.
        closed: Somebody opens it who wants it; until then its panels ask nothing.
    """

    title: str
    panels: tuple[Panel, ...]
    per_model: bool = True
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Board:
    """
    One board.

    Args:
        name: Its name in addresses.
        subject: What it is about, without its service: ``Incident``.
        title: Its heading, with its service: ``chat / Incident``.
        about: Whom it is for, one sentence.
        sections: In order; the most important first.
        choose_objective: It is of one objective at a time.
        of_all_services: It is of no service in particular.
    """

    name: str
    subject: str
    title: str
    about: str
    sections: tuple[Section, ...] = field(default_factory=tuple)
    choose_objective: bool = False
    of_all_services: bool = False

    @property
    def panels(self) -> Iterator[Panel]:
        """Every panel."""
        for section in self.sections:
            yield from section.panels


def placed(panels: tuple[Panel, ...], top: int) -> Iterator[tuple[Panel, int, int]]:
    """
    Where panels of a section stand: filled from the left, a row as high as its highest panel.

    Args:
        panels: In order.
        top: First row.

    Yields:
        Panel, column, row.

    >>> one = Panel("", "", "", "time", "count", width=12, height=6)
    >>> [(x, y) for _, x, y in placed((one, one, one), 2)]
    [(0, 2), (12, 2), (0, 8)]
    """
    x, y, high = 0, top, 0
    for panel in panels:
        if x + panel.width > GRID:
            x, y, high = 0, y + high, 0
        yield panel, x, y
        x, high = x + panel.width, max(high, panel.height)


def rows_of(panels: tuple[Panel, ...]) -> int:
    """How many rows a section's panels take."""
    return max((y + panel.height for panel, _, y in placed(panels, 0)), default=0)
