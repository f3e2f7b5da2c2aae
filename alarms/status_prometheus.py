"""
Asks a Prometheus for the events of objectives over time.

Recorded series (:mod:`.rules`) are read where there are any; for the stretch before the first of them
the same expressions (:class:`.sli.Indicator`) are evaluated over the raw counters. Both are rates over five
minutes, taken every five minutes, so a counter's reset counts from 0, a series that is born within a slot
is extrapolated by half a scrape interval at most, and what it counted before it was first scraped is not
claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from vllm_opsctl.alarms.burn import PERIOD_S
from vllm_opsctl.alarms.prometheus.conventions import Recorded, Source, recorded_name
from vllm_opsctl.alarms.rules import how_to_get_bounds
from vllm_opsctl.alarms.sli import Indicator, NoBound, indicator
from vllm_opsctl.alarms.status import Standing, Status, standing_of_timeline, worst_first
from vllm_opsctl.alarms.status_query import Prometheus
from vllm_opsctl.alarms.status_timeline import SLOT_S, Count, Slot, Timeline
from vllm_opsctl.alarms.vocabulary import NotMeasured, Vocabulary, vocabulary_of
from vllm_opsctl.errors import ConfigError, UsageError
from vllm_opsctl.exporter.catalogue import Version
from vllm_opsctl.exporter.config import Config, Objective
from vllm_opsctl.exporter.own_series import SLI_EVENTS
from vllm_opsctl.exporter.units import format_duration

Progress = Callable[[str, int, int], None]
"""Told the objective that is asked for, how many are done, and of how many."""


_COUNTED: tuple[Recorded, ...] = ("total", "bad")


class _Unrecorded(Indicator):
    """The same definitions where no rule records what they build on."""

    def _recorded_total(self, nominal_s: float) -> str:
        return f"({self.total(nominal_s)})"


@dataclass(frozen=True, slots=True)
class History:
    """
    What a Prometheus knows of a configuration's objectives within a period.

    Args:
        start: Unix seconds.
        end: Unix seconds.
        timelines: Objective, model and events, in the configuration's order.
        without: Objectives that nothing is known of, and why.
        not_measured: Objectives that this source cannot measure, and why.
        notes: What else is to be said.
    """

    start: float
    end: float
    timelines: list[tuple[Objective, str, Timeline]] = field(default_factory=list)
    without: list[tuple[Objective, str]] = field(default_factory=list)
    not_measured: list[tuple[Objective, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_history(
    prometheus: Prometheus,
    config: Config,
    source: Source,
    *,
    start: float,
    end: float,
    version: Version | None = None,
    progress: Progress = lambda name, done, total: None,
) -> History:
    """
    Ask for the events of every objective.

    Args:
        prometheus: Whom to ask.
        config: The objectives.
        source: Whose raw counters are read where no rules record.
        start: Unix seconds; a whole number of slots before the end.
        end: Unix seconds.
        version: Release of vLLM whose names are used with ``vllm``; None for the newest known.
        progress: Told about each objective.

    Raises:
        SourceError: Prometheus does not answer, or what answers is none.
        ConfigError: No objective can be measured.
        UsageError: It knows nothing of any.
    """
    names = vocabulary_of(config, source, version)
    history = History(start, end)
    indicators = list(_indicators(config, names, history))
    if not indicators:
        problems = [f"objectives ({o.name}): {reason}" for o, reason in history.not_measured]
        raise ConfigError([*problems, *how_to_get_bounds(config, names)])
    for done, one in enumerate(indicators):
        progress(one.objective.name, done, len(indicators))
        found = _timelines(prometheus, one, start, end)
        for model, timeline in sorted(found.items()):
            history.timelines.append((one.objective, model, timeline))
        if not found:
            history.without.append((one.objective, _nothing(one)))
    _explain_nothing(prometheus, config, source, history)
    return history


def status_from_prometheus(
    prometheus: Prometheus,
    config: Config,
    source: Source,
    *,
    at: float,
    version: Version | None = None,
    progress: Progress = lambda name, done, total: None,
) -> Status:
    """
    Where the objectives stood at a time.

    Args:
        prometheus: Whom to ask.
        config: The objectives.
        source: Whose raw counters are read where no rules record.
        at: Unix seconds.
        version: Release of vLLM whose names are used with ``vllm``; None for the newest known.
        progress: Told about each objective.

    Raises:
        SourceError: Prometheus does not answer, or what answers is none.
        ConfigError: No objective can be measured.
        UsageError: It knows nothing of any.
    """
    history = read_history(
        prometheus,
        config,
        source,
        start=at - PERIOD_S,
        end=at,
        version=version,
        progress=progress,
    )
    standings = [standing_of_timeline(*one) for one in history.timelines]
    for objective, reason in history.without:
        standings.append(Standing(objective=objective, model=None, state="no data", reason=reason))
    for objective, reason in history.not_measured:
        standings.append(
            Standing(objective=objective, model=None, state="not measured", reason=reason)
        )
    source_text = f"Prometheus {prometheus.url}"
    return Status(at, source_text, worst_first(standings), notes=tuple(history.notes))


def _indicators(config: Config, names: Vocabulary, history: History) -> Iterator[Indicator]:
    for objective in config.objectives:
        try:
            yield indicator(objective, names, config)
        except (NotMeasured, NoBound) as problem:
            history.not_measured.append((objective, str(problem)))


def _timelines(
    prometheus: Prometheus, one: Indicator, start: float, end: float
) -> dict[str, Timeline]:
    """The events by model: recorded ones, and before the first of them raw ones."""
    total, bad = (
        prometheus.over_slots(one.recorded(what, "5m", ever=True), start, end) for what in _COUNTED
    )
    slots = round((end - start) / SLOT_S)
    first = min((min(values) for values in total.values()), default=slots)
    if first > 0:
        raw = _Unrecorded(one.objective, one.names, one.bound)
        until = start + first * SLOT_S
        _add(total, prometheus.over_slots(raw.total(SLOT_S), start, until))
        _add(bad, prometheus.over_slots(raw.bad(SLOT_S), start, until))
    return {
        model: Timeline(start, end, tuple(_slots(start, values, bad.get(model, {}))))
        for model, values in total.items()
    }


def _add(into: dict[str, dict[int, float]], more: Mapping[str, Mapping[int, float]]) -> None:
    for model, values in more.items():
        into.setdefault(model, {}).update(values)


def _slots(start: float, total: Mapping[int, float], bad: Mapping[int, float]) -> Iterator[Slot]:
    for number in sorted(total):
        events = max(0.0, total[number]) * SLOT_S
        # extrapolated apart, the two may differ by a hair
        wrong = min(events, max(0.0, bad.get(number, 0.0) * SLOT_S))
        yield Slot(start + (number + 1) * SLOT_S, Count(events, wrong))


def _nothing(one: Indicator) -> str:
    if one.names.source == "sidecar":
        return f"no {SLI_EVENTS} of it; scrape the sidecar, and give it the same objectives"
    if one.objective.sli == "availability":
        return "no request to an inference route; is vLLM's /metrics scraped?"
    return f"no {one.series()}; is vLLM's /metrics scraped, and does it have the bound?"


def _explain_nothing(
    prometheus: Prometheus, config: Config, source: Source, history: History
) -> None:
    """Say so where the rules that record are another fleet's; an error where nothing else is known."""
    if not history.without:
        return
    ours = config.service.name
    services = prometheus.labels_at(
        f"group by (service) (last_over_time({recorded_name('total', '5m')}[{int(PERIOD_S)}s]))",
        "service",
        history.end,
    )
    others = [service for service in services if service != ours]
    text = (
        f"its rules are of service {', '.join(map(repr, others))}, the configuration's service.name "
        f"is {ours!r}"
    )
    if history.timelines:
        if others and ours not in services:
            history.notes.append(f"{prometheus.url}: {text}; raw counters are read instead")
        return
    span = f"{format_duration(history.end - history.start)} to {clock_text(history.end)}"
    other = "vllm" if source == "sidecar" else "sidecar"
    fix = (
        f"{text}; give the configuration that the rules were built from"
        if others
        else f"scrape what --from {source} reads, try --from {other}, or ask about another time"
    )
    raise UsageError(
        f"--prometheus {prometheus.url}: no event of any objective in the {span}: {fix}"
    )


def clock_text(t: float) -> str:
    """A time as people read it, in UTC."""
    return f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M} UTC"
