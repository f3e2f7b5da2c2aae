"""Which process this is, so that a reader can tell servers, restarts and namesakes apart."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_opsctl.exporter.tap import layout

_START_FIELD = 19
"""Start time within /proc/PID/stat, counted behind the command's closing bracket (proc(5))."""

_API_PROCESS = "ApiServer"
"""vllm/v1/utils.py, APIServerProcessManager: how it names its processes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """
    Whose page it is.

    Args:
        pid: The process that writes.
        started_ticks: Its start, clock ticks since boot.
        started: Its start, Unix seconds.
        engine: Engine index.
        api_rank: Which of the server's API processes this is.
        api_count: How many there are.
        server_pid: The process that they share.
        server_ticks: Its start, clock ticks since boot.
    """

    pid: int
    started_ticks: int
    started: float
    engine: int
    api_rank: int
    api_count: int
    server_pid: int
    server_ticks: int

    @property
    def file_name(self) -> str:
        """The page's name; no two processes of one boot share it."""
        server = f"{self.server_pid}-{self.server_ticks}"
        return f"{server}.{self.api_rank}.{self.engine}{layout.SUFFIX}"


def identity_of(engine: int, parallel: Any) -> Identity:
    """
    This process as the writer of an engine's page.

    Args:
        engine: Engine index.
        parallel: vLLM's ParallelConfig; releases without API process fields count as one process.
    """
    pid = os.getpid()
    ticks = started_ticks(pid)
    count = getattr(parallel, "_api_process_count", 1)
    rank = getattr(parallel, "_api_process_rank", 0)
    shared = count > 1 or multiprocessing.current_process().name.startswith(_API_PROCESS)
    server = os.getppid() if shared else pid
    return Identity(
        pid=pid,
        started_ticks=ticks,
        started=boot_time() + ticks / os.sysconf("SC_CLK_TCK"),
        engine=engine,
        api_rank=max(0, rank),
        api_count=count,
        server_pid=server,
        server_ticks=started_ticks(server),
    )


def started_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(text.rpartition(")")[2].split()[_START_FIELD])


def boot_time() -> float:
    """
    When the kernel started, Unix seconds.

    Source:
        prometheus_client/process_collector.py: the same sum, so that both name one start.
    """
    for line in Path("/proc/stat").read_text(encoding="utf-8").splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    raise ValueError("/proc/stat has no btime")
