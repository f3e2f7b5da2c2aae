"""opsctl diagnose --watch: re-diagnoses until a signal; a pipe gets changes, a terminal the newest."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Opsctl
from loopback import wait_for
from paths import RECORDINGS
from ports import reserve_port

THRASH = RECORDINGS / "kv-preemption-thrash.jsonl.gz"
FAST = ("--watch", "--for", "2s", "--every", "1s")


class Watching:
    """A running `opsctl diagnose --watch`, with the lines that it printed so far."""

    def __init__(self, opsctl: Opsctl, *arguments: str) -> None:
        self.process = subprocess.Popen(
            opsctl.command("-v", "diagnose", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, text: str) -> str:
        """Wait for a line that holds a text: the line."""
        wait_for(lambda: any(text in line for line in self.lines), timeout_s=60, what=text)
        return next(line for line in self.lines if text in line)

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal: the exit code, and what stood on stderr."""
        self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        self._reader.join()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        with self.process.stdout, self.process.stderr:
            return code, self.process.stderr.read()


@pytest.fixture
def watching(opsctl: Opsctl) -> Iterator[list[Watching]]:
    """Watches that end with the test, whatever happens."""
    started: list[Watching] = []
    yield started
    for watch in started:
        if watch.process.poll() is None:
            watch.end(signal.SIGKILL)


def start(watching: list[Watching], opsctl: Opsctl, *arguments: str) -> Watching:
    """Start a watch."""
    watching.append(Watching(opsctl, *arguments))
    return watching[-1]


def test_a_pipe_gets_one_line_a_change_and_the_exit_code_is_the_last_verdict(
    opsctl: Opsctl, watching: list[Watching]
) -> None:
    url = opsctl.start_replay(THRASH)
    watch = start(watching, opsctl, *FAST, url)
    name = url.removeprefix("http://")

    watch.wait_for("-> healthy -")
    critical = watch.wait_for("-> critical")
    code, _ = watch.end(signal.SIGTERM)

    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(rf"{time} {name} - -> (unknown|healthy) -", watch.lines[0])
    assert re.fullmatch(rf"{time} {name} \w+ -> critical kv-preemption-thrash", critical)
    assert len(watch.lines) == len(set(watch.lines))
    assert code == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly(
    opsctl: Opsctl, watching: list[Watching], number: signal.Signals
) -> None:
    watch = start(watching, opsctl, *FAST, "-o", "json", f"http://127.0.0.1:{reserve_port()}")
    line = json.loads(watch.wait_for("unknown"))

    assert (line["from"], line["to"], line["roots"]) == (None, "unknown", [])
    assert "connection refused" in line["summary"]
    code, said = watch.end(number)
    assert code == 3
    assert "Traceback" not in said


def test_a_target_that_was_down_is_seen_when_it_comes(
    opsctl: Opsctl, watching: list[Watching]
) -> None:
    port = reserve_port()
    watch = start(watching, opsctl, *FAST, f"http://127.0.0.1:{port}")
    watch.wait_for("- -> unknown")
    opsctl.start("replay", str(RECORDINGS / "baseline.jsonl.gz"), "--port", str(port))

    watch.wait_for("unknown -> healthy")
    assert watch.end(signal.SIGTERM)[0] == 0


def test_a_sidecar_is_watched_and_may_go_away(opsctl: Opsctl, watching: list[Watching]) -> None:
    url = opsctl.start_replay(RECORDINGS / "baseline.jsonl.gz", "--loop")
    sidecar_url = opsctl.start_sidecar(url)
    watch = start(watching, opsctl, "--watch", "--every", "1s", "--sidecar", sidecar_url)
    watch.wait_for("-> healthy")
    opsctl.stop_all()

    watch.wait_for("healthy -> unknown")
    assert watch.end(signal.SIGTERM)[0] == 3


def test_a_sidecar_that_never_answered_is_an_error_at_once(opsctl: Opsctl) -> None:
    shown = opsctl.run("diagnose", "--watch", "--sidecar", f"http://127.0.0.1:{reserve_port()}")

    assert shown.returncode == 3
    assert "connection refused" in shown.stderr


def test_stopped_before_the_first_verdict_is_unknown(
    opsctl: Opsctl, watching: list[Watching]
) -> None:
    url = opsctl.start_replay(THRASH)
    watch = start(watching, opsctl, "--watch", "--for", "10m", url)
    assert watch.process.stderr is not None
    assert any(": metrics" in line for line in watch.process.stderr)

    assert watch.end(signal.SIGINT)[0] == 3


def test_a_terminal_shows_the_newest_verdict_and_keeps_it(opsctl: Opsctl) -> None:
    url = opsctl.start_replay(RECORDINGS / "baseline.jsonl.gz", "--loop")
    main, side = pty.openpty()
    process = subprocess.Popen(
        opsctl.command("diagnose", *FAST, url),
        stdout=side,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", "NO_COLOR": "1"},
    )
    os.close(side)
    shown = b""
    while b"no failure mode is active" not in shown:
        shown += os.read(main, 4096)
    process.send_signal(signal.SIGINT)
    try:
        while chunk := os.read(main, 4096):
            shown += chunk
    except OSError:
        pass
    os.close(main)
    left = shown.decode().rpartition("\033[?1049l")[2]

    assert process.wait(timeout=30) == 0
    assert b"\033[?1049h" in shown
    assert "HEALTHY" in left
    assert "no failure mode is active" in left


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--watch", "--recording", str(THRASH)], "--recording is the past"),
        (["--watch", "--sidecar", "http://h:1", "--at", "-5m"], "--at is the past"),
        (["--watch", "http://h:1", "-o", "markdown"], "no markdown"),
        (["--watch", "http://h:1", "--every", "100ms"], "is too often"),
        (["--watch", "http://h:1", "--bundle", "x.tar.gz"], "packs no bundle"),
        (["--every", "10s", "http://h:1"], "--every is the pace of --watch"),
        (["--watch"], "no target"),
    ],
)
def test_what_cannot_be_watched_is_a_usage_error(
    opsctl: Opsctl, tmp_path: Path, arguments: list[str], said: str
) -> None:
    shown = opsctl.run("diagnose", *arguments, cwd=tmp_path)

    assert (shown.returncode, shown.stdout) == (64, "")
    assert said in shown.stderr
