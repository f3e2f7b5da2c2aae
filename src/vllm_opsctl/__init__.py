"""vllm-opsctl: metrics, SLOs, alarms and runbook diagnosis for vLLM fleets."""

__version__ = "0.1.0"
