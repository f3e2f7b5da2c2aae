"""What a sidecar costs per target: CPU, memory and flight recorder, polling a busy replay at 1 Hz."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from ports import reserve_port

from bench.table import Row, report

WATCH_S = 40.0
RECORDING = Path(__file__).resolve().parents[1] / "recordings" / "queue-overload.jsonl.gz"
OPSCTL = str(Path(sys.executable).with_name("opsctl"))


def usage(pid: int) -> tuple[float, float]:
    """CPU seconds so far and resident MiB of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return cpu, int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def bare_resident() -> float:
    """Resident MiB of a Python that has imported requests and does nothing."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import requests; print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    _, resident = usage(process.pid)
    process.communicate(b"\n")
    return resident


def metric(text: str, name: str) -> float:
    """The first value of a metric."""
    found = re.search(rf"^{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def main() -> None:
    """Measure and report."""
    source, sidecar = reserve_port(), reserve_port()
    replay = subprocess.Popen(
        [OPSCTL, "replay", str(RECORDING), "--port", str(source)], stderr=subprocess.DEVNULL
    )
    time.sleep(2)
    exporter = subprocess.Popen(
        [
            OPSCTL,
            "exporter",
            "run",
            f"http://127.0.0.1:{source}",
            "--listen",
            f"127.0.0.1:{sidecar}",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(3)
        cpu_before, _ = usage(exporter.pid)
        time.sleep(WATCH_S)
        cpu_after, resident = usage(exporter.pid)
        with urllib.request.urlopen(f"http://127.0.0.1:{sidecar}/metrics") as answer:
            text = answer.read().decode()
    finally:
        for process in (exporter, replay):
            process.terminate()
            process.wait(timeout=10)
    span = metric(text, "opsctl_recorder_span_seconds")
    half_hour = metric(text, "opsctl_recorder_size_bytes") / span * 1800 / 2**20
    rows = [
        Row(
            "CPU of one target polled at 1 Hz",
            (cpu_after - cpu_before) / WATCH_S,
            "core",
            "one core",
            1.0,
        ),
        Row(
            "flight recorder, 30 minutes",
            half_hour,
            "MiB",
            "1,800 raw pages of 50 KiB",
            1800 * 50 / 1024,
        ),
        Row("resident memory of the sidecar", resident, "MiB", "import requests", bare_resident()),
    ]
    report("sidecar_cost", f"{WATCH_S:.0f} s beside a replayed overload", rows)


if __name__ == "__main__":
    main()
