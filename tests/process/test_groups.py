"""Tests of a file that share servers run in one worker, in their order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FILE = """
import pytest

pytestmark = pytest.mark.xdist_group(__name__)


@pytest.mark.parametrize("number", range(6))
def test_some(number): ...
"""


def test_a_group_stays_with_one_worker(tmp_path: Path) -> None:
    """pytest and xdist agree on it without a word, or do not."""
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / name).write_text(FILE, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-n", "2", "--dist", "loadgroup", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    passed = [line.split() for line in ran.stdout.splitlines() if "PASSED" in line]
    workers = {(words[0], words[-1].partition("::")[0]) for words in passed}

    assert len(passed) == 12, ran.stdout + ran.stderr
    assert len(workers) == 2, ran.stdout
