"""
An engine and its sidecar under one entry point, for containers that have only one.

This process stands where an init stands: it passes signals on to the engine, adopts and reaps what
the engine leaves behind, and ends with the engine's exit status. The sidecar is a process beside the
engine; whatever becomes of it, the engine goes on, and it is started again: what it lacks (a port, a
key's file, a configuration without mistakes) may be there later.

Between two signals it sleeps in the kernel. It starts no threads: the signal mask is the process's.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_opsctl.errors import EXIT_USAGE, CommandError
from vllm_opsctl.exporter.retold import TOLD_FD, TOLD_VARIABLE, told_file
from vllm_opsctl.exporter.tap.settings import DEFAULT_DIRECTORY, VARIABLE, directory_from

FORWARDED = frozenset(
    {
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
    }
)
"""What goes on to the engine."""

FIRST_DELAY_S = 0.5
LAST_DELAY_S = 30.0
SETTLED_S = 60.0
"""A sidecar that lived this long is restarted after the first delay again."""

END_GRACE_S = 5.0
"""From SIGTERM to SIGKILL once the engine has ended; the sidecar writes its recording within 2 s."""

KILL_GRACE_S = 5.0
"""Longest wait for the killed: one that hangs in a driver dies later, or never."""

EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_SIGNAL = 128
"""What shells answer: a command that cannot run, that is not there, that signal N ended (128 + N)."""

_PR_SET_CHILD_SUBREAPER = 36

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Program:
    """
    What is started.

    Args:
        argv: The program, looked up on PATH, and its arguments.
        environment: All of its environment variables.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]


def with_tap(
    environment: Mapping[str, str], configured: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """
    Let the engine's tap and the sidecar meet in one folder, except where the tap is turned off.

    Args:
        environment: This process's; its OPSCTL_TAP stands.
        configured: The configuration's exporter.tap.dir.

    Returns:
        The engine's environment and the sidecar's.
    """
    engine, sidecar = dict(environment), dict(environment)
    try:
        folder = directory_from(environment)
    except ValueError:
        return engine, sidecar  # the tap says so in the engine's log
    if folder is None:
        return engine, sidecar
    if configured is None:
        sidecar["OPSCTL_EXPORTER__TAP__DIR"] = str(folder)
    elif folder == DEFAULT_DIRECTORY:
        folder = Path(configured)
    elif folder != Path(configured):
        log.warning(
            "the sidecar looks for the tap in %s (exporter.tap.dir), but %s=%s; make them the same",
            configured,
            VARIABLE,
            folder,
        )
    engine[VARIABLE] = str(folder)
    return engine, sidecar


def supervise(engine: Program, sidecar: Program | None) -> int:
    """
    Run both until the engine has ended; the process belongs to this call from then on.

    Call it once, from the main thread of a process without others. Signals stay blocked afterwards,
    so that none that comes late replaces the engine's exit status.

    Args:
        engine: Keeps this process's stdin, stdout and stderr.
        sidecar: Restarted when it ends; None for none, where its arguments cannot be understood.

    Returns:
        The engine's exit status; 128 + N when signal N ended it.

    Raises:
        CommandError: The engine cannot be started.
    """
    # SIGTTOU: handing the terminal over and back must not stop us
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD, signal.SIGTTOU})
    # a parent that ignored SIGCHLD would have passed that on, and nothing could be waited for
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _adopt_orphans()
    try:
        pid = _start(engine, mask)
    except OSError as problem:
        raise _cannot_start(engine.argv[0], problem) from problem
    _pass_terminal(os.getpgrp(), pid)
    keeper = _SidecarKeeper(sidecar, mask) if sidecar is not None else None
    status = _watch(pid, keeper)
    _pass_terminal(pid, os.getpgrp())
    if not _end_all(signal.SIGTERM, END_GRACE_S) and not _end_all(signal.SIGKILL, KILL_GRACE_S):
        log.warning("the engine has ended, but not all that it started: %s", _named(_descendants()))
    return status


def _watch(engine: int, keeper: _SidecarKeeper | None) -> int:
    """Keep the sidecar running and the dead buried until the engine ends: its exit status."""
    if keeper is not None:
        keeper.start()
    while True:
        delay_s = keeper.delay_s() if keeper is not None else None
        number = _next_signal(FORWARDED | {signal.SIGCHLD}, delay_s)
        if number is None:
            assert keeper is not None, "nothing else is waited for"
            keeper.start()
        elif number == signal.SIGCHLD:
            ended, _ = _reap()
            if engine in ended:
                return ended[engine]
            if keeper is not None and keeper.pid in ended:
                keeper.ended(ended[keeper.pid])
        else:
            # the engine is not reaped yet, so the number cannot be another process's
            try:
                os.kill(engine, number)
            except PermissionError:
                log.warning(
                    "%s: not allowed to signal the engine, it runs as another user", number.name
                )


class _SidecarKeeper:
    """
    Starts the sidecar, and again when it has ended.

    Args:
        program: The sidecar.
        mask: Signals that it starts with blocked.
    """

    def __init__(self, program: Program, mask: Iterable[int]) -> None:
        self.pid: int | None = None
        self._told = told_file()
        more = {} if self._told is None else {TOLD_VARIABLE: str(TOLD_FD)}
        self._program = Program(program.argv, {**program.environment, **more})
        self._mask = mask
        self._said: str | None = None
        self._started = 0.0
        self._due: float | None = None
        self._delay_s = FIRST_DELAY_S

    def delay_s(self) -> float | None:
        """Seconds until it is to be started; None when it is not to be."""
        return None if self._due is None else max(0.0, self._due - time.monotonic())

    def start(self) -> None:
        """Start it; where that fails, later."""
        self._due = None
        self._started = time.monotonic()
        try:
            self.pid = _start(self._program, self._mask, stdin=os.devnull, told=self._told)
        except OSError as problem:
            self._again(f"cannot be started ({problem.strerror})")

    def ended(self, status: int) -> None:
        """
        Note that it has ended.

        Args:
            status: Its exit status, 128 + N for signal N.
        """
        self.pid = None
        if status == EXIT_USAGE:
            self._again(
                f"cannot run (exit status {status}): mend what it says above", is_mistake=True
            )
        else:
            self._again(f"has ended ({_told(status)})")

    def _again(self, what: str, *, is_mistake: bool = False) -> None:
        """
        Start it later.

        Logs what happens again and again until the pauses are at their longest, a mistake only once.
        """
        now = time.monotonic()
        if now - self._started >= SETTLED_S:
            self._delay_s, self._said = FIRST_DELAY_S, None
        if what != self._said:
            tail = ", and ever more rarely; the engine goes on without it" if is_mistake else ""
            log.warning("the sidecar %s; it starts again in %g s%s", what, self._delay_s, tail)
        if is_mistake or self._delay_s == LAST_DELAY_S:
            self._said = what
        self._due = now + self._delay_s
        self._delay_s = min(2 * self._delay_s, LAST_DELAY_S)


def _start(
    program: Program, mask: Iterable[int], stdin: str | None = None, told: int | None = None
) -> int:
    """
    Start a program in a process group of its own, so that Ctrl-C reaches none of them twice.

    Args:
        program: What to start.
        mask: Signals that it starts with blocked.
        stdin: File that it reads instead of this process's stdin.
        told: Descriptor that it gets as its own.

    Raises:
        OSError: It cannot be started.
    """
    actions: list[tuple[object, ...]] = []
    if stdin is not None:
        actions.append((os.POSIX_SPAWN_OPEN, 0, stdin, os.O_RDONLY, 0))
    if told is not None:
        actions.append((os.POSIX_SPAWN_DUP2, told, TOLD_FD))
    return os.posix_spawnp(
        program.argv[0],
        program.argv,
        program.environment,
        file_actions=actions,
        setpgroup=0,
        setsigmask=mask,
        # Python ignores these two, and what is ignored is inherited
        setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
    )


def _cannot_start(name: str, problem: OSError) -> CommandError:
    if problem.errno == errno.ENOENT:
        return CommandError(
            EXIT_NOT_FOUND,
            f"{name}: not found; is it installed here and on PATH, and its interpreter too?",
        )
    return CommandError(
        EXIT_NOT_EXECUTABLE,
        f"{name}: cannot be executed ({problem.strerror}); name a program, or make it one: "
        "a #! line and chmod +x",
    )


def _adopt_orphans() -> None:
    """Become the parent of what descendants leave behind; a container's first process is it already."""
    if os.getpid() == 1:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        log.warning(
            "processes that the engine leaves behind will not be ended (%s)",
            os.strerror(ctypes.get_errno()),
        )


def _pass_terminal(holder: int, group: int) -> None:
    """Make one process group the terminal's foreground in another's place; without a terminal, nothing."""
    with suppress(OSError):
        if os.tcgetpgrp(0) == holder:
            os.tcsetpgrp(0, group)
            # it may have asked for the terminal, and been stopped, before it had it
            os.killpg(group, signal.SIGCONT)


def _next_signal(
    wanted: frozenset[signal.Signals], timeout_s: float | None
) -> signal.Signals | None:
    """Sleep until one of the signals comes; None when the time is over."""
    if timeout_s is None:
        return signal.Signals(signal.sigwaitinfo(wanted).si_signo)
    came = signal.sigtimedwait(wanted, timeout_s)
    return None if came is None else signal.Signals(came.si_signo)


def _reap() -> tuple[dict[int, int], bool]:
    """The children that have ended, with their exit statuses, and whether others are left."""
    ended: dict[int, int] = {}
    # several ends may come as one SIGCHLD
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended, False
        if pid == 0:
            return ended, True
        code = os.waitstatus_to_exitcode(status)
        ended[pid] = code if code >= 0 else EXIT_SIGNAL - code


def _end_all(number: signal.Signals, within_s: float) -> bool:
    """
    Signal every descendant, each once, also those that appear meanwhile.

    Args:
        number: What to send.
        within_s: Longest wait for their end, seconds.

    Returns:
        Whether all have ended.
    """
    told: set[int] = set()
    deadline = time.monotonic() + within_s
    while True:
        ended, others = _reap()
        if not others:
            return True
        told -= ended.keys()
        for pid in set(_descendants()) - told:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
            told.add(pid)
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        _next_signal(frozenset({signal.SIGCHLD}), left)


def _descendants() -> list[int]:
    """All processes below this one, those that have ended but are not reaped included."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    below = [os.getpid()]
    while below:
        mine = children.get(below.pop(), [])
        found += mine
        below += mine
    return found


def _parents() -> Iterator[tuple[int, int]]:
    """Every process and its parent."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # ended between the list and here
        # the name, in brackets, may hold anything: state and parent come after the last one
        yield int(stat.parent.name), int(text.rpartition(")")[2].split()[1])


def _told(status: int) -> str:
    if status > EXIT_SIGNAL:
        with suppress(ValueError):
            return f"killed by {signal.Signals(status - EXIT_SIGNAL).name}"
    return f"exit status {status}"


def _named(pids: list[int]) -> str:
    return ", ".join(map(str, pids))
