"""
Burn rates: which windows are watched, what each can reach, and when it fires.

Pure arithmetic. An error budget is the share of events that may be bad; its burn rate is the share that
is bad, divided by it. A row fires while both of its windows burn faster than its rate.

Source:
    The Site Reliability Workbook, chapter 5, table 5-8 (14.4x, 6x, 1x and their windows); the row of 3x
    over a day is sloth's (https://sloth.dev/introduction/architecture). The row of 9x over two hours is
    ours: between 6x and 14.4x a fault spends several hours' worth of budget before it pages
    (make bench-alarms).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from vllm_opsctl.exporter.units import format_percent

Notify = Literal["page", "ticket"]

PERIOD_S = 30 * 86400.0
"""The rolling window of every objective, seconds."""

_M, _H, _D = 60.0, 3600.0, 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """
    One pair of windows.

    Args:
        notify: What it does for an objective that pages.
        long_s: The window that must have burned enough, seconds.
        short_s: The window that must still burn, seconds; ends the alert soon after the repair.
        burn: Burn rate above which it fires.
        for_s: How long the condition must hold, seconds.
        min_bad: Bad events in the long window below which it stays silent, so that one failed request
            at night wakes nobody.
    """

    notify: Notify
    long_s: float
    short_s: float
    burn: float
    for_s: float
    min_bad: int

    @property
    def budget_spent(self) -> float:
        """
        Share of the period's budget that is gone when the long window burned at the rate.

        >>> [round(row.budget_spent, 3) for row in ROWS]
        [0.02, 0.025, 0.05, 0.1, 0.1]
        """
        return self.burn * self.long_s / PERIOD_S


ROWS: tuple[Row, ...] = (
    Row(notify="page", long_s=_H, short_s=5 * _M, burn=14.4, for_s=2 * _M, min_bad=5),
    Row(notify="page", long_s=2 * _H, short_s=10 * _M, burn=9.0, for_s=2 * _M, min_bad=5),
    Row(notify="page", long_s=6 * _H, short_s=30 * _M, burn=6.0, for_s=15 * _M, min_bad=5),
    Row(notify="ticket", long_s=_D, short_s=2 * _H, burn=3.0, for_s=_H, min_bad=10),
    Row(notify="ticket", long_s=3 * _D, short_s=6 * _H, burn=1.0, for_s=3 * _H, min_bad=10),
)
"""The window table, fastest first."""

WINDOWS_S: tuple[float, ...] = tuple(sorted({w for row in ROWS for w in (row.short_s, row.long_s)}))
"""Every window that is recorded, seconds, ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardFloor:
    """
    The page of objectives whose fast row is late or out of reach.

    At 95 % the 14.4x row wants 72 % of an hour bad: a total outage pages after 45 minutes.

    Args:
        highest_target: Objectives above it need no floor.
        ratio: Share of bad events above which it fires.
        window_s: Window, seconds.
        for_s: How long the condition must hold, seconds.
        min_events: Events in the window below which it stays silent.
    """

    highest_target: float = 0.97
    ratio: float = 0.5
    window_s: float = 5 * _M
    for_s: float = 5 * _M
    min_events: int = 10


FLOOR = HardFloor()


def budget_of(target: float) -> float:
    """
    The error budget of an objective: the share of events that may be bad.

    >>> budget_of(0.999)
    0.001
    """
    return round(1 - target, 12)


def threshold_of(row: Row, target: float) -> float:
    """
    The share of bad events above which a row fires.

    >>> threshold_of(ROWS[0], 0.999)
    0.0144
    """
    return round(row.burn * budget_of(target), 12)


def unreachable(row: Row, target: float) -> str | None:
    """
    Why a row can never fire for a target; None when it can.

    >>> unreachable(ROWS[0], 0.9)
    '14.4x of a budget of 10 % is 144 %: not even a total outage burns so fast'
    """
    if budget_of(target) <= 0:
        return "a target of 100 % has no error budget, every burn rate is infinite"
    if threshold_of(row, target) < 1:
        return None
    return (
        f"{row.burn:g}x of a budget of {format_percent(budget_of(target))} is "
        f"{format_percent(threshold_of(row, target))}: not even a total outage burns so fast"
    )


def time_to_fire(
    row: Row,
    target: float,
    error_ratio: float,
    *,
    requests_per_s: float | None = None,
    history_s: float = math.inf,
) -> float | None:
    """
    When a row fires for a steady share of bad events after a spotless past.

    The long window fills with bad events linearly; the short one has crossed before. Scraping and
    evaluation add at most a scrape and two evaluation intervals.

    Args:
        row: The pair of windows.
        target: Share of events that must be good.
        error_ratio: Share of events that is bad from now on, in [0, 1].
        requests_per_s: Steady traffic, for the guard on bad events; None for plenty.
        history_s: How long there was traffic before; a younger service fires sooner.

    Returns:
        Seconds from the first bad event; None when it never fires.

    >>> time_to_fire(ROWS[0], 0.999, 1.0)
    171.84
    """
    if error_ratio <= 0 or unreachable(row, target) is not None:
        return None
    threshold = threshold_of(row, target)
    crossed = (
        max(
            t
            for window in (row.long_s, row.short_s)
            if (t := _crossing(window, threshold, error_ratio, history_s)) is not None
        )
        if error_ratio > threshold
        else None
    )
    if crossed is None:
        return None
    if requests_per_s is not None:
        enough = row.min_bad / (requests_per_s * error_ratio) if requests_per_s > 0 else math.inf
        if enough > row.long_s:
            return None
        crossed = max(crossed, enough)
    return round(crossed + row.for_s, 6)


def _crossing(window_s: float, threshold: float, ratio: float, history_s: float) -> float | None:
    """Seconds until the share of bad events in a window passes a threshold."""
    # with enough history the window holds ratio*t bad of window_s; before that, of history_s + t
    full = threshold * window_s / ratio
    if history_s + full >= window_s:
        return full
    young = threshold * history_s / (ratio - threshold)
    return young if history_s + young <= window_s else full


def time_to_floor(
    target: float, error_ratio: float, *, requests_per_s: float | None = None
) -> float | None:
    """
    When the hard floor pages for a steady share of bad events after a spotless past.

    Returns:
        Seconds; None when the objective has none, or it never fires.

    >>> time_to_floor(0.95, 1.0), time_to_floor(0.99, 1.0)
    (450.0, None)
    """
    if target > FLOOR.highest_target or error_ratio <= FLOOR.ratio:
        return None
    if requests_per_s is not None and requests_per_s * FLOOR.window_s < FLOOR.min_events:
        return None
    return FLOOR.ratio * FLOOR.window_s / error_ratio + FLOOR.for_s


def time_to_page(
    target: float, error_ratio: float, *, requests_per_s: float | None = None
) -> float | None:
    """
    When the first of all rows that page does, the hard floor included.

    Args:
        target: Share of events that must be good.
        error_ratio: Share of events that is bad from now on, in [0, 1].
        requests_per_s: Steady traffic; None for plenty.

    Returns:
        Seconds from the first bad event; None when nothing pages.
    """
    times = [
        time_to_fire(row, target, error_ratio, requests_per_s=requests_per_s)
        for row in ROWS
        if row.notify == "page"
    ]
    times.append(time_to_floor(target, error_ratio, requests_per_s=requests_per_s))
    return min((t for t in times if t is not None), default=None)


@dataclass(frozen=True, slots=True)
class Clock:
    """
    How long the windows really are.

    Args:
        scale: 1 in production; a test that wants pages in seconds shortens every window, every
            ``for`` and every evaluation interval by one factor.
    """

    scale: Fraction = Fraction(1)

    def seconds(self, nominal_s: float) -> float:
        """A nominal duration as it is used, seconds, at least a millisecond."""
        return max(0.001, float(Fraction(nominal_s) * self.scale))

    def text(self, nominal_s: float) -> str:
        """A nominal duration as it is used, as PromQL writes it."""
        return duration_text(self.seconds(nominal_s))


def parse_scale(text: str) -> Fraction:
    """
    Read a scale such as ``1/60`` or ``0.1``.

    Raises:
        ValueError: Not a number above 0 and up to 1.

    >>> parse_scale("1/60")
    Fraction(1, 60)
    """
    try:
        scale = Fraction(text.replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is not a scale; write 1/60 or 0.1") from None
    if not 0 < scale <= 1:
        raise ValueError(f"{text!r} is not above 0 and up to 1; write 1/60 or 0.1")
    return scale


def duration_text(seconds: float) -> str:
    """
    A duration as PromQL writes it, in the largest unit that divides it.

    >>> [duration_text(s) for s in (300, 86400, 5400, 0.25)]
    ['5m', '1d', '90m', '250ms']
    """
    milliseconds = round(seconds * 1000)
    units: Sequence[tuple[str, int]] = (("d", 86400000), ("h", 3600000), ("m", 60000), ("s", 1000))
    for unit, size in units:
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"
