"""vLLM servers for the tap's benchmarks: without the tap, with it, and with the timing probe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from parts.engine import RealVllm

from bench.table import ROOT

Arm = Literal["bare", "tap", "probe"]
"""``bare`` has no plugin at all on its path; ``probe`` is the tap, timed."""

_ENTRY_POINT = "[vllm.stat_logger_plugins]\nopsctl_bench_probe = opsctl_bench_probe:Probe\n"


@dataclass(frozen=True)
class Machine:
    """
    What servers are started with.

    Args:
        python: Has vLLM, or gets it from ``site``.
        model: Folder of a model; weights are random.
        flags: Of every server.
        site: More packages for the servers' path, or None.
        tap: Folder with this package and its entry point, see `install_tap`.
        work: Folder for logs and the probe's files.
        eager: No CUDA graphs.
    """

    python: Path
    model: Path
    flags: Sequence[str]
    site: Path | None
    tap: Path
    work: Path
    eager: bool = True


class TapVllm(RealVllm):
    """A server of one arm; its statistics pages are in ``pages``."""

    ready_timeout_s = 300.0
    """Three at once on one GPU take longer than one."""

    def __init__(
        self, machine: Machine, arm: Arm, pages: Path, *, records: int = 0, running: int = 0
    ) -> None:
        """
        Remember what to start.

        Args:
            machine: What all servers share.
            arm: Which plugin it has.
            pages: Folder for the tap's pages, on a tmpfs.
            records: The probe keeps so many in ``sequence``, beside timing all in ``times``,
            running: from the first one with so many running requests on.
        """
        self.arm = arm
        self.pages = pages
        self.sequence = machine.work / "sequence.pickle"
        self.times = machine.work / "times.json"
        path = [] if machine.site is None else [str(machine.site)]
        environment = {"OPSCTL_TAP": str(pages)}
        if arm != "bare":
            path.insert(0, str(machine.tap))
        if arm == "probe":
            probe = machine.work / "probe-site"
            install_probe(probe)
            self.sequence.unlink(missing_ok=True)
            self.times.unlink(missing_ok=True)
            path.insert(0, str(probe))
            # both plugins are on the path, and the probe is the tap already
            environment["VLLM_PLUGINS"] = "opsctl_bench_probe"
            environment["VLLM_LOG_STATS_INTERVAL"] = "2"
            environment["OPSCTL_BENCH_PROBE"] = json.dumps(
                {
                    "sequence": str(self.sequence),
                    "times": str(self.times),
                    "records": records,
                    "running": running,
                }
            )
        super().__init__(
            machine.python,
            machine.model,
            machine.flags,
            {**environment, "PYTHONPATH": os.pathsep.join(path)},
            log_file=machine.work / f"{arm}.log",
        )
        if not machine.eager:
            self._command.remove("--enforce-eager")

    def cpu_seconds(self) -> float:
        """CPU seconds of the API server's process so far."""
        stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8")
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def install_tap(folder: Path) -> None:
    """Put this package and its entry point into a folder, as a wheel would bring them."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "--target", str(folder), str(ROOT)], check=True)


def install_probe(folder: Path) -> None:
    """Put the probe and an entry point for it into a folder."""
    info = folder / "opsctl_bench_probe-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("tap_probe.py"), folder / "opsctl_bench_probe.py")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: opsctl-bench-probe\nVersion: 0\n")
    (info / "entry_points.txt").write_text(_ENTRY_POINT)


def write_tiny_model(
    python: Path, folder: Path, *, hidden: int = 64, layers: int = 2, adapters: int = 0
) -> None:
    """Write a random Llama of the tests, and adapters for it, unless it is there."""
    if not (folder / "config.json").is_file():
        script = ROOT / "tests" / "parts" / "tiny_model.py"
        size = ["--hidden", str(hidden), "--layers", str(layers), "--adapters", str(adapters)]
        subprocess.run([str(python), str(script), str(folder), *size], check=True)
