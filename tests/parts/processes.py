"""Servers of tests: started with a log, waited for, stopped."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

_READY_S = 60.0
_STOP_S = 20.0


def start_server(
    command: Sequence[str], log: Path, ready_url: str, *, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """
    Start a server and wait until it answers.

    Args:
        command: Program and arguments.
        log: Gets its output.
        ready_url: Answers anything but an error of the server when it is ready.
        env: The whole environment; None for ours.

    Raises:
        RuntimeError: It ended, or is not ready in time; carries the log's tail.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env)
    deadline = time.monotonic() + _READY_S
    while not _is_ready(ready_url):
        if process.poll() is not None or time.monotonic() > deadline:
            stop_server(process)
            raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
    return process


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):  # noqa: S310 - loopback
            return True
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code < 500
    except OSError:
        return False


def stop_server(process: subprocess.Popen[bytes]) -> None:
    """Stop one, however it takes it."""
    process.terminate()
    try:
        process.wait(timeout=_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
