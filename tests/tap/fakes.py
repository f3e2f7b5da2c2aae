"""Statistics as vLLM passes them to a stat logger, made up, and a process that writes a page of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from vllm_opsctl.exporter.tap.identity import Identity

FACTS: dict[str, object] = {
    "vllm_version": "0.32.0",
    "models": ["fake-llama"],
    "port": 8000,
    "max_model_len": 4096,
    "max_num_seqs": 16,
    "kv_config": {"num_gpu_blocks": "512", "block_size": "16", "enable_prefix_caching": "True"},
}


def fake_scheduler(
    running: int = 0, waiting: int = 0, kv: float = 0.0, *, queries: int = 0, hits: int = 0
) -> Any:
    """SchedulerStats."""
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_skipped_waiting_reqs=0,
        kv_cache_usage=kv,
        prefix_cache_stats=SimpleNamespace(queries=queries, hits=hits),
        connector_prefix_cache_stats=None,
        spec_decoding_stats=None,
        running_lora_adapters={},
        waiting_lora_adapters={},
    )


def fake_iteration(
    *,
    ttft: list[float] | None = None,
    itl: list[float] | None = None,
    finished: list[Any] | None = None,
    prompt: int = 0,
    preempted: int = 0,
) -> Any:
    """IterationStats; one token for each latency."""
    ttft, itl, finished = ttft or [], itl or [], finished or []
    return SimpleNamespace(
        num_generation_tokens=len(ttft) + len(itl),
        num_prompt_tokens=prompt,
        num_preempted_reqs=preempted,
        num_corrupted_reqs=0,
        time_to_first_tokens_iter=ttft,
        inter_token_latencies_iter=itl,
        n_params_iter=[1] * len(finished),
        finished_requests=finished,
    )


def fake_finished(
    reason: str = "stop",
    *,
    queue: float = 0.01,
    prefill: float = 0.1,
    decode: float = 1.0,
    prompt: int = 64,
    output: int = 32,
    cached: int = 0,
) -> Any:
    """FinishedRequestStats."""
    return SimpleNamespace(
        finish_reason=reason,
        e2e_latency=queue + prefill + decode,
        queued_time=queue,
        prefill_time=prefill,
        decode_time=decode,
        inference_time=prefill + decode,
        mean_time_per_output_token=decode / max(1, output - 1),
        num_prompt_tokens=prompt,
        num_generation_tokens=output,
        num_cached_tokens=cached,
        max_tokens_param=output,
    )


def fake_identity(
    pid: int = 101, *, engine: int = 0, rank: int = 0, count: int = 1, started: float = 0.0
) -> Identity:
    """A writer's identity; API processes of one server share the pid 100."""
    return Identity(
        pid=pid,
        started_ticks=pid * 10,
        started=started,
        engine=engine,
        api_rank=rank,
        api_count=count,
        server_pid=100 if count > 1 else pid,
        server_ticks=1000,
    )


class FakeClock:
    """Wall clock and monotonic clock that move only when told."""

    def __init__(self, t: float) -> None:
        self.t = t

    def __call__(self) -> float:
        """Unix seconds."""
        return self.t


class FakeEngine:
    """
    A process that keeps a page as vLLM would, ten steps a second; a context manager.

    Args:
        folder: Of the pages.
        running: Requests in its batch.
        waiting: Requests in its queue.
        port: That it tells as its own.
    """

    def __init__(
        self, folder: Path, *, running: int = 4, waiting: int = 0, port: int = 8000
    ) -> None:
        script = Path(__file__).with_name("fake_engine.py")
        numbers = [str(number) for number in (running, waiting, port)]
        self._process = subprocess.Popen(
            [sys.executable, script, folder, *numbers], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.page = Path(self._process.stdout.readline().strip())

    def __enter__(self) -> Self:
        """It writes since it was made."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what still runs."""
        self.kill()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, as the kernel's OOM killer sends it."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def stop(self) -> None:
        """SIGTERM: it closes its page."""
        self._process.terminate()
        self._process.wait()
