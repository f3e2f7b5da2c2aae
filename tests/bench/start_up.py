"""How long `opsctl --help` takes, beside `import click` alone and an empty Python."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.table import Row, report

REPEATS = 15


def seconds(*command: str) -> float:
    """Median wall time of a command, after one warm-up."""
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and report."""
    opsctl = str(Path(sys.executable).with_name("opsctl"))
    click = seconds(sys.executable, "-c", "import click")
    rows = [
        Row("opsctl --help", seconds(opsctl, "--help"), "s", "import click", click),
        Row(
            "opsctl diagnose --help",
            seconds(opsctl, "diagnose", "--help"),
            "s",
            "import click",
            click,
        ),
        Row("python -c pass", seconds(sys.executable, "-c", "pass"), "s", "import click", click),
    ]
    report("start_up", f"median of {REPEATS} processes", rows)


if __name__ == "__main__":
    main()
