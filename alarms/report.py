"""
The report of a period: what was promised, what was kept, and when the budget went.

Budgets of a report are those of its period: the events that may be bad are the budget's share of all
events that are known of it. So what days and episodes spent adds up to what is used, and the budget
that remains falls from all to what is left at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from vllm_opsctl.alarms.burn import ROWS, budget_of
from vllm_opsctl.alarms.status import used_of
from vllm_opsctl.alarms.status_prometheus import History
from vllm_opsctl.alarms.status_timeline import SLOT_S, Count, Known, Slot, Timeline
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.config import Objective

PAUSE_S = ROWS[1].short_s
"""Silence that does not end an episode: the window whose recovery ends the alert of a slow burn."""

MOST = 5
"""Days and episodes that are named."""

_MONTH = re.compile(r"(\d{4})-(\d{2})")


@dataclass(frozen=True, slots=True)
class Period:
    """
    What a report is of.

    Args:
        start: Unix seconds.
        end: Unix seconds, exclusive; now at the latest.
        label: For people.
    """

    start: float
    end: float
    label: str


@dataclass(frozen=True, slots=True)
class Day:
    """
    One day, in UTC.

    Args:
        date: Which.
        known: Its events within the period.
        spent: Share of the period's budget that it spent.
    """

    date: date
    known: Known
    spent: float


@dataclass(frozen=True, slots=True)
class Episode:
    """
    A stretch of time in which the budget burned faster than it lasts.

    Args:
        start: Unix seconds.
        length_s: Seconds, in slots of five minutes.
        count: Its events.
        spent: Share of the period's budget that it spent.
        peak: Highest burn rate of five minutes.
    """

    start: float
    length_s: float
    count: Count
    spent: float
    peak: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """
    One objective of one model over the period.

    Args:
        objective: What was promised.
        model: Whose.
        known: What is known of the period.
        used: Share of the budget that is used; None without events.
        days: All days of which something is known, in order.
        episodes: All episodes, the most expensive first.
        remaining: Unix seconds and share of the budget left, at the end of each slot that is known.
    """

    objective: Objective
    model: str
    known: Known
    used: float | None
    days: tuple[Day, ...]
    episodes: tuple[Episode, ...]
    remaining: tuple[tuple[float, float], ...]

    @property
    def sli(self) -> float | None:
        """Share of good events."""
        ratio = self.known.count.ratio
        return None if ratio is None else 1 - ratio

    @property
    def left(self) -> float | None:
        """Share of the budget that is left."""
        return None if self.used is None else 1 - self.used

    @property
    def is_kept(self) -> bool | None:
        """Whether the promise was kept; None without events."""
        return None if self.used is None else self.used < 1

    @property
    def worst_days(self) -> tuple[Day, ...]:
        """Those that spent most; none that spent nothing."""
        days = sorted(self.days, key=lambda day: (-day.spent, day.date))
        return tuple(day for day in days[:MOST] if day.spent > 0)


@dataclass(frozen=True, slots=True)
class Report:
    """
    All objectives over the period.

    Args:
        period: Which.
        service: Name of the fleet.
        source: Whom was asked, for people.
        accounts: The least budget left first.
        without: Objectives without a number, and why.
        notes: What else is to be said.
    """

    period: Period
    service: str
    source: str
    accounts: tuple[Account, ...]
    without: tuple[tuple[Objective, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def known_s(self) -> float:
        """The most that is known of the period for any objective, seconds."""
        return max((one.known.seconds for one in self.accounts), default=0.0)


def last_days(days: int, at: float) -> Period:
    """The days before a time (unix seconds), to the last whole slot."""
    end = at // SLOT_S * SLOT_S
    return Period(end - days * 86400.0, end, f"{days} day{'' if days == 1 else 's'}")


def month(text: str, now: float) -> Period:
    """
    A calendar month, in UTC; the running one up to now.

    Args:
        text: Such as ``2026-10``.
        now: Unix seconds.

    Raises:
        UsageError: No month, or one that has not begun.

    >>> found = month("2026-02", 1.8e9)
    >>> (found.end - found.start) / 86400
    28.0
    """
    match = _MONTH.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        first = datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC)
    except ValueError:
        raise UsageError(f"--month {text!r}: not a month; write it like 2026-10") from None
    if first.year < 1970:
        raise UsageError(f"--month {text}: before 1970 there was no Prometheus; write 2026-10")
    whole_slots = now // SLOT_S * SLOT_S
    if whole_slots <= first.timestamp():
        raise UsageError(f"--month {text}: has not begun; ask about one that has")
    end = (first + timedelta(days=32)).replace(day=1).timestamp()
    label = f"{first:%B %Y}" + ("" if end <= now else ", so far")
    return Period(first.timestamp(), min(end, whole_slots), label)


def report_of(history: History, period: Period, *, service: str, source: str) -> Report:
    """
    Add up a period.

    Args:
        history: What is known of it.
        period: Which it is.
        service: Name of the fleet.
        source: Whom was asked.
    """
    accounts = [account_of(*one) for one in history.timelines]
    accounts.sort(key=lambda one: (1.0 if one.left is None else one.left, one.objective.name))
    return Report(
        period,
        service,
        source,
        tuple(accounts),
        (*history.without, *history.not_measured),
        tuple(history.notes),
    )


def account_of(objective: Objective, model: str, timeline: Timeline) -> Account:
    """
    Add up one objective of one model.

    Args:
        objective: What was promised.
        model: Whose.
        timeline: Its events within the period.
    """
    known = timeline.whole
    allowed = known.count.total * budget_of(objective.target)
    return Account(
        objective=objective,
        model=model,
        known=known,
        used=used_of(known.count, objective.target),
        days=tuple(_days(timeline, allowed)),
        episodes=tuple(_episodes(timeline, objective, allowed)),
        remaining=tuple(_remaining(timeline, allowed)),
    )


def _spent(bad: float, allowed: float) -> float:
    return bad / allowed if allowed > 0 else 0.0


def _days(timeline: Timeline, allowed: float) -> Iterator[Day]:
    by_date: dict[date, list[Slot]] = {}
    for slot in timeline.slots:
        # a slot that spans midnight belongs to the day of its middle
        day = datetime.fromtimestamp(slot.end - SLOT_S / 2, UTC).date()
        by_date.setdefault(day, []).append(slot)
    for day, slots in by_date.items():
        count = sum((slot.count for slot in slots), Count())
        yield Day(day, Known(count, len(slots) * SLOT_S), _spent(count.bad, allowed))


def _episodes(timeline: Timeline, objective: Objective, allowed: float) -> list[Episode]:
    budget = budget_of(objective.target)
    found: list[list[Slot]] = []
    is_open = False
    for slot in timeline.slots:
        ratio = slot.count.ratio
        is_near = is_open and slot.start - found[-1][-1].end <= PAUSE_S
        if ratio is None:
            # silence proves nothing, for a while
            is_open = is_near
        elif ratio > budget:
            if is_near:
                found[-1].append(slot)
            else:
                found.append([slot])
            is_open = True
        else:
            is_open = False
    episodes = [_episode(slots, budget, allowed) for slots in found]
    return sorted(episodes, key=lambda one: (-one.spent, -one.length_s, one.start))


def _episode(slots: list[Slot], budget: float, allowed: float) -> Episode:
    count = sum((slot.count for slot in slots), Count())
    return Episode(
        start=slots[0].start,
        length_s=slots[-1].end - slots[0].start,
        count=count,
        spent=_spent(count.bad, allowed),
        peak=max((slot.count.ratio or 0.0) / budget for slot in slots),
    )


def _remaining(timeline: Timeline, allowed: float) -> Iterator[tuple[float, float]]:
    bad = 0.0
    for slot in timeline.slots:
        bad += slot.count.bad
        yield slot.end, 1 - _spent(bad, allowed)
