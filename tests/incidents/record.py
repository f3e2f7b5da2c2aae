"""Play incidents on a real vLLM and record its pages. From the command line, below ``tests/``::

    python -m incidents.record --out recordings/third [NAME…]

Each incident gives a recording and an entry in ``manifest.yaml`` beside it. Incidents of one server
that follow each other share a start.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from load.counts import Summary, Tally, percentile
from load.generator import LoadProcess, start_load
from parts.engine import RealVllm, find_python

from incidents.figures import figures
from incidents.recorded import INCIDENTS, Action, Incident
from incidents.servers import SERVERS, Server, lora_modules

TARGET = "chat-0"
"""The target's name in every recording: it must not give the incident away."""

RECORD_FOR = "10m"
"""Longer than any incident; the recorder is told when to end."""

IDLE_TIMEOUT_S = 60.0


class Deeds:
    """Carries out an incident's actions in a thread of its own, and undoes what lasts."""

    def __init__(self, vllm: RealVllm, incident: Incident) -> None:
        """Remember what to do; `begun` starts the actions of a phase."""
        self._vllm = vllm
        self._actions = incident.actions
        self._threads: list[threading.Thread] = []
        self._order = threading.Lock()
        self._hogs: list[subprocess.Popen[bytes]] = []
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for actions under way, end the busy loops and close the connections."""
        for thread in self._threads:
            thread.join()
        self._end_hogs()
        for connection in self._connections:
            connection.close()

    def begun(self, phase: str) -> None:
        """Start what is to be done in a phase that has just begun."""
        chosen = [action for action in self._actions if action.phase == phase]
        thread = threading.Thread(target=self._do_all, args=(chosen, time.monotonic()))
        thread.start()
        self._threads.append(thread)

    def _do_all(self, actions: Sequence[Action], began: float) -> None:
        with self._order:
            for action in actions:
                time.sleep(max(0.0, began + action.delay_s - time.monotonic()))
                self._do(action)

    def _do(self, action: Action) -> None:
        match action.deed:
            case "freeze":
                self._vllm.freeze()
            case "thaw":
                self._vllm.thaw()
            case "kill-engine":
                self._vllm.kill_engine()
            case "stop":
                self._vllm.stop()
            case "start":
                self._vllm.start()
            case "post":
                post = urllib.request.Request(f"{self._vllm.url}{action.path}", method="POST")  # noqa: S310 - loopback
                with urllib.request.urlopen(post, timeout=30) as answer:  # noqa: S310 - loopback
                    answer.read()
            case "hogs":
                loop = [sys.executable, "-c", "while True: pass"]
                # A session each: the kernel shares the cores among sessions, not among processes.
                self._hogs += [
                    subprocess.Popen(loop, start_new_session=True) for _ in range(action.count)
                ]
            case "end-hogs":
                self._end_hogs()
            case "connections":
                self._connect(action.count)

    def _connect(self, count: int) -> None:
        """Open idle connections, as many as the server lets."""
        for _ in range(count):
            with contextlib.suppress(OSError):
                self._connections.append(
                    socket.create_connection(("127.0.0.1", self._vllm.port), timeout=1)
                )

    def _end_hogs(self) -> None:
        for hog in self._hogs:
            hog.kill()
            hog.wait()
        self._hogs.clear()


@contextlib.contextmanager
def recorder(url: str, path: Path) -> Iterator[None]:
    """Record a server's pages, one a second, into `path` while the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "opsctl.yaml"
        config.write_text(f"targets:\n  - name: {TARGET}\n    url: {url}\n", encoding="utf-8")
        command = [str(Path(sys.executable).with_name("opsctl")), "--config", str(config)]
        command += ["record", TARGET, "-o", str(path), "--for", RECORD_FOR, "--interval", "1s"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)


def play(incident: Incident, vllm: RealVllm) -> tuple[Summary, list[Summary]]:
    """Send an incident's load, do its deeds, and cut off what is in flight at its end.

    Returns:
        What the clients of the main load saw, and those of the loads beside it.
    """
    with contextlib.ExitStack() as stack:
        deeds = stack.enter_context(Deeds(vllm, incident))
        main = stack.enter_context(start_load(vllm.url, vllm.model, incident.phases, drain=False))
        loads: list[LoadProcess] = []
        for phase in incident.phases:
            main.wait_phase(phase.name)
            deeds.begun(phase.name)
            for extra in incident.beside.get(phase.name, ()):
                # Loads of one moment run at once: a load process plays its phases in turn.
                load = start_load(vllm.url, vllm.model, [extra], drain=False)
                loads.append(stack.enter_context(load))
        summary = main.wait()
        return summary, [load.stop() for load in loads]


def wait_idle(vllm: RealVllm) -> None:
    """Wait until the server has no request in its scheduler, so that incidents do not overlap."""
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"{vllm.url}/metrics", timeout=10) as answer:  # noqa: S310 - loopback
                text = answer.read().decode()
            busy = [
                line
                for line in text.splitlines()
                if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))
                and float(line.rpartition(" ")[2]) > 0
            ]
            if not busy:
                return
        time.sleep(0.5)


def client_side(tally: Tally) -> dict[str, Any]:
    """Return a phase's client-side numbers, as the manifest has them."""
    seen: dict[str, Any] = {"sent": tally.sent, **dict(sorted(tally.outcomes.items()))}
    if tally.ttft_s:
        seen["ttft_p50_s"] = round(percentile(tally.ttft_s, 0.5), 4)
        seen["ttft_p95_s"] = round(percentile(tally.ttft_s, 0.95), 4)
    if tally.gap_max_s == tally.gap_max_s:
        seen["gap_p50_s"] = round(tally.gap_p50_s, 4)
        seen["gap_p95_s"] = round(tally.gap_p95_s, 4)
        seen["gap_max_s"] = round(tally.gap_max_s, 4)
    return seen


def entry(incident: Incident, main: Summary, beside: Sequence[Summary], path: Path) -> Any:
    """Return the manifest's entry of a recording: what was made, what is true, what was seen."""
    server = SERVERS[incident.server]
    starts = {name: round(t, 3) for name, t in main.started.items() if name != "drain"}
    return {
        "truth": list(incident.truth),
        **({"also": list(incident.also)} if incident.also else {}),
        **(
            {"truth_by_phase": {k: list(v) for k, v in incident.truth_by_phase.items()}}
            if incident.truth_by_phase
            else {}
        ),
        **({"note": incident.note} if incident.note else {}),
        "flags": " ".join(server.flags),
        "env": dict(server.env),
        "model": {"hidden": server.size[0], "layers": server.size[1]},
        "phase_starts": starts,
        "load": [_said(asdict(phase)) for phase in incident.phases],
        "beside": {
            name: [_said(asdict(p)) for p in extra] for name, extra in incident.beside.items()
        },
        "actions": [_said(asdict(action)) for action in incident.actions],
        "clients": {name: client_side(tally) for name, tally in main.phases.items()},
        "clients_beside": {
            name: client_side(tally) for load in beside for name, tally in load.phases.items()
        },
        "pages": figures(path, starts),
        # Others use the machine too: well above the cores in a healthy stretch spoils it.
        "host_load_at_end": round(os.getloadavg()[0], 1),
    }


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that say something."""
    return {name: value for name, value in fields.items() if value not in (None, "", 0, False, ())}


def write_manifest(path: Path, name: str, new: Any) -> None:
    """Put one entry into the manifest, in the place of an older one of that name."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    entries[name] = new
    text = yaml.safe_dump(dict(sorted(entries.items())), sort_keys=False, width=100)
    path.write_text(text, encoding="utf-8")


def make_model(server: Server, python: Path, folder: Path) -> Path:
    """Write the server's model below `folder` where it is not there yet; return its folder."""
    hidden, layers = server.size
    model = folder / "-".join(
        ["model", f"{hidden}x{layers}", *(["adapters"] if server.adapters else [])]
    )
    if (model / "config.json").exists():
        return model
    script = Path(__file__).with_name("tiny_model.py")
    command = [str(python), str(script), str(model), "--hidden", str(hidden)]
    command += ["--layers", str(layers), "--adapters", str(server.adapters)]
    subprocess.run(command, check=True, capture_output=True)
    return model


@contextlib.contextmanager
def started(name: str, python: Path, folder: Path) -> Iterator[RealVllm]:
    """Run a server of `SERVERS` while the context lasts; its log is below `folder`."""
    server = SERVERS[name]
    model = make_model(server, python, folder)
    flags = [*server.flags, *lora_modules(model, server.adapters)]
    log = folder / f"{name}.log"
    with RealVllm(
        python, model, flags, server.env, log_file=log, open_files=server.open_files
    ) as vllm:
        yield vllm


def record(incident: Incident, vllm: RealVllm, out: Path) -> None:
    """Play and record one incident; the recording takes the place of an older one."""
    path = out / f"{incident.name}.jsonl.gz"
    path.unlink(missing_ok=True)
    wait_idle(vllm)
    with recorder(vllm.url, path):
        main, beside = play(incident, vllm)
    new = entry(incident, main, beside, path)
    write_manifest(out / "manifest.yaml", incident.name, new)
    print(f"{incident.name}: {path.stat().st_size / 1000:.0f} kB")
    print(json.dumps({"clients": new["clients"], "pages": new["pages"]}, indent=1), flush=True)


def main() -> None:
    """Read the command line, start servers and record incidents."""
    parser = argparse.ArgumentParser(prog="python -m incidents.record", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the recordings")
    parser.add_argument("name", nargs="*", help=f"all, or some of {', '.join(INCIDENTS)}")
    options = parser.parse_args()
    if not INCIDENTS.keys() >= set(options.name):
        parser.error(f"name some of {', '.join(INCIDENTS)}")
    python = find_python()
    if python is None:
        parser.error("no vLLM here; make real-parts")
    options.out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.gettempdir()) / "incidents"
    folder.mkdir(exist_ok=True)
    chosen = [INCIDENTS[name] for name in options.name or INCIDENTS]
    while chosen:
        server = chosen[0].server
        with started(server, python, folder) as vllm:
            while chosen and chosen[0].server == server:
                record(chosen.pop(0), vllm, options.out)


if __name__ == "__main__":
    main()
