"""
What a recording says of load and of the server that bore it: arrivals over time, and what one replica can do.

Arrivals are requests that finished plus the growth of those that run and wait. The server is a batch whose
requests slow each other down: a request alone takes ``alone_s``, with all slots taken ``full_s``, and between
them in proportion; by Little's law both follow from how many ran and how many finished.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vllm_opsctl.errors import BadPage, InputFileError
from vllm_opsctl.exporter.engine import EngineSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.units import format_duration
from vllm_opsctl.exporter.window import Window, is_reset, windows_by_engine

LONGEST_STEP_S = 5.0
"""Between two pages further apart nothing is known; sidecars read every second."""

LONGEST_S = 31 * 86400

_SATURATED_S = 3.0
"""Shorter stretches of a queue say nothing of what a full batch finishes."""

_CALM = 0.5
"""Of the slots: with fewer taken, and nobody waiting, requests hardly slow each other down."""

_ENOUGH = 5.0
"""Finished requests that a mean is taken of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """
    What one replica can do.

    Args:
        slots: Requests that it runs at once.
        alone_s: Seconds that a request runs when no other does.
        full_s: Seconds that it runs when all slots are taken.
        first_token_s: Seconds to the first token without waiting.
        kv_percent: Share of the KV cache that one running request takes, percent.
        is_saturated: Requests waited in the recording, so that slots and full_s were seen.
    """

    slots: float
    alone_s: float
    full_s: float
    first_token_s: float
    kv_percent: float
    is_saturated: bool

    def runs_s(self, running: float) -> float:
        """Seconds that a request runs while so many do."""
        return self.alone_s + (self.full_s - self.alone_s) * min(running / self.slots, 1.0)

    @property
    def most_per_s(self) -> float:
        """Requests a second that it finishes with all slots taken."""
        return self.slots / self.full_s

    def running_at(self, per_s: float) -> float:
        """
        Requests that run at once when so many come in a second, for long; the slots at most.

        >>> server = Server(
        ...     slots=8, alone_s=1, full_s=2, first_token_s=0, kv_percent=0, is_saturated=True
        ... )
        >>> server.running_at(4), server.running_at(2), server.running_at(100)
        (8.0, 2.6666666666666665, 8.0)
        """
        if per_s >= self.most_per_s:
            return float(self.slots)
        return per_s * self.alone_s / (1 - per_s * (self.full_s - self.alone_s) / self.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """
    What came, and what bore it.

    Args:
        arrivals: Requests a second, of each second of the recording; None where nothing is known.
        server: One replica.
        models: Models in the recording.
        most_waiting: Longest queue that was seen.
    """

    arrivals: tuple[float | None, ...]
    server: Server
    models: tuple[str, ...]
    most_waiting: float

    @property
    def seconds(self) -> int:
        """Length of the recording."""
        return len(self.arrivals)


@dataclass(frozen=True, slots=True)
class _Step:
    """Between two pages of one engine: seconds, requests that ran, waited, came, and finished."""

    start: float
    seconds: float
    running: float
    waiting: float
    arrived: float
    finished: float
    kv: float


def load_of(observations: Sequence[Observation], *, model: str | None, max_num_seqs: int) -> Load:
    """
    Read the load of a recording.

    Args:
        observations: In order.
        model: Whose load; when the recording has no such model, that of all.
        max_num_seqs: Slots, where nobody waited in the recording.

    Raises:
        InputFileError: No page, or nothing finished in it.
    """
    pages = []
    for one in observations:
        if one.kind == "metrics":
            try:
                pages.append(read_page(one.text, t=one.t, target=one.target))
            except BadPage:
                # as for the sidecar: nothing was read then
                continue
    by_target = {
        target: windows_by_engine([page for page in pages if page.target == target])
        for target in dict.fromkeys(page.target for page in pages)
    }
    models = tuple(dict.fromkeys(key.model for found in by_target.values() for key in found))
    windows = [
        window
        for found in by_target.values()
        for key, window in found.items()
        if model not in models or key.model == model
    ]
    steps = [step for window in windows for step in _steps(window)]
    if not steps or sum(step.finished for step in steps) < _ENOUGH:
        raise InputFileError(
            "the recording has too few finished requests to tell what a replica can do; record one under "
            "load (opsctl record)"
        )
    # a clock that was set back may put the first page behind others
    start = min(one.t for one in observations)
    seconds = math.ceil(max(one.t for one in observations) - start)
    if seconds > LONGEST_S:
        raise InputFileError(
            f"the recording goes over {format_duration(seconds)}, more than 31 days: was a clock set while "
            "it was made?"
        )
    return Load(
        arrivals=_arrivals(steps, start, seconds),
        server=_server(steps, windows, max_num_seqs),
        models=models,
        most_waiting=max(step.waiting for step in steps),
    )


def _steps(window: Window) -> list[_Step]:
    found: list[_Step] = []
    debt = 0.0
    for old, new in pairwise(window.samples):
        seconds = new.t - old.t
        if not 0 < seconds <= LONGEST_STEP_S or is_reset(old, new):
            debt = 0.0
            continue
        finished = max(
            0.0, (new.total("requests_finished") or 0.0) - (old.total("requests_finished") or 0.0)
        )
        arrived = finished + _inside(new) - _inside(old) + debt
        # a page is no snapshot: what one counts too early the next counts less
        debt = min(0.0, arrived)
        found.append(
            _Step(
                old.t,
                seconds,
                (_gauge(old, "requests_running") + _gauge(new, "requests_running")) / 2,
                min(_gauge(old, "requests_waiting"), _gauge(new, "requests_waiting")),
                max(0.0, arrived),
                finished,
                100 * _gauge(new, "kv_cache_usage_ratio"),
            )
        )
    return found


def _gauge(sample: EngineSample, concept: str) -> float:
    return sample.gauges.get(concept, 0.0)


def _inside(sample: EngineSample) -> float:
    return _gauge(sample, "requests_running") + _gauge(sample, "requests_waiting")


def _arrivals(steps: Sequence[_Step], start: float, seconds: int) -> tuple[float | None, ...]:
    """Spread each step's arrivals over the seconds that it lies in."""
    amounts = [0.0] * max(1, seconds)
    known = [0.0] * len(amounts)
    for step in steps:
        first, last = step.start - start, step.start - start + step.seconds
        for second in range(int(first), min(len(amounts), math.ceil(last))):
            share = (min(last, second + 1) - max(first, second)) / step.seconds
            amounts[second] += step.arrived * share
            known[second] += share * step.seconds
    # half a second that somebody has seen says enough of it
    return tuple(a if k >= 0.5 else None for a, k in zip(amounts, known, strict=True))


def _server(steps: Sequence[_Step], windows: Sequence[Window], max_num_seqs: int) -> Server:
    queued = [step for step in steps if step.waiting > 0 and step.finished > 0]
    is_saturated = sum(step.seconds for step in queued) >= _SATURATED_S
    # the usual batch, for it is not full in every step
    slots = statistics.median(step.running for step in queued) if is_saturated else max_num_seqs
    slots = max(1.0, float(slots))
    calm = [step for step in steps if step.waiting == 0 and step.running <= _CALM * slots]
    alone_s = _running_s(calm)
    full_s = _running_s(queued) if is_saturated else None
    busy_s = _running_s(steps)
    assert busy_s is not None
    alone_s = busy_s if alone_s is None else alone_s
    full_s = max(alone_s, busy_s if full_s is None else full_s)
    ran = sum(step.running * step.seconds for step in steps)
    used = sum(step.kv * step.seconds for step in steps)
    return Server(
        slots=slots,
        alone_s=min(alone_s, full_s),
        full_s=full_s,
        first_token_s=_first_token_s(windows),
        kv_percent=used / ran if ran > 0 else 0.0,
        is_saturated=is_saturated,
    )


def _running_s(steps: Sequence[_Step]) -> float | None:
    """Little's law: mean number that ran over the rate at which they finished."""
    finished = sum(step.finished for step in steps)
    if finished < _ENOUGH:
        return None
    return max(1e-3, sum(step.running * step.seconds for step in steps) / finished)


def _first_token_s(windows: Sequence[Window]) -> float:
    """Mean time to the first token less the mean wait, of the engine that computes fastest."""
    found = []
    for window in windows:
        calm = _calm_part(window)
        first = calm.mean("time_to_first_token_seconds")
        waited = calm.mean("request_queue_seconds")
        if first is not None:
            found.append(max(0.0, first - (waited or 0.0)))
    return min(found, default=0.0)


def _calm_part(window: Window) -> Window:
    """The longest stretch without anybody waiting; all of it when there is none."""
    best, start = (0, 0), 0
    for index, sample in enumerate((*window.samples, None)):
        if sample is None or _gauge(sample, "requests_waiting") > 0:
            best = max(best, (start, index), key=lambda span: span[1] - span[0])
            start = index + 1
    return window.slice(*best) if best[1] - best[0] > 1 else window
