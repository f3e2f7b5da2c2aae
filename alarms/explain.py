"""
What an objective's alarms can do: how soon they page, what budget there is, what traffic they need.

Arithmetic of :mod:`.burn` alone, on evenly spread traffic after a spotless past; nothing is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_opsctl.alarms.burn import (
    FLOOR,
    PERIOD_S,
    ROWS,
    Notify,
    Row,
    budget_of,
    duration_text,
    threshold_of,
    time_to_fire,
    time_to_floor,
    unreachable,
)
from vllm_opsctl.alarms.links import Links
from vllm_opsctl.alarms.prometheus.conventions import (
    SIDECARS_ALERT,
    STALLED_ALERT,
    TARGET_ALERT,
    VANISHED_ALERT,
    WATCHDOG_ALERT,
    Source,
)
from vllm_opsctl.alarms.sli import NoBound, indicator
from vllm_opsctl.alarms.vocabulary import NotMeasured, vocabulary_of
from vllm_opsctl.exporter.config import Config, Objective

DAY_S = 86400.0

OUTAGES: tuple[float, ...] = (1.0, 0.5, 0.1, 0.01)
"""Shares of bad events that are explained."""


@dataclass(frozen=True, slots=True)
class Outage:
    """
    A steady share of bad events.

    Args:
        ratio: The share, in (0, 1].
        page_s: Seconds until it pages; None when it never does.
        ticket_s: Seconds until it opens a ticket; None when it never does.
        page_needs_per_day: Events a day that the fewest-wanting paging window needs; None when none
            can page at any traffic.
    """

    ratio: float
    page_s: float | None
    ticket_s: float | None
    page_needs_per_day: float | None


@dataclass(frozen=True, slots=True)
class Budget:
    """
    What may be bad in 30 days.

    Args:
        ratio: The share of events.
        outage_minutes: Minutes of total outage under even traffic.
        bad_events: Events; None while the traffic is not known.
    """

    ratio: float
    outage_minutes: float
    bad_events: float | None


@dataclass(frozen=True, slots=True)
class Window:
    """
    One row of the window table for this target.

    Args:
        windows: Short and long one, as PromQL writes them.
        notify: What it does.
        burn: Burn rate above which it fires; None for the hard floor.
        ratio: Share of bad events above which it fires.
        needs_per_day: Events a day with which a total outage gets past its guard.
        unreachable: Why it can never fire; None when it can.
    """

    windows: str
    notify: Notify
    burn: float | None
    ratio: float
    needs_per_day: float
    unreachable: str | None


@dataclass(frozen=True, slots=True)
class Explained:
    """
    Everything about one objective.

    Args:
        objective: The one.
        events_per_day: Traffic that it was computed for; None for plenty.
        not_measured: Why it is not measured as configured; None when it is.
        moved: That another bound than the threshold is counted at, and what that does; None when not.
        budget: What may be bad.
        outages: Times to page and to ticket.
        windows: The window table.
        blind: What cannot page, and what does instead.
        commands: What to type next, and what for.
    """

    objective: Objective
    events_per_day: float | None
    not_measured: str | None
    moved: str | None
    budget: Budget
    outages: tuple[Outage, ...]
    windows: tuple[Window, ...]
    blind: tuple[str, ...]
    commands: tuple[tuple[str, str], ...]


def explain_objective(
    config: Config,
    objective: Objective,
    *,
    requests_per_day: float | None = None,
    source: Source = "sidecar",
) -> Explained:
    """
    Explain what the alarms of an objective can do.

    Args:
        config: The configuration that it stands in.
        objective: The one.
        requests_per_day: Requests a day of the quietest model; None when it is not known. Left aside for
            inter-token latency, whose events are gaps between tokens.
        source: Where the rules read.
    """
    not_measured, moved = _measured(config, objective, source)
    per_day = None if objective.sli == "inter_token_latency" else requests_per_day
    per_s = None if per_day is None else per_day / DAY_S
    budget = budget_of(objective.target)
    days = PERIOD_S / DAY_S
    return Explained(
        objective=objective,
        events_per_day=per_day,
        not_measured=not_measured,
        moved=moved,
        budget=Budget(
            ratio=budget,
            outage_minutes=budget * PERIOD_S / 60,
            bad_events=None if per_day is None else per_day * days * budget,
        ),
        outages=tuple(_outage(objective, ratio, per_s) for ratio in OUTAGES),
        windows=tuple(_windows(objective)),
        blind=tuple(_blind(config, objective, source)),
        commands=tuple(_commands(config, objective, source, per_day)),
    )


def _notify(row: Row, objective: Objective) -> Notify:
    return row.notify if objective.notify == "page" else "ticket"


def _measured(
    config: Config, objective: Objective, source: Source
) -> tuple[str | None, str | None]:
    """Why it is not measured, and what is measured instead of what was asked for."""
    try:
        return None, indicator(objective, vocabulary_of(config, source), config).moved
    except (NotMeasured, NoBound) as problem:
        return str(problem), None


def _outage(objective: Objective, ratio: float, per_s: float | None) -> Outage:
    times: dict[Notify, list[float]] = {"page": [], "ticket": []}
    for row in ROWS:
        fires_s = time_to_fire(row, objective.target, ratio, requests_per_s=per_s)
        if fires_s is not None:
            times[_notify(row, objective)].append(fires_s)
    floor_s = time_to_floor(objective.target, ratio, requests_per_s=per_s)
    if floor_s is not None:
        times[objective.notify].append(floor_s)
    return Outage(
        ratio,
        min(times["page"], default=None),
        min(times["ticket"], default=None),
        _page_needs(objective, ratio),
    )


def _page_needs(objective: Objective, ratio: float) -> float | None:
    needs = [
        _needs_per_day(row, ratio)
        for row in ROWS
        if _notify(row, objective) == "page"
        and time_to_fire(row, objective.target, ratio) is not None
    ]
    if objective.notify == "page" and time_to_floor(objective.target, ratio) is not None:
        needs.append(_FLOOR_PER_DAY)
    return min(needs, default=None)


def _needs_per_day(row: Row, ratio: float) -> float:
    return row.min_bad / ratio * DAY_S / row.long_s


_FLOOR_PER_DAY = FLOOR.min_events * DAY_S / FLOOR.window_s


def _windows(objective: Objective) -> Iterator[Window]:
    for row in ROWS:
        yield Window(
            windows=f"{duration_text(row.short_s)}/{duration_text(row.long_s)}",
            notify=_notify(row, objective),
            burn=row.burn,
            ratio=threshold_of(row, objective.target),
            needs_per_day=_needs_per_day(row, 1.0),
            unreachable=unreachable(row, objective.target),
        )
    if objective.target <= FLOOR.highest_target:
        yield Window(
            windows=duration_text(FLOOR.window_s),
            notify=objective.notify,
            burn=None,
            ratio=FLOOR.ratio,
            needs_per_day=_FLOOR_PER_DAY,
            unreachable=None,
        )


def _blind(config: Config, objective: Objective, source: Source) -> Iterator[str]:
    if objective.notify == "ticket":
        yield "Nothing of it pages: it has notify: ticket. Remove that to be paged."
    yield (
        f"No traffic: without events nothing is bad. {VANISHED_ALERT} and {STALLED_ALERT} page for dead "
        "and frozen engines; a synthetic request every minute shows the rest."
    )
    scraped = (
        f"No data: what is not scraped is not counted. {TARGET_ALERT} opens a ticket"
        + (f", {SIDECARS_ALERT} pages" if source == "sidecar" else "")
        + f"; {WATCHDOG_ALERT} tells that Prometheus itself has gone."
    )
    yield scraped
    if objective.sli == "availability":
        yield (
            "Clients that hang up: a stream cut by its client counts as 2xx and under no finish reason, "
            "so users who give up look like success. Add an objective for latency"
            + (
                "."
                if config.exporter.tap.dir is not None
                else "; the tap estimates how many there are (exporter.tap.dir, docs/tap.md)."
            )
        )
        yield "Requests that never reach vLLM: what a gateway refuses or times out is not seen."
    elif objective.sli in ("time_to_first_token", "inter_token_latency"):
        yield (
            "Clients that hang up while they wait: a request without a token is in no histogram, and the "
            "slowest ones give up first. Keep an objective for availability beside it."
        )
    else:
        yield (
            "Clients that hang up, and requests that hang: only finished requests are counted. Keep "
            "objectives for availability and time to first token beside it."
        )
    has_tap = config.exporter.tap.dir is not None
    if objective.threshold is not None and not has_tap:
        only = (
            "nothing is counted at all"
            if objective.sli == "time_to_first_token_cached"
            else "the threshold must be a bucket bound of vLLM's"
        )
        yield f"Tap missing: without exporter.tap.dir {only} (docs/tap.md)."
    elif objective.threshold is not None and source == "sidecar":
        yield (
            "Tap missing on a server: its events are counted at vLLM's own bucket bounds, or not at all "
            "where the tap alone measures them (docs/tap.md)."
        )


def _commands(
    config: Config, objective: Objective, source: Source, per_day: float | None
) -> Iterator[tuple[str, str]]:
    suffix = "" if source == "sidecar" else " --from vllm"
    traffic = "N" if per_day is None else f"{per_day:g}"
    yield f"opsctl alarms lint{suffix} --requests-per-day {traffic}", "is everything measured?"
    yield f"opsctl alarms build{suffix} --out DIR", "write the rules"
    # a page names its model; a label's template is no command for a shell
    command = Links(config, source).command("none")
    yield command, "the root cause, once it burns"
    yield f"opsctl explain {objective.name}", "what the number means"
