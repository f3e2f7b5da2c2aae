"""
Synthetic months of a chat service, request by request, for the benchmark of the alarm policy.

Several turns a conversation, half a minute a step. Every replica is a queue that serves so many
requests a second; each request gets its time to first token, its gaps and its length. From them come the
truth, all events and the bad ones, and what a Prometheus would hold, which is less: who asks a dead
server is counted nowhere.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import yaml
from numpy.typing import NDArray

from bench.alarm_faults import (
    DAYS,
    HOUR,
    STEP_S,
    STEPS,
    Bools,
    Conditions,
    Event,
    Floats,
    Level,
    conditions,
    plan,
)
from bench.table import ROOT
from vllm_opsctl.exporter.catalogue import catalogue
from vllm_opsctl.exporter.config import Config, Objective

Ints = NDArray[np.int64]

PER_S = 1.25
"""Requests per second that one replica serves."""

QUEUE = 80
"""Requests that wait on one replica at most; the next is turned away with 503, a 5xx."""

_PREFILL_S, _PREFILL_SIGMA = 0.18, 0.6
_GAP_S, _GAP_SIGMA = 0.03, 0.35
_TOKENS, _TOKENS_SIGMA = 160.0, 0.7
_LONG_PROMPTS, _LONG_PROMPT_S = 0.008, 1.5
_ODD_GAPS = 0.0007
"""Medians and spreads of a healthy request, and the share of those that are slow for no reason."""

TTFT_BOUNDS = np.array(catalogue()["time_to_first_token_seconds"].bounds_of(None))
"""vLLM's own."""


def configuration() -> Config:
    """The starter's objectives, with 30 s to the end of an answer: this service's are long."""
    starter = yaml.safe_load((ROOT / "cli" / "templates" / "opsctl.yaml").read_text())
    objectives = [
        {**entry, "threshold": "30s"} if entry["sli"] == "e2e_latency" else entry
        for entry in starter["objectives"]
    ]
    return Config.model_validate({"service": starter["service"], "objectives": objectives})


@functools.cache
def measured_objectives() -> dict[str, Objective]:
    """By name, those that need no tap."""
    return {
        objective.name: objective
        for objective in configuration().objectives
        if objective.sli != "time_to_first_token_cached"
    }


@dataclass(frozen=True)
class Month:
    """
    One month of one service.

    Args:
        level: Its traffic.
        seed: It is the same month again with the same one.
        events: What happened.
        total: All events by objective, step by step, those that nothing counted too.
        bad: The bad ones among them.
        seen_total: What the sidecar counted, by objective; replicas by steps.
        seen_bad: The bad ones among them.
        alive: Whether a replica's page can be read; replicas by steps, as all that follow.
        started: Steps in which a process is new.
        running: Gauge at the end of a step.
        waiting: Gauge at the end of a step.
        kv: Gauge at the end of a step, 0 to 1.
        work: Engine steps in a step.
        e2e_sum_s: Seconds of the requests that finished.
        e2e_count: Requests that finished.
        tokens: Tokens that were sent.
        gaps_sum_s: Seconds between them.
        ttft: Requests by the bucket of their time to first token; buckets by steps.
    """

    level: Level
    seed: int
    events: tuple[Event, ...]
    total: Mapping[str, Floats]
    bad: Mapping[str, Floats]
    seen_total: Mapping[str, Floats]
    seen_bad: Mapping[str, Floats]
    alive: Bools
    started: Bools
    running: Floats
    waiting: Floats
    kv: Floats
    work: Floats
    e2e_sum_s: Floats
    e2e_count: Floats
    tokens: Floats
    gaps_sum_s: Floats
    ttft: Floats

    @property
    def name(self) -> str:
        """Level and seed."""
        return f"{self.level.name}-{self.seed}"


def month(level: Level, seed: int) -> Month:
    """Make a month."""
    random = np.random.default_rng([seed, level.replicas])
    events = plan(level, random)
    return simulated(level, seed, events, random)


def simulated(level: Level, seed: int, events: list[Event], random: np.random.Generator) -> Month:
    """A month of given events."""
    now = conditions(level, events)
    arrivals = random.poisson(traffic(level, random) * STEP_S + now.extra)
    sent = _Requests.sent(arrivals, now, random)
    queues, turned_away = _queues(sent, now)
    return _counted(level, seed, events, now, sent, queues, turned_away, random)


def traffic(level: Level, random: np.random.Generator) -> Floats:
    """Requests per second at every step: day, week and the weather."""
    hours = np.arange(STEPS) / HOUR
    of_day = np.array([0, 0, 0, 0, 0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 1, 0.95, 0.9, 0.95, 1])
    of_day = np.append(of_day, [0.95, 0.85, 0.75, 0.7, 0.6, 0.4, 0.2, 0.08, 0])
    day = np.interp(hours % 24, np.arange(25), of_day)
    week = np.where(hours / 24 % 7 >= 5, 0.6, 1.0)
    weather = np.interp(hours, np.arange(DAYS * 24 + 1), random.normal(0, 0.08, DAYS * 24 + 1))
    share = level.night + (1 - level.night) * day
    return np.asarray(level.peak_per_s * share * week * np.exp(weather))


@dataclass(frozen=True)
class _Requests:
    """All requests of a month, one an entry."""

    step: Ints
    replica: Ints
    within: Floats
    """Where in its step it came, 0 to 1."""
    lost: Bools
    """Sent to nobody, to a dead replica or to a frozen one."""
    refused: Bools
    """Answered with 5xx for no lack of room."""

    @staticmethod
    def sent(arrivals: Ints, now: Conditions, random: np.random.Generator) -> _Requests:
        """Send each to one of the replicas that a load balancer believes in."""
        step = np.repeat(np.arange(STEPS), arrivals)
        within = random.random(len(step))
        believed = now.routed.sum(axis=0)
        order = np.argsort(~now.routed, axis=0, kind="stable")
        choice = (random.random(len(step)) * np.maximum(believed[step], 1)).astype(np.int64)
        replica = order[choice, step]
        lost = ~now.alive[replica, step] | now.frozen[replica, step] | (believed[step] == 0)
        crashes = np.zeros(now.alive.shape, bool)
        crashes[:, :-1] = now.alive[:, :-1] & ~now.alive[:, 1:] & now.routed[:, 1:]
        # who is being answered when it dies is cut off, the later the surer
        lost |= crashes[replica, step] & (within > 0.75)
        refused = ~lost & (random.random(len(step)) < now.errors[step])
        return _Requests(step, replica, within, lost, refused)


@dataclass(frozen=True)
class _Queues:
    """Requests that wait before and after each step, and how many a replica can serve per second."""

    before: Floats
    after: Floats
    served: Floats
    per_s: Floats


def _queues(sent: _Requests, now: Conditions) -> tuple[_Queues, Bools]:
    """Run every replica's queue; which requests found it full."""
    replicas = now.level.replicas
    wants = ~sent.lost & ~sent.refused
    where = sent.replica * STEPS + sent.step
    came = np.bincount(where[wants], minlength=replicas * STEPS).reshape(replicas, STEPS)
    per_s = np.where(now.alive & ~now.frozen, PER_S * now.capacity, 0.0)
    after, full = np.zeros(came.shape), np.zeros(came.shape)
    for replica in range(replicas):
        waits, left, over = 0.0, [0.0] * STEPS, [0.0] * STEPS
        room = (per_s[replica] * STEP_S).tolist()
        alive = now.alive[replica].tolist()
        for step, more in enumerate(came[replica].tolist()):
            waits += more - room[step]
            if waits < 0 or not alive[step]:
                waits = 0.0
            elif waits > QUEUE:
                over[step] = min(float(more), waits - QUEUE)
                waits = float(QUEUE)
            left[step] = waits
        after[replica], full[replica] = left, over
    before = np.hstack([np.zeros((replicas, 1)), after[:, :-1]])
    share = np.divide(full, came, out=np.zeros(full.shape), where=came > 0)
    # the last ones in a step find it full
    turned_away = wants & (sent.within > 1 - share.ravel()[where])
    return _Queues(before, after, before + came - full - after, per_s), turned_away


def _counted(
    level: Level,
    seed: int,
    events: list[Event],
    now: Conditions,
    sent: _Requests,
    queues: _Queues,
    turned_away: Bools,
    random: np.random.Generator,
) -> Month:
    shape = (level.replicas, STEPS)
    good = ~sent.lost & ~sent.refused & ~turned_away
    step, replica, within = sent.step[good], sent.replica[good], sent.within[good]
    count = len(step)
    at = replica * STEPS + step
    level_s = queues.before.ravel()[at] * (1 - within) + queues.after.ravel()[at] * within
    queued_s = level_s / np.maximum(queues.per_s.ravel()[at], 0.05)
    queued_s += np.where(random.random(count) < 0.005, 0.5, 0.0)
    prefill_s = now.prefill[step] * np.exp(random.normal(np.log(_PREFILL_S), _PREFILL_SIGMA, count))
    long = random.random(count) < _LONG_PROMPTS
    prefill_s += np.where(long, random.exponential(_LONG_PROMPT_S, count), 0.0)
    ttft_s = queued_s + prefill_s
    median = np.log(_TOKENS * now.answers[step])
    tokens = np.ceil(np.exp(random.normal(median, _TOKENS_SIGMA)))
    e2e_s = ttft_s + tokens * _GAP_S * now.gaps[step] * np.exp(random.normal(0, 0.1, count))

    def per_step(where: Ints, weights: Floats | None = None) -> Floats:
        counts = np.bincount(where, weights, minlength=level.replicas * STEPS)
        return np.asarray(counts[: level.replicas * STEPS].reshape(shape), dtype=float)

    def later(seconds: Floats) -> Ints:
        """Where it is counted: in the step in which it happens, within the month."""
        moved = np.minimum(step + ((within + seconds / STEP_S).astype(np.int64)), STEPS - 1)
        return np.asarray(replica * STEPS + moved)

    first, end = later(ttft_s), later(e2e_s)
    sent_tokens = per_step(end, tokens)
    slow_share = _ODD_GAPS + 1 - _normal(np.log(0.1 / (_GAP_S * now.gaps)) / _GAP_SIGMA)
    refused = (sent.refused | turned_away).nonzero()[0]
    errors = per_step(sent.replica[refused] * STEPS + sent.step[refused])
    limits = {name: objective.threshold for name, objective in measured_objectives().items()}
    seen: dict[str, tuple[Floats, Floats]] = {
        "availability": (per_step(at) + errors, errors),
        "inter-token-latency": (
            sent_tokens,
            random.binomial(sent_tokens.astype(np.int64), np.minimum(1, slow_share)).astype(float),
        ),
    }
    for name, where, seconds in (
        ("ttft", first, ttft_s),
        ("queue-time", first, queued_s),
        ("e2e", end, e2e_s),
    ):
        seen[name] = (per_step(where), per_step(where[seconds > limits[name]]))
    lost = np.bincount(sent.step[sent.lost], minlength=STEPS)
    seen_total = {name: total for name, (total, _) in seen.items()}
    seen_bad = {name: bad for name, (_, bad) in seen.items()}
    total = {name: value.sum(axis=0) for name, value in seen_total.items()}
    bad = {name: value.sum(axis=0) for name, value in seen_bad.items()}
    total["availability"] = total["availability"] + lost
    bad["availability"] = bad["availability"] + lost
    busy_s = _MEAN_TOKENS * _GAP_S * now.answers * now.gaps
    running = _held(random.poisson(queues.served / STEP_S * busy_s).astype(float), now, random)
    waiting = _held(np.round(queues.after), now)
    used = queues.served / STEP_S / PER_S
    usual = 0.2 + 0.65 * used + random.normal(0, 0.06, shape)
    kv = np.maximum(np.where(queues.after > 1, 0.97, usual), now.kv)
    work = np.where(now.alive & ~now.frozen, np.minimum(running, 1) * STEP_S / _GAP_S, 0.0)
    bucket = np.searchsorted(TTFT_BOUNDS, ttft_s)
    buckets = len(TTFT_BOUNDS) + 1
    ttft = np.bincount((first % STEPS) * buckets + bucket, minlength=STEPS * buckets)
    absent = np.where(now.alive, 0.0, np.nan)
    return Month(
        level,
        seed,
        tuple(events),
        total,
        bad,
        seen_total,
        seen_bad,
        now.alive,
        now.started,
        running + absent,
        waiting + absent,
        _held(np.clip(kv, 0.02, 0.99), now) + absent,
        work,
        per_step(end, e2e_s),
        per_step(end),
        sent_tokens,
        per_step(end, e2e_s - ttft_s),
        np.ascontiguousarray(ttft.reshape(STEPS, buckets).T, dtype=float),
    )


_MEAN_TOKENS = _TOKENS * float(np.exp(_TOKENS_SIGMA**2 / 2))


def _held(gauge: Floats, now: Conditions, random: np.random.Generator | None = None) -> Floats:
    """
    A gauge as an engine shows it: what froze keeps its last value.

    An engine freezes in a step, so it had a request; one time in four it was in the first step of the
    only one, which no gauge has shown yet.
    """
    held = gauge.copy()
    for replica in range(len(gauge)):
        starts = np.flatnonzero(np.diff(now.frozen[replica].astype(int)) == 1) + 1
        for start in starts:
            end = start + int(np.argmin(now.frozen[replica, start:]))
            last = held[replica, start - 1]
            if random is not None and last == 0:
                last = float(random.random() < 0.75)
            held[replica, start:end] = last
    return held


def _normal(z: Floats) -> Floats:
    """The normal distribution's cumulative function, to 1e-7 (Abramowitz and Stegun 26.2.17)."""
    t = 1 / (1 + 0.2316419 * np.abs(z))
    series = (0.319381530, -0.356563782, 1.781477937, -1.821255978, 1.330274429)
    tail = (
        np.exp(-z * z / 2)
        / np.sqrt(2 * np.pi)
        * sum(c * t ** (i + 1) for i, c in enumerate(series))
    )
    return np.asarray(np.where(z >= 0, 1 - tail, tail))
