"""
An observation: one thing that was seen of one target at one time, raw.

Live polling, the flight recorder and recordings all hold these, and diagnosis reads nothing else:
that is why a recording replays to the verdict that was given live.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["metrics", "health", "probe", "facts", "error", "log", "host", "sagemaker", "header"]
KINDS: tuple[Kind, ...] = (
    *("metrics", "health", "probe", "facts"),
    *("error", "log", "host", "sagemaker", "header"),
)


@dataclass(frozen=True, slots=True)
class Observation:
    """
    One observation.

    Args:
        t: Unix seconds.
        target: The target's name.
        kind: What was looked at:
            ``metrics`` ``text``, the page as served, and ``seconds`` of a live read;
            ``error`` ``reason`` and ``detail``, why the page could not be had;
            ``health`` ``status`` (None when nothing answered) and ``seconds`` of GET /health;
            ``facts`` ``version`` and ``models`` (the body of GET /v1/models);
            ``probe`` ``name`` of an active check and what it saw; without a name it is the canary
            completion with ``ok``, ``seconds``, ``reason``;
            ``log`` ``counts`` of the known lines of a log by kind;
            ``host`` what the host says of the engine's processes, its kernel log and its GPUs;
            ``sagemaker`` what AWS says of an endpoint's variant: ``status``, ``current`` and ``desired``
            instances, ``metrics`` of AWS's own, ``events``, and what was ``not_seen``;
            ``header`` ``format`` and ``made_by`` of a recording.
        data: The kind's fields.
    """

    t: float
    target: str
    kind: Kind
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The page of a ``metrics`` observation."""
        text = self.data["text"]
        assert isinstance(text, str)
        return text


def metrics(t: float, target: str, text: str, seconds: float | None = None) -> Observation:
    """A page that was read, and how long that took where it is known."""
    data = {"text": text} if seconds is None else {"text": text, "seconds": round(seconds, 4)}
    return Observation(t, target, "metrics", data)


def error(t: float, target: str, reason: str, detail: str) -> Observation:
    """A page that could not be read."""
    return Observation(t, target, "error", {"reason": reason, "detail": detail})


NOT_SENT = "not-sent"
"""Name of the probe that stands for a canary that was not sent."""


def not_sent(t: float, target: str, why: str) -> Observation:
    """
    That no canary was sent, and why.

    Args:
        t: Unix seconds.
        target: The target's name.
        why: For people.
    """
    data = {"name": NOT_SENT, "ok": False, "reason": NOT_SENT, "detail": why}
    return Observation(t, target, "probe", data)


def thinned(
    observations: Iterable[Observation], *, start: float, full_from: float, step_s: float
) -> Iterator[Observation]:
    """
    Leave out pages of the older past; observations of other kinds all stay.

    Args:
        observations: Of one target, in order.
        start: Nothing older is wanted (unix seconds).
        full_from: From here on every page stays.
        step_s: Before that, pages stay at least so many seconds apart.
    """
    last_page = -math.inf
    for observation in observations:
        if observation.t < start:
            continue
        if observation.kind == "metrics" and observation.t < full_from:
            if 0 <= observation.t - last_page < step_s:
                continue
            last_page = observation.t
        yield observation


def thinned_times(times: Iterable[int], full_from: float, step_s: float) -> Iterator[int]:
    """Leave out seconds of the older past, as :func:`thinned` does with pages."""
    last = -math.inf
    for t in times:
        if t >= full_from or t - last >= step_s:
            last = t
            yield t
