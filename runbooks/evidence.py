"""
The evidence of one engine: what was observed, cut into the window under test and a reference.

The window under test starts where the behaviour changed (:mod:`.onset`) and never crosses a
restart. The reference is what the same engine did before: the samples before the onset, or, when
there are too few, everything the process counted before the first sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypedDict

from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter.engine import EngineKey, EngineSample, Histogram, PageSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.observation import Observation, error, thinned
from vllm_opsctl.exporter.window import (
    Window,
    comparable,
    counters_fell,
    is_other_server,
    is_reset,
    windows_by_engine,
)
from vllm_opsctl.runbooks.onset import MIN_SAMPLES, find_onset

HISTORY_S = 1800.0
"""How far before the window the onset is looked for: what the flight recorder keeps."""

FULL_HISTORY_S = 60.0
"""History this close to the window is read at full resolution."""

HISTORY_STEP_S = 10.0
"""Resolution of older history; it is a reference, and every page of it costs milliseconds."""

MIN_REFERENCE_REQUESTS = 10
"""A process's lifetime with fewer first tokens says nothing about means."""

MIN_EARLIER_REQUESTS = 5
"""An earlier window of the same traffic says something sooner."""

PROBE_SETTLES_S = 1.0
"""The counters of a finished request are on the page a step later."""

PageReader = Callable[..., PageSample]
"""Called as :func:`read_page`."""

MOST_PROBES = 4
"""A reference holds at least so many other requests for each one of opsctl's own."""

Source = Literal["earlier window", "process lifetime"]


@dataclass(frozen=True, slots=True)
class Reference:
    """What the engine did before the window under test; means over many requests."""

    source: Source
    window: Window | None = None
    lifetime: EngineSample | None = None

    def histogram(self, concept: str) -> Histogram | None:
        """What a histogram observed in the reference."""
        if self.window is not None:
            return self.window.histogram(concept)
        assert self.lifetime is not None
        return self.lifetime.histograms.get(concept)

    def mean(self, concept: str) -> float | None:
        """Mean of a histogram in the reference."""
        histogram = self.histogram(concept)
        return histogram.mean if histogram else None

    def total(self, concept: str) -> float | None:
        """Increase of a counter in the reference."""
        if self.window is not None:
            return self.window.delta(concept)
        assert self.lifetime is not None
        return self.lifetime.total(concept)

    def rate(self, concept: str) -> float | None:
        """Increase of a counter per second; only an earlier window has a length."""
        return self.window.rate(concept) if self.window is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """
    What the features of one engine are computed from.

    Args:
        target: The target's name.
        key: Which engine; None when the target never showed a page in the window.
        asked: All samples of the window that was asked for, restarts included.
        history: All samples since the last restart, up to half an hour.
        window: The window under test: since the onset and the last restart.
        onset: Unix seconds at which the behaviour changed; None without a clear change.
        reference: None when nothing is known of before.
        observations: Everything observed within the window that was asked for, in order.
        siblings: Windows of the other engines on the same pages, as asked.
        restarts: Times of the last page before and the first page after each restart.
        several_servers: Pages of several processes alternate behind the URL.
        vanished: Engines that earlier pages showed and the newest does not.
        known_restarts: Restarts in all pages that are known, also before the window.
        predecessor: The last sample of the process before the newest restart.
        counter_flips: Falls of a counter without a restart of the process.
        page_problems: Series of the newest page that could not be used.
        left_out: How much of the newest page lies beyond a bound, by the bound's name.
        earlier_answer: The target answered at some time before the end of the window.
        api_facts: Version and model facts from /version and /v1/models.
    """

    target: str
    key: EngineKey | None
    asked: Window
    history: Window
    window: Window
    onset: float | None
    reference: Reference | None
    observations: Sequence[Observation]
    earlier_answer: bool
    siblings: Sequence[Window] = ()
    restarts: Sequence[tuple[float, float]] = ()
    several_servers: bool = False
    vanished: Sequence[EngineKey] = ()
    known_restarts: int = 0
    predecessor: EngineSample | None = None
    counter_flips: int = 0
    page_problems: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    api_facts: dict[str, object] = field(default_factory=dict)

    def last(self, *kinds: str) -> Observation | None:
        """The newest observation of some kinds."""
        return next((o for o in reversed(self.observations) if o.kind in kinds), None)

    @property
    def newest(self) -> EngineSample | None:
        """The newest sample."""
        return self.asked.samples[-1] if self.asked.samples else None


def gather(
    target: str,
    observations: Sequence[Observation],
    *,
    at: float | None,
    window_s: float,
    read: PageReader = read_page,
) -> tuple[list[Evidence], list[Observation]]:
    """
    Cut one target's observations into evidence, one per engine.

    Args:
        target: The target's name.
        observations: All of the target's observations, in the order in which they were made.
        at: End of the window (unix seconds); None for the newest observation.
        window_s: Length of the window in seconds.
        read: Reads a page; whoever diagnoses many moments of one recording keeps what was read.

    Returns:
        The evidence (one with ``key`` None when no page was readable), and the observations of
        the window with unreadable pages turned into errors.
    """
    end = at if at is not None else max(o.t for o in observations)
    start = end - window_s
    readable: list[Observation] = []
    pages: list[PageSample] = []
    for observation in thinned(observations, **history_of(start)):
        if observation.t > end + 1e-3:
            continue
        if observation.kind != "metrics":
            readable.append(observation)
            continue
        try:
            pages.append(read(observation.text, t=observation.t, target=target))
            readable.append(observation)
        except BadPage as problem:
            readable.append(error(observation.t, target, problem.reason, problem.detail))
    recent = [o for o in readable if o.t >= start]
    asked_pages = [page for page in pages if page.t >= start]
    compared = _compared(asked_pages)
    restarted = [(old, new) for old, new in _compared(pages) if is_reset(old, new)]
    api_facts: dict[str, object] = {}
    for observation in readable:
        if observation.kind == "facts":
            api_facts.update(observation.data)
    windows = windows_by_engine(pages)
    present = {engine.key for engine in asked_pages[-1].engines} if asked_pages else set()
    common = _Common(
        target=target,
        observations=tuple(recent),
        earlier_answer=bool(pages),
        api_facts=api_facts,
        restarts=tuple((old.t, new.t) for old, new in compared if is_reset(old, new)),
        several_servers=any(is_other_server(old, new) for old, new in compared),
        vanished=tuple(key for key in windows if key not in present) if present else (),
        known_restarts=len(restarted),
        predecessor=restarted[-1][0] if restarted else None,
        counter_flips=sum(
            counters_fell(old, new) and not is_reset(old, new) for old, new in compared
        ),
        page_problems=len(asked_pages[-1].problems) if asked_pages else 0,
        left_out=asked_pages[-1].left_out if asked_pages else {},
    )
    probed_at = [
        o.t for o in readable if o.kind == "probe" for _ in range(requests_of_probe(o.data))
    ]
    evidence = [
        _of_engine(
            key,
            whole,
            start=start,
            siblings=[other.between(start, end) for k, other in windows.items() if k != key],
            probed_at=probed_at,
            common=common,
        )
        for key, whole in windows.items()
        if key in present
    ]
    if not evidence:
        empty = Window(())
        evidence = [
            Evidence(
                key=None,
                asked=empty,
                history=empty,
                window=empty,
                onset=None,
                reference=None,
                **common,
            )
        ]
    return evidence, recent


def _compared(pages: Sequence[PageSample]) -> list[tuple[EngineSample, EngineSample]]:
    """One engine on each two neighbouring pages."""
    return [pair for old, new in pairwise(pages) if (pair := comparable(old, new)) is not None]


class History(TypedDict):
    """How much of the past is looked at: arguments of :func:`thinned`."""

    start: float
    full_from: float
    step_s: float


def requests_of_probe(data: Mapping[str, object]) -> int:
    """How many completions an active check sends; probes without a name are canaries."""
    return {"canary": 1, "repeat": 2}.get(str(data.get("name", "canary")), 0)


def history_of(start: float) -> History:
    """What a diagnosis of a window that begins at a time (unix seconds) wants of the past."""
    return {
        "start": start - HISTORY_S,
        "full_from": start - FULL_HISTORY_S,
        "step_s": HISTORY_STEP_S,
    }


class _Common(TypedDict):
    """What all engines of a target share."""

    target: str
    observations: tuple[Observation, ...]
    earlier_answer: bool
    api_facts: dict[str, object]
    restarts: tuple[tuple[float, float], ...]
    several_servers: bool
    vanished: tuple[EngineKey, ...]
    known_restarts: int
    predecessor: EngineSample | None
    counter_flips: int
    page_problems: int
    left_out: Mapping[str, int]


def _of_engine(
    key: EngineKey,
    whole: Window,
    *,
    start: float,
    siblings: Sequence[Window],
    probed_at: Sequence[float],
    common: _Common,
) -> Evidence:
    asked = whole.between(start, math.inf)
    alive = whole.since_reset()
    split = find_onset(alive)
    if split is not None and _queued(alive.slice(0, split)) and _queued(alive.slice(split)):
        # a change within an incident; when that began was not seen
        split = None
    if split is None:
        split = _queue_onset(alive)
    onset = alive.samples[split].t if split is not None else None
    first = max(start, onset) if onset is not None else start
    tested = alive.between(first, math.inf)
    if len(tested.samples) < MIN_SAMPLES:
        tested = alive.between(start, math.inf)
    until = start if onset is None else onset
    # the probe with which a recording begins is no traffic
    begun = alive.samples[0].t + PROBE_SETTLES_S
    first_probes = max((t for t in probed_at if t <= begun), default=-math.inf)
    before = _before_the_queue(
        Window(tuple(s for s in alive.samples if first_probes + PROBE_SETTLES_S <= s.t <= until))
    )
    return Evidence(
        key=key,
        asked=asked,
        history=alive,
        window=tested,
        onset=onset,
        reference=_reference(before, alive, probed_at),
        siblings=tuple(siblings),
        **common,
    )


def _queue_onset(alive: Window) -> int | None:
    """
    The sample with which the queue began that lasts until now.

    Returns:
        None when nothing waits now, or when too little is there on either side to compare.
    """
    first = len(alive.samples)
    while first > 0 and alive.samples[first - 1].gauges.get("requests_waiting", 0.0) >= 1:
        first -= 1
    enough = MIN_SAMPLES <= first <= len(alive.samples) - MIN_SAMPLES
    return first if enough else None


def _before_the_queue(before: Window) -> Window:
    """Without its last samples in which requests wait: the incident has begun with them."""
    last = len(before.samples)
    while last > 0 and before.samples[last - 1].gauges.get("requests_waiting", 0.0) >= 1:
        last -= 1
    return before.slice(0, last)


def _queued(before: Window) -> bool:
    """Requests waited most of the time: this is the incident already, no reference."""
    waiting = before.gauge("requests_waiting")
    return 2 * sum(value >= 1 for value in waiting) > len(waiting)


def _reference(before: Window, alive: Window, probed_at: Sequence[float]) -> Reference | None:
    started = before.histogram("time_to_first_token_seconds")
    finished = before.delta("requests_finished")
    if started is not None and finished is not None and not _queued(before):
        first, last = before.samples[0].t, before.samples[-1].t
        own = sum(first <= t <= last for t in probed_at)
        # requests that have only begun say nothing of their length, opsctl's own nothing at all
        if min(started.count, finished) - own >= max(MIN_EARLIER_REQUESTS, MOST_PROBES * own):
            return Reference("earlier window", window=before)
    lifetime = alive.samples[0].histograms.get("time_to_first_token_seconds")
    if lifetime is not None and lifetime.count >= MIN_REFERENCE_REQUESTS:
        return Reference("process lifetime", lifetime=alive.samples[0])
    return None
