"""What happens to a service in a synthetic month: faults of known kind and size, and harmless events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

STEP_S = 30
"""One step of the simulation, and the scrape interval."""

DAYS = 30
STEPS = DAYS * 86400 // STEP_S
HOUR = 3600 // STEP_S
MINUTE = 60 // STEP_S

_FIRST_DAY, _LAST_DAY = 3.2, 29.5
"""Before the first day the longest window is not full yet."""


@dataclass(frozen=True)
class Level:
    """
    How much traffic a service has.

    Args:
        name: One word.
        replicas: How many serve.
        peak_per_s: Requests per second at the busiest hour of an ordinary day.
        night: Share of the peak that is left at night; 0 for none at all.
        burst: Requests of a harmless burst, fewest and most.
    """

    name: str
    replicas: int
    peak_per_s: float
    night: float
    burst: tuple[int, int]


BUSY = Level("busy", 3, 2.2, 0.08, (180, 300))
QUIET = Level("quiet", 2, 0.06, 0.0, (6, 14))
LEVELS = (BUSY, QUIET)


@dataclass(frozen=True)
class Event:
    """
    One thing that happened.

    Args:
        kind: A key of ``FAULTS`` or ``HARMLESS``.
        start: First step.
        end: Step after the last.
        size: What the kind makes of it.
    """

    kind: str
    start: int
    end: int
    size: float

    @property
    def is_fault(self) -> bool:
        """Injected, and not one of the harmless ones."""
        return self.kind in FAULTS


@dataclass
class Conditions:
    """What every step of a month does to the requests in it, by replica where that differs."""

    level: Level
    errors: Floats = field(default_factory=lambda: np.full(STEPS, 1e-4))
    """Share of requests that is answered with 5xx."""
    prefill: Floats = field(default_factory=lambda: np.ones(STEPS))
    gaps: Floats = field(default_factory=lambda: np.ones(STEPS))
    """Factors on the time to the first token and between two."""
    answers: Floats = field(default_factory=lambda: np.ones(STEPS))
    """Factor on the length of answers."""
    extra: Floats = field(default_factory=lambda: np.zeros(STEPS))
    """Requests beside the ordinary ones."""
    kv: Floats = field(default_factory=lambda: np.zeros(STEPS))
    """The least that the KV cache is used."""
    capacity: Floats = field(default_factory=lambda: np.ones(STEPS))
    alive: Bools = field(init=False)
    routed: Bools = field(init=False)
    """Requests are sent to it: a load balancer learns a death a step late, a freeze never."""
    frozen: Bools = field(init=False)
    started: Bools = field(init=False)
    """Steps in which a replica's process is new; its counters begin at 0."""

    def __post_init__(self) -> None:
        shape = (self.level.replicas, STEPS)
        self.alive, self.routed = np.ones(shape, bool), np.ones(shape, bool)
        self.frozen, self.started = np.zeros(shape, bool), np.zeros(shape, bool)

    def kill(self, replica: int, start: int, end: int, *, drained: bool = False) -> None:
        """A replica is gone for some steps; drained before, nobody is sent to it."""
        self.alive[replica, start:end] = False
        self.routed[replica, start + (not drained) : end] = False
        if end < STEPS:
            self.started[replica, end] = True


Effect = Callable[[Conditions, Event], None]


def _errors(now: Conditions, event: Event) -> None:
    now.errors[event.start : event.end] = event.size


def _all_dead(now: Conditions, event: Event) -> None:
    for replica in range(now.level.replicas):
        now.kill(replica, event.start, event.end)


def _one_dead(now: Conditions, event: Event) -> None:
    now.kill(0, event.start, event.end)


def _frozen(now: Conditions, event: Event) -> None:
    now.frozen[0, event.start : event.end] = True
    now.kill(0, event.end, event.end + MINUTE, drained=True)


def _crash_loop(now: Conditions, event: Event) -> None:
    for start in range(event.start, event.end, 5 * MINUTE):
        now.kill(0, start, start + MINUTE)


def _slow_prefill(now: Conditions, event: Event) -> None:
    now.prefill[event.start : event.end] = event.size


def _slow_gaps(now: Conditions, event: Event) -> None:
    now.gaps[event.start : event.end] = event.size
    now.capacity[event.start : event.end] = event.size**-0.5


def _long_answers(now: Conditions, event: Event) -> None:
    now.answers[event.start : event.end] = event.size
    now.capacity[event.start : event.end] = 1 / event.size


def _thrash(now: Conditions, event: Event) -> None:
    where = slice(event.start, event.end)
    ramp = np.linspace(0, 1, event.end - event.start)
    now.kv[where] = 0.97
    now.gaps[where] = 1 + 1.5 * ramp
    now.prefill[where] = 1 + 3 * ramp
    now.capacity[where] = 1 - event.size * ramp


def _burst(now: Conditions, event: Event) -> None:
    now.extra[event.start : event.end] += event.size / (event.end - event.start)


def _deploy(now: Conditions, event: Event) -> None:
    for replica in range(now.level.replicas):
        start = event.start + replica * 3 * MINUTE
        now.kill(replica, start, start + 2 * MINUTE, drained=True)


def _hot_cache(now: Conditions, event: Event) -> None:
    now.kv[event.start : event.end] = event.size


def _longer_answers(now: Conditions, event: Event) -> None:
    now.answers[event.start : event.end] = event.size


@dataclass(frozen=True)
class Kind:
    """
    A kind of event.

    Args:
        minutes: Shortest and longest.
        size: Smallest and largest.
        effect: What it does.
        worth_a_page: What an engineer would say by its name alone, without arithmetic.
    """

    minutes: tuple[float, float]
    size: tuple[float, float]
    effect: Effect
    worth_a_page: bool = False


FAULTS: dict[str, Kind] = {
    "all replicas dead": Kind((10, 40), (1, 1), _all_dead, True),
    "all requests 5xx": Kind((8, 40), (1, 1), _errors, True),
    "all 5xx, 3-5 min": Kind((3, 5), (1, 1), _errors, True),
    "10 % errors": Kind((30, 120), (0.08, 0.15), _errors, True),
    "1 % errors": Kind((360, 720), (0.008, 0.015), _errors, True),
    "0.3 % errors": Kind((1200, 1800), (0.0025, 0.004), _errors),
    "blip of 2 min": Kind((2, 2), (0.1, 0.3), _errors),
    "TTFT shift": Kind((60, 240), (5, 10), _slow_prefill, True),
    "mild TTFT shift": Kind((240, 600), (2.2, 3), _slow_prefill),
    "ITL shift": Kind((60, 240), (2, 3), _slow_gaps, True),
    "answers grow long": Kind((120, 300), (2.5, 4), _long_answers, True),
    "KV thrash": Kind((180, 360), (0.4, 0.6), _thrash, True),
    "one replica dead": Kind((60, 240), (1, 1), _one_dead),
    "one engine frozen": Kind((20, 60), (1, 1), _frozen, True),
    "crash loop": Kind((40, 90), (1, 1), _crash_loop, True),
}
"""Injected once a month each."""

HARMLESS: dict[str, tuple[int, Kind]] = {
    "burst": (10, Kind((1, 1.5), (0, 1), _burst)),
    "rolling restart": (6, Kind((12, 12), (1, 1), _deploy)),
    "KV cache full, healthy": (8, Kind((60, 180), (0.93, 0.97), _hot_cache)),
    "a few errors": (6, Kind((1, 1), (0, 1), _errors)),
    "long answers": (3, Kind((60, 120), (1.7, 1.9), _longer_answers)),
}
"""Ordinary life, so many times a month."""


def plan(level: Level, random: np.random.Generator) -> list[Event]:
    """The events of a month: faults apart from each other, harmless ones apart from faults."""
    kinds = [str(kind) for kind in random.permutation(list(FAULTS))]
    slot = (_LAST_DAY - _FIRST_DAY) * 24 * HOUR / len(kinds)
    events = []
    for index, kind in enumerate(kinds):
        spec = FAULTS[kind]
        first = int(_FIRST_DAY * 24 * HOUR + index * slot)
        steps = _steps(spec, random)
        start = first + _start(int(slot) - steps - 4 * HOUR, first, random)
        events.append(Event(kind, start, start + steps, random.uniform(*spec.size)))
    busy = [(event.start - 3 * HOUR, event.end + 3 * HOUR) for event in events]
    for kind, (times, spec) in HARMLESS.items():
        for _ in range(times):
            steps = _steps(spec, random)
            begin = _free(busy, steps, random)
            if begin is None:
                continue
            busy.append((begin - HOUR, begin + steps + HOUR))
            events.append(Event(kind, begin, begin + steps, _size(kind, spec, level, random)))
    return sorted(events, key=lambda event: event.start)


def _steps(spec: Kind, random: np.random.Generator) -> int:
    return max(1, round(random.uniform(*spec.minutes) * MINUTE))


def _size(kind: str, spec: Kind, level: Level, random: np.random.Generator) -> float:
    if kind == "burst":
        return float(random.uniform(*level.burst))
    if kind == "a few errors":
        # as many as three to six of the requests of a busy minute
        return min(1.0, random.uniform(3, 6) / (level.peak_per_s * 60)) if level is BUSY else 0.3
    return float(random.uniform(*spec.size))


def _start(room: int, first: int, random: np.random.Generator) -> int:
    """A moment in a slot; seven of ten faults come by day, when people change things."""
    wants_day = random.random() < 0.7
    start = 0
    for _ in range(20):
        start = int(random.integers(0, max(1, room)))
        if 8 <= (first + start) / HOUR % 24 < 22 or not wants_day:
            break
    return start


def _free(busy: list[tuple[int, int]], steps: int, random: np.random.Generator) -> int | None:
    for _ in range(200):
        start = int(random.integers(int(_FIRST_DAY * 24 * HOUR), STEPS - 12 * HOUR))
        if all(start + steps < low or start > high for low, high in busy):
            return start
    return None


def conditions(level: Level, events: list[Event]) -> Conditions:
    """What the events of a month do."""
    now = Conditions(level)
    for event in events:
        spec = FAULTS[event.kind] if event.is_fault else HARMLESS[event.kind][1]
        spec.effect(now, event)
    return now
