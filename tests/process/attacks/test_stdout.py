"""An answer that cannot be printed: a full disk, a stdout that was closed."""

from __future__ import annotations

import subprocess
from pathlib import Path

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


@pytest.mark.parametrize("before", [None, "targets: []\n"], ids=["new", "replaced"])
def test_a_starter_file_that_does_not_fit_leaves_what_was_there(
    opsctl: Opsctl, tmp_path: Path, before: str | None
) -> None:
    path = tmp_path / "opsctl.yaml"
    if before is not None:
        path.write_text(before, encoding="utf-8")
    command = ("prlimit", "--fsize=100", *opsctl.command("config", "init", "--force"))
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stdout) == (64, "")
    assert ran.stderr.startswith("Error: opsctl.yaml: cannot be written (File too large)")
    left = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()}
    assert left == ({} if before is None else {"opsctl.yaml": before})


def test_a_verdict_without_stdout_is_its_exit_code(opsctl: Opsctl) -> None:
    closed = ("sh", "-c", 'exec "$@" >&-', "sh", *opsctl.command(*VERDICT))
    ran = subprocess.run(closed, stderr=subprocess.PIPE, text=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, "")
