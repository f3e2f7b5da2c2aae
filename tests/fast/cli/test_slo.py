"""opsctl slo, as people type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Opsctl

CONFIG = """
objectives:
  - {name: availability, sli: availability, target: 99.9%}
  - {name: rough, sli: e2e_latency, threshold: 1.5s, target: 90%, model: org/chat}
  - {name: gaps, sli: inter_token_latency, threshold: 100ms, target: 99%, notify: ticket}
  - {name: returning, sli: time_to_first_token_cached, threshold: 180ms, target: 95%}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "opsctl.yaml").write_text(CONFIG)
    return tmp_path


def test_export_and_import_are_each_others_reverse(opsctl: Opsctl, folder: Path) -> None:
    written = opsctl.run("slo", "export", "--out", "slo.yaml", cwd=folder)
    printed = opsctl.run("slo", "export", cwd=folder)
    section = opsctl.run("slo", "import", "slo.yaml", cwd=folder)

    assert (written.returncode, written.stdout) == (0, "slo.yaml: 4 objectives\n")
    assert printed.stdout == (folder / "slo.yaml").read_text()
    assert section.returncode == 0, section.stderr
    (folder / "opsctl.yaml").write_text(section.stdout)
    assert opsctl.run("slo", "export", cwd=folder).stdout == printed.stdout


def test_import_names_the_mistake(opsctl: Opsctl, folder: Path) -> None:
    (folder / "slo.yaml").write_text("kind: SLO\napiVersion: openslo/v1\nmetadata: {name: x}\n")

    answer = opsctl.run("slo", "import", "slo.yaml", cwd=folder)
    missing = opsctl.run("slo", "import", "none.yaml", cwd=folder)

    assert (answer.returncode, answer.stdout) == (64, "")
    assert "slo.yaml: document 1 (SLO x): spec:" in answer.stderr
    assert (missing.returncode, missing.stdout) == (64, "")
    assert "none.yaml: no such file" in missing.stderr


def test_export_says_where_it_cannot_write(opsctl: Opsctl, folder: Path) -> None:
    answer = opsctl.run("slo", "export", "--out", "no/such/slo.yaml", cwd=folder)

    assert answer.returncode == 64
    assert "no/such/slo.yaml: No such file or directory" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("availability",),
            ["100 % bad 2.86 min", "43.2 min of total outage", "30 x events a day"],
        ),
        (("availability", "--requests-per-day", "600"), ["18 bad events", "For 600 events a day"]),
        (("availability", "--requests-per-day", "10"), ["100 % bad never", "10 events a day"]),
        (("rough",), ["unreachable: 14.4x of a budget of 10 % is 144 %", "(floor)", "org/chat"]),
        (("gaps",), ["it has notify: ticket", "each gap between two tokens is one"]),
        (("returning",), ["Not measured:", "Tap missing"]),
        (("rough", "--from", "vllm"), ["opsctl alarms lint --from vllm"]),
    ],
)
def test_explain_fits_a_terminal(
    opsctl: Opsctl, folder: Path, arguments: tuple[str, ...], said: list[str]
) -> None:
    answer = opsctl.run("slo", "explain", *arguments, cwd=folder)

    assert answer.returncode == 0, answer.stderr
    text = " ".join(answer.stdout.split())
    assert [one for one in said if one not in text] == []
    assert max(map(len, answer.stdout.splitlines())) <= 80


def test_explain_as_json(opsctl: Opsctl, folder: Path) -> None:
    answer = opsctl.run(
        "slo", "explain", "availability", "--requests-per-day", "86400", "-o", "json", cwd=folder
    )

    data = json.loads(answer.stdout)
    assert data["objective"]["target"] == 0.999
    assert [outage["ratio"] for outage in data["outages"]] == [1.0, 0.5, 0.1, 0.01]
    assert data["outages"][0]["page_s"] == pytest.approx(171.84)
    assert data["outages"][0]["page_needs_per_day"] == pytest.approx(20)
    assert data["budget"] == {
        "ratio": 0.001,
        "outage_minutes": pytest.approx(43.2),
        "bad_events": pytest.approx(2592),
    }


def test_explain_asks_back_when_a_name_is_misspelt(opsctl: Opsctl, folder: Path) -> None:
    answer = opsctl.run("slo", "explain", "availabilty", cwd=folder)

    assert (answer.returncode, answer.stdout) == (64, "")
    assert "did you mean availability?" in answer.stderr
