"""What is seen beside the page: log lines, the host, and what active checks say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.runbooks.calibration import EDGES, bin_of, calibrated, fit, shipped_table
from vllm_opsctl.runbooks.host import is_local, look_at_host
from vllm_opsctl.runbooks.log_patterns import count_lines, log_patterns, read_tail
from vllm_opsctl.runbooks.observe import probe_once

LINES = {
    "cuda_oom": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "oom_kill": "Out of memory: Killed process 4242 (python3) total-vm:91234kB",
    "engine_died": "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
    "broadcast_wait": "No available shared memory broadcast block found in 60 seconds.",
    "nccl_timeout": "[rank1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)",
    "xid": "NVRM: Xid (PCI:0000:3b:00): 79, pid=0, GPU has fallen off the bus.",
    "context_length": "This model's maximum context length is 8192 tokens.",
    "model_not_found": "The model `chat-v2` does not exist.",
    "too_many_files": "OSError: [Errno 24] Too many open files",
    "upstream_reset": "upstream prematurely closed connection while reading response header",
    "killed_by_probe": "Liveness probe failed: context deadline exceeded",
}


@pytest.mark.parametrize(("id_", "line"), LINES.items())
def test_a_line_is_known_for_what_it_is(id_: str, line: str) -> None:
    assert count_lines(["INFO all is well", line])[id_] == 1


def test_an_ordinary_log_has_no_known_line() -> None:
    ordinary = [
        "INFO 11-25 13:00:00 [loggers.py:127] Engine 000: Avg prompt throughput: 431.2 tokens/s, "
        "Running: 3 reqs, Waiting: 0 reqs, GPU KV cache usage: 2.1%, Prefix cache hit rate: 71.9%",
        'INFO:     10.0.0.7:51234 - "POST /v1/chat/completions HTTP/1.1" 200 OK',
    ]
    counts = count_lines(ordinary)

    assert set(counts) == set(log_patterns())
    assert sum(counts.values()) == 0


def test_only_the_end_of_a_huge_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("CUDA out of memory\n" + "x" * 79 * 60_000 + "\n" * 60_000 + "the end\n")

    lines = read_tail(path)

    assert lines[-1] == "the end"
    assert count_lines(lines)["cuda_oom"] == 0


def process(proc: Path, pid: int, title: bytes, state: str) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "cmdline").write_bytes(title)
    (folder / "stat").write_text(f"{pid} (VLLM) {state} 1 1 1")


def test_a_stopped_engine_process_is_seen(tmp_path: Path) -> None:
    process(tmp_path, 10, b"bash\0", "S")
    process(tmp_path, 11, b"VLLM::EngineCore\0", "T")

    seen = look_at_host("chat-0", proc=tmp_path).data

    assert (seen["engine_process"], seen["engine_stopped"]) == (True, True)


def test_a_host_without_an_engine_says_so(tmp_path: Path) -> None:
    process(tmp_path, 10, b"bash\0", "S")

    assert look_at_host("chat-0", proc=tmp_path).data["engine_process"] is False


def test_only_this_machine_is_local() -> None:
    assert is_local("http://127.0.0.1:8000")
    assert not is_local("http://chat-0:8000")


class FakeApi(BaseHTTPRequestHandler):
    """The routes of a vLLM server in development mode; it generates nothing."""

    def do_GET(self) -> None:
        answers: dict[str, Any] = {
            "/health": {},
            "/version": {"version": "0.32.0"},
            "/v1/models": {"data": [{"id": "chat", "max_model_len": 8192, "root": "/weights"}]},
            "/load": {"server_load": 3},
            "/is_sleeping": {"is_sleeping": False},
            "/is_paused": {"is_paused": True},
            "/server_info?config_format=json": {
                "vllm_config": {
                    "scheduler_config": {"max_num_seqs": 256},
                    "model_config": {"hf_token": "secret"},
                }
            },
        }
        self._answer(answers.get(self.path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        details = {"cached_tokens": 64 if len(body["prompt"]) > 100 else 0}
        self._answer({"usage": {"prompt_tokens_details": details}, "tokens": [1]})

    def _answer(self, data: Any) -> None:
        text = json.dumps(data).encode()
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeApi)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_active_checks_are_few_named_and_keep_no_secret(api: str) -> None:
    seen: list[Observation] = []
    target = Target(name="chat-0", url=api, models=("chat", "chat-de"), max_model_len=16384)
    probe_once(target, None, seen.append)
    facts = next(o.data for o in seen if o.kind == "facts")
    probes = {o.data["name"]: o.data for o in seen if o.kind == "probe"}

    assert facts["expected_models"] == ["chat", "chat-de"]
    assert (facts["is_sleeping"], facts["is_paused"], facts["server_load"]) == (False, True, 3)
    assert facts["max_num_seqs"] == 256
    assert facts["models"] == {"data": [{"id": "chat", "max_model_len": 8192}]}
    assert set(probes) == {"canary", "tokenize", "repeat"}
    assert probes["repeat"]["hit"] is True
    assert "secret" not in str(seen)


def test_confidence_grows_with_the_score_and_with_something_to_compare_with() -> None:
    table = shipped_table()

    for kind in ("alone", "compared"):
        assert list(table[kind]) == sorted(table[kind])
    for edge in EDGES:
        assert calibrated(edge, is_compared=True) >= calibrated(edge, is_compared=False)


def test_few_trials_do_not_sound_certain() -> None:
    found = fit([(0.95, True), (0.95, True), (0.65, False)])

    assert found[bin_of(0.95)] == 0.75
    assert found[bin_of(0.65)] == 0.33
