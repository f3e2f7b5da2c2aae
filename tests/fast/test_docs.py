"""What the documents say is what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import pytest

from vllm_opsctl.cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCS = README + "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_pages_are_fresh() -> None:
    stale = [
        name
        for name, text in _generator().pages().items()
        if (ROOT / "docs" / name).read_text() != text
    ]

    assert stale == [], "run make docs"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    assert f"opsctl {name}" in DOCS


def test_every_option_of_diagnose_is_documented() -> None:
    command = cli.get_command(click.Context(cli), "diagnose")
    assert command is not None
    options = [o for p in command.params for o in p.opts if o.startswith("--")]

    assert [option for option in options if option not in DOCS] == []


def test_no_placeholder_is_left() -> None:
    assert "@@" not in DOCS


def test_links_to_files_lead_somewhere() -> None:
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_transcript_in_the_readme_is_what_the_demo_prints() -> None:
    """The demo's verdict differs in its times only; the parts that do not are quoted verbatim."""
    for quoted in (
        "CRITICAL kv-preemption-thrash on",
        "Root cause: kv-preemption-thrash (critical",
        "- Remove --num-gpu-blocks-override, it limits the KV cache to 2,080 tokens.",
        "Runbook: opsctl runbook show kv-preemption-thrash",
    ):
        assert quoted in README
        golden = (ROOT / "tests/golden/kv-preemption-thrash.text").read_text()
        assert quoted in golden
