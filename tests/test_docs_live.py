"""The documents' transcripts that want processes and servers, and the demo that the README promises."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transcripts import TRANSCRIPTS, Transcript, by_stand, make, needs_processes, same, written

ROOT = Path(__file__).parent.parent

# on a machine that is busy with other things, a look of three seconds may see too few pages for a verdict
pytestmark = pytest.mark.flaky(reruns=2, reruns_delay=10)

LIVE = by_stand(one for one in TRANSCRIPTS.values() if needs_processes(one))


@pytest.mark.parametrize("group", LIVE, ids=lambda group: "-".join(one.id for one in group))
def test_transcripts_are_what_their_commands_print(
    group: list[Transcript], part: Callable[[str], Path]
) -> None:
    for transcript, made in make(group, part):
        has = written(transcript)

        assert has == made or same(transcript, has, made), f"{transcript.id}: run make docs"


def test_the_demo_ends_with_the_verdict_of_the_readme() -> None:
    """Its times differ, and a busy machine sees less of what was before; the root and the advice stay."""
    ran = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "demo.py"), "--speed", "3"],
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
