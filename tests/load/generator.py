"""A load generator whose own counts are the truth that others are compared with.

It runs as its own process and stays light: one event loop, one streaming completion per request,
and only the last chunk of a stream is parsed. From the command line, below ``tests/``::

    python -m load.generator --url http://127.0.0.1:8000 --model tiny --out summary.json healthy

From Python, `start_load` does the same without naming a scenario. The process writes one line of
JSON for each phase that begins, so that a fault can be timed by it.
"""

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from load.bodies import Body, bodies
from load.counts import Outcome, Tally, percentile
from load.counts import Summary as Summary
from load.phase import Phase
from load.scenarios import SCENARIOS

DRAIN_TIMEOUT_S = 120.0
"""How long requests in flight may take after the last phase before they are cut off."""

ROUND_TRIP_PERIOD_S = 1.0
KEEPALIVE_S = 2.0
"""Below the 5 s after which the server closes an idle connection: no request meets a closed one."""


@dataclass
class _Request:
    """One request's life, filled while it runs; times are of the monotonic clock."""

    phase: str
    prompt_length: int
    outcome: Outcome = "broken"
    status: int | None = None
    began: float = 0.0
    ended: float = 0.0
    chunks: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Load:
    """Sends the phases one after the other and remembers every request."""

    def __init__(self, url: str, model: str, phases: Sequence[Phase], *, drain: bool) -> None:
        self._url = url
        self._model = model
        self._phases = phases
        self._drain = drain
        self._requests: list[_Request] = []
        self._running: set[asyncio.Task[None]] = set()
        self._longest_s = 0.0
        self._started: dict[str, float] = {}

    async def run(self) -> Summary:
        """Send everything, wait for what is in flight, and count."""
        loop = asyncio.get_running_loop()
        send = asyncio.create_task(self._send())
        loop.add_signal_handler(signal.SIGTERM, send.cancel)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
        endless = aiohttp.ClientTimeout(total=None, sock_read=None)
        async with aiohttp.ClientSession(connector=connector, timeout=endless) as session:
            self._session = session
            round_trips = asyncio.create_task(self._time_round_trips())
            with suppress(asyncio.CancelledError):
                await send
            round_trips.cancel()
            for task in self._running:
                task.cancel()
            await asyncio.gather(round_trips, *self._running, return_exceptions=True)
        self._mark("end")
        return self._summary()

    async def _send(self) -> None:
        """Run the phases, then let the requests in flight end."""
        for phase in self._phases:
            self._mark(phase.name)
            if phase.concurrency is None:
                await self._arrivals(phase)
            else:
                await self._clients(phase, phase.concurrency)
        self._mark("drain")
        if self._drain and self._running:
            await asyncio.wait(self._running, timeout=DRAIN_TIMEOUT_S)

    async def _arrivals(self, phase: Phase) -> None:
        """Start requests at random times that do not depend on answers."""
        rate = (phase.arrivals_per_s or 0.0) / phase.burst
        draw = random.Random(phase.name)  # noqa: S311 - arrivals, no secrets
        wanted = bodies(phase, self._model)
        end = time.monotonic() + phase.duration_s
        at = time.monotonic()
        while rate > 0:
            at += draw.expovariate(rate)
            if at >= end:
                break
            await asyncio.sleep(at - time.monotonic())
            for _ in range(phase.burst):
                self._launch(self._request(phase, next(wanted)))
        await asyncio.sleep(end - time.monotonic())

    async def _clients(self, phase: Phase, count: int) -> None:
        """Keep `count` requests in flight until the phase ends; the last ones run on."""
        end = time.monotonic() + phase.duration_s
        wanted = bodies(phase, self._model)

        async def client() -> None:
            while time.monotonic() < end:
                await self._request(phase, next(wanted))

        for _ in range(count):
            self._launch(client())
        await asyncio.sleep(end - time.monotonic())

    def _launch(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background until the drain."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _request(self, phase: Phase, body: Body) -> None:
        """Send one request and remember how it went."""
        request = _Request(phase.name, len(body.get("prompt", ())), began=time.monotonic())
        self._requests.append(request)
        try:
            async with asyncio.timeout(phase.client_timeout_s):
                if phase.tokenize_kib is None:
                    await self._stream(phase, body, request)
                else:
                    await self._tokenize(body, request)
        except TimeoutError:
            request.outcome = "timed_out"
        except asyncio.CancelledError:
            request.outcome = "cut_off"
            raise
        except aiohttp.ClientError:
            request.outcome = "broken"
        finally:
            request.ended = time.monotonic()

    async def _tokenize(self, body: Body, request: _Request) -> None:
        """Post a text and read how it is cut into tokens."""
        async with self._session.post(f"{self._url}/tokenize", json=body) as response:
            request.status = response.status
            await response.read()
            request.outcome = "ok" if response.status == 200 else "refused"

    async def _stream(self, phase: Phase, body: Body, request: _Request) -> None:
        """Post a completion and read its stream to the end, or to where the phase hangs up."""
        async with self._session.post(f"{self._url}/v1/completions", json=body) as response:
            request.status = response.status
            if response.status != 200:
                await response.read()
                request.outcome = "refused"
                return
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    if request.prompt_tokens:
                        request.outcome = "ok"
                    return
                if b'"usage":{' in line:
                    usage = json.loads(line[len(b"data: ") :])["usage"]
                    request.prompt_tokens = usage["prompt_tokens"]
                    request.completion_tokens = usage["completion_tokens"]
                    continue
                request.chunks.append(time.monotonic())
                if len(request.chunks) == phase.hang_up_after_tokens:
                    request.outcome = "hung_up"
                    response.close()
                    return

    async def _time_round_trips(self) -> None:
        """Time ``GET /version`` about once a second: HTTP, event loops, no engine."""
        due = time.monotonic()
        try:
            while True:
                with suppress(aiohttp.ClientError):
                    async with self._session.get(f"{self._url}/version") as response:
                        await response.read()
                self._note_longest(due)
                due = time.monotonic() + ROUND_TRIP_PERIOD_S
                await asyncio.sleep(ROUND_TRIP_PERIOD_S)
        finally:
            # the load may end while one waits
            self._note_longest(due)

    def _note_longest(self, due: float) -> None:
        self._longest_s = max(self._longest_s, time.monotonic() - due)

    def _mark(self, name: str) -> None:
        """Note when a phase begins, and tell the parent."""
        self._started[name] = time.time()
        print(json.dumps({"phase": name, "t": self._started[name]}), flush=True)

    def _summary(self) -> Summary:
        """Count everything, once the last request has ended."""
        names = dict.fromkeys(phase.name for phase in self._phases)
        return Summary(
            phases={name: _tally(r for r in self._requests if r.phase == name) for name in names},
            total=_tally(self._requests),
            started=self._started,
            longest_round_trip_s=self._longest_s,
        )


def _tally(requests: Iterable[_Request]) -> Tally:
    """Sum requests up."""
    tally = Tally()
    gaps: list[float] = []
    for request in requests:
        tally.sent += 1
        tally.outcomes[request.outcome] = tally.outcomes.get(request.outcome, 0) + 1
        if request.status is not None:
            status = str(request.status)
            tally.statuses[status] = tally.statuses.get(status, 0) + 1
        if request.chunks:
            tally.first_tokens += 1
            tally.first_token_prompt_tokens += request.prompt_length
            tally.ttft_s.append(request.chunks[0] - request.began)
            gaps += (b - a for a, b in zip(request.chunks, request.chunks[1:], strict=False))
        if request.outcome == "ok":
            tally.prompt_tokens += request.prompt_tokens
            tally.completion_tokens += request.completion_tokens
            tally.e2e_s.append(request.ended - request.began)
    tally.gap_p50_s = percentile(gaps, 0.50)
    tally.gap_p95_s = percentile(gaps, 0.95)
    tally.gap_max_s = percentile(gaps, 1.0)
    return tally


class LoadProcess:
    """A running load generator; leaving its context stops it."""

    def __init__(
        self, url: str, model: str, phases: Sequence[Phase], *, drain: bool = True
    ) -> None:
        """Start it; see `start_load`."""
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._out = folder / "summary.json"
        plan = folder / "phases.json"
        plan.write_text(json.dumps([asdict(phase) for phase in phases]), encoding="utf-8")
        command = [sys.executable, "-m", "load.generator", "--url", url, "--model", model]
        command += ["--out", str(self._out), "--phases", str(plan)]
        if not drain:
            command.append("--cut-off")
        self._process = subprocess.Popen(
            command,
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        """Return itself; it runs since it was made."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill what still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()

    def wait_phase(self, name: str) -> float:
        """Block until a phase begins (``drain`` and ``end`` are phases too); return its Unix time.

        Phases pass in order: waiting for an earlier one after a later one never succeeds.

        Raises:
            RuntimeError: the load ended without it.
        """
        for line in self._process.stdout or ():
            begun = json.loads(line)
            if begun["phase"] == name:
                return float(begun["t"])
        raise RuntimeError(f"the load ended before phase {name}")

    def wait(self) -> Summary:
        """Wait until the load has drained, and return what its clients saw.

        Raises:
            RuntimeError: it failed; its own message is on stderr.
        """
        for _ in self._process.stdout or ():
            pass
        if self._process.wait() != 0:
            raise RuntimeError(f"the load ended with {self._process.returncode}")
        return Summary.from_json(self._out.read_text(encoding="utf-8"))

    def stop(self) -> Summary:
        """Send nothing more, cut off what is in flight, and return what its clients saw."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait()


def start_load(url: str, model: str, phases: Sequence[Phase], *, drain: bool = True) -> LoadProcess:
    """Start a load generator against a server and return at once.

    Args:
        url: where the server listens, without a path.
        model: the served model's name.
        phases: what to send, one after the other; names are unique.
        drain: wait for the requests in flight at the end; else they are cut off.
    """
    return LoadProcess(url, model, phases, drain=drain)


def main() -> None:
    """Read the command line, send the load, write the summary."""
    parser = argparse.ArgumentParser(prog="python -m load.generator", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True, help="where the summary goes")
    parser.add_argument("--cut-off", action="store_true", help="do not wait for requests in flight")
    parser.add_argument("--phases", type=Path, help="JSON list of phases, instead of scenarios")
    parser.add_argument("scenario", nargs="*", help=", ".join(SCENARIOS))
    options = parser.parse_args()
    if options.phases is not None:
        plan = json.loads(options.phases.read_text(encoding="utf-8"))
        phases = [Phase(**phase) for phase in plan]
    else:
        if not options.scenario or not SCENARIOS.keys() >= set(options.scenario):
            parser.error(f"name scenarios out of {', '.join(SCENARIOS)}, or give --phases")
        # Phases count apart: "healthy" of one scenario is not that of the next one.
        phases = [
            replace(phase, name=f"{name}.{phase.name}")
            for name in options.scenario
            for phase in SCENARIOS[name].phases
        ]
    load = _Load(options.url, options.model, phases, drain=not options.cut_off)
    summary = asyncio.run(load.run())
    options.out.write_text(summary.to_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
