"""
Static thresholds: those that others ship, those that people write by hand, and the best there are.

Each stands with its source. Where a rule leaves open how long it must hold, or what pages, the reading
that makes it better was taken, and is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench.alarm_faults import Bools, Floats
from bench.alarm_months import TTFT_BOUNDS, measured_objectives
from bench.alarm_rules import Alarm, Policy, View, alarms, held, ratio
from bench.alarm_score import Episode, Score, notes

_FIVE_MIN = 300.0


def errors_5m(view: View) -> Floats:
    """Share of 5xx that the servers answered."""
    month = view.month
    bad = view.increase(month.seen_bad["availability"], _FIVE_MIN).sum(axis=0)
    return ratio(bad, view.increase(month.seen_total["availability"], _FIVE_MIN).sum(axis=0))


def gateway_errors_5m(view: View) -> Floats:
    """Share of failures as a gateway in front of the servers sees it: who found no server, too."""
    month = view.month
    bad = view.increase(month.bad["availability"], _FIVE_MIN)
    return ratio(bad, view.increase(month.total["availability"], _FIVE_MIN))


def mean_e2e(view: View, window_s: float = 900.0) -> Floats:
    """Mean seconds of the requests that finished."""
    seconds = view.increase(view.month.e2e_sum_s, window_s).sum(axis=0)
    return ratio(seconds, view.increase(view.month.e2e_count, window_s).sum(axis=0))


def lifetime_e2e(view: View) -> Floats:
    """The same by replica, since its process started."""
    month = view.month
    steps = np.arange(month.started.shape[-1])
    first = np.maximum.accumulate(np.where(month.started, steps, 0), axis=-1)

    def since(values: Floats) -> Floats:
        sums = np.cumsum(values, axis=-1)
        return np.asarray(sums - np.take_along_axis(sums - values, first, axis=-1))

    return view.level(ratio(since(month.e2e_sum_s), since(month.e2e_count)))


def mean_gap_5m(view: View) -> Floats:
    """Mean seconds between two tokens."""
    seconds = view.increase(view.month.gaps_sum_s, _FIVE_MIN).sum(axis=0)
    return ratio(seconds, view.increase(view.month.tokens, _FIVE_MIN).sum(axis=0))


def ttft_5m(view: View, quantile: float = 0.99) -> Floats:
    """``histogram_quantile`` of the time to first token over vLLM's own buckets, seconds."""
    per_bucket = view.increase(view.month.ttft, _FIVE_MIN)
    below = np.cumsum(per_bucket, axis=0)
    rank = quantile * below[-1]
    bucket = np.minimum((below < rank).sum(axis=0), len(TTFT_BOUNDS) - 1)
    low = np.concatenate([[0.0], TTFT_BOUNDS])[bucket]
    column = np.arange(below.shape[1])
    before = np.where(bucket > 0, below[bucket - 1, column], 0.0)
    inside = np.clip(ratio(rank - before, per_bucket[bucket, column]), 0, 1)
    seconds = low + (TTFT_BOUNDS[bucket] - low) * inside
    return np.asarray(np.where(below[-1] > 0, seconds, np.nan))


def waiting(view: View) -> Floats:
    """Requests that wait, by replica."""
    return view.level(view.month.waiting)


def kv(view: View) -> Floats:
    """KV cache in use, by replica."""
    return view.level(view.month.kv)


def down(view: View) -> Floats:
    """Replicas whose ``up`` is 0."""
    return view.level((~view.month.alive).astype(float).sum(axis=0))


def tokens_per_s(view: View) -> Floats:
    """Tokens per second of the fleet."""
    return np.asarray(view.increase(view.month.tokens, 900.0).sum(axis=0) / 900)


def idlest_tokens_per_s(view: View) -> Floats:
    """Tokens per second of the replica that sends the fewest, negative: the more the worse."""
    return np.asarray(-view.increase(view.month.tokens, _FIVE_MIN).min(axis=0) / _FIVE_MIN)


Condition = Callable[[View], Bools]


def _policy(name: str, source: str, *rules: tuple[str, Condition, float]) -> Policy:
    def evaluate(view: View) -> list[Alarm]:
        return [
            alarm
            for rule, condition, for_s in rules
            for alarm in alarms(rule, condition(view), for_s)
        ]

    return Policy(name, source, evaluate)


def shipped() -> list[Policy]:
    """What others ship, and what is often written by hand."""
    ttft_s = measured_objectives()["ttft"].threshold
    assert ttft_s is not None
    all_down: Condition = lambda v: down(v) >= v.month.level.replicas  # noqa: E731
    p99 = ("p99 TTFT", lambda v: ttft_5m(v) > ttft_s, 300.0)
    p95 = ("p95 TTFT", lambda v: ttft_5m(v, 0.95) > ttft_s, 300.0)
    kv_90 = ("KV > 0.90", lambda v: kv(v) > 0.90, 0.0)
    queue_50 = ("waiting > 50", lambda v: waiting(v) > 50, 0.0)
    slow_10 = ("lifetime mean e2e > 10 s", lambda v: lifetime_e2e(v) > 10, 0.0)
    return [
        _policy(
            "Datadog monitors",
            "integrations-core vllm/assets/monitors: mean e2e over 15m > 0.3 s; tokens/s >= 10000 on a "
            "metric that vLLM no longer has (taken as if it had)",
            ("mean e2e > 0.3 s", lambda v: mean_e2e(v) > 0.3, 0.0),
            ("tokens/s >= 10000", lambda v: tokens_per_s(v) >= 10000, 0.0),
        ),
        _policy(
            "vllm-mon",
            "vllm-mon 0.1.0 config.py, its defaults: KV > 0.90, KV > 0.70, waiting > 50, lifetime mean "
            "e2e > 10 s",
            kv_90,
            ("KV > 0.70", lambda v: kv(v) > 0.70, 0.0),
            queue_50,
            slow_10,
        ),
        _policy("vllm-mon, no warnings", "the same without KV > 0.70", kv_90, queue_50, slow_10),
        _policy(
            "KEDA trigger as alert",
            "production-stack autoscaling-keda: num_requests_waiting > 5",
            ("waiting > 5", lambda v: waiting(v) > 5, 0.0),
        ),
        _policy(
            "llm-d EPP alerts",
            "llm-d #1972, merged: errors at the gateway > 20 % for 5m, > 5 % for 10m (a warning there, a "
            "page here), no ready endpoint for 2m; sees failures that no server counted",
            ("errors > 20 %", lambda v: gateway_errors_5m(v) > 0.20, 300.0),
            ("errors > 5 %", lambda v: gateway_errors_5m(v) > 0.05, 600.0),
            ("no endpoint", all_down, 120.0),
        ),
        _policy(
            "llm-d #553, its burn",
            "llm-d #553, closed unmerged: success below 99.9 % over both 1h and 5m; for 5m assumed",
            (
                "burn",
                lambda v: (errors_5m(v) > 0.001) & (_errors_1h(v) > 0.001),
                300.0,
            ),
        ),
        _policy(
            "llm-d #553, critical",
            "llm-d #553: errors > 5 %, no backend, p99 TTFT > 30 s; for 5m, 1m and 5m assumed",
            ("errors > 5 %", lambda v: errors_5m(v) > 0.05, 300.0),
            ("no backend", all_down, 60.0),
            ("p99 TTFT > 30 s", lambda v: ttft_5m(v) > 30, 300.0),
        ),
        _policy("p99 TTFT by hand", "a common rule: p99 TTFT over its threshold for 5m", p99),
        _policy("p95 TTFT by hand", "the same with the objective's own percentile", p95),
        _policy(
            "hand-written set",
            "common rules: p95 TTFT over its threshold, errors > 5 %, a server down; each for 5m",
            p95,
            ("errors > 5 %", lambda v: errors_5m(v) > 0.05, 300.0),
            ("server down", lambda v: down(v) >= 1, 300.0),
        ),
    ]


def _errors_1h(view: View) -> Floats:
    month = view.month
    bad = view.increase(month.seen_bad["availability"], 3600.0).sum(axis=0)
    return ratio(bad, view.increase(month.seen_total["availability"], 3600.0).sum(axis=0))


# -- the best static thresholds ------------------------------------------------------------------------

SIGNALS: dict[str, Callable[[View], Floats]] = {
    "5xx over 5m": errors_5m,
    "p99 TTFT over 5m": ttft_5m,
    "p95 TTFT over 5m": partial(ttft_5m, quantile=0.95),
    "mean e2e over 15m": mean_e2e,
    "mean gap over 5m": mean_gap_5m,
    "waiting, longest": lambda v: np.fmax.reduce(waiting(v), axis=0),
    "KV, fullest": lambda v: np.fmax.reduce(kv(v), axis=0),
    "servers down": down,
    "tokens/s, idlest": idlest_tokens_per_s,
}

_PERCENTILES = (50, 75, 90, 95, 97, 98, 99, 99.5, 99.8, 99.95)
_HOLDS_S = (0.0, 120.0, 300.0, 900.0)


@dataclass(frozen=True)
class Threshold:
    """A signal, what it must exceed, and for how long."""

    signal: str
    above: float
    for_s: float

    def __str__(self) -> str:
        return f"{self.signal} > {self.above:.3g} for {self.for_s / 60:g}m"


@dataclass(frozen=True)
class Candidate:
    """A threshold and when it fires in each training month."""

    rule: Threshold
    alarms: tuple[Alarm, ...]


@dataclass(frozen=True)
class Training:
    """Months to tune on, what is worth a page in them, and every threshold that is worth a thought."""

    episodes: list[list[Episode]]
    worth: list[list[bool]]
    candidates: list[Candidate]

    def score(self, chosen: Sequence[Candidate]) -> Score:
        """How some thresholds do together."""
        score = Score()
        for index, (episodes, worth) in enumerate(zip(self.episodes, self.worth, strict=True)):
            score.add(episodes, notes([one.alarms[index] for one in chosen]), worth)
        return score


_HOPELESS = 40
"""False pages a month of one threshold alone, beyond which it helps no set."""


def train(views: Sequence[View], worth: Callable[[Episode], bool]) -> Training:
    """Months to tune on."""
    signals = [{name: signal(view) for name, signal in SIGNALS.items()} for view in views]
    episodes = [[Episode(view.month, event) for event in view.month.events] for view in views]
    training = Training(episodes, [[worth(one) for one in month] for month in episodes], [])
    for name in SIGNALS:
        values = [month[name] for month in signals]
        for above in _levels(values):
            for for_s in _HOLDS_S:
                rule = Threshold(name, above, for_s)
                one = Candidate(rule, tuple(_firing(value, rule) for value in values))
                if training.score([one]).false_pages <= _HOPELESS * len(views):
                    training.candidates.append(one)
    return training


def tuned(training: Training, value: Callable[[Score], float], most: int) -> tuple[Threshold, ...]:
    """
    The static thresholds that do best on training months, added one by one while that helps.

    They know the very faults that will come, their sizes and the service: no team has that.

    Args:
        training: The training months.
        value: What is to be highest.
        most: How many thresholds at most.
    """
    chosen: list[Candidate] = []
    best = 0.0
    while len(chosen) < most:
        scored = [(value(training.score([*chosen, one])), one) for one in training.candidates]
        score, more = max(scored, key=lambda pair: pair[0])
        if score <= best + 0.003:
            break
        best = score
        chosen.append(more)
    return tuple(one.rule for one in chosen)


def _levels(values: Sequence[Floats]) -> list[float]:
    together = np.concatenate(values)
    finite = together[np.isfinite(together)]
    quantiles = np.percentile(finite, _PERCENTILES)
    # what is 0 nearly always still has thresholds
    positive = finite[finite > 0]
    more = np.percentile(positive, (5, 25, 50, 75, 90)) if len(positive) else np.array([])
    return sorted({*quantiles.tolist(), *more.tolist(), 0.0})


def _firing(values: Floats, rule: Threshold) -> Alarm:
    return Alarm(str(rule), held(values > rule.above, rule.for_s))


def static(name: str, why: str, by_level: dict[str, tuple[Threshold, ...]]) -> Policy:
    """The tuned thresholds of each level of traffic as a policy."""

    def evaluate(view: View) -> list[Alarm]:
        rules = by_level[view.month.level.name]
        return [_firing(SIGNALS[rule.signal](view), rule) for rule in rules]

    text = "; ".join(f"{level}: {', '.join(map(str, rules))}" for level, rules in by_level.items())
    return Policy(name, f"{why} on training months of the same faults: {text}", evaluate)
