"""Fast tests start no process and sleep for nothing: the command runs in theirs, and a guard sees to it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
from commands import InProcess

MOST_SLEEP_S = 1.0
"""Of one test, waits for servers of its own threads included."""

_STARTS_A_PROCESS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"})
"""Audit events, see the audit events table of Python's documentation."""

_guarded = False


def _refuse_processes(event: str, _: object) -> None:
    if _guarded and event in _STARTS_A_PROCESS:
        raise RuntimeError(f"a fast test starts a process ({event}); move it to tests/process")


sys.addaudithook(_refuse_processes)


@pytest.fixture(autouse=True)
def _starts_no_process() -> Iterator[None]:
    global _guarded
    _guarded = True
    yield
    _guarded = False


@pytest.fixture(autouse=True)
def _sleeps_for_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    slept = 0.0
    real_sleep = time.sleep

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds
        real_sleep(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    yield
    assert slept <= MOST_SLEEP_S, f"a fast test slept {slept:.1f} s; move it to tests/process"


@pytest.fixture
def opsctl() -> InProcess:
    """The command, within this process."""
    return InProcess()
