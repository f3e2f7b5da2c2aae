"""The boards as they are defined, whatever draws them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from cloudwatch_fleet import config

from vllm_opsctl.alarms.burn import ROWS
from vllm_opsctl.dashboards import boards
from vllm_opsctl.dashboards.boards import FLEET, NAMES, fleet_board, load_boards, panels_by_mode
from vllm_opsctl.dashboards.model import (
    GRID,
    Board,
    BudgetLeft,
    Burn,
    Counted,
    Gauge,
    Panel,
    Quantile,
    Share,
    placed,
)
from vllm_opsctl.dashboards.slo_board import slo_board
from vllm_opsctl.exporter.catalogue import catalogue
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.runbooks.load import shipped_library

BOARDS = [slo_board("chat", one.objectives) for one in (Config(), config(), config(objectives=[]))]
OF_FILES = [fleet_board(), *load_boards("chat", config().objectives, "sidecar")]


@pytest.fixture(params=BOARDS, ids=("defaults", "two objectives", "none"))
def slo(request: pytest.FixtureRequest) -> Board:
    found: Board = request.param
    return found


@pytest.fixture(params=[*BOARDS, *OF_FILES])
def board(request: pytest.FixtureRequest) -> Board:
    found: Board = request.param
    return found


def test_what_is_most_important_stands_first(slo: Board) -> None:
    first, second = slo.sections[:2]

    assert first.panels[0].kind == "alarms"
    budgets, burns, *_ = second.panels
    assert all(isinstance(line.measure, BudgetLeft) for line in budgets.lines)
    assert all(isinstance(line.measure, Burn) for line in burns.lines)


def test_every_panel_says_what_good_looks_like_and_titles_differ(board: Board) -> None:
    titles = [panel.title for panel in board.panels]

    assert len(set(titles)) == len(titles)
    assert all(panel.good and len(panel.otherwise) > 20 for panel in board.panels)


def test_every_failure_mode_that_a_panel_names_has_a_page(board: Board) -> None:
    assert {mode for panel in board.panels for mode in panel.modes} <= {*shipped_library().modes}


def test_the_incident_board_has_the_panels_of_every_failure_mode() -> None:
    """SageMaker's own are seen in CloudWatch alone."""
    (incident,) = (board for board in OF_FILES if board.choose_objective)
    there = {mode for panel in incident.panels for mode in panel.modes}

    missing = {*shipped_library().modes} - there
    assert {mode for mode in missing if not mode.startswith("sagemaker-")} == set()
    for board in OF_FILES:
        if not board.of_all_services:
            titles = {panel.title for panel in board.panels if panel.modes}
            assert titles <= {panel.title for panel in incident.panels}


def test_everything_that_is_measured_is_in_the_catalogue(board: Board) -> None:
    known = {concept.concept for concept in catalogue()}
    for panel in board.panels:
        for line in panel.lines:
            measure = line.measure
            if isinstance(measure, Gauge | Quantile | Counted):
                assert measure.concept in known
            if isinstance(measure, Share):
                assert {measure.part, measure.whole} <= known


def test_panels_fit_and_none_lies_over_another(board: Board) -> None:
    for section in board.sections:
        cells: set[tuple[int, int]] = set()
        for panel, x, y in placed(section.panels, 0):
            assert x + panel.width <= GRID
            own = set(itertools.product(range(x, x + panel.width), range(y, y + panel.height)))
            assert not own & cells
            cells |= own


def test_legends_of_a_panel_differ(board: Board) -> None:
    for panel in board.panels:
        labels = [line.label for line in panel.lines]
        assert len(set(labels)) == len(labels)


def test_every_objective_has_a_budget_burns_and_the_line_it_must_not_cross() -> None:
    board = BOARDS[1]
    by_title = {panel.title: panel for panel in board.panels}

    (limit,) = by_title["availability: bad events"].limits
    assert (limit.value, limit.label) == (0.001, "objective 99.9 %")
    (limit,) = by_title["TTFT"].limits
    assert (limit.value, limit.label) == (1.0, "ttft: 95 % below")
    assert [line.label for line in by_title["Burn rate, 1h"].lines] == ["availability", "ttft"]


def test_burn_panels_draw_what_pages_and_what_opens_a_ticket() -> None:
    burns: list[Panel] = [p for p in BOARDS[0].panels if p.title.startswith("Burn rate")]

    assert [burn.limits[0].value for burn in burns] == [14.4, 6.0, 1.0]
    assert {burn.limits[0].value for burn in burns} <= {row.burn for row in ROWS}
    assert [burn.limits[0].grave for burn in burns] == [True, True, False]


def test_every_file_is_a_board() -> None:
    folder = Path(boards.__file__).parent / "boards"

    assert {file.stem for file in folder.glob("*.yaml")} == {FLEET, *NAMES}
    assert [board.name for board in OF_FILES] == [FLEET, *NAMES]


def test_titles_have_the_service_and_runbook_pages_do_not() -> None:
    assert [board.title for board in (BOARDS[0], *OF_FILES)] == [
        "chat / Objectives",
        "vLLM: all services",
        "chat / Service: traffic, errors, latency, saturation",
        "chat / Engine: scheduler and KV cache",
        "chat / Prefix cache",
        "chat / LoRA adapters",
        "chat / Incident",
    ]
    shown = panels_by_mode()["prefix-cache-eviction"]
    assert "Objectives: Prefix-cache hit ratio" in shown
    assert "Incident: Prefix-cache hit ratio" in shown


def test_latency_panels_of_files_draw_the_objectives() -> None:
    (service,) = (board for board in OF_FILES if board.name == "service")
    (ttft,) = (panel for panel in service.panels if panel.title == "TTFT")

    assert [(limit.value, limit.label) for limit in ttft.limits] == [(1.0, "ttft: 95 % below")]
