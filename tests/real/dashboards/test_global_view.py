"""
Boards on a global view: two clusters with the same service, each with a pair of Prometheus servers.

Nobody has made one series of a pair (as Thanos and Mimir can), so every series is there four times. External
labels tell them apart: ``cluster`` and ``replica``.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
from board_queries import filled_in, queries_of, selectors_of
from cloudwatch_fleet import config
from parts.prometheus import RealPrometheus
from ports import reserve_port

from vllm_opsctl.alarms.prometheus.conventions import (
    BUDGET_LEFT,
    BURN_ALERT,
    INFO,
    TARGET_RATIO,
    Source,
    recorded_name,
)
from vllm_opsctl.alarms.resource_names import board_prefix
from vllm_opsctl.dashboards.build import draw_boards
from vllm_opsctl.dashboards.grafana import Drawn, panels_of
from vllm_opsctl.exporter.config import Config

START = 1_700_000_000
MINUTES = 60
END = START + 60 * (MINUTES - 1)

LABELLED = config(exporter={"labels": {"cluster": "eu"}})
"""The cluster is a free label, too."""

UNLABELLED = config()
"""The cluster is an external label alone."""

SOURCES: tuple[Source, ...] = ("sidecar", "vllm")
CONFIGS = {"a free label": LABELLED, "an external label": UNLABELLED}

TARGETS = {"eu": 0.999, "us": 0.99}
"""Of one objective, in each cluster."""

BAD = {"eu": 0.001, "us": 0.05}
BURNS = {"eu": 1.0, "us": 5.0}
LEFT = {"eu": 0.4, "us": -0.2}

OLD, STRANGE = "old", "chat.v2"
"""A service with rules of 0.1, which record no board, and one whose name is no uid."""

SERVICES = ("chat", STRANGE, OLD)
REPLICAS = ("chat-0", "chat-1")
Labels = dict[str, str]


def recorded(cluster: str) -> Iterator[tuple[str, Labels, float]]:
    """What the rules of a cluster have recorded."""
    for service in SERVICES:
        for objective in ("availability", "ttft"):
            promise = {"service": service, "objective": objective}
            yield TARGET_RATIO, promise, TARGETS[cluster]
            if service != OLD:
                yield INFO, {**promise, "sli": objective, "board": board_prefix(service)}, 1
            of_model = {**promise, "model": "tiny"}
            yield BUDGET_LEFT, of_model, LEFT[cluster]
            for window in ("5m", "1h", "6h", "3d"):
                yield recorded_name("error", window), of_model, BAD[cluster]
            yield recorded_name("bad", "5m"), of_model, BAD[cluster]
            yield recorded_name("total", "5m"), of_model, 1
        alert = {"alertname": BURN_ALERT, "alertstate": "firing", "severity": "page"}
        yield "ALERTS", {**alert, "service": service, "objective": "ttft", "model": "tiny"}, 1


def scraped(names: set[str]) -> Iterator[tuple[str, Labels]]:
    """Series of two replicas in a cluster; a label of theirs splits them further."""
    for name, replica in itertools.product(sorted(names), REPLICAS):
        labels = {"job": "vllm", "instance": f"{replica}:8000", "engine": "0", "model_name": "tiny"}
        if name.startswith(("vllm_", "opsctl_")):
            labels |= {"service": "chat", "model": "tiny", "target": replica}
            labels |= {"instance": "sidecar:9836"}
            del labels["model_name"]
        bounds = ("0.1", "0.3", "1", "+Inf") if name.endswith("_bucket") else (None,)
        for split, bound in itertools.product(("error", "stop"), bounds):
            own = {**labels, "finished_reason": split, "status": split}
            yield name, own if bound is None else {**own, "le": bound}


def openmetrics(names: set[str]) -> Iterator[str]:
    """An hour of everything."""
    found: list[tuple[str, Labels, float, bool]] = []
    for cluster, half in itertools.product(BAD, ("a", "b")):
        outside = {"cluster": cluster, "replica": half}
        found += [(name, {**own, **outside}, v, False) for name, own, v in recorded(cluster)]
        found += [(name, {**own, **outside}, 1, True) for name, own in scraped(names)]
    for name, labels, value, grows in sorted(found, key=lambda one: one[0]):
        inside = ",".join(f'{label}="{text}"' for label, text in labels.items())
        for minute in range(MINUTES):
            shown = minute * value if grows else value
            yield f"{name}{{{inside}}} {shown:g} {START + 60 * minute}"
    yield "# EOF"


def boards() -> Iterator[tuple[str, Drawn]]:
    """Every board from every source, by a name."""
    for (name, one), source in itertools.product(CONFIGS.items(), SOURCES):
        for drawn in draw_boards(one, source):
            yield f"{drawn.body['title']}, {name}, from {source}", drawn


Ask = Callable[[str], list[Any]]


@pytest.fixture(scope="module")
def ask(part: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Answers an instant query at the end of the hour."""
    folder = tmp_path_factory.mktemp("global")
    prometheus = RealPrometheus(part("prometheus"), folder, reserve_port())
    read = {
        name
        for _, drawn in boards()
        for _, query in queries_of(drawn.body)
        for name, _ in selectors_of(query)
        if not name.startswith("llm_slo") and name != "ALERTS"
    }
    text = folder / "hour.om"
    text.write_text("\n".join(openmetrics(read)) + "\n")
    blocks = ("tsdb", "create-blocks-from", "openmetrics", "--quiet")
    subprocess.run([part("promtool"), *blocks, text, folder / "data"], check=True)
    prometheus.start()

    def answer(query: str) -> list[Any]:
        asked = {"query": query, "time": str(END)}
        found = requests.get(f"{prometheus.url}/api/v1/query", params=asked, timeout=30).json()
        if found["status"] != "success":
            raise ValueError(found["error"])
        series: list[Any] = found["data"]["result"]
        return series

    try:
        yield answer
    finally:
        prometheus.stop()


def by(series: list[Any], *labels: str) -> dict[tuple[str, ...], float]:
    """Values by labels, which tell all of them apart but halves of a pair."""
    found: dict[tuple[str, ...], float] = {}
    for one in series:
        key = tuple(one["metric"].get(label, "") for label in labels)
        value = float(one["value"][1])
        assert found.setdefault(key, value) == value
    return found


def queries(drawn: Drawn, title: str) -> Mapping[str, str]:
    """The queries of a panel, as Grafana sends them, by legend."""
    (panel,) = (one for one in panels_of(drawn.body) if one["title"] == title)
    return {one["legendFormat"]: filled_in(one["expr"]) for one in panel["targets"]}


def board(title: str, one: Config = UNLABELLED) -> Drawn:
    (found,) = (drawn for drawn in draw_boards(one, "sidecar") if drawn.body["title"] == title)
    return found


@pytest.mark.parametrize(("name", "drawn"), [*boards()], ids=[name for name, _ in boards()])
def test_every_query_has_an_answer(ask: Ask, name: str, drawn: Drawn) -> None:
    wrong = {}
    for where, query in queries_of(drawn.body):
        try:
            ask(filled_in(query))
        except ValueError as problem:
            wrong[where] = str(problem)

    assert wrong == {}


def test_the_view_is_one_that_joins_must_survive(ask: Ask) -> None:
    """As 0.1 asked."""
    share = recorded_name("error", "1h")
    with pytest.raises(ValueError, match="many-to-many"):
        ask(f"{share} / on (service, objective) group_left () (1 - {TARGET_RATIO})")


# -- all services --------------------------------------------------------------------------------------


def test_both_clusters_have_a_row_with_their_own_burn_rate(ask: Ask) -> None:
    """Targets differ, so neither's may stand for the other's."""
    table = queries(board("vLLM: all services"), "Objectives")

    for window in ("1h", "6h", "3d"):
        burns = by(ask(table[f"burn rate, {window}"]), "service", "objective", "cluster")
        for (service, _, cluster), burn in burns.items():
            assert service in SERVICES
            assert burn == pytest.approx(BURNS[cluster])
        assert len(burns) == 12
    left = by(ask(table["budget left"]), "service", "objective", "cluster")
    assert left == {
        (service, objective, cluster): LEFT[cluster]
        for service in SERVICES
        for objective in ("availability", "ttft")
        for cluster in LEFT
    }


def test_every_row_has_the_uid_of_its_service_s_boards(ask: Ask) -> None:
    table = queries(board("vLLM: all services"), "Objectives")
    rows = ask(table["budget left"])

    assert {(one["metric"]["service"], one["metric"]["board"]) for one in rows} == {
        ("chat", "opsctl-chat"),
        (STRANGE, board_prefix(STRANGE)),
        (OLD, "opsctl-old"),
    }
    assert len(rows) == 24, "no row comes twice"


def test_a_pair_counts_once_and_a_cluster_for_itself(ask: Ask) -> None:
    fleet = board("vLLM: all services")

    def number(title: str) -> float:
        ((_, query),) = queries(fleet, title).items()
        return by(ask(query))[()]

    assert number("Promises broken") == 6, "two objectives of three services, in us"
    assert number("Burning now") == 6, "one objective of three services, in two clusters"
    assert number("Models measured") == 3


# -- a service -----------------------------------------------------------------------------------------


def test_the_worst_of_clusters_that_no_label_tells_apart_is_shown(ask: Ask) -> None:
    incident = board("chat / Incident")
    burn, left = (queries(incident, title) for title in ("Burn rate", "Budget left"))

    assert by(ask(burn["1h {{objective}} {{model}}"]), "objective") == {
        ("availability",): pytest.approx(BURNS["us"]),
        ("ttft",): pytest.approx(BURNS["us"]),
    }
    assert by(ask(left["{{objective}} {{model}}"]), "objective")[("ttft",)] == LEFT["us"]


def test_clusters_are_told_apart_and_chosen_by_a_free_label(ask: Ask) -> None:
    drawn = board("chat / Incident", LABELLED)
    (panel,) = (one for one in panels_of(drawn.body) if one["title"] == "Burn rate")
    (query,) = (one["expr"] for one in panel["targets"] if one["legendFormat"].startswith("1h "))
    every, chosen = (filled_in(query, chosen=one) for one in ({}, {"cluster": "eu"}))

    assert by(ask(every), "objective", "cluster") == {
        (objective, cluster): pytest.approx(BURNS[cluster])
        for objective in ("availability", "ttft")
        for cluster in BURNS
    }
    assert {cluster for _, cluster in by(ask(chosen), "objective", "cluster")} == {"eu"}


@pytest.mark.parametrize(("one", "shown"), [(UNLABELLED, 2), (LABELLED, 4)])
def test_replicas_of_the_same_name_are_told_apart(ask: Ask, one: Config, shown: int) -> None:
    """Both clusters have a chat-0 and a chat-1."""
    ((_, query),) = queries(board("chat / Incident", one), "Waiting, of each replica").items()
    ((_, read),) = queries(board("chat / Objectives", one), "Replicas read, a minute").items()

    assert len(ask(query)) == shown
    assert by(ask(read.replace("== 1", "> 0")))[()] == shown
