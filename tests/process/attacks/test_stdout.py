"""An answer that cannot be printed: a full disk, a stdout that was closed."""

from __future__ import annotations

import subprocess

import pytest
from commands import Opsctl
from paths import RECORDINGS

VERDICT = ("diagnose", "--recording", str(RECORDINGS / "baseline.jsonl.gz"))


@pytest.mark.parametrize("arguments", [VERDICT, ("config", "show"), ("runbook", "list")])
def test_a_full_disk_is_no_fault_of_opsctl(opsctl: Opsctl, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            opsctl.command(*arguments), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )

    assert ran.returncode == 64
    assert ran.stderr == (
        "Error: the output cannot be written (No space left on device); make room, or write "
        "elsewhere\n"
    )


def test_a_verdict_without_stdout_is_its_exit_code(opsctl: Opsctl) -> None:
    closed = ("sh", "-c", 'exec "$@" >&-', "sh", *opsctl.command(*VERDICT))
    ran = subprocess.run(closed, stderr=subprocess.PIPE, text=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, "")
