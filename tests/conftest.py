"""Fixtures for all tests: real parts, free ports, commands, recordings."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from real.parts import COMMAND, PARTS, find_part, missing_parts, parts_are_required

TESTS = Path(__file__).parent
RECORDINGS = TESTS / "recordings"
PAGES = TESTS / "pages"

# a run says of a change what the run before it would have said; `make search` looks for new examples
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("new", derandomize=False, deadline=None)
settings.load_profile("same")


@pytest.fixture(scope="session")
def part() -> Callable[[str], Path]:
    """Where a real part is; without it the test is skipped, or fails where parts are required."""

    def need(name: str) -> Path:
        found = find_part(name)
        if found is None:
            text = f"{PARTS[name].name} is missing; {COMMAND} brings it"
            if parts_are_required():
                pytest.fail(text)
            pytest.skip(text)
        return found

    return need


_MEASURED = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> list[str]:
    """Lines on what was measured along the way; printed at the end of the run."""
    return pytestconfig.stash.setdefault(_MEASURED, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured; name what is missing, loudly."""
    lines = terminalreporter.config.stash.get(_MEASURED, [])
    if lines:
        terminalreporter.section("measured", sep="-")
        for line in lines:
            terminalreporter.line(line)
    missing = missing_parts()
    if missing:
        terminalreporter.section("MISSING PARTS: not everything was tested", sep="!", red=True)
        terminalreporter.line(f"Not here: {', '.join(missing)}. Bring them with: {COMMAND}")


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(
    condition: Callable[[], bool],
    *,
    timeout_s: float,
    what: str,
    said: Callable[[], str] = lambda: "",
) -> None:
    """Wait until something holds; when it does not in time, fail with its name and what was said instead."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout_s:g} s\n{said()}".rstrip())
        time.sleep(0.05)


def http_get(url: str, timeout_s: float = 5.0, **headers: str) -> tuple[int, str]:
    """GET a loopback URL: status and body."""
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as problem:
        with problem:
            return problem.code, problem.read().decode()


def answers(url: str) -> bool:
    """Whether anything answers there."""
    try:
        http_get(url, timeout_s=1.0)
    except OSError:
        return False
    return True


class Opsctl:
    """Runs the installed command in processes of its own."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []

    @staticmethod
    def command(*arguments: str) -> list[str]:
        """The command line."""
        return [str(Path(sys.executable).with_name("opsctl")), *arguments]

    def run(
        self, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | (env or {}),
            cwd=cwd,
            check=False,
        )

    def start(self, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        """Start in the background; stopped at the end of the test."""
        process = subprocess.Popen(
            self.command(*arguments), stderr=subprocess.PIPE, text=True, cwd=cwd
        )
        self._running.append(process)
        return process

    def start_sidecar(self, *arguments: str, cwd: Path | None = None) -> str:
        """Start a sidecar on a free port and wait for it: its URL."""
        url = f"http://127.0.0.1:{free_port()}"
        self.start("exporter", "run", *arguments, "--listen", url.removeprefix("http://"), cwd=cwd)
        wait_for(lambda: answers(f"{url}/livez"), timeout_s=20, what="the sidecar's /livez")
        return url

    def start_replay(self, recording: Path, *arguments: str) -> str:
        """Start a replay on a free port and wait for it: its URL."""
        port = free_port()
        self.start("replay", str(recording), "--port", str(port), *arguments)
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(f"{url}/health"), timeout_s=20, what="the replay")
        return url

    def stop_all(self) -> None:
        """Stop whatever was started."""
        for process in self._running:
            if process.poll() is None:
                process.terminate()
        for process in self._running:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stderr is not None:
                process.stderr.close()


@pytest.fixture
def opsctl() -> Iterator[Opsctl]:
    """The command; everything started through it is stopped."""
    runner = Opsctl()
    yield runner
    runner.stop_all()
