"""
A stat logger of the tests, loaded by vLLM beside the tap: writes down every value that it is given.

Its file is the truth that the tap's page is compared with. Runs in vLLM's interpreter.
"""

import json
import os
from pathlib import Path
from typing import Any

from vllm.v1.metrics.loggers import AggregateStatLoggerBase

VARIABLE = "OPSCTL_TEST_WITNESS"
"""Environment variable: the file to write, one JSON object per record."""


class Witness(AggregateStatLoggerBase):  # type: ignore[misc]
    """Appends what ``record()`` gets."""

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        # open for as long as vLLM lives
        name = f"{os.environ[VARIABLE]}.{os.getpid()}"
        self._file = Path(name).open("a", buffering=1)  # noqa: SIM115

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """One line."""
        values: dict[str, Any] = {}
        if scheduler_stats is not None:
            values["running"] = scheduler_stats.num_running_reqs
            values["waiting"] = (
                scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            )
            values["kv_cache_usage"] = scheduler_stats.kv_cache_usage
        if iteration_stats is not None:
            finished = iteration_stats.finished_requests
            values["ttft"] = iteration_stats.time_to_first_tokens_iter
            values["itl"] = iteration_stats.inter_token_latencies_iter
            values["e2e"] = [request.e2e_latency for request in finished]
            values["queue"] = [request.queued_time for request in finished]
            values["prefill"] = [request.prefill_time for request in finished]
            values["decode"] = [request.decode_time for request in finished]
            values["prompt_length"] = [request.num_prompt_tokens for request in finished]
            values["output_length"] = [request.num_generation_tokens for request in finished]
            values["cached_length"] = [max(0, request.num_cached_tokens) for request in finished]
        self._file.write(json.dumps(values) + "\n")

    def log_engine_initialized(self) -> None:
        """Nothing to do."""
