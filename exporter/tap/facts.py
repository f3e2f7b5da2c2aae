"""The configuration facts of an engine that a reader needs to judge its numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from vllm_opsctl.exporter.tap import layout

_MAX_NAMES = 8

_SCALARS = (str, int, float, bool)

_FIELDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model_config", ("model", "max_model_len", "quantization", "dtype", "enforce_eager")),
    (
        "scheduler_config",
        ("max_num_seqs", "max_num_batched_tokens", "async_scheduling", "max_num_queued_reqs"),
    ),
    (
        "parallel_config",
        ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
    ),
    ("lora_config", ("max_loras", "max_cpu_loras", "max_lora_rank")),
    ("speculative_config", ("method", "num_speculative_tokens")),
    ("kv_transfer_config", ("kv_connector", "kv_role")),
)
"""Part of VllmConfig, and the attributes of it that are facts under their own name."""


def engine_facts(config: Any, arguments: Sequence[str]) -> dict[str, object]:
    """
    What VllmConfig says, attribute by attribute; one that a release does not have is left out.

    Args:
        config: VllmConfig. ``cache_config`` is told as vLLM tells it on /metrics
            (vllm/config/cache.py, CacheConfig.metrics_info).
        arguments: The process's own, for the port.
    """
    facts: dict[str, object] = {}
    version = _vllm_version()
    if version is not None:
        facts["vllm_version"] = version
    names = _served_names(config)
    facts["models"] = names[:_MAX_NAMES]
    port = _port(arguments)
    if port is not None:
        facts["port"] = port
    for part, attributes in _FIELDS:
        holder = getattr(config, part, None)
        for attribute in attributes:
            value = getattr(holder, attribute, None)
            if attribute in layout.WHOLE_FACTS and not _is_whole(value):
                continue
            if value is not None:
                facts[attribute] = _plain(value)
    cache = getattr(config, "cache_config", None)
    facts["kv_config"] = {name: text for name, text in _cache_facts(cache)}
    return facts


def _vllm_version() -> str | None:
    import vllm

    version = getattr(vllm, "__version__", None)
    return str(version) if version else None


def _served_names(config: Any) -> list[str]:
    model = getattr(config, "model_config", None)
    names = getattr(model, "served_model_name", None) or getattr(model, "model", None) or "unknown"
    return [names] if isinstance(names, str) else [str(name) for name in names]


def _cache_facts(cache: Any) -> Iterator[tuple[str, str]]:
    told = getattr(cache, "metrics_info", None)
    if not callable(told):
        return
    for name, value in told().items():
        if isinstance(value, str):
            yield str(name), value


def _plain(value: object) -> object:
    return value if isinstance(value, _SCALARS) else str(value)


def _is_whole(value: object) -> bool:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return is_number and 0 <= value <= layout.MAX_FACT  # type: ignore[operator]


def _port(arguments: Sequence[str]) -> int | None:
    """The port of the command line; vLLM's default where a server's has none; else unknown."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--port":
            text = value if equals else "".join(arguments[index + 1 : index + 2])
            port = int(text) if re.fullmatch("[0-9]{1,5}", text) else None
            return port if port in layout.PORTS else None
    is_server = any("api_server" in argument or argument == "serve" for argument in arguments)
    return 8000 if is_server and "--config" not in arguments else None
