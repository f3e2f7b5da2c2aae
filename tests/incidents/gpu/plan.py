"""The GPU's servers and incidents as data.

Rates are those of a nominal GPU; `incidents.gpu.record` measures the one at hand and scales them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from load.phase import Phase

from incidents.recorded import Action, Incident

HEALTHY_S = 25
INCIDENT_S = 33
RECOVERY_S = 8


@dataclass(frozen=True)
class GpuServer:
    """One start of vLLM; all of them stand side by side on one GPU, one at a time is under load."""

    port: int
    flags: tuple[str, ...]
    probe: Phase
    """Load that keeps it full."""
    nominal_per_s: float
    """Requests of the probe that the nominal GPU finishes in a second."""


def _healthy(
    prompt_tokens: int, output_tokens: int, arrivals_per_s: float, *, seconds: float = HEALTHY_S
) -> Phase:
    return Phase("healthy", seconds, prompt_tokens, output_tokens, arrivals_per_s)


def _shared(phase: Phase, text: str, heads: int) -> Phase:
    return replace(phase, prompt_kind="shared_prefix", text=text, heads=heads)


def _incident(healthy: Phase, seconds: float = INCIDENT_S, **changed: object) -> tuple[Phase, ...]:
    """Healthy load, the same with changes, the healthy load again."""
    return (
        healthy,
        replace(healthy, name="incident", duration_s=seconds, **changed),  # type: ignore[arg-type]  # fields by name
        replace(healthy, name="recovery", duration_s=RECOVERY_S),
    )


def _warm(phase: Phase) -> Phase:
    """One client first, so that the reference holds no cold prefill."""
    return replace(phase, name="warm-up", duration_s=4, arrivals_per_s=None, concurrency=4)


def _flags(slots: int, length: int, budget: int, kv_mib: int) -> tuple[str, ...]:
    return (
        *("--max-num-seqs", str(slots), "--max-model-len", str(length)),
        *("--max-num-batched-tokens", str(budget)),
        *("--kv-cache-memory-bytes", str(kv_mib * 1024 * 1024)),
    )


_CHAT = _shared(_healthy(700, 150, 15), "chat", 32)
_SLOTS = _healthy(300, 200, 2)
_POOL = _healthy(200, 600, 1.2)
_NONCE = _shared(_healthy(2500, 60, 8), "nonce", 6)
_HEADS = _shared(_healthy(2400, 40, 4), "heads", 3)

GPU_SERVERS: Mapping[str, GpuServer] = {
    "chat": GpuServer(
        8101,
        _flags(64, 32768, 16384, 10240),
        replace(_CHAT, name="probe", duration_s=10, arrivals_per_s=None, concurrency=64),
        30.0,
    ),
    "slots": GpuServer(
        8102,
        _flags(8, 4096, 4096, 4096),
        replace(_SLOTS, name="probe", duration_s=8, arrivals_per_s=None, concurrency=8),
        4.4,
    ),
    "pool": GpuServer(
        8103,
        _flags(64, 4096, 4096, 2048),
        replace(_POOL, name="probe", duration_s=8, arrivals_per_s=None, concurrency=16),
        3.0,
    ),
}

_ALL = (
    Incident(
        "healthy-busy",
        "chat",
        (replace(_CHAT, duration_s=50, arrivals_per_s=18),),
        note="nearer to 80 % of what the server finishes under overload: up to 11 wait for a moment",
    ),
    Incident("queue-overload", "chat", _incident(_CHAT, arrivals_per_s=60), ("queue-overload",)),
    Incident(
        "prefix-cache-nonce",
        "chat",
        (_warm(_NONCE), *_incident(_NONCE, prompt_kind="nonce_head")),
        ("prefix-cache-nonce",),
    ),
    Incident(
        "kv-preemption-thrash",
        "pool",
        _incident(_POOL, arrivals_per_s=6),
        ("kv-preemption-thrash",),
    ),
    Incident(
        "engine-hung",
        "chat",
        (
            *_incident(_CHAT, 21)[:2],
            replace(_CHAT, name="recovery", duration_s=14),
        ),
        ("engine-hung",),
        truth_by_phase={"incident": ("engine-hung",), "recovery": ("backlog-draining",)},
        actions=(Action("freeze", "incident", 1), Action("thaw", "recovery")),
    ),
    Incident(
        "concurrency-cap",
        "slots",
        _incident(_SLOTS, arrivals_per_s=13),
        ("concurrency-cap",),
        ("queue-overload",),
    ),
    Incident(
        "healthy-bursty",
        "chat",
        (replace(_CHAT, duration_s=50, arrivals_per_s=10, burst=24),),
        note="bursts of several load processes can coincide: up to 55 wait for a moment",
    ),
    Incident(
        "long-prefill-interference",
        "chat",
        _incident(_healthy(250, 150, 10)),
        ("long-prefill-interference",),
        beside={"incident": (Phase("documents", INCIDENT_S, 24000, 16, 0.4),)},
    ),
    Incident(
        "prefix-cache-eviction",
        "pool",
        (_warm(_HEADS), *_incident(_HEADS, heads=60)),
        ("prefix-cache-eviction",),
    ),
    Incident(
        "client-abort-storm",
        "chat",
        _incident(_CHAT, output_tokens=600, client_timeout_s=1.5),
        ("client-abort-storm",),
    ),
    Incident(
        "output-length-shift",
        "chat",
        _incident(_healthy(200, 60, 10), output_tokens=450),
        ("output-length-shift",),
    ),
    Incident("n-fanout", "chat", _incident(_healthy(300, 100, 6), n=8), ("n-fanout",)),
    Incident(
        "context-length-rejections",
        "chat",
        _incident(_healthy(300, 120, 10), 25, oversized_every=4, oversized_tokens=34000),
        ("context-length-rejections",),
    ),
    Incident(
        "engine-dead",
        "chat",
        _incident(_CHAT, 22)[:2],
        ("engine-dead",),
        actions=(Action("kill-engine", "incident", 1),),
    ),
)

GPU_INCIDENTS: Mapping[str, Incident] = {incident.name: incident for incident in _ALL}
