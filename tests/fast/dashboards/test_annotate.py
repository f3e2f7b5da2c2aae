"""A verdict on the boards: every root cause once, at its time, by what the boards ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Opsctl
from fake_grafana import TOKEN, FakeGrafana, running
from paths import RECORDINGS

from vllm_opsctl.dashboards.annotations import VERDICT_TAG, annotations_of
from vllm_opsctl.dashboards.build import draw_boards
from vllm_opsctl.exporter.config import Config

ENV = {"GRAFANA_TOKEN": TOKEN}


@pytest.fixture
def grafana() -> Iterator[FakeGrafana]:
    with running(FakeGrafana()) as one:
        yield one


@pytest.fixture(scope="module")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a recorded incident."""
    path = tmp_path_factory.mktemp("verdict") / "verdict.json"
    recording = str(RECORDINGS / "kv-preemption-thrash.jsonl.gz")
    path.write_text(Opsctl().run("diagnose", "--recording", recording, "-o", "json").stdout)
    return path


def annotate(opsctl: Opsctl, grafana: FakeGrafana, file: str) -> tuple[int, str]:
    command = ("dashboards", "annotate", file, "--url", grafana.url, "--token-env", "GRAFANA_TOKEN")
    ran = opsctl.run(*command, env=ENV)
    assert TOKEN not in ran.stdout + ran.stderr
    return ran.returncode, ran.stdout + " ".join(ran.stderr.split())


def test_the_root_stands_from_its_onset_to_the_end_of_what_was_seen(
    opsctl: Opsctl, grafana: FakeGrafana, verdict: Path
) -> None:
    code, said = annotate(opsctl, grafana, str(verdict))
    window = json.loads(verdict.read_text())["targets"][0]["window"]

    assert code == 0
    assert said.startswith("annotated: kv-preemption-thrash on ")
    (written,) = grafana.annotations
    assert written["time"] == round(1000 * window["onset"])
    assert written["timeEnd"] == round(1000 * window["end"])
    assert written["tags"] == [VERDICT_TAG, "vllm", "kv-preemption-thrash"]


def test_it_is_written_once(opsctl: Opsctl, grafana: FakeGrafana, verdict: Path) -> None:
    annotate(opsctl, grafana, str(verdict))
    code, said = annotate(opsctl, grafana, str(verdict))

    assert (code, len(grafana.annotations)) == (0, 1)
    assert said.startswith("there already: ")


def test_boards_ask_for_what_is_written(verdict: Path) -> None:
    (one,) = annotations_of(json.loads(verdict.read_text()), "vllm")
    for drawn in draw_boards(Config(), "sidecar"):
        asked: list[dict[str, Any]] = drawn.body["annotations"]["list"]
        (verdicts,) = (a for a in asked if a["name"] == "Verdicts")
        assert {*verdicts["target"]["tags"]} <= {*one.tags}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"targets": [{}]}'])
def test_what_is_no_verdict_is_told(
    opsctl: Opsctl, grafana: FakeGrafana, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    code, said = annotate(opsctl, grafana, str(path))

    assert code == 64
    assert "no verdict" in said
    assert "opsctl diagnose -o json" in said
    assert grafana.asked == []


def test_a_permission_that_is_missing_is_named(
    opsctl: Opsctl, grafana: FakeGrafana, verdict: Path
) -> None:
    grafana.may -= {"annotations:create"}
    code, said = annotate(opsctl, grafana, str(verdict))

    assert code == 3
    assert "annotations:create" in said


def test_a_healthy_verdict_annotates_nothing(
    opsctl: Opsctl, grafana: FakeGrafana, tmp_path: Path
) -> None:
    path = tmp_path / "healthy.json"
    path.write_text('{"targets": []}')

    assert annotate(opsctl, grafana, str(path))[0] == 0
    assert grafana.annotations == []
