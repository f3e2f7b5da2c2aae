"""opsctl slo status on a real sidecar that watches a replayed incident."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Opsctl
from loopback import http_get, wait_for
from paths import RECORDINGS

CONFIG = """
objectives:
  - {name: availability, sli: availability, target: 99.9%}
  - {name: queue-time, sli: queue_time, threshold: 300ms, target: 95%}
  - {name: hopeless, sli: e2e_latency, threshold: 300ms, target: 99%}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "opsctl.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def sidecar(opsctl: Opsctl, folder: Path) -> str:
    """Its URL, once it has counted something bad."""
    served = opsctl.start_replay(RECORDINGS / "queue-overload.jsonl.gz", "--loop")
    url = opsctl.start_sidecar(served, cwd=folder)
    wait_for(
        lambda: counted(url)["hopeless"]["bad"] > 0, timeout_s=60, what="bad events at the sidecar"
    )
    return url


def counted(url: str) -> dict[str, dict[str, float]]:
    """What the sidecar's own status says, by objective."""
    found: dict[str, dict[str, float]] = {
        name: {"good": 0.0, "bad": 0.0} for name in ("availability", "queue-time", "hopeless")
    }
    for target in json.loads(http_get(f"{url}/api/v1/status")[1])["targets"]:
        for row in target["objectives"]:
            for outcome in ("good", "bad"):
                found[row["objective"]][outcome] += row[outcome]
    return found


def test_a_sidecar_tells_what_it_counted_since_its_start(
    opsctl: Opsctl, folder: Path, sidecar: str
) -> None:
    before = counted(sidecar)
    answer = opsctl.run("slo", "status", "--sidecar", sidecar, "-o", "json", cwd=folder)
    after = counted(sidecar)

    assert answer.returncode == 2, answer.stderr
    data = json.loads(answer.stdout)
    found: dict[str, dict[str, Any]] = {one["objective"]: one for one in data["objectives"]}
    assert data["state"] == "exhausted"
    for name, one in found.items():
        assert before[name]["bad"] <= one["bad"] <= after[name]["bad"]
        assert sum(before[name].values()) <= one["events"] <= sum(after[name].values())
    hopeless = found["hopeless"]
    assert 0 < hopeless["known_s"] < 3600
    assert hopeless["since"] == pytest.approx(data["at"] - hopeless["known_s"])
    # the flight recorder holds all pages that were counted
    for burn in hopeless["burn"]:
        assert 0 < burn["bad"] <= after["hopeless"]["bad"]
        assert burn["rate"] == pytest.approx(burn["bad"] / burn["events"] / 0.01)
        assert burn["known_s"] <= burn["window_s"]


def test_its_text_and_markdown_say_since_when_it_counts(
    opsctl: Opsctl, folder: Path, sidecar: str
) -> None:
    (folder / "opsctl.yaml").write_text(f"{CONFIG}alarms: {{sidecar_url: '{sidecar}'}}\n")

    text = opsctl.run("slo", "status", cwd=folder)
    markdown = opsctl.run("slo", "status", "-o", "markdown", cwd=folder)

    said = " ".join(text.stdout.split())
    assert said.startswith("EXHAUSTED 3 budgets: ")
    assert "counted since its start" in said
    assert "burn rates are over the last" in said
    assert max(map(len, text.stdout.splitlines())) <= 80
    assert "| exhausted | `hopeless` |" in markdown.stdout


def test_another_configuration_is_told(opsctl: Opsctl, folder: Path, sidecar: str) -> None:
    (folder / "opsctl.yaml").write_text(
        CONFIG.replace("99.9%", "99.5%") + "  - {name: new, sli: availability, target: 99%}\n"
    )
    answer = opsctl.run("slo", "status", "--sidecar", sidecar, cwd=folder)
    (folder / "opsctl.yaml").write_text(
        "objectives:\n  - {name: new, sli: availability, target: 99%}\n"
    )
    nothing = opsctl.run("slo", "status", "--sidecar", sidecar, cwd=folder)

    assert "has availability with a target of 0.999, the configuration with 0.995" in answer.stderr
    assert "new (no data): the sidecar does not count it" in " ".join(answer.stdout.split())
    assert (nothing.returncode, nothing.stdout) == (64, "")
    assert "it has availability, queue-time, hopeless" in nothing.stderr
