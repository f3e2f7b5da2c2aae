"""
The main job in one go: an incident, the sidecar beside it, and what `opsctl diagnose` says.

Run by `make demo`. The embedded default replays a recorded incident; `--engine vllm` makes one on a
real vLLM on the CPU. Everything that is started is stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from ports import reserve_port

TESTS = Path(__file__).resolve().parent
OPSCTL = Path(sys.executable).with_name("opsctl")
INCIDENT = "kv-preemption-thrash"
WATCH_S = 32.0
"""Healthy for 15 s, then trouble: long enough to be sure, short enough to watch."""

SHOWN = (
    "vllm_engine_requests_running{",
    "vllm_engine_requests_waiting{",
    "vllm_engine_kv_cache_usage_peak_ratio{",
    "vllm_engine_preemptions_total{",
    'vllm_sli_events_total{model="tiny",objective="ttft"',
    "opsctl_target_up{",
)


def main() -> int:
    """Run the demo; 0 when the verdict names the incident."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["replay", "vllm"], default="replay")
    parser.add_argument("--speed", type=float, default=1.0, help="of the replay")
    options = parser.parse_args()
    speed = options.speed
    with contextlib.ExitStack() as stack:
        if options.engine == "vllm":
            speed = 1.0
            url = stack.enter_context(_real_incident())
        else:
            recording = TESTS / "recordings" / "second" / f"{INCIDENT}.jsonl.gz"
            url = stack.enter_context(_replayed(recording, speed))
        return _watch_and_diagnose(url, stack, speed)


def _watch_and_diagnose(url: str, stack: contextlib.ExitStack, speed: float) -> int:
    sidecar = f"http://127.0.0.1:{reserve_port()}"
    settings = {
        "OPSCTL_TARGETS": f"[{{name: chat-0, url: '{url}'}}]",
        "OPSCTL_EXPORTER__LISTEN": sidecar.removeprefix("http://"),
    }
    if speed != 1.0:
        settings["OPSCTL_EXPORTER__POLL_INTERVAL"] = f"{1000 / speed:.0f}ms"
    for name, value in settings.items():
        _say(f'export {name}="{value}"')
    _say("opsctl exporter run &")
    stack.enter_context(_running("exporter", "run", env=settings))
    _wait(f"{sidecar}/livez")
    watch_s = WATCH_S / speed
    _say(f"(watching for {watch_s:.0f} s)")
    time.sleep(watch_s)

    print()
    _say(f"curl {sidecar}/metrics   # a few of its lines")
    for line in _get(f"{sidecar}/metrics").splitlines():
        if line.startswith(SHOWN):
            print(line)

    print()
    _say(f"opsctl diagnose --sidecar {sidecar}")
    subprocess.run([OPSCTL, "diagnose", "--sidecar", sidecar], check=False)
    answer = subprocess.run(
        [OPSCTL, "diagnose", "--sidecar", sidecar, "--output", "json"],
        check=False,
        capture_output=True,
        text=True,
    )
    causes = json.loads(answer.stdout)["targets"][0]["causes"]
    roots = [cause["id"] for cause in causes if cause["role"] == "root"]
    print()
    if roots != [INCIDENT]:
        print(f"the demo expected {INCIDENT}, the verdict says {roots}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _replayed(recording: Path, speed: float) -> Iterator[str]:
    port = reserve_port()
    faster = () if speed == 1.0 else ("--speed", f"{speed:g}")
    shown = ("replay", str(recording.relative_to(TESTS.parent)), "--port", str(port), *faster)
    _say(" ".join(("opsctl", *shown)))
    with _running("replay", str(recording), "--port", str(port), *faster):
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/health")
        yield url


@contextlib.contextmanager
def _real_incident() -> Iterator[str]:
    from bench.tap_servers import write_tiny_model
    from load.capacity import overloading
    from load.generator import start_load
    from load.scenarios import SCENARIOS
    from parts.engine import RealVllm, find_python
    from parts.inventory import COMMAND
    from parts.machine import MODEL_FIT

    python = find_python()
    if python is None:
        sys.exit(f"a real vLLM is missing; {COMMAND} brings it (about 3.4 GB, no GPU needed)")
    scenario = SCENARIOS[INCIDENT]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_tiny_model(python, model, **MODEL_FIT.size)
        _say("vllm serve (a tiny random model on the CPU; takes about 40 s)")
        server = RealVllm(python, model, scenario.flags, log_file=Path(folder) / "vllm.log")
        with server:
            phases = overloading(scenario, server).phases
            with start_load(server.url, server.model, phases, drain=False) as load:
                load.wait_phase(phases[0].name)
                yield server.url


@contextlib.contextmanager
def _running(*arguments: str, env: Mapping[str, str] | None = None) -> Iterator[None]:
    process = subprocess.Popen(
        [OPSCTL, *arguments], stderr=subprocess.DEVNULL, env={**os.environ, **(env or {})}
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=10)


def _say(text: str) -> None:
    print(text if text.startswith("(") else f"$ {text}", flush=True)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - loopback
        text: str = answer.read().decode()
        return text


def _wait(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            _get(url)
            return
        except OSError:
            if time.monotonic() > deadline:
                sys.exit(f"{url} did not answer within 20 s")
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
