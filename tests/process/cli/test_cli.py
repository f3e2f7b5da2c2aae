"""What only a process of the command shows: pipes, shells, imports, the host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from commands import Opsctl
from paths import RECORDINGS
from ports import reserve_port

THRASH = str(RECORDINGS / "kv-preemption-thrash.jsonl.gz")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(opsctl: Opsctl, shell: str) -> None:
    shown = opsctl.run("completion", shell)

    assert shown.returncode == 0
    assert "_OPSCTL_COMPLETE" in shown.stdout
    completed = opsctl.run(
        env={"_OPSCTL_COMPLETE": "bash_complete", "COMP_WORDS": "opsctl dia", "COMP_CWORD": "1"}
    )
    assert "diagnose" in completed.stdout


def test_an_unreachable_target_is_unknown(opsctl: Opsctl) -> None:
    shown = opsctl.run("diagnose", f"http://127.0.0.1:{reserve_port()}")

    assert shown.returncode == 3
    assert shown.stdout.startswith("UNKNOWN")
    assert "connection refused" in shown.stdout.replace("\n  ", " ")


def test_no_colour_in_a_pipe_nor_with_no_color(opsctl: Opsctl) -> None:
    import os
    import pty

    assert "\033" not in opsctl.run("diagnose", "--recording", THRASH).stdout

    def on_a_terminal(**environment: str) -> str:
        main, side = pty.openpty()
        process = subprocess.Popen(
            opsctl.command("diagnose", "--recording", THRASH),
            stdout=side,
            env={k: v for k, v in os.environ.items() if k != "NO_COLOR"} | environment,
        )
        os.close(side)
        text = b""
        while True:
            try:
                chunk = os.read(main, 4096)
            except OSError:
                break
            if not chunk:
                break
            text += chunk
        os.close(main)
        process.wait()
        return text.decode()

    assert "\033[" in on_a_terminal()
    assert "\033[" not in on_a_terminal(NO_COLOR="1")


def test_secrets_are_never_printed(opsctl: Opsctl, tmp_path: Path) -> None:
    (tmp_path / "opsctl.yaml").write_text(
        f"targets: [{{name: a, url: 'http://127.0.0.1:{reserve_port()}', api_key_env: KEY}}]\n"
    )
    for arguments in (["config", "show"], ["-vv", "diagnose"], ["-vv", "config", "check"]):
        shown = opsctl.run(*arguments, cwd=tmp_path, env={"KEY": "hunter2"})
        assert "hunter2" not in shown.stdout + shown.stderr


def test_a_reader_that_has_gone_changes_no_exit_code(opsctl: Opsctl) -> None:
    command = " ".join(opsctl.command("diagnose", "--recording", THRASH, "--show-features"))
    piped = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (piped.returncode, piped.stderr) == (2, "")
