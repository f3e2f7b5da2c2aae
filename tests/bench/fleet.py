"""What a diagnosis of 200 replicas takes: of what was observed, and the whole command on live ones."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.table import ROOT, Row, report
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.recording import read_recording
from vllm_opsctl.runbooks.diagnosis import diagnose_target
from vllm_opsctl.runbooks.fleet import Question, diagnose_fleet
from vllm_opsctl.runbooks.load import shipped_library

REPLICAS = 200
PAGES = 10
FOR_S = 5
RECORDING = ROOT / "tests" / "recordings" / "baseline.jsonl.gz"
OPSCTL = str(Path(sys.executable).with_name("opsctl"))


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of something, the processes that it starts included."""
    wall, cpu = time.monotonic(), cpu_seconds()
    work()
    return time.monotonic() - wall, cpu_seconds() - cpu


def cpu_seconds() -> float:
    """CPU seconds of this process and of those that it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def observed() -> dict[str, list[Observation]]:
    """Ten pages of each replica."""
    pages = [o for o in read_recording(RECORDING) if o.kind == "metrics"][:PAGES]
    names = [f"chat-{index}" for index in range(REPLICAS)]
    return {name: [replace(page, target=name) for page in pages] for name in names}


@contextmanager
def replicas(count: int) -> Iterator[list[str]]:
    """URLs of fake replicas at the beginning of the recording: where it starts again they seem restarted."""
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("fake_replicas.py"), RECORDING, str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield [server.stdout.readline().strip() for _ in range(count)]
    finally:
        server.terminate()
        server.wait(timeout=10)


def diagnose_live(urls: Sequence[str]) -> None:
    """The whole command."""
    found = subprocess.run(
        [OPSCTL, "diagnose", *urls, "--for", f"{FOR_S}s", "--output", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    targets = json.loads(found.stdout)["targets"]
    others = {target["summary"] for target in targets if target["verdict"] != "healthy"}
    assert len(targets) == len(urls)
    assert not others, f"{others}: {found.stderr[-1000:]}"


def main() -> None:
    """Measure and report."""
    fleet, library = observed(), shipped_library()
    question = Question(source="recording")
    diagnose_target("warm-up", next(iter(fleet.values())), library, source="recording")
    together, together_cpu = measured(lambda: diagnose_fleet(fleet, library, question))
    apart, apart_cpu = measured(
        lambda: [diagnose_target(t, o, library, source="recording") for t, o in fleet.items()]
    )
    with replicas(REPLICAS) as urls:
        live, live_cpu = measured(lambda: diagnose_live(urls))
    with replicas(1) as urls:
        one, one_cpu = measured(lambda: diagnose_live(urls))
    one_by_one = f"{REPLICAS} times the command on one"
    rows = [
        Row(f"diagnosis of {REPLICAS}, {PAGES} pages each", together, "s", "one by one", apart),
        Row("  its CPU", together_cpu, "s", "one by one", apart_cpu),
        Row(f"diagnose --for {FOR_S}s, {REPLICAS} live", live, "s", one_by_one, one * REPLICAS),
        Row("  its CPU", live_cpu, "s", one_by_one, one_cpu * REPLICAS),
    ]
    report("fleet", f"{REPLICAS} replicas on this machine, fake ones where live", rows)


if __name__ == "__main__":
    main()
