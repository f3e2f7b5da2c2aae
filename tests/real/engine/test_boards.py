"""
Every query of a board on real data: a vLLM under load, its sidecar, a Prometheus with the generated rules.

Windows are scaled by 1/60, so that a minute of load fills what an hour would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from board_queries import filled_in, values_of
from parts.boards import LOAD_S, Watched, answer, may_be_empty, watched_overload
from parts.shared import Servers

from vllm_opsctl.alarms.prometheus.conventions import Source
from vllm_opsctl.dashboards.build import draw_boards
from vllm_opsctl.dashboards.grafana import panels_of
from vllm_opsctl.exporter.config import Config

SLACK_S = 30.0
"""A busy machine is asked later, and the first requests alone are new to the prefix cache."""


SOURCES: tuple[Source, ...] = ("sidecar", "vllm")


@pytest.fixture(scope="module")
def watched(
    part: Callable[[str], Path], servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """One overload, watched by a Prometheus for each source."""
    servers.stop()
    folder = tmp_path_factory.mktemp("boards")
    with watched_overload(part("vllm"), part("prometheus"), SOURCES, folder) as found:
        yield found


@pytest.mark.parametrize("source", SOURCES)
def test_every_panel_has_data_and_every_variable_values(watched: Watched, source: Source) -> None:
    url = watched.urls[source]
    boards = draw_boards(Config(), source)
    # a window of the whole load
    window = f"{LOAD_S + SLACK_S:g}s"
    empty = {
        f"{drawn.uid}, {panel['title']}, {target['legendFormat']}": query
        for drawn in boards
        for panel in panels_of(drawn.body)
        for target in panel["targets"]
        if not answer(url, query := filled_in(target["expr"], window), watched.at)
        and not may_be_empty(panel["title"], target["legendFormat"])
    }
    assert empty == {}
    for annotation in (one for drawn in boards for one in drawn.body["annotations"]["list"]):
        if "expr" in annotation:
            answer(url, filled_in(annotation["expr"], window), watched.at)
    for name, series, label in (one for drawn in boards for one in values_of(drawn.body)):
        found = answer(url, filled_in(series, window), watched.at)
        values = {one["metric"].get(label) for one in found}
        assert values, name
        assert None not in values, name
