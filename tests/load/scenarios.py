"""Incidents as data: the server, the load before and during, and when the engine is frozen.

Every scenario has healthy load first, the reference that its incident is compared with. The
numbers fit the model of `parts.machine.MODEL_FIT` on two cores: decode steps of 6-8 ms, and
0.2-0.3 ms of prefill per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from load.phase import Phase

ServerKey = Literal["general", "two-slots", "small-kv"]

SERVERS: Mapping[ServerKey, tuple[str, ...]] = {
    "general": (
        *("--block-size", "32"),
        *("--max-model-len", "8192"),
        *("--max-num-seqs", "8"),
        *("--max-num-batched-tokens", "8192"),
    ),
    "two-slots": (
        *("--block-size", "32"),
        *("--max-model-len", "2048"),
        *("--max-num-seqs", "2"),
    ),
    # Block 0 is never used: 64 blocks of 32 tokens are a pool of 2048 tokens.
    "small-kv": (
        *("--block-size", "32"),
        *("--max-model-len", "1024"),
        *("--max-num-seqs", "16"),
        *("--num-gpu-blocks-override", "65"),
    ),
}
"""Flags by server. Scenarios of one server can run on one start, one after the other."""


@dataclass(frozen=True)
class Fault:
    """A frozen engine: from `delay_s` after one phase begins until another one begins."""

    from_phase: str
    until_phase: str
    delay_s: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """One incident, or none, with the server it needs."""

    name: str
    server: ServerKey
    phases: tuple[Phase, ...]
    fault: Fault | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of the server beside `engine.BASE_ENV`."""
    overload: float | None = None
    """
    Arrivals of the incident, as a multiple of what the server finishes with all its slots taken.

    `load.capacity` measures that; the rate of the phase is the least. None: it is no overload.
    """

    @property
    def flags(self) -> tuple[str, ...]:
        """The server's flags."""
        return SERVERS[self.server]

    @property
    def slots(self) -> int:
        """How many requests the server runs at once."""
        return int(self.flags[self.flags.index("--max-num-seqs") + 1])

    def phase(self, name: str) -> Phase:
        """The phase of that name."""
        return next(phase for phase in self.phases if phase.name == name)

    def with_arrivals(self, name: str, per_s: float) -> Scenario:
        """The same with another rate of arrivals in one phase."""
        phases = (
            replace(phase, arrivals_per_s=per_s) if phase.name == name else phase
            for phase in self.phases
        )
        return replace(self, phases=tuple(phases))


_CHAT = Phase("healthy", 15, prompt_tokens=96, output_tokens=48, arrivals_per_s=3)
"""Some 1.2 requests at a time where 8 fit."""

_OVERLOAD = Phase("healthy", 15, prompt_tokens=320, output_tokens=48, arrivals_per_s=2.5)
_CAPPED = Phase("healthy", 15, prompt_tokens=32, output_tokens=100, concurrency=1)
_LONG_ANSWERS = Phase("healthy", 15, prompt_tokens=64, output_tokens=380, concurrency=2)
_SHARED_HEAD = Phase(
    "healthy",
    15,
    prompt_tokens=1632,
    output_tokens=32,
    arrivals_per_s=3,
    prompt_kind="shared_prefix",
    text="prefix-cache-nonce",
)
_BUSY = Phase("healthy", 15, prompt_tokens=96, output_tokens=200, concurrency=3)
"""Closed loops: when the engine freezes, requests run for sure."""

_OPEN = replace(_BUSY, concurrency=None, arrivals_per_s=2)

_ALL = (
    Scenario("healthy", "general", (replace(_CHAT, duration_s=45),)),
    # A request costs its prefill of some 80 ms and its share of 48 steps: 6 to 8 a second fit.
    Scenario(
        "queue-overload",
        "general",
        (_OVERLOAD, replace(_OVERLOAD, name="incident", duration_s=28, arrivals_per_s=13)),
        overload=1.7,
    ),
    # Two streams of 100 tokens take 0.8-1 s: 2 to 2.5 requests a second fit.
    Scenario(
        "concurrency-cap",
        "two-slots",
        (
            _CAPPED,
            replace(_CAPPED, name="incident", duration_s=28, concurrency=None, arrivals_per_s=4),
        ),
        overload=1.7,
    ),
    # 16 requests of 444 tokens want three times the pool.
    Scenario(
        "kv-preemption-thrash",
        "small-kv",
        (
            _LONG_ANSWERS,
            replace(
                _LONG_ANSWERS, name="incident", duration_s=28, concurrency=None, arrivals_per_s=3
            ),
        ),
        overload=1.7,
    ),
    Scenario(
        "prefix-cache-nonce",
        "general",
        (
            # Fills the cache, so that the reference holds no cold prefill.
            replace(_SHARED_HEAD, name="warm-up", duration_s=3, arrivals_per_s=None, concurrency=1),
            _SHARED_HEAD,
            replace(_SHARED_HEAD, name="incident", duration_s=28, prompt_kind="nonce_head"),
        ),
    ),
    # Gauges keep what the engine said last: requests that are running.
    Scenario(
        "engine-hung-busy",
        "general",
        (
            _BUSY,
            replace(_OPEN, name="incident", duration_s=25),
            replace(_OPEN, name="recovery", duration_s=10),
        ),
        fault=Fault("incident", "recovery"),
    ),
    # Frozen while nothing runs: gauges say idle although requests pile up.
    Scenario(
        "engine-hung-idle",
        "general",
        (
            _CHAT,
            replace(_CHAT, name="idle", duration_s=5, arrivals_per_s=0),
            replace(_CHAT, name="incident", duration_s=25),
            replace(_CHAT, name="recovery", duration_s=10),
        ),
        fault=Fault("idle", "recovery", delay_s=3),
    ),
    Scenario(
        "client-abort-storm",
        "general",
        (
            _CHAT,
            replace(
                _CHAT, name="incident", duration_s=28, output_tokens=400, hang_up_after_tokens=4
            ),
        ),
    ),
    Scenario(
        "context-length-rejections",
        "general",
        (
            _CHAT,
            replace(
                _CHAT, name="incident", duration_s=25, oversized_every=2, oversized_tokens=9000
            ),
        ),
    ),
)

SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
