"""The servers of the recorded incidents: flags, environment and the size of the model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Size = tuple[int, int]
"""Hidden size and layers of ``tiny_model``."""

TINY: Size = (64, 2)
SMALL: Size = (256, 4)
MIDDLE: Size = (512, 8)
LARGE: Size = (1024, 12)


@dataclass(frozen=True)
class Server:
    """What one start of vLLM is made of."""

    flags: tuple[str, ...]
    size: Size = MIDDLE
    env: Mapping[str, str] = field(default_factory=dict)
    adapters: int = 0
    """Random LoRA adapters, served as ``a1``, ``a2``, …"""
    open_files: int | None = None
    """Limit of open files, soft and hard."""


def _flags(slots: int, block: int, length: int, budget: int, *more: str) -> tuple[str, ...]:
    return (
        *("--max-num-seqs", str(slots), "--block-size", str(block)),
        *("--max-model-len", str(length), "--max-num-batched-tokens", str(budget)),
        *more,
    )


def lora_modules(model: Path, count: int) -> tuple[str, ...]:
    """Flags that serve the adapters that ``tiny_model`` wrote below a model, as ``a1``, ``a2``, …"""
    named = [f"a{number}={model}/adapters/a{number}" for number in range(1, count + 1)]
    return ("--lora-modules", *named) if named else ()


DEV_MODE: Mapping[str, str] = {"VLLM_SERVER_DEV_MODE": "1"}
_NGRAM = (
    '{"method": "ngram", "num_speculative_tokens": 4, '
    '"prompt_lookup_max": 4, "prompt_lookup_min": 1}'
)
LORA = ("--enable-lora", "--max-loras", "2", "--max-lora-rank", "8", "--max-cpu-loras", "8")
"""Two adapters run at once."""


SERVERS: Mapping[str, Server] = {
    "chat": Server(_flags(12, 64, 4096, 2048)),
    "small": Server(_flags(24, 32, 2048, 4096), SMALL),
    "dev": Server(_flags(6, 32, 2048, 2048), env=DEV_MODE),
    "limited": Server(_flags(4, 32, 1024, 2048, "--max-num-queued-reqs", "12"), SMALL),
    "five-slots": Server(_flags(5, 64, 1024, 1024), SMALL),
    # Block 0 is never used: 96 blocks of 32 tokens.
    "pool-3072": Server(_flags(16, 32, 2560, 2560, "--num-gpu-blocks-override", "97")),
    "pool-5120": Server(_flags(24, 64, 1024, 1024, "--num-gpu-blocks-override", "81"), SMALL),
    "wide": Server(_flags(40, 32, 1024, 2048)),
    "heavy": Server(_flags(40, 32, 1024, 2048), LARGE),
    "uncached": Server(_flags(8, 32, 4096, 4096, "--no-enable-prefix-caching")),
    "speculative": Server(_flags(8, 32, 1024, 1024, "--speculative-config", _NGRAM)),
    "silent": Server(_flags(16, 32, 1024, 1024, "--disable-log-stats"), SMALL),
    "long": Server(_flags(16, 128, 8192, 8192)),
    "tiny": Server(_flags(8, 32, 2048, 2048), TINY),
    "few-files": Server(_flags(8, 32, 1024, 1024), TINY, open_files=192),
    "adapters": Server(_flags(8, 32, 1024, 1024, *LORA), SMALL, adapters=6),
}
