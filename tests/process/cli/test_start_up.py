"""What commands import before they do anything: help is light, and so is a verdict on data at hand."""

from __future__ import annotations

import pytest
from command_tree import every_command, imported_by
from paths import RECORDINGS

OF_LIVE_TARGETS = {"requests", "urllib3", "prometheus_client", "rich"}


def test_help_of_every_command_imports_click_and_our_own_modules_alone() -> None:
    commands = every_command()
    imported = imported_by([(*words, "--help") for words in commands])

    assert len(imported) == len(commands) > 40
    too_much = {
        " ".join(["opsctl", *words, "--help"]): sorted(names)
        for words, names in zip(commands, imported, strict=True)
        if names
    }
    assert too_much == {}


@pytest.mark.parametrize("output", ["text", "json", "markdown"])
def test_a_verdict_on_a_recording_imports_nothing_of_live_targets(output: str) -> None:
    recording = str(RECORDINGS / "queue-overload.jsonl.gz")
    (imported,) = imported_by([("diagnose", "--recording", recording, "--output", output)])

    assert "cel_expr_python" in imported
    assert imported & OF_LIVE_TARGETS == set()
