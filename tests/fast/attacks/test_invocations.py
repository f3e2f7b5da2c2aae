"""Every command, wrongly invoked: one clear message on stderr, exit code 64, nothing on stdout."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from command_tree import Arguments, every_command
from commands import InProcess

WRONG: dict[str, tuple[str, ...]] = {
    "an option that is none": ("--nope",),
    "an option without its value": ("--config",),
    "a URL of another kind": ("ftp://h/x",),
    "a number too large": ("--for", "9" * 400),
    "control characters": ("\x1b[2J",),
}


CASES = list(itertools.product(every_command(), WRONG))


@pytest.mark.parametrize(
    ("command", "wrong"), CASES, ids=[f"{' '.join(c) or 'opsctl'}: {w}" for c, w in CASES]
)
def test_a_wrong_invocation_is_no_fault_of_opsctl(
    opsctl: InProcess, tmp_path: Path, command: Arguments, wrong: str
) -> None:
    found = opsctl.run(
        *command, *WRONG[wrong], cwd=tmp_path, env={"AWS_EC2_METADATA_DISABLED": "true"}
    )

    # an odd name may be a file's that the command writes
    assert found.returncode != 70, found
    assert found.returncode or wrong == "control characters", found
    assert "Traceback" not in found.stderr
    assert all(c == "\n" or c.isprintable() for c in found.stdout + found.stderr)
    assert found.stderr or not found.returncode


BROKEN_CONFIGURATIONS = {
    "not there": "--config=/nowhere/opsctl.yaml",
    "a directory": "--config=/",
    "a device": "--config=/dev/zero",
}


@pytest.mark.parametrize("config", BROKEN_CONFIGURATIONS.values(), ids=BROKEN_CONFIGURATIONS.keys())
@pytest.mark.parametrize("command", [("config", "check"), ("diagnose",), ("top", "--once")])
def test_a_configuration_that_cannot_be_read_is_named(
    opsctl: InProcess, config: str, command: Arguments
) -> None:
    found = opsctl.run(config, *command)

    assert (found.returncode, found.stdout) == (64, "")
    assert found.stderr.startswith(f"Error: {config.removeprefix('--config=')}")
    assert found.stderr.count("\n") == 1
