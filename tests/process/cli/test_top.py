"""opsctl top: every target in one view, worst first, in pipes and on terminals of any size."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest
from commands import Opsctl
from paths import RECORDINGS
from ports import reserve_port

from vllm_opsctl.cli.top_model import Fleet
from vllm_opsctl.cli.top_view import sparkline
from vllm_opsctl.exporter.observation import Observation, error, metrics

PAGE = """\
vllm:num_requests_running{model_name="m",engine="0"} 3
vllm:num_requests_running{model_name="m",engine="1"} 2
"""


class Terminal:
    """`opsctl top` on a terminal of some size."""

    def __init__(self, opsctl: Opsctl, columns: int, lines: int, *arguments: str) -> None:
        self._main, side = pty.openpty()
        ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            opsctl.command("top", *arguments),
            stdin=side,
            stdout=side,
            stderr=side,
            env=environment | {"TERM": "xterm", "NO_COLOR": "1"},
        )
        self.before = termios.tcgetattr(side)
        self.side = side

    def wait_for(self, text: str) -> str:
        """Read until a text is shown: all that was read for it."""
        shown = b""
        deadline = time.monotonic() + 60
        while text.encode() not in shown:
            assert time.monotonic() < deadline, f"{text!r} is not shown: {shown[-2000:]!r}"
            if select.select([self._main], [], [], 1.0)[0]:
                shown += os.read(self._main, 65536)
        return shown.decode(errors="replace")

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._main, keys.encode())

    def ended(self) -> int:
        """Wait for the end: the exit code."""
        while self.process.poll() is None:
            if select.select([self._main], [], [], 0.1)[0]:
                os.read(self._main, 65536)
        return self.process.returncode

    def close(self) -> None:
        """Take the terminal away."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._main)
        os.close(self.side)


@pytest.fixture
def fleet_urls(opsctl: Opsctl) -> list[str]:
    """A healthy target, an overloaded one, and one that is down."""
    return [
        opsctl.start_replay(RECORDINGS / "baseline.jsonl.gz", "--loop"),
        opsctl.start_replay(RECORDINGS / "queue-overload.jsonl.gz", "--loop"),
        f"http://127.0.0.1:{reserve_port()}",
    ]


@pytest.fixture
def terminal(opsctl: Opsctl, fleet_urls: list[str]) -> Iterator[Terminal]:
    """A small terminal."""
    found = Terminal(opsctl, 80, 24, *fleet_urls)
    yield found
    found.close()


def test_one_frame_for_pipes_fits_80_columns(opsctl: Opsctl, fleet_urls: list[str]) -> None:
    shown = opsctl.run("top", "--once", *fleet_urls, env={"COLUMNS": "80"})
    lines = shown.stdout.splitlines()

    assert shown.returncode == 0
    assert shown.stderr == ""
    assert max(len(line) for line in lines) <= 80
    assert len(lines) == 2 + len(fleet_urls) + 1
    assert "\033" not in shown.stdout
    assert any("unreachable: http://" in line for line in lines)
    assert lines[-1].startswith("FLEET")


def test_one_frame_as_json(opsctl: Opsctl, fleet_urls: list[str]) -> None:
    shown = json.loads(opsctl.run("top", "--once", "-o", "json", *fleet_urls).stdout)
    by_name = {row["target"]: row for row in shown["targets"]}
    healthy, _, down = (by_name[url.removeprefix("http://")] for url in fleet_urls)

    assert shown["fleet"]["targets"] == 3
    assert healthy["error"] is None
    assert healthy["running"] is not None
    assert "connection refused" in down["error"]
    assert down["running"] is None


def test_a_sidecar_is_shown_with_its_past(opsctl: Opsctl) -> None:
    url = opsctl.start_replay(RECORDINGS / "baseline.jsonl.gz", "--loop")
    sidecar = opsctl.start_sidecar(url)
    shown = json.loads(opsctl.run("top", "--once", "-o", "json", "--sidecar", sidecar).stdout)

    assert [row["target"] for row in shown["targets"]] == [url.removeprefix("http://")]
    assert shown["targets"][0]["error"] is None


def test_keys_select_sort_open_the_verdict_and_quit(terminal: Terminal) -> None:
    terminal.wait_for("unknown")
    terminal.press("s")
    terminal.wait_for("by target")
    terminal.press("kj\033[A\033[Bs")
    terminal.wait_for("by waiting")
    terminal.press("d")
    terminal.wait_for("d back")
    terminal.press("d")
    terminal.wait_for("FLEET")
    terminal.press("q")

    assert terminal.ended() == 0
    assert termios.tcgetattr(terminal.side) == terminal.before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_give_the_terminal_back(terminal: Terminal, number: signal.Signals) -> None:
    terminal.wait_for("FLEET")
    terminal.process.send_signal(number)
    terminal.wait_for("\033[?1049l")

    assert terminal.ended() == 0
    assert termios.tcgetattr(terminal.side) == terminal.before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://h:1"], "opsctl top wants a terminal; --once prints one frame"),
        (["http://h:1", "-o", "json"], "--output json wants --once"),
        (["--once"], "no target"),
        (["--once", "--sidecar", "ftp://h"], "--sidecar: "),
    ],
)
def test_what_cannot_be_shown_is_a_usage_error(
    opsctl: Opsctl, tmp_path: Path, arguments: list[str], said: str
) -> None:
    shown = opsctl.run("top", *arguments, cwd=tmp_path)

    assert (shown.returncode, shown.stdout) == (64, "")
    assert said in shown.stderr


def test_what_a_page_does_not_tell_is_missing_never_0() -> None:
    fleet = Fleet(["a"], lambda: 2.5)
    fleet.see(metrics(1.0, "a", PAGE))
    fleet.see(metrics(2.0, "a", PAGE))
    (row,) = fleet.rows()

    assert row.point is not None
    assert row.point.running == 5
    assert (row.point.waiting, row.point.tokens_per_s, row.point.ttft_s) == (None, None, None)


def test_a_target_that_stops_answering_keeps_its_past_but_not_its_numbers() -> None:
    fleet = Fleet(["a"])
    fleet.see(metrics(1.0, "a", PAGE))
    fleet.see(error(2.0, "a", "refused", "connection refused"))
    (row,) = fleet.rows()

    assert (row.point, row.error, len(row.past)) == (None, "connection refused", 1)
    assert fleet.total() is None


def test_what_nobody_has_read_for_long_is_not_what_is_now() -> None:
    now = 2.5
    fleet = Fleet(["a"], lambda: now)
    fleet.see(metrics(1.0, "a", PAGE))
    fleet.see(metrics(2.0, "a", PAGE))
    now = 60.0
    (row,) = fleet.rows()

    assert (row.point, row.health, row.error) == (None, "unknown", "nothing was read for 58 s")
    assert fleet.total() is None


def test_a_verdict_that_cannot_be_renewed_is_not_shown_as_the_newest() -> None:
    fleet = Fleet(["a"], lambda: 2.5)
    fleet.see(metrics(2.0, "a", PAGE))
    fleet.judge_failed("ValueError: \x1b[2J")
    (row,) = fleet.rows()

    assert row.health == "unknown"
    assert row.verdict is not None
    assert row.verdict.summary == "the diagnosis failed: ValueError: \\x1b[2J"


def test_an_unreadable_page_is_said_to_be_so() -> None:
    fleet = Fleet(["a"])
    fleet.see(Observation(1.0, "a", "metrics", {"text": "<html>"}))

    assert fleet.rows()[0].error is not None


def test_a_sparkline_has_gaps_where_values_are_missing() -> None:
    assert sparkline([0.0, 1.0, None, 7.0], 10) == "▁▂ █"
    assert sparkline([1.0] * 20, 5) == "█████"
    assert sparkline([None, 0.0], 5) == " ▁"
    assert sparkline([0.25, 1.0], 5, highest=1.0) == "▃█"
    assert sparkline([1.0], 0) == ""
