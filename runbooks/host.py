"""What the target's own host says: its engine processes, the kernel's log, GPUs, CPU pressure."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vllm_opsctl.exporter.observation import Observation

_TIMEOUT_S = 2.0
_KILLED_S = 0.5
"""Longest wait for a command's answer, and for its end once it was killed."""

_ENGINE_TITLE = b"VLLM::"
"""How vLLM's engine and worker processes call themselves (vllm/utils/system_utils.py, 0.32)."""

_OOM = re.compile(r"oom-kill|out of memory|killed process", re.IGNORECASE)
_XID = re.compile(r"NVRM: Xid", re.IGNORECASE)
_THROTTLED = (
    "hw_slowdown",
    "hw_thermal_slowdown",
    "sw_thermal_slowdown",
    "hw_power_brake_slowdown",
)
"""nvidia-smi --help-query-gpu: reasons that are faults; sw_power_cap is everyday life."""


def is_local(url: str) -> bool:
    """Whether a URL means the machine that uses it."""
    host = (urlsplit(url).hostname or "").removeprefix("::ffff:")
    return host in ("localhost", "::1", "::", "0.0.0.0") or host.startswith("127.")  # noqa: S104


def look_at_host(target: str, *, proc: Path = Path("/proc")) -> Observation:
    """
    Look at this host; what may not be read is left out.

    Args:
        target: The target that runs here.
        proc: Where the process file system is.
    """
    data: dict[str, Any] = {}
    states = _engine_states(proc)
    if states is not None:
        data["engine_process"] = bool(states)
        data["engine_stopped"] = "T" in states
    kernel = _run("dmesg")
    if kernel is not None:
        lines = kernel.splitlines()
        data["oom_kills"] = sum(bool(_OOM.search(line)) for line in lines)
        data["xid_errors"] = sum(bool(_XID.search(line)) for line in lines)
    query = ",".join(f"clocks_throttle_reasons.{reason}" for reason in _THROTTLED)
    gpus = _run("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    if gpus is not None:
        data["gpu_throttled"] = bool(re.search(r"(?<!Not )Active", gpus))
    cores = os.cpu_count()
    if cores:
        data["load_per_core"] = round(os.getloadavg()[0] / cores, 3)
    return Observation(time.time(), target, "host", data)


def _engine_states(proc: Path) -> str | None:
    """The state letters of all vLLM engine and worker processes; None when none may be read."""
    states, readable = "", False
    for entry in proc.iterdir() if proc.is_dir() else ():
        if not entry.name.isdigit():
            continue
        try:
            title = (entry / "cmdline").read_bytes()
            readable = True
            if title.startswith(_ENGINE_TITLE):
                states += (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
    return states if readable else None


def _run(*command: str) -> str | None:
    """The output of a command of the host; None when it is not there, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # the kernel's log holds what devices say of themselves
            errors="replace",
        )
    except OSError:
        return None
    try:
        output, _ = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # what hangs in the driver of a broken GPU dies later, or never
            process.communicate(timeout=_KILLED_S)
        return None
    finally:
        if process.stdout is not None:
            process.stdout.close()
    return output if process.returncode == 0 else None
