"""Start a real vLLM, freeze or kill its engine, and never leave a process behind.

Linux only: processes are found through ``/proc``. Everything listens on 127.0.0.1.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ports import reserve_port

from parts.machine import MODEL_FIT

READY_TIMEOUT_S = 180.0
"""A start takes 20-40 s on two cores; a busy machine gets several times that."""

STOP_TIMEOUT_S = 10.0
"""From SIGTERM to SIGKILL."""

ENGINE_TITLE = "VLLM::EngineCore"
"""How the process that runs the scheduler and the model calls itself."""

BASE_ENV: Mapping[str, str] = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""One GiB of KV cache, and nothing that talks to the outside."""

PYTHON_VARIABLE = "OPSCTL_VLLM_PYTHON"
REPOSITORY = Path(__file__).resolve().parents[2]


def find_python() -> Path | None:
    """Return the interpreter that has vLLM, or None where there is none to test with.

    ``OPSCTL_VLLM_PYTHON`` wins over ``build/real/vllm/bin/python`` below the repository's root.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    path = Path(named) if named else REPOSITORY / "build/real/vllm/bin/python"
    return path if path.is_file() else None


class EngineStartError(RuntimeError):
    """The server ended, or did not answer in time; the message carries the log's tail."""


class RealVllm:
    """One OpenAI server of a real vLLM with random weights; a context manager.

    Entering starts it and waits until ``/health`` and a completion of one token answer: that
    completion is in the counters, so a page to compare with is taken after entering.
    """

    model = "tiny"
    """The served name, the ``model_name`` label of every series."""

    ready_timeout_s = READY_TIMEOUT_S

    def __init__(
        self,
        python: Path,
        model_dir: Path,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        *,
        port: int = 0,
        log_file: Path,
        open_files: int | None = None,
    ) -> None:
        """Remember what to start.

        Args:
            python: the interpreter that has vLLM.
            model_dir: what ``tiny_model`` wrote.
            flags: of the server, after the ones that every start here has.
            env: beside `BASE_ENV`.
            port: 0 takes a free one.
            log_file: gets the output.
            open_files: limit of open files, soft and hard; None keeps the usual one.
        """
        self.port = port or reserve_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = log_file
        limit = [] if open_files is None else ["prlimit", f"--nofile={open_files}"]
        self._command = [
            *limit,
            str(python),
            *("-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model_dir), "--served-model-name", self.model),
            *("--load-format", "dummy", "--enforce-eager", "--dtype", MODEL_FIT.dtype),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *flags,
        ]
        self._env = {**os.environ, **BASE_ENV, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the server and wait for it."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the server, whatever state it is in."""
        self.stop()

    @property
    def pid(self) -> int:
        """The API server's process id, which is also that of its group."""
        if self._process is None:
            raise RuntimeError("the server is not started")
        return self._process.pid

    def start(self) -> None:
        """Start the server in a process group of its own and return when it serves.

        Not in a session of its own: that is a group of the scheduler's too (sched(7), autogroup), and while
        vLLM's two processes poll with ``sched_yield``, all outside theirs waited for up to 23 s on two
        cores (Linux 6.18).

        Raises:
            EngineStartError: it ended or did not answer within `ready_timeout_s`.
        """
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        deadline = time.monotonic() + self.ready_timeout_s
        while not self._serves():
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                tail = self.log_tail()
                self.stop()
                what = "is not ready in time" if ended is None else f"ended with {ended}"
                raise EngineStartError(f"the server {what}; its log ends:\n{tail}")
            time.sleep(0.5)

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines of the server's log."""
        text = self.log_file.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def engine_core_pid(self) -> int:
        """Return the id of the ``VLLM::EngineCore`` process.

        Raises:
            LookupError: there is none (it died, or the server is not started).
        """
        for pid in _group_members(self.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(ENGINE_TITLE.encode()):
                    return pid
        raise LookupError(f"no {ENGINE_TITLE} below process {self.pid}")

    def freeze(self) -> None:
        """Stop the engine loop as a hung one looks: the server goes on answering without it."""
        os.kill(self.engine_core_pid(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen engine go on."""
        os.kill(self.engine_core_pid(), signal.SIGCONT)

    def kill_engine(self) -> None:
        """Kill the engine process, as the kernel's OOM killer would."""
        os.kill(self.engine_core_pid(), signal.SIGKILL)

    def stop(self) -> None:
        """End every process of the server; does nothing when it is not started.

        A frozen engine is thawed first, since a stopped process does not see SIGTERM.
        """
        if self._process is None:
            return
        group = self._process.pid
        _signal_all(group, signal.SIGCONT)
        _signal_all(group, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._process.poll() is None or any(_group_members(group)):
            if time.monotonic() > deadline:
                _signal_all(group, signal.SIGKILL)
            time.sleep(0.05)
        self._process = None

    def _serves(self) -> bool:
        """Say whether ``/health`` answers and a completion of one token comes back."""
        body = {"model": self.model, "prompt": [65], "max_tokens": 1, "ignore_eos": True}
        return self._status("GET", "/health") == 200 and (
            self._status("POST", "/v1/completions", json.dumps(body)) == 200
        )

    def _status(self, method: str, path: str, body: str | None = None) -> int | None:
        """Return the status of one request, or None without an answer within a minute."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json"} if body else {}
        with contextlib.closing(connection):
            try:
                connection.request(method, path, body, headers)
                return connection.getresponse().status
            except (OSError, http.client.HTTPException):
                return None


def _group_members(group: int) -> Iterator[int]:
    """Yield the ids of the living processes of a group; zombies are dead."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # "pid (comm) state ppid pgrp ..."; comm may hold spaces and brackets.
            fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            state, owner, threads = fields[0], int(fields[2]), int(fields[17])
            # A zombie with more than one thread is not dead yet: its others are still exiting.
            if owner == group and (state != "Z" or threads > 1):
                yield int(entry.name)


def _signal_all(group: int, number: signal.Signals) -> None:
    """Send a signal to every process of a group."""
    for pid in _group_members(group):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
