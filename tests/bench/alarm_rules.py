"""
Rules over a synthetic month, minute by minute, and our policy among them.

What pages is taken from the rules that ``opsctl alarms build`` writes: their rows, thresholds, floors and
``for``. The expressions are evaluated here a second time, in numpy; tests/alarms/test_bench_policy.py
holds them to the real promtool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from bench.alarm_faults import MINUTE, STEP_S, STEPS, Bools, Floats
from bench.alarm_months import Month, configuration
from vllm_opsctl.alarms.alert_rules import AlertRule
from vllm_opsctl.alarms.burn import FLOOR, duration_text, threshold_of
from vllm_opsctl.alarms.prometheus.conventions import BURN_ALERT, FLOOR_ALERT
from vllm_opsctl.alarms.rules import Rulebook, build_rules
from vllm_opsctl.exporter.units import parse_duration

MINUTES = STEPS // MINUTE
"""Rules are evaluated so many times, at the start of each minute."""

NOT_CARRIED = {
    "LLMSidecarsDown": "the sidecar is always there",
    "LLMOutputCorrupted": "nothing computes garbage",
}
"""Alerts that page, but whose cause does not happen in these months."""


@dataclass(frozen=True)
class Alarm:
    """One alert of a policy: in which minutes it fires, and what tells it from others of its name."""

    name: str
    firing: Bools
    labels: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def onsets(self) -> list[int]:
        """Minutes in which it begins to fire."""
        before = np.concatenate([[False], self.firing[:-1]])
        return [int(minute) for minute in np.flatnonzero(self.firing & ~before)]


Evaluate = Callable[["View"], list[Alarm]]


@dataclass(frozen=True)
class Policy:
    """
    Rules that belong together.

    Args:
        name: What the table calls it.
        source: Where its thresholds stand.
        evaluate: Its alerts over a month.
    """

    name: str
    source: str
    evaluate: Evaluate


@dataclass
class View:
    """A month as rules see it: at the start of a minute, of what happened before."""

    month: Month
    _sums: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)
    """By identity, with what it is of: an array that is gone could lend its identity to another."""

    def increase(self, steps: Floats, window_s: float) -> Floats:
        """What came in the window before each minute; of the last axis, counted step by step."""
        if id(steps) not in self._sums:
            zero = np.zeros((*steps.shape[:-1], 1))
            sums = np.concatenate([zero, np.cumsum(steps, axis=-1, dtype=float)], axis=-1)
            self._sums[id(steps)] = (steps, sums)
        sums = self._sums[id(steps)][1]
        now = np.arange(MINUTES) * MINUTE
        before = np.maximum(now - round(window_s / STEP_S), 0)
        return np.asarray(sums[..., now] - sums[..., before])

    @staticmethod
    def level(gauge: Floats) -> Floats:
        """A gauge as it was last scraped."""
        last = np.maximum(np.arange(MINUTES) * MINUTE - 1, 0)
        return np.asarray(gauge[..., last])


def ratio(part: Floats, whole: Floats) -> Floats:
    """A share; not a number, which fires nothing, where there is nothing to share."""
    share = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share


def held(condition: Bools, for_s: float) -> Bools:
    """Minutes in which a condition has been true for so long."""
    minutes = int(np.ceil(for_s / 60))
    index = np.arange(condition.shape[-1])
    last_false = np.maximum.accumulate(np.where(condition, -1, index), axis=-1)
    return np.asarray(condition & (index - last_false > minutes))


def alarms(name: str, condition: Bools, for_s: float = 0.0, **labels: str) -> list[Alarm]:
    """The alerts of a rule: one, or one a replica."""
    firing = held(condition, for_s)
    if firing.ndim == 1:
        return [Alarm(name, firing, labels)]
    return [
        Alarm(name, row, {**labels, "target": target_of(replica)})
        for replica, row in enumerate(firing)
    ]


def target_of(replica: int) -> str:
    """The name of a replica."""
    return f"chat-{replica}:8000"


def rulebook() -> Rulebook:
    """What ``opsctl alarms build`` writes for this service."""
    return build_rules(configuration(), "sidecar")


def ours(notify: str = "page") -> Policy:
    """Every rule of ours that pages, or that opens tickets for a burn."""
    book = rulebook()
    rules = [rule for rule in book.alerts if rule.labels["notify"] == notify]
    if notify == "page":
        unknown = {rule.alert for rule in rules} - {*_EVALUATORS, *NOT_CARRIED}
        if unknown:
            raise LookupError(f"these alerts page and are not simulated: {sorted(unknown)}")
    intervals = _intervals(book)

    def evaluate(view: View) -> list[Alarm]:
        return [
            alarm
            for rule in rules
            if rule.alert in _EVALUATORS
            for alarm in _EVALUATORS[rule.alert](view, rule, intervals)
        ]

    return Policy("vllm-opsctl", "alarms/burn.py, companions.yaml", evaluate)


_Intervals = dict[str, float]
"""Recorded series to the seconds between two evaluations of it."""


def _intervals(book: Rulebook) -> _Intervals:
    return {
        rule["record"]: parse_duration(group["interval"])
        for group in book.groups
        for rule in group["rules"]
        if "record" in rule
    }


def _recorded(values: Floats, interval_s: float) -> Floats:
    """A recording as alerts read it: that of the last evaluation of its group."""
    minutes = np.arange(values.shape[-1])
    return np.asarray(values[..., minutes - minutes % round(interval_s / 60)])


def _window(
    view: View, rule: AlertRule, window_s: float, intervals: _Intervals
) -> tuple[Floats, Floats]:
    """Bad and all events in a window, as recorded."""
    assert rule.indicator is not None
    name = rule.indicator.objective.name
    interval_s = intervals[f"llm_slo:error:ratio_rate{duration_text(window_s)}"]
    seen = (view.month.seen_bad[name], view.month.seen_total[name])
    bad, total = (_recorded(view.increase(one, window_s).sum(axis=0), interval_s) for one in seen)
    return bad, total


def _burn(view: View, rule: AlertRule, intervals: _Intervals) -> Iterator[Alarm]:
    row, one = rule.row, rule.indicator
    assert row is not None
    assert one is not None
    threshold = threshold_of(row, one.objective.target)
    short, long = (_window(view, rule, seconds, intervals) for seconds in (row.short_s, row.long_s))
    condition = (ratio(*short) > threshold) & (ratio(*long) > threshold)
    condition &= long[0] >= row.min_bad
    labels = {"objective": one.objective.name, "window": rule.labels["window"]}
    yield from alarms(rule.alert, condition, rule.for_s, **labels)


def _floor(view: View, rule: AlertRule, intervals: _Intervals) -> Iterator[Alarm]:
    assert rule.indicator is not None
    bad, total = _window(view, rule, FLOOR.window_s, intervals)
    condition = (ratio(bad, total) > FLOOR.ratio) & (total >= FLOOR.min_events)
    objective = rule.indicator.objective.name
    yield from alarms(rule.alert, condition, rule.for_s, objective=objective)


def _vanished(view: View, rule: AlertRule, intervals: _Intervals) -> Iterator[Alarm]:
    alive = view.level(view.month.alive.any(axis=0).astype(float)) > 0
    known = view.increase(view.month.alive.any(axis=0).astype(float), 86400.0) > 0
    yield from alarms(rule.alert, known & ~alive, rule.for_s)


def _stalled(view: View, rule: AlertRule, intervals: _Intervals) -> Iterator[Alarm]:
    month = view.month
    has_work = view.level(month.running) + view.level(month.waiting) > 0
    no_step = view.increase(month.work, 180.0) == 0
    yield from alarms(rule.alert, has_work & no_step, rule.for_s)


def _crash_loop(view: View, rule: AlertRule, intervals: _Intervals) -> Iterator[Alarm]:
    alive = view.level(view.month.alive.astype(float)) > 0
    starts = view.increase(view.month.started.astype(float), 1800.0)
    # without a page there is nothing that changes, but what changed in the window still counts
    seen = view.increase(view.month.alive.astype(float), 1800.0) > 0
    yield from alarms(rule.alert, (starts >= 3) & (alive | seen), rule.for_s)


_EVALUATORS: dict[str, Callable[[View, AlertRule, _Intervals], Iterator[Alarm]]] = {
    BURN_ALERT: _burn,
    FLOOR_ALERT: _floor,
    "LLMModelVanished": _vanished,
    "LLMEngineStalled": _stalled,
    "LLMCrashLoop": _crash_loop,
}


def simulated_alerts() -> list[str]:
    """Names of the alerts that page and are evaluated here."""
    return list(_EVALUATORS)
