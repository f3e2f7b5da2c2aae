"""Play incidents on vLLM servers that share one GPU, and record their pages. Below ``tests/``::

    python -m incidents.gpu.record STATE start --model FOLDER --flags "…"
    python -m incidents.gpu.record STATE play --out FOLDER [NAME…]
    python -m incidents.gpu.record STATE stop

``start`` leaves the servers running and what is known of them in STATE; each ``play`` records into
FOLDER, with an entry in the ``manifest.yaml`` there.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from load.counts import Summary, Tally
from load.generator import LoadProcess, start_load
from load.phase import Phase
from parts.engine import EngineStartError, RealVllm

from incidents.figures import figures
from incidents.gpu.plan import GPU_INCIDENTS, GPU_SERVERS, GpuServer
from incidents.record import TARGET, Deeds, client_side, wait_idle, write_manifest
from incidents.recorded import Incident
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.recording import RecordingWriter
from vllm_opsctl.runbooks.observe import observe

READY_TIMEOUT_S = 300.0
RECORD_FOR_S = 600.0
LOAD_PROCESSES = 4
"""A hundred fast streams are more than one Python process reads in time."""


class GpuVllm(RealVllm):
    """A server that outlives the process that started it; its id is kept in a file."""

    model = "llama-3-8b"

    def __init__(
        self, name: str, state: Path, model_dir: Path = Path(), flags: Sequence[str] = ()
    ) -> None:
        """Remember what to start, or what runs already.

        Args:
            name: of `GPU_SERVERS`.
            state: folder for its log and its process id.
            model_dir: what it serves, with random weights.
            flags: after those of the plan.
        """
        server = GPU_SERVERS[name]
        super().__init__(
            Path(sys.executable),
            model_dir,
            (*server.flags, *flags),
            port=server.port,
            log_file=state / f"{name}.log",
        )
        self._command.remove("--enforce-eager")
        self._pid_file = state / f"{name}.pid"

    @property
    def pid(self) -> int:
        """The API server's process id, which is also that of its session."""
        return int(self._pid_file.read_text(encoding="utf-8"))

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            EngineStartError: it ended, or is not ready in time.
        """
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._process = process
        self._pid_file.write_text(str(process.pid), encoding="utf-8")
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._serves():
            if process.poll() is not None or time.monotonic() > deadline:
                raise EngineStartError(f"the server is not ready; its log ends:\n{self.log_tail()}")
            time.sleep(0.5)

    def end(self) -> None:
        """End it, whoever started it."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)


def start(state: Path, model_dir: Path, flags: Sequence[str]) -> None:
    """Start every server of the plan at once, and measure what each of them can do."""
    state.mkdir(parents=True, exist_ok=True)
    servers = {name: GpuVllm(name, state, model_dir, flags) for name in GPU_SERVERS}
    began = time.monotonic()
    threads = [threading.Thread(target=vllm.start) for vllm in servers.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"servers: {time.monotonic() - began:.0f} s", flush=True)
    known: dict[str, Any] = {"flags": list(flags), **_machine(servers["chat"].url), "scale": {}}
    for name, vllm in servers.items():
        known["scale"][name] = round(_measure(vllm, GPU_SERVERS[name]), 3)
    (state / "known.json").write_text(json.dumps(known), encoding="utf-8")
    print(json.dumps(known), flush=True)


def _machine(url: str) -> dict[str, str]:
    with urllib.request.urlopen(f"{url}/version", timeout=10) as answer:  # noqa: S310 - loopback
        version = json.load(answer)["version"]
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    return {"vllm": version, "gpu": gpu.splitlines()[0].strip()}


def _measure(vllm: GpuVllm, server: GpuServer) -> float:
    """Return this GPU's speed over the nominal one's, from the middle of a full load."""
    probe = server.probe
    with contextlib.ExitStack() as stack:
        loads = [
            stack.enter_context(start_load(vllm.url, vllm.model, phases, drain=False))
            for phases in _shards([probe])
        ]
        loads[0].wait_phase(probe.name)
        time.sleep(probe.duration_s * 0.35)
        began, before = time.monotonic(), _generated(vllm.url)
        time.sleep(probe.duration_s * 0.55)
        tokens, seconds = _generated(vllm.url) - before, time.monotonic() - began
        for load in loads:
            load.stop()
    wait_idle(vllm)
    per_s = tokens / seconds / probe.output_tokens
    print(f"{server.port}: {tokens / seconds:.0f} tokens/s, {per_s:.2f} requests/s", flush=True)
    return per_s / server.nominal_per_s


def _generated(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310 - loopback
        page = answer.read().decode()
    return sum(
        float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if line.startswith("vllm:generation_tokens_total")
    )


def _shards(phases: Sequence[Phase]) -> list[list[Phase]]:
    """Divide a load among processes; the first keeps the names, arrivals are drawn by them."""
    return [
        [
            replace(
                phase,
                name=f"{phase.name}.{number}" if number else phase.name,
                arrivals_per_s=_part(phase.arrivals_per_s),
                concurrency=(
                    None
                    if phase.concurrency is None
                    else (phase.concurrency + number) // LOAD_PROCESSES
                ),
            )
            for phase in phases
        ]
        for number in range(LOAD_PROCESSES)
    ]


def _part(rate: float | None) -> float | None:
    return None if rate is None else rate / LOAD_PROCESSES


def scaled(incident: Incident, scale: float) -> Incident:
    """Return the incident with its rates fitted to the GPU at hand."""

    def fit(phase: Phase) -> Phase:
        rate = phase.arrivals_per_s
        return phase if rate is None else replace(phase, arrivals_per_s=round(rate * scale, 2))

    return replace(
        incident,
        phases=tuple(fit(phase) for phase in incident.phases),
        beside={name: tuple(map(fit, extra)) for name, extra in incident.beside.items()},
    )


@contextlib.contextmanager
def recorder(url: str, path: Path) -> Iterator[None]:
    """Record a server's pages, one a second, into `path` while the context lasts."""
    stop = threading.Event()

    def run() -> None:
        with RecordingWriter(path) as writer:
            observe(
                [Target(name=TARGET, url=url)],
                for_s=RECORD_FOR_S,
                interval_s=1.0,
                probe=True,
                environment={},
                on_observation=writer.write,
                stop=stop,
            )

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def play(incident: Incident, vllm: RealVllm) -> tuple[Mapping[str, float], Any, Any]:
    """Send an incident's load, do its deeds, and cut off what is in flight at its end.

    Returns:
        When phases began, what clients saw by phase, and what those of the loads beside it saw.
    """
    with contextlib.ExitStack() as stack:
        deeds = stack.enter_context(Deeds(vllm, incident))
        shards = [
            stack.enter_context(start_load(vllm.url, vllm.model, phases, drain=False))
            for phases in _shards(incident.phases)
        ]
        loads: list[LoadProcess] = []
        for phase in incident.phases:
            shards[0].wait_phase(phase.name)
            deeds.begun(phase.name)
            for extra in incident.beside.get(phase.name, ()):
                load = start_load(vllm.url, vllm.model, [extra], drain=False)
                loads.append(stack.enter_context(load))
        seen = [shard.wait() for shard in shards]
        beside = [load.stop() for load in loads]
    starts = {name: round(t, 3) for name, t in seen[0].started.items() if name != "drain"}
    return starts, _clients(seen), _clients(beside)


def _clients(seen: Sequence[Summary]) -> dict[str, Any]:
    """Return the clients' numbers by phase, all load processes together."""
    found: dict[str, list[Tally]] = {}
    for summary in seen:
        for name, tally in summary.phases.items():
            found.setdefault(name.partition(".")[0], []).append(tally)
    return {name: client_side(_together(tallies)) for name, tallies in found.items()}


def _together(tallies: Sequence[Tally]) -> Tally:
    """Add tallies up; their percentiles of gaps, which cannot be, are averaged."""
    total = Tally()
    for tally in tallies:
        total.sent += tally.sent
        total.ttft_s += tally.ttft_s
        for outcome, count in tally.outcomes.items():
            total.outcomes[outcome] = total.outcomes.get(outcome, 0) + count
    streaming = [tally for tally in tallies if tally.gap_max_s == tally.gap_max_s]
    if streaming:
        total.gap_p50_s = sum(tally.gap_p50_s for tally in streaming) / len(streaming)
        total.gap_p95_s = sum(tally.gap_p95_s for tally in streaming) / len(streaming)
        total.gap_max_s = max(tally.gap_max_s for tally in streaming)
    return total


def record(incident: Incident, state: Path, out: Path) -> None:
    """Play and record one incident, and write its entry of the manifest."""
    known = json.loads((state / "known.json").read_text(encoding="utf-8"))
    incident = scaled(incident, known["scale"][incident.server])
    vllm = GpuVllm(incident.server, state)
    path = out / f"{incident.name}.jsonl.gz"
    path.unlink(missing_ok=True)
    wait_idle(vllm)
    with recorder(vllm.url, path):
        starts, clients, beside = play(incident, vllm)
    entry = {
        "truth": list(incident.truth),
        **({"also": list(incident.also)} if incident.also else {}),
        **(
            {"truth_by_phase": {k: list(v) for k, v in incident.truth_by_phase.items()}}
            if incident.truth_by_phase
            else {}
        ),
        **({"note": incident.note} if incident.note else {}),
        "gpu": known["gpu"],
        "vllm": known["vllm"],
        "flags": shlex.join([*GPU_SERVERS[incident.server].flags, *known["flags"]]),
        "phase_starts": starts,
        "load": [_said(asdict(phase)) for phase in incident.phases],
        "beside": {
            name: [_said(asdict(p)) for p in extra] for name, extra in incident.beside.items()
        },
        "actions": [_said(asdict(action)) for action in incident.actions],
        "clients": clients,
        "clients_beside": beside,
        "pages": figures(path, starts),
        "host_load_at_end": round(os.getloadavg()[0], 1),
    }
    write_manifest(out / "manifest.yaml", incident.name, entry)
    print(f"{incident.name}: {path.stat().st_size / 1000:.0f} kB")
    print(json.dumps({"clients": clients, "beside": beside, "pages": entry["pages"]}), flush=True)


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that say something."""
    return {name: value for name, value in fields.items() if value not in (None, "", 0, False, ())}


def main() -> None:
    """Read the command line; start, play or stop."""
    parser = argparse.ArgumentParser(prog="python -m incidents.gpu.record", description=__doc__)
    parser.add_argument("state", type=Path, help="folder for logs and process ids")
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("start", help="start the servers, leave them running")
    starting.add_argument("--model", type=Path, required=True, help="model folder")
    starting.add_argument("--flags", type=shlex.split, default=[], help="for every server")
    playing = commands.add_parser("play", help="play and record incidents")
    playing.add_argument("--out", type=Path, required=True, help="folder of the recordings")
    playing.add_argument("--until", type=float, help="Unix time after which none begins")
    playing.add_argument("name", nargs="*", help=f"all, or some of {', '.join(GPU_INCIDENTS)}")
    commands.add_parser("stop", help="stop the servers")
    options = parser.parse_args()
    if options.command == "start":
        start(options.state, options.model, options.flags)
    elif options.command == "play":
        options.out.mkdir(parents=True, exist_ok=True)
        for name in options.name or GPU_INCIDENTS:
            if options.until is not None and time.time() > options.until:
                print(f"{name}: no time left", flush=True)
                continue
            record(GPU_INCIDENTS[name], options.state, options.out)
    else:
        for name in GPU_SERVERS:
            GpuVllm(name, options.state).end()


if __name__ == "__main__":
    main()
