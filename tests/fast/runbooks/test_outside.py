"""What is seen beside the page: log lines, the host, and what active checks say."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_opsctl.runbooks.calibration import EDGES, bin_of, calibrated, fit, shipped_table
from vllm_opsctl.runbooks.host import is_local
from vllm_opsctl.runbooks.log_patterns import count_lines, log_patterns, read_tail

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


def test_only_this_machine_is_local() -> None:
    assert is_local("http://127.0.0.1:8000")
    assert not is_local("http://chat-0:8000")


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
