"""Where objectives stand by what this process counted in the last hour: the sidecar's own page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm_opsctl.alarms.burn import PERIOD_S, ROWS, budget_of
from vllm_opsctl.alarms.status import Burn, Standing, burning_state, worst_first
from vllm_opsctl.alarms.status_timeline import NOTHING, Count, Known
from vllm_opsctl.exporter.config import Objective
from vllm_opsctl.exporter.event_history import Reading, grown
from vllm_opsctl.exporter.target_state import Snapshot

HOUR_S = ROWS[0].long_s
"""The longest window that is known: event_history.KEEP_S."""

JUDGED = tuple(row for row in ROWS if row.short_s <= HOUR_S)
"""Rows whose short window can be known; a slow burn, which is for a ticket, wants hours and days."""

_WINDOWS_S = tuple(sorted({window_s for row in JUDGED for window_s in (row.short_s, row.long_s)}))


def live_standings(
    objectives: Sequence[Objective], snapshots: Sequence[Snapshot], now: float
) -> tuple[Standing, ...]:
    """
    Every objective of every model, all targets together, the worst first.

    ``known`` is of the last hour and no state is "exhausted": nobody here knows the 30 days. A long window
    is of as much as is known, as with every young service.

    Args:
        objectives: What is promised.
        snapshots: All targets.
        now: Unix seconds at which every window ends.
    """
    histories = [snapshot.history for snapshot in snapshots]
    found: list[Standing] = []
    for objective in objectives:
        if budget_of(objective.target) <= 0:
            reason = "a target of 100 % has no error budget; write 99.9% or less"
            found.append(
                Standing(objective=objective, model=None, state="not measured", reason=reason)
            )
            continue
        models = _models(objective, snapshots)
        found += [_standing(objective, model, histories, now) for model in models]
        if not models:
            reason = "no page that was read can tell"
            found.append(Standing(objective=objective, model=None, state="no data", reason=reason))
    return worst_first(found)


def spent(standing: Standing) -> float | None:
    """
    Share of a 30-day budget that went in the time that is known, were the traffic always as it was then.

    >>> from vllm_opsctl.exporter.config import Objective
    >>> objective = Objective(name="availability", sli="availability", target=0.999)
    >>> hour = Known(Count(100_000, 1_440), 3600.0)
    >>> round(spent(Standing(objective=objective, model="m", state="ok", known=hour)), 3)
    0.02
    """
    ratio = standing.known.count.ratio
    if ratio is None:
        return None
    return ratio / budget_of(standing.objective.target) * standing.known.seconds / PERIOD_S


def _models(objective: Objective, snapshots: Iterable[Snapshot]) -> list[str]:
    return list(
        dict.fromkeys(
            model
            for snapshot in snapshots
            for name, model in snapshot.events
            if name == objective.name
        )
    )


def _standing(
    objective: Objective, model: str, histories: Sequence[Sequence[Reading]], now: float
) -> Standing:
    budget = budget_of(objective.target)
    burns = {}
    for window_s in _WINDOWS_S:
        known = _known(objective, model, histories, now, min(window_s, HOUR_S))
        ratio = known.count.ratio
        rate = None if ratio is None else ratio / budget
        burns[window_s] = Burn(window_s, known.seconds, known.count, rate)
    hour = Known(burns[HOUR_S].count, burns[HOUR_S].known_s)
    return Standing(
        objective=objective,
        model=model,
        state=burning_state(objective, burns) if hour.seconds else "no data",
        known=hour,
        burns=tuple(burns.values()),
        reason=None if hour.seconds else "no page was read in the last hour",
    )


def _known(
    objective: Objective,
    model: str,
    histories: Iterable[Sequence[Reading]],
    now: float,
    window_s: float,
) -> Known:
    total = NOTHING
    for readings in histories:
        found = grown(readings, (objective.name, model), end=now, window_s=window_s)
        if found is not None:
            count = total.count + Count(found.good + found.bad, found.bad)
            # replicas watch the same time
            total = Known(count, max(total.seconds, found.known_s))
    return total
