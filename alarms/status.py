"""
Where objectives stand: budget left, burn rates now, and when the budget will be gone.

Pure arithmetic on counted events. A budget is judged by what is known of the rolling 30 days, as
llm_slo:error_budget_remaining:ratio does; how much that is stands beside it. The state says which rows
of the window table (:mod:`.burn`) are over their rate at this moment, guards on bad events included, so it
says "burning" where an alert is pending or fires.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_opsctl.alarms.burn import FLOOR, PERIOD_S, ROWS, WINDOWS_S, budget_of
from vllm_opsctl.alarms.status_timeline import NOTHING, Count, Known, Timeline
from vllm_opsctl.exporter.config import Objective

State = Literal["exhausted", "burning fast", "burning", "no data", "ok", "not measured"]

WORST_FIRST: tuple[State, ...] = (
    "exhausted",
    "burning fast",
    "burning",
    "no data",
    "ok",
    "not measured",
)
"""No data is worse than ok, for nobody could look there; not measured is a matter of configuration."""

EXIT_CODES: Mapping[State, int] = {
    "exhausted": 2,
    "burning fast": 2,
    "burning": 1,
    "no data": 3,
    "ok": 0,
    "not measured": 0,
}
"""As ``opsctl diagnose`` has them: 0 healthy, 1 degraded, 2 critical, 3 unknown."""


@dataclass(frozen=True, slots=True)
class Burn:
    """
    How fast the budget goes in one window.

    Args:
        window_s: Length of the window, seconds.
        known_s: How much of it is known.
        count: Its events.
        rate: Share of bad events over the budget's share; None without events.
    """

    window_s: float
    known_s: float
    count: Count
    rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """
    One objective of one model.

    Args:
        objective: What is promised.
        model: Whose; None where nothing is known of any.
        state: The one word.
        known: What is known of the period.
        since: Unix seconds from which on something is known.
        used: Share of the budget that is used, above 1 when it is exhausted; None without events.
        burns: One for each window that alarms look at, the shortest first.
        gone_in_s: Seconds until the budget is gone at the last hour's burn rate; None when it lasts.
        reason: Why there is no number, and what would bring one.
    """

    objective: Objective
    model: str | None
    state: State
    known: Known = NOTHING
    since: float | None = None
    used: float | None = None
    burns: tuple[Burn, ...] = ()
    gone_in_s: float | None = None
    reason: str | None = None

    @property
    def left(self) -> float | None:
        """Share of the budget that is left, below 0 when it is exhausted."""
        return None if self.used is None else 1 - self.used

    @property
    def sli(self) -> float | None:
        """Share of good events."""
        ratio = self.known.count.ratio
        return None if ratio is None else 1 - ratio

    def burn(self, window_s: float) -> Burn | None:
        """The burn in a window that alarms look at."""
        return next((burn for burn in self.burns if burn.window_s == window_s), None)


@dataclass(frozen=True, slots=True)
class Status:
    """
    All objectives at one time.

    Args:
        at: Unix seconds.
        source: Whom was asked, for people.
        standings: The worst first.
        is_since_start: Everything since the source's start is counted, instead of a rolling period.
        period_s: Length of what a budget is for.
        notes: What else is to be said.
    """

    at: float
    source: str
    standings: tuple[Standing, ...]
    is_since_start: bool = False
    period_s: float = PERIOD_S
    notes: tuple[str, ...] = ()

    @property
    def known_s(self) -> float:
        """The most that is known of the period for any objective, seconds."""
        return max((one.known.seconds for one in self.standings), default=0.0)

    @property
    def state(self) -> State:
        """The worst state."""
        found = {one.state for one in self.standings}
        return next((state for state in WORST_FIRST if state in found), "no data")

    @property
    def exit_code(self) -> int:
        """What ``opsctl slo status`` exits with."""
        return EXIT_CODES[self.state]


def used_of(count: Count, target: float) -> float | None:
    """
    Share of the error budget that events have used.

    Args:
        count: All events that are known of the period.
        target: Share that must be good.

    Returns:
        None without events.

    >>> used_of(Count(10_000, 5), 0.999), used_of(Count(), 0.999)
    (0.5, None)
    """
    return None if count.ratio is None else count.ratio / budget_of(target)


def gone_in(used: float, burn: float, known_s: float, period_s: float = PERIOD_S) -> float | None:
    """
    Seconds until a budget is gone when the burn rate and the traffic stay as they are.

    While less than the period is known, the budget in events still grows; from then on old events leave
    the window as new ones come, and those that leave are taken for spotless.

    Args:
        used: Share that is used.
        burn: Burn rate from now on.
        known_s: Seconds of the period that are known.
        period_s: Length of the period.

    Returns:
        0 when it is gone already; None when it lasts at this rate (a burn of at most 1).

    >>> gone_in(0.5, 10, PERIOD_S) / 3600
    36.0
    >>> gone_in(0.0, 1.0, PERIOD_S) is None
    True
    """
    if used >= 1:
        return 0.0
    if burn <= 1:
        return None
    growing_s = known_s * (1 - used) / (burn - 1)
    room_s = max(0.0, period_s - known_s)
    if growing_s <= room_s:
        return growing_s
    full = (used * known_s + burn * room_s) / (known_s + room_s)
    return room_s + period_s * (1 - full) / burn


def standing_of(
    objective: Objective,
    model: str,
    known: Known,
    windows: Mapping[float, Known],
    *,
    since: float | None,
) -> Standing:
    """
    Judge an objective of a model.

    Args:
        objective: What is promised.
        model: Whose.
        known: What is known of the 30 days.
        windows: What is known of each of burn.WINDOWS_S.
        since: Unix seconds from which on something is known.
    """
    budget = budget_of(objective.target)
    burns = tuple(
        Burn(
            window_s,
            found.seconds,
            found.count,
            None if found.count.ratio is None else found.count.ratio / budget,
        )
        for window_s, found in sorted(windows.items())
    )
    used = used_of(known.count, objective.target)
    hour = next((burn.rate for burn in burns if burn.window_s == ROWS[0].long_s), None)
    return Standing(
        objective=objective,
        model=model,
        state=_state(objective, known, used, {burn.window_s: burn for burn in burns}),
        known=known,
        since=since,
        used=used,
        burns=burns,
        gone_in_s=gone_in(used, hour, known.seconds) if used is not None and hour else None,
        reason=None if known.seconds else "nothing is known of the period",
    )


def standing_of_timeline(objective: Objective, model: str, timeline: Timeline) -> Standing:
    """Judge an objective of a model by its events over time, at their end."""
    windows = {window_s: timeline.last(window_s) for window_s in WINDOWS_S}
    return standing_of(objective, model, timeline.whole, windows, since=timeline.since)


def worst_first(standings: list[Standing]) -> tuple[Standing, ...]:
    """Sorted: the worst state first, then the least budget left."""
    return tuple(
        sorted(
            standings,
            key=lambda one: (
                WORST_FIRST.index(one.state),
                1.0 if one.left is None else one.left,
                one.objective.name,
                one.model or "",
            ),
        )
    )


def _state(
    objective: Objective, known: Known, used: float | None, burns: Mapping[float, Burn]
) -> State:
    if not known.seconds:
        return "no data"
    if used is not None and used >= 1:
        return "exhausted"
    return burning_state(objective, burns)


def burning_state(objective: Objective, burns: Mapping[float, Burn]) -> State:
    """
    Whether an objective burns, whatever is left of its budget.

    Args:
        objective: What is promised.
        burns: By window, seconds; a row whose windows are not there is not over its rate.
    """
    over = [
        row.notify
        for row in ROWS
        if _is_over(burns.get(row.long_s), row.burn)
        and _is_over(burns.get(row.short_s), row.burn)
        and burns[row.long_s].count.bad >= row.min_bad
    ]
    if _is_over_floor(objective, burns.get(FLOOR.window_s)):
        over.append("page")
    if not over:
        return "ok"
    return "burning fast" if "page" in over and objective.notify == "page" else "burning"


def _is_over(burn: Burn | None, rate: float) -> bool:
    return burn is not None and burn.rate is not None and burn.rate > rate


def _is_over_floor(objective: Objective, burn: Burn | None) -> bool:
    return (
        objective.target <= FLOOR.highest_target
        and burn is not None
        and burn.count.total >= FLOOR.min_events
        and (burn.count.ratio or 0.0) > FLOOR.ratio
    )
