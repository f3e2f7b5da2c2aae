"""
What is worth a page, and how a policy did.

An episode is one thing that happened, a fault or a harmless event. Whether it is worth a page is
computed from the exact events, those that nothing counted included, never from a policy's estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from bench.alarm_faults import FAULTS, HOUR, MINUTE, STEPS, Bools, Event, Floats
from bench.alarm_months import Month, measured_objectives
from bench.alarm_rules import MINUTES, Alarm

GRACE_MIN = 30
"""A page so soon after the end still belongs to the episode: windows take time to empty."""

QUIET_MIN = 30
"""An alert that fires again within so many minutes is the same page: flapping costs no policy more."""

REPEAT_MIN = 240
"""Alertmanager's ``repeat_interval``: what goes on firing is told again, and is a page again."""

FEWEST = 10.0
"""Requests; what hits fewer is worth nobody's sleep, whatever its share of the budget."""

SPENT_1H, SPENT_6H = 0.02, 0.05
"""Shares of the budget of 30 days; the SRE workbook's own for a page (chapter 5, table 5-6)."""


@dataclass(frozen=True)
class Episode:
    """One event of a month, and what it did to users."""

    month: Month
    event: Event

    @property
    def where(self) -> slice:
        """Its steps, and those in which queues drain."""
        return slice(self.event.start, min(STEPS, self.event.end + 10 * MINUTE))

    @property
    def minutes(self) -> tuple[int, int]:
        """First and last minute in which a page is about it."""
        return self.event.start // MINUTE, self.event.end // MINUTE + GRACE_MIN

    def spent(self, objective: str, until_minute: int | None = None) -> float:
        """Share of an objective's budget that goes, up to a minute or in all of it."""
        end = (
            self.where.stop if until_minute is None else min(self.where.stop, until_minute * MINUTE)
        )
        bad = float(self.month.bad[objective][self.event.start : end].sum())
        return bad / budget(self.month, objective)

    @cached_property
    def costliest(self) -> str:
        """The objective of whose budget most goes."""
        return max(measured_objectives(), key=self.spent)


def budget(month: Month, objective: str) -> float:
    """Events that may be bad in a month."""
    target = measured_objectives()[objective].target
    return (1 - target) * float(month.total[objective].sum())


def fewest(month: Month, objective: str) -> float:
    """The bad events that ten bad requests are; a request has many gaps between tokens."""
    of_request = month.total[objective].sum() / month.total["availability"].sum()
    return FEWEST * max(1.0, float(of_request))


def most_in(values: Floats, steps: int) -> float:
    """The most that so many steps in a row add up to."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    steps = min(steps, len(values))
    return float((sums[steps:] - sums[:-steps]).max())


def spends_budget(episode: Episode) -> bool:
    """2 % of an objective's budget within an hour, or 5 % within six, and ten requests hit."""
    month = episode.month
    for name in measured_objectives():
        bad = month.bad[name][episode.where]
        allowed = budget(month, name)
        for steps, share in ((HOUR, SPENT_1H), (6 * HOUR, SPENT_6H)):
            if most_in(bad, steps) >= max(share * allowed, fewest(month, name)):
                return True
    return False


def hurts_many(episode: Episode) -> bool:
    """It lasts five minutes or more, and more than 5 % of some events in it, ten requests', are bad."""
    month = episode.month
    during = slice(episode.event.start, episode.event.end)
    if episode.event.end - episode.event.start < 5 * MINUTE:
        return False
    for name in measured_objectives():
        bad, total = (float(events[name][during].sum()) for events in (month.bad, month.total))
        if bad > 0.05 * total and bad >= fewest(month, name):
            return True
    return False


def has_a_bad_name(episode: Episode) -> bool:
    """What an engineer would say who hears the kind alone, when it hit anybody at all."""
    kind = FAULTS.get(episode.event.kind)
    if kind is None or not kind.worth_a_page:
        return False
    return any(episode.spent(name) > 0.005 for name in measured_objectives())


Truth = Callable[[Episode], bool]

TRUTHS: dict[str, Truth] = {
    "spends budget": spends_budget,
    "> 5 % bad for 5 min": hurts_many,
    "by its name": has_a_bad_name,
}
"""The rule that the benchmark scores by, and two that know nothing of budgets' burn."""


@dataclass(frozen=True)
class Notes:
    """
    When somebody was told.

    Args:
        told: Minutes in which any alert began or was repeated; what finds an episode.
        pages: Minutes of pages, flapping taken together; what is counted.
    """

    told: Sequence[int]
    pages: Sequence[int]


def notes(found: Sequence[Alarm]) -> Notes:
    """What a person gets of the alerts of a policy."""
    if not found:
        return Notes((), ())
    pages = _pages(np.logical_or.reduce([alarm.firing for alarm in found]))
    told = {minute for alarm in found for minute in alarm.onsets}
    return Notes(sorted(told | {*pages}), pages)


def _pages(firing: Bools) -> list[int]:
    edges = np.diff(np.concatenate([[0], firing.astype(np.int8), [0]]))
    pages: list[int] = []
    last_end = -QUIET_MIN - 1
    next_repeat = 0
    for start, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        if start - last_end > QUIET_MIN:
            pages.append(int(start))
            next_repeat = int(start) + REPEAT_MIN
        while next_repeat < end:
            if next_repeat >= start:
                pages.append(next_repeat)
            next_repeat += REPEAT_MIN
        last_end = int(end)
    return pages


@dataclass
class Score:
    """How a policy did over months."""

    months: int = 0
    worth: list[Episode] = field(default_factory=list)
    delays_min: list[float | None] = field(default_factory=list)
    """Of each episode that is worth a page; None where nobody was told."""
    told_at: list[int | None] = field(default_factory=list)
    """Of each, the minute of the month."""
    true_pages: int = 0
    false_pages: int = 0
    false_kinds: list[str] = field(default_factory=list)

    def add(self, episodes: Sequence[Episode], told: Notes, worth: Sequence[bool]) -> None:
        """Count one month."""
        self.months += 1
        is_about = np.zeros(MINUTES, bool)
        for episode, counts in zip(episodes, worth, strict=True):
            if not counts:
                continue
            first, last = episode.minutes
            is_about[first : last + 1] = True
            at = next((minute for minute in told.told if first <= minute <= last), None)
            self.worth.append(episode)
            start = episode.event.start / MINUTE
            self.delays_min.append(None if at is None else max(0.0, at - start))
            self.told_at.append(at)
        for page in told.pages:
            if is_about[min(page, MINUTES - 1)]:
                self.true_pages += 1
            else:
                self.false_pages += 1
                self.false_kinds.append(_kind_at(episodes, page))

    @property
    def recall(self) -> float:
        """Share of the episodes worth a page of which somebody was told."""
        found = sum(delay is not None for delay in self.delays_min)
        return found / len(self.delays_min) if self.delays_min else float("nan")

    @property
    def precision(self) -> float:
        """Share of the pages that were about such an episode."""
        pages = self.true_pages + self.false_pages
        return self.true_pages / pages if pages else float("nan")

    @property
    def idle_pages(self) -> int:
        """False pages while nothing was wrong at all."""
        return sum(kind not in FAULTS for kind in self.false_kinds)

    @property
    def f1(self) -> float:
        """Harmonic mean of the two; 0 when nothing was found."""
        both = self.recall + self.precision
        return 2 * self.recall * self.precision / both if both > 0 else 0.0

    def delay(self, percentile: float) -> float:
        """Minutes from the start of a fault to the page, of those that were found."""
        found = [delay for delay in self.delays_min if delay is not None]
        return float(np.percentile(found, percentile)) if found else float("nan")

    @cached_property
    def spent(self) -> list[float]:
        """Of each, the share of the budget that was gone at the page; all of it where nobody was told."""
        return [
            episode.spent(episode.costliest, at)
            for episode, at in zip(self.worth, self.told_at, strict=True)
        ]

    @property
    def median_spent(self) -> float:
        """Of the budget, at the page."""
        return float(np.median(self.spent)) if self.spent else float("nan")

    @property
    def mean_spent(self) -> float:
        """The same; what is missed and long weighs here."""
        return float(np.mean(self.spent)) if self.spent else float("nan")


def _kind_at(episodes: Sequence[Episode], page: int) -> str:
    for episode in episodes:
        first, last = episode.minutes
        if first <= page <= last:
            return episode.event.kind
    return "nothing"
