"""What a target's other routes answer: no poller ends for it, and none keeps its page from being read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest
from fake_vllm import Reply, Route, as_json, fake_vllm, page
from loopback import wait_for

from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.config import Exporter, Target
from vllm_opsctl.exporter.observation import Observation, metrics
from vllm_opsctl.exporter.poller import Poller
from vllm_opsctl.exporter.recording import format_line
from vllm_opsctl.exporter.sources import reader
from vllm_opsctl.exporter.target_state import TargetState
from vllm_opsctl.exporter.workers import Life

QUICK = Exporter(poll_interval="50ms", timeout="2s")


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_opsctl.exporter.sources.probe.FACTS_TIMEOUT_S", 0.2)


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def polled(url: str, stop: threading.Event, reads: int = 3) -> TargetState:
    """The state after some reads, all of them by one thread."""
    state = TargetState(Target(name="chat-0", url=url), QUICK, ())
    poller = Poller(state, QUICK, api_key=None)
    thread = threading.Thread(target=poller.run, args=(Life(stop),), daemon=True)
    thread.start()
    wait_for(lambda: state.snapshot(0.0).reads >= reads, timeout_s=10, what=f"{reads} reads")
    assert thread.is_alive()
    return state


def dripping(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    handler.wfile.flush()
    handler.connection.settimeout(10)
    handler.connection.recv(1)


HOSTILE: dict[str, Route] = {
    "deep": Reply(b"[" * 200_000),
    "deep object": Reply(b'{"version":' * 100_000),
    "half a surrogate pair": Reply(b'{"version": "\\ud800", "data": [{"id": "m\\udfff"}]}'),
    "a list": as_json([1, 2]),
    "null": as_json(None),
    "wrong types": as_json(
        {"version": 5, "data": [{"id": {"a": 1}, "max_model_len": [1], "parent": {}}, 5, None]}
    ),
    "endless numbers": Reply(b'{"version": "1", "server_load": 1' + b"0" * 5000 + b"}"),
    "NaN": Reply(
        b'{"server_load": NaN, "vllm_config": {"scheduler_config": {"max_num_seqs": -1e999}}}'
    ),
    "escapes": as_json({"version": "\x1b[2J\u202e\x00", "data": [{"id": "m\x1b]0;x\x07"}]}),
    "50,000 models": as_json({"data": [{"id": f"m{n}"} for n in range(20_000)]}),
    "binary": Reply(bytes(range(256)) * 100),
    "HTTP 500": Reply(b"<script>", status=500),
    "drips": dripping,
}
ROUTES = ("version", "v1_models", "load", "is_sleeping", "server_info", "health")


@pytest.mark.parametrize("route", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_answer_beside_the_page_ends_a_poller(route: Route, stop: threading.Event) -> None:
    with fake_vllm(**dict.fromkeys(ROUTES, route)) as server:
        server.routes["/server_info"] = server.routes["/is_sleeping"] = route
        state = polled(server.url, stop)

        assert state.snapshot(0.0).failures == {}
        for observation in state.recorder.read():
            line = format_line(observation)
            line.encode()
            if observation.kind != "metrics":
                assert line.rstrip("\n").isprintable()
                assert json.loads(line)


def test_routes_that_hang_are_given_one_deadline_together(stop: threading.Event) -> None:
    with fake_vllm(**dict.fromkeys(ROUTES, dripping)) as server:
        polled(server.url, stop, reads=4)
        asked = [request.path for request in server.received if request.path != "/metrics"]

    assert asked == ["/version"]


def test_a_fault_of_the_reader_is_an_error_of_this_read_alone(
    stop: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: object) -> reader.Reading:
        raise RecursionError("\x1b[2J")

    monkeypatch.setattr(reader.TargetReader, "read", broken)
    state = polled("http://127.0.0.1:9", stop, reads=5)
    snapshot = state.snapshot(0.0)

    assert not snapshot.up
    assert snapshot.failures["internal"] >= 5
    assert caplog.text.count("Traceback") == 1


def test_what_a_replaced_poller_still_reads_counts_for_nothing(
    stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(stop)
    state = TargetState(Target(name="chat-0", url="http://127.0.0.1:9"), QUICK, ())

    def late(self: object) -> reader.Reading:
        life.is_retired = True
        return reader.Reading(now=[metrics(1.0, "chat-0", page())])

    monkeypatch.setattr(reader.TargetReader, "read", late)
    Poller(state, QUICK, api_key=None).run(life)

    assert state.snapshot(1.0).reads == 0


def test_live_data_older_than_its_limit_is_unknown() -> None:
    state = TargetState(Target(name="chat-0", url="http://127.0.0.1:9"), Exporter(), ())
    state.record(metrics(100.0, "chat-0", page()))
    fresh, stale = state.snapshot(101.0), state.snapshot(190.0)

    assert (fresh.up, fresh.ready, fresh.error) == (True, True, None)
    assert (stale.up, stale.ready) == (False, False)
    assert stale.error == "nothing was read for 90 s"
    assert stale.not_ready == "no page: nothing was read for 90 s"


def test_a_recorder_takes_whatever_was_observed() -> None:
    state = TargetState(Target(name="chat-0", url="http://127.0.0.1:9"), Exporter(), ())
    odd = Observation(1.0, "chat-0", "facts", {"version": "\ud800\x00\u2028"})
    state.record(odd)

    assert list(state.recorder.read()) == [odd]


def test_a_key_that_is_rotated_is_read_again_and_costs_no_read(stop: threading.Event) -> None:
    """As a Secret that is mounted: for a moment there is no file, then there is another key."""
    wanted, there = "sk-old-0123456789", ["sk-old-0123456789"]

    def guarded(handler: BaseHTTPRequestHandler) -> Reply:
        is_right = handler.headers["Authorization"] == f"Bearer {wanted}"
        return Reply(page().encode()) if is_right else Reply(status=401)

    def read_key() -> str:
        if not there:
            raise ConfigError(["api_key_file: no such file"])
        return there[-1]

    with fake_vllm(metrics=guarded) as server:
        state = TargetState(Target(name="chat-0", url=server.url), QUICK, ())
        poller = Poller(state, QUICK, api_key=wanted, read_key=read_key)
        threading.Thread(target=poller.run, args=(Life(stop),), daemon=True).start()
        wait_for(lambda: state.snapshot(0.0).reads >= 2, timeout_s=10, what="reads")
        there[:] = ["sk-new-0123456789"]
        wanted = there[0]
        reads = state.snapshot(0.0).reads
        wait_for(lambda: state.snapshot(0.0).reads >= reads + 3, timeout_s=10, what="more reads")
        assert not [o for o in state.recorder.read(None, None) if o.kind == "error"]

        there.clear()
        wanted = "sk-newest-0123456789"
        wait_for(lambda: not state.snapshot(0.0).up, timeout_s=10, what="the refusal")
        there[:] = [wanted]
        wait_for(lambda: state.snapshot(0.0).up, timeout_s=10, what="the newest key")
        wait_for(
            lambda: any(
                "newest" in request.headers.get("Authorization", "")
                for request in server.received
                if request.path == "/health"
            ),
            timeout_s=10,
            what="other routes with the newest key",
        )
