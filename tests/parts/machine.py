"""
What this machine's cores make of a model: the precision and the size that give a step its usual length.

Where cores have AVX-512, vLLM computes bfloat16 with it. Others emulate that: a product of 8x512 by
512x512 takes torch 2.13 3,700 us in bfloat16 on an EPYC 7003 and 140 us in float32, and then each layer
still takes three times as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelFit:
    """A model whose decode steps take 6-8 ms, and its prefill 0.2-0.3 ms per token."""

    dtype: str
    """Of vLLM's ``--dtype``."""
    layers: int

    @property
    def size(self) -> Mapping[str, int]:
        """Arguments of ``tiny_model``, above its defaults: queues shall look like those of a GPU."""
        return {"hidden": 512, "layers": self.layers}


WITH_AVX512 = ModelFit("bfloat16", 8)
WITHOUT_AVX512 = ModelFit("float32", 2)


def model_fit(cpuinfo: Path = Path("/proc/cpuinfo")) -> ModelFit:
    """
    What fits the cores that a ``cpuinfo`` lists.

    Args:
        cpuinfo: As in proc_cpuinfo(5); where there is none, nothing is known of AVX-512.
    """
    if not cpuinfo.exists():
        return WITHOUT_AVX512
    for line in cpuinfo.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return WITH_AVX512 if "avx512f" in flags.split() else WITHOUT_AVX512
    return WITHOUT_AVX512


MODEL_FIT = model_fit()
"""Of this machine."""
