"""The recorded incidents as data: server, load, side actions, and the failure modes that are true.

They differ on purpose from each other and from `load.scenarios` in slots, pools, models and loads:
what they are for is to measure the diagnosis on incidents that its signatures have not seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from load.phase import Phase

Deed = Literal[
    "freeze", "thaw", "kill-engine", "stop", "start", "post", "hogs", "end-hogs", "connections"
]
"""What an action does.

``freeze``, ``thaw``, ``kill-engine``: SIGSTOP, SIGCONT, SIGKILL of the engine process.
``stop``, ``start``: the whole server, on the same port. ``post``: an empty POST to `path`.
``hogs``: `count` busy loops beside the engine, until ``end-hogs``. ``connections``: `count` idle
connections, until the incident's end.
"""


@dataclass(frozen=True)
class Action:
    """Something done beside the load, `delay_s` after a phase began."""

    deed: Deed
    phase: str
    delay_s: float = 0.0
    path: str = ""
    count: int = 0


def _then_backlog(root: str) -> Mapping[str, tuple[str, ...]]:
    """The truth of an incident that leaves a queue behind."""
    return {"incident": (root,), "recovery": ("backlog-draining",)}


@dataclass(frozen=True)
class Incident:
    """One recording: what is sent, what is done, and what is true of it.

    Phases are called ``healthy``, ``incident`` and ``recovery``; others may stand between them.
    """

    name: str
    server: str
    phases: tuple[Phase, ...]
    truth: tuple[str, ...] = ()
    """Failure modes that are the root during the incident; none for a healthy stretch."""
    also: tuple[str, ...] = ()
    """Other answers that an honest observer of the numbers would accept."""
    truth_by_phase: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Where the truth changes over time."""
    actions: tuple[Action, ...] = ()
    """In the order in which they are done."""
    beside: Mapping[str, tuple[Phase, ...]] = field(default_factory=dict)
    """A second load by the phase with which it begins."""
    note: str = ""
    """What a reader of the recording should know."""


def _then(healthy: Phase, seconds: float = 30, **changed: object) -> tuple[Phase, ...]:
    """Healthy load, then the same with changes; a change of the arrival's kind replaces it."""
    if "concurrency" in changed:
        changed["arrivals_per_s"] = None
    elif "arrivals_per_s" in changed:
        changed["concurrency"] = None
    incident = replace(healthy, name="incident", duration_s=seconds, **changed)  # type: ignore[arg-type]  # fields by name
    return (healthy, incident)


def _back(phases: tuple[Phase, ...], seconds: float = 11) -> tuple[Phase, ...]:
    """Append the healthy load again."""
    return (*phases, replace(phases[0], name="recovery", duration_s=seconds))


def _healthy(
    prompt_tokens: int, output_tokens: int, arrivals_per_s: float, *, seconds: float = 20
) -> Phase:
    return Phase(
        "healthy",
        seconds,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        arrivals_per_s=arrivals_per_s,
    )


def _shared(phase: Phase, text: str) -> Phase:
    return replace(phase, prompt_kind="shared_prefix", text=text)


def _warm(phase: Phase) -> Phase:
    """One client first, so that the reference holds no cold prefill."""
    return replace(phase, name="warm-up", duration_s=3, arrivals_per_s=None, concurrency=1)


_CHAT = _healthy(120, 40, 2.5)
_ANSWERS = replace(_healthy(64, 1024, 3), stop_ids=12)
_SALT = _shared(_healthy(1500, 32, 3), "salt")
_NONCE = _shared(_healthy(1100, 56, 3.5), "nonce")
_BOTH = _shared(_healthy(1300, 40, 2.5), "both")
_HEADS = replace(_shared(_healthy(660, 24, 2.5), "heads"), heads=2)
_POOL = _healthy(64, 64, 2)
_UNCACHED = _shared(_healthy(1500, 32, 0.8), "uncached")

_ABUSE = (
    Phase("tokenize", 30, concurrency=5, tokenize_kib=80),
    Phase("logprobs", 30, output_tokens=200, concurrency=3, logprobs=20),
)

_ALL = (
    # -- chat ------------------------------------------------------------------------------------
    Incident(
        "healthy-ramp",
        "chat",
        (_healthy(64, 40, 1.5), replace(_healthy(64, 40, 4.5, seconds=30), name="ramp")),
    ),
    Incident(
        "prompt-length-shift",
        "chat",
        _back(_then(_CHAT, prompt_tokens=1400, arrivals_per_s=2.8)),
        ("prompt-length-shift",),
        truth_by_phase=_then_backlog("prompt-length-shift"),
    ),
    Incident("n-fanout", "chat", _back(_then(_healthy(80, 40, 2.5), n=6)), ("n-fanout",)),
    Incident(
        "runaway-generation",
        "chat",
        _then(_ANSWERS, 40),
        ("runaway-generation",),
        ("output-length-shift",),
        beside={"incident": (replace(_healthy(64, 1600, 0.9, seconds=40), name="runaway"),)},
    ),
    Incident(
        "output-length-shift",
        "chat",
        _then(_healthy(72, 36, 3.5), 36, output_tokens=420),
        ("output-length-shift",),
    ),
    Incident(
        "mixed-overload-model-not-found",
        "chat",
        _then(_healthy(160, 40, 2), arrivals_per_s=30, models=("", "", "chat-v2")),
        ("queue-overload", "model-not-found"),
    ),
    # -- small -----------------------------------------------------------------------------------
    Incident(
        "healthy-busy",
        "small",
        (Phase("healthy", 45, prompt_tokens=48, output_tokens=120, concurrency=16),),
    ),
    Incident(
        "frontend-cpu-saturation",
        "small",
        _back(_then(_healthy(64, 40, 3))),
        ("frontend-cpu-saturation",),
        beside={"incident": _ABUSE},
    ),
    Incident(
        "structured-output-compile",
        "small",
        _back(_then(_healthy(64, 40, 2), schema_every=3, schema_depth=3)),
        ("structured-output-compile",),
    ),
    Incident(
        "structured-output-compile-heavy",
        "small",
        _then(_healthy(48, 60, 2.5), schema_every=1, schema_depth=3, arrivals_per_s=3),
        ("structured-output-compile",),
    ),
    Incident(
        "n-fanout-heavy",
        "small",
        _then(_healthy(100, 60, 5), n=8),
        ("n-fanout",),
    ),
    Incident(
        "host-cpu-starvation",
        "small",
        _back(_then(_healthy(64, 60, 3))),
        ("host-cpu-starvation",),
        actions=(Action("hogs", "incident", count=12), Action("end-hogs", "recovery")),
    ),
    # -- dev -------------------------------------------------------------------------------------
    Incident(
        "engine-asleep",
        "dev",
        _back(_then(_healthy(64, 48, 2.5), 28)),
        ("engine-asleep-or-paused",),
        truth_by_phase=_then_backlog("engine-asleep-or-paused"),
        actions=(
            Action("post", "incident", path="/sleep?level=1"),
            Action("post", "recovery", path="/wake_up"),
        ),
    ),
    Incident(
        "engine-paused",
        "dev",
        _back(_then(_healthy(96, 120, 2), 28)),
        ("engine-asleep-or-paused",),
        ("engine-hung",),
        truth_by_phase=_then_backlog("engine-asleep-or-paused"),
        actions=(
            Action("post", "incident", path="/pause?mode=keep"),
            Action("post", "recovery", path="/resume"),
        ),
        note="awake stays 1: the page alone cannot tell it from a hung engine",
    ),
    Incident(
        "healthy-night-to-morning",
        "dev",
        (_healthy(64, 48, 0), replace(_healthy(64, 48, 3), name="morning")),
    ),
    # -- limited ---------------------------------------------------------------------------------
    Incident(
        "admission-rejections",
        "limited",
        _back(_then(_healthy(64, 60, 3), arrivals_per_s=32)),
        ("admission-rejections",),
    ),
    # -- pool-3072 -------------------------------------------------------------------------------
    Incident(
        "kv-pinned-long-contexts",
        "pool-3072",
        _then(_POOL, 36),
        ("kv-pinned-long-contexts",),
        ("kv-head-of-line-block",),
        beside={
            "incident": (Phase("huge", 36, prompt_tokens=1050, output_tokens=700, concurrency=3),)
        },
    ),
    Incident(
        "kv-head-of-line-block",
        "pool-3072",
        _then(_healthy(64, 64, 2.5), 36, oversized_every=7, oversized_tokens=2100),
        ("kv-head-of-line-block",),
        ("kv-pinned-long-contexts",),
        beside={
            "incident": (Phase("middle", 36, prompt_tokens=700, output_tokens=300, concurrency=1),)
        },
    ),
    Incident(
        "prefix-cache-eviction",
        "pool-3072",
        (_warm(_HEADS), *_then(_HEADS, heads=18)),
        ("prefix-cache-eviction",),
    ),
    # -- long ------------------------------------------------------------------------------------
    Incident("healthy-unshared", "long", (_healthy(900, 40, 1.3, seconds=45),)),
    Incident(
        "prefix-cache-salt-isolation",
        "long",
        (_warm(_SALT), *_then(_SALT, salted=True)),
        ("prefix-cache-salt-isolation",),
        ("prefix-cache-nonce",),
        note="the page cannot tell salts from nonces",
    ),
    Incident(
        "prefix-cache-nonce",
        "long",
        (_warm(_NONCE), *_then(_NONCE, prompt_kind="nonce_head")),
        ("prefix-cache-nonce",),
    ),
    Incident(
        "mixed-nonce-context-length",
        "long",
        (_warm(_BOTH), *_then(_BOTH, prompt_kind="nonce_head")),
        ("prefix-cache-nonce", "context-length-rejections"),
        beside={"incident": (replace(_healthy(9000, 40, 2, seconds=30), name="oversized"),)},
    ),
    Incident(
        "long-prefill-interference",
        "long",
        _then(_healthy(96, 80, 2.5), 36, oversized_every=14, oversized_tokens=6000),
        ("long-prefill-interference",),
    ),
    Incident(
        "client-abort-storm",
        "long",
        _then(_healthy(96, 80, 2.5), output_tokens=600, client_timeout_s=1.5),
        ("client-abort-storm",),
    ),
    Incident(
        "context-length-rejections",
        "long",
        _then(_healthy(200, 40, 3), oversized_every=4, oversized_tokens=8300),
        ("context-length-rejections",),
    ),
    Incident(
        "healthy-mix-change",
        "long",
        (_healthy(96, 80, 2.5), replace(_healthy(260, 30, 2.5, seconds=28), name="mix")),
    ),
    # -- wide ------------------------------------------------------------------------------------
    Incident(
        "decode-batch-saturation",
        "heavy",
        _then(Phase("healthy", 21, 32, 100, concurrency=2), 35, concurrency=36),
        ("decode-batch-saturation",),
    ),
    Incident(
        "queue-overload-wide",
        "wide",
        _then(_healthy(128, 60, 4), arrivals_per_s=30),
        ("queue-overload",),
    ),
    Incident(
        "backlog-draining",
        "wide",
        (
            *_then(_healthy(128, 60, 4), 14, arrivals_per_s=34),
            replace(_healthy(128, 60, 4), name="recovery", duration_s=32),
        ),
        ("queue-overload",),
        truth_by_phase=_then_backlog("queue-overload"),
    ),
    # -- five-slots ------------------------------------------------------------------------------
    Incident(
        "healthy-long-outputs",
        "five-slots",
        (Phase("healthy", 35, 48, 800, concurrency=3),),
        also=("host-cpu-starvation",),
        note="others used the two cores: clients saw stalls of up to 4 s and one read failed",
    ),
    Incident(
        "concurrency-cap",
        "five-slots",
        _then(_healthy(48, 140, 2), arrivals_per_s=14),
        ("concurrency-cap",),
        ("queue-overload",),
    ),
    # -- pool-5120 -------------------------------------------------------------------------------
    Incident(
        "kv-preemption-thrash",
        "pool-5120",
        _then(Phase("healthy", 21, 128, 420, concurrency=3), arrivals_per_s=7),
        ("kv-preemption-thrash",),
    ),
    # -- one mode each ---------------------------------------------------------------------------
    Incident(
        "prefix-cache-disabled",
        "uncached",
        (
            replace(_UNCACHED, name="incident"),
            replace(_UNCACHED, name="more", arrivals_per_s=3.5, duration_s=30),
        ),
        ("prefix-cache-disabled",),
        ("queue-overload",),
        note="slow from its first page on; then arrivals rise to what a cache would carry with ease",
    ),
    Incident(
        "spec-decode-low-acceptance",
        "speculative",
        _then(replace(_healthy(64, 96, 2), greedy=True), greedy=False),
        ("spec-decode-low-acceptance",),
    ),
    Incident(
        "metrics-disabled",
        "silent",
        (_healthy(64, 40, 4, seconds=35),),
        ("metrics-disabled",),
        note="so from the first page on",
    ),
    Incident(
        "fd-exhaustion",
        "few-files",
        _then(replace(_healthy(64, 40, 3), client_timeout_s=10), 30),
        ("fd-exhaustion",),
        actions=(
            Action("connections", "incident", count=60),
            Action("connections", "incident", 10, count=200),
        ),
        note=(
            "from 10 s into the incident the page has no process_ series: reading them wants a file; "
            "clients with open connections are served on, new ones wait for ever"
        ),
    ),
    Incident(
        "lora-adapter-thrash",
        "adapters",
        _then(
            replace(_healthy(64, 60, 3), models=("a1", "a2")),
            arrivals_per_s=7,
            models=("a1", "a2", "a3", "a4", "a5", "a6"),
        ),
        ("lora-adapter-thrash",),
    ),
    # -- tiny ------------------------------------------------------------------------------------
    Incident(
        "model-not-found",
        "tiny",
        _then(_healthy(64, 48, 4), models=("", "", "tiny-v2")),
        ("model-not-found",),
    ),
    Incident(
        "output-truncated",
        "tiny",
        _then(replace(_healthy(80, 256, 4), stop_ids=12), output_tokens=16),
        ("output-truncated",),
    ),
    Incident("healthy-idle", "tiny", (_healthy(64, 32, 0.15, seconds=40),)),
    Incident("healthy-bursty", "tiny", (replace(_healthy(64, 70, 10, seconds=40), burst=24),)),
    Incident(
        "engine-hung",
        "tiny",
        _back(_then(_healthy(48, 200, 3), 28)),
        ("engine-hung",),
        actions=(Action("freeze", "incident", 1), Action("thaw", "recovery")),
    ),
    Incident(
        "process-restart",
        "tiny",
        _then(_healthy(64, 64, 3), 45),
        ("process-restart",),
        ("engine-dead",),
        actions=(Action("stop", "incident"), Action("start", "incident")),
    ),
    Incident(
        "engine-dead",
        "tiny",
        _then(_healthy(64, 64, 3), 25),
        ("engine-dead",),
        actions=(Action("kill-engine", "incident"),),
    ),
    Incident(
        "mixed-thrash-deploy",
        "pool-5120",
        (
            *_then(Phase("healthy", 21, 128, 420, concurrency=3), 25, arrivals_per_s=7),
            Phase("deploy", 55, 128, 420, arrivals_per_s=7),
        ),
        ("kv-preemption-thrash", "process-restart"),
        truth_by_phase={
            "incident": ("kv-preemption-thrash",),
            "deploy": ("kv-preemption-thrash", "process-restart"),
        },
        actions=(Action("stop", "deploy"), Action("start", "deploy")),
        note="the restart ends the backlog, the load that thrashes goes on",
    ),
)

INCIDENTS: Mapping[str, Incident] = {incident.name: incident for incident in _ALL}
