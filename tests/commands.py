"""The `opsctl` command as tests run it: in processes of its own, or within this one."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from vllm_opsctl.cli.main import run

_URL = re.compile(r"(http://\S+)/metrics")
_RUN_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 10.0


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
            timeout=_RUN_TIMEOUT_S,
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
        """Start a sidecar on a port that it chooses: the URL that it says."""
        listen = ("--listen", "127.0.0.1:0")
        return said_url(self.start("exporter", "run", *arguments, *listen, cwd=cwd))

    def start_replay(self, recording: Path, *arguments: str) -> str:
        """Start a replay on a port that it chooses: the URL that it says."""
        return said_url(self.start("replay", str(recording), "--port", "0", *arguments))

    def stop_all(self) -> None:
        """Stop whatever was started."""
        for process in self._running:
            if process.poll() is None:
                process.terminate()
        for process in self._running:
            try:
                process.wait(timeout=_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stderr is not None:
                process.stderr.close()


def said_url(process: subprocess.Popen[str]) -> str:
    """The base URL that a sidecar or a replay says on stderr once it listens."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        found = _URL.search(line)
        if found is not None:
            return found[1]
    pytest.fail(f"{process.args!r} ended with {process.wait()}:\n{''.join(said)}")


class InProcess(Opsctl):
    """
    Runs the command within this process, which is what most questions about it need.

    Arguments, environment, folder, both streams and the exit code are those of a process; what only a
    process has (signals, a broken pipe, the interpreter's start) is tested with one.
    """

    def run(
        self, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        raw_out, raw_err = io.BytesIO(), io.BytesIO()
        out, err = io.TextIOWrapper(raw_out, "utf-8"), io.TextIOWrapper(raw_err, "utf-8")
        with (
            mock.patch.dict(os.environ, env or {}),
            contextlib.chdir(cwd or Path.cwd()),
            mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(), "utf-8")),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            _fresh_logging(),
            _fresh_boto3(),
        ):
            code = run(arguments)
        out.flush()
        err.flush()
        said = (raw_out.getvalue().decode(), raw_err.getvalue().decode())
        return subprocess.CompletedProcess(self.command(*arguments), code, *said)


@contextlib.contextmanager
def _fresh_logging() -> Iterator[None]:
    """A root logger as a new process has it, so that the command sets up its own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextlib.contextmanager
def _fresh_boto3() -> Iterator[None]:
    """No session of boto3 that remembers the credentials of an earlier command."""
    if "boto3" not in sys.modules:
        yield
        return
    with mock.patch("boto3.DEFAULT_SESSION", None):
        yield
