"""How long every command's --help and a verdict on a recorded minute take, beside `import click` alone."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from command_tree import every_command

from bench.table import ROOT, Row, report

ROUNDS = 5
REFERENCE = "import click"
RECORDING = ROOT / "tests" / "recordings" / "baseline.jsonl.gz"
OPSCTL = str(Path(sys.executable).with_name("opsctl"))

# what is installed has its bytecode
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def seconds(command: tuple[str, ...]) -> float:
    """Wall time of a command."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    return time.perf_counter() - started


def main() -> None:
    """Measure and report."""
    helps = [" ".join(["opsctl", *words, "--help"]) for words in every_command()]
    verdict = f"opsctl diagnose --recording {RECORDING.name}"
    commands = {
        REFERENCE: (sys.executable, "-c", REFERENCE),
        "python -c pass": (sys.executable, "-c", "pass"),
        verdict: (OPSCTL, "diagnose", "--recording", str(RECORDING)),
        **{text: (OPSCTL, *text.split()[1:]) for text in helps},
    }
    measured: dict[str, list[float]] = {name: [] for name in commands}
    # in turns, so that a busy moment meets all of them; the first round warms up
    for _ in range(ROUNDS + 1):
        for name, command in commands.items():
            measured[name].append(seconds(command))
    median = {name: statistics.median(times[1:]) for name, times in measured.items()}
    slowest = max(helps, key=median.__getitem__)
    of_all = statistics.median(median[text] for text in helps)
    rows = [
        Row("opsctl --help", median["opsctl --help"], "s", REFERENCE, median[REFERENCE]),
        Row(f"median of {len(helps)} --help", of_all, "s", REFERENCE, median[REFERENCE]),
        Row(f"slowest: {slowest}", median[slowest], "s", REFERENCE, median[REFERENCE]),
        Row(verdict, median[verdict], "s", REFERENCE, median[REFERENCE]),
        Row("python -c pass", median["python -c pass"], "s", REFERENCE, median[REFERENCE]),
    ]
    report("start_up", f"medians of {ROUNDS} processes each", rows)


if __name__ == "__main__":
    main()
