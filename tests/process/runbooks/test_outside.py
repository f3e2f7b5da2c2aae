"""What the host's own tools say: processes, kernel log, GPUs."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from loopback import serving

from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.runbooks.host import look_at_host
from vllm_opsctl.runbooks.observe import probe_once


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


def test_a_tool_that_cannot_even_be_killed_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nvidia-smi in the driver of a GPU that has fallen off the bus."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 5\n")
    tool.chmod(0o755)
    hanging: list[subprocess.Popen[str]] = []
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process_: hanging.append(process_))
    monkeypatch.setattr("vllm_opsctl.runbooks.host._TIMEOUT_S", 0.1)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    started = time.monotonic()

    assert "gpu_throttled" not in look_at_host("chat-0", proc=tmp_path / "none").data
    assert time.monotonic() - started < 4
    (left,) = hanging
    left.terminate()
    left.wait()


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
        usage = {"prompt_tokens_details": details}
        self._answer({"choices": [{"text": "1"}], "usage": usage, "tokens": [1]})

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
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), FakeApi)) as url:
        yield url


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
