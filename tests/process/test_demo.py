"""The demo that the README promises."""

from __future__ import annotations

import os
import subprocess
import sys

from paths import TESTS
from transcripts import TRANSCRIPTS, written


def test_the_demo_ends_with_the_verdict_of_the_readme() -> None:
    """Its times differ, and a busy machine sees less of what was before; the root and the advice stay."""
    ran = subprocess.run(
        [sys.executable, str(TESTS / "demo.py"), "--speed", "3"],
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    verdict = written(TRANSCRIPTS["verdict"])
    advice = verdict[verdict.index("\nCheck first\n") : verdict.index("\nRunbook: ")]

    assert ran.returncode == 0, ran.stdout + ran.stderr
    shown = ran.stdout[ran.stdout.rindex("$ opsctl diagnose") :]
    assert "CRITICAL kv-preemption-thrash on" in shown
    assert "Root cause: kv-preemption-thrash (critical" in shown
    assert advice in shown
    assert verdict.splitlines()[-1] in shown
