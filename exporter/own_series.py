"""Names of the series that the sidecar makes itself, as Prometheus stores them."""

from __future__ import annotations

SLI_EVENTS = "vllm_sli_events_total"
SLI_THRESHOLD = "vllm_sli_threshold_seconds"
SLI_TARGET = "vllm_sli_target_ratio"
ENGINE_INFO = "vllm_engine_info"
KV_CACHE_CAPACITY = "vllm_engine_kv_cache_capacity_tokens"
LORA_ADAPTERS_RUNNING = "vllm_engine_lora_adapters_running"
TARGET_UP = "opsctl_target_up"
BUILD_INFO = "opsctl_build_info"
