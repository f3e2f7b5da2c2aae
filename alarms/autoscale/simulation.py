"""
A recorded load on a fleet that is scaled, beside fleets of a fixed size.

Time is told: with a scale of 1/60 the load of each second of the recording lasts a minute, while requests
take as long as they do. So a recording of a minute becomes an hour in which policies have time to act.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_opsctl.alarms.autoscale.load import Load, Server
from vllm_opsctl.alarms.autoscale.queueing import FluidFleet
from vllm_opsctl.alarms.autoscale.tracking import Tracker, TrackingPolicy, Values
from vllm_opsctl.exporter.config_autoscaling import SignalName

MINUTE_S = 60

LONGEST_S = 7 * 86400
"""Told; each second of it is computed."""


@dataclass(frozen=True, slots=True)
class Decision:
    """
    A change of size.

    Args:
        t: Seconds since the start, told.
        before: Replicas that there should be until then.
        after: Replicas that there shall be.
    """

    t: float
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Minute:
    """
    One minute of a run.

    Args:
        desired: Replicas that there should be in it; these are paid for.
        ready: Replicas that serve at its end.
        arrivals: Requests a second that came; None where the recording knows nothing.
        demand: Running and waiting over max_num_seqs, mean of a replica, percent; None without a replica.
        waiting: Requests in line at its end.
        share: Of those that came in it, how many were good; None without any.
    """

    desired: int
    ready: int
    arrivals: float | None
    demand: float | None
    waiting: float
    share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """
    What became of a load.

    Args:
        minutes: One after the other.
        decisions: Changes of size.
        replica_hours: That were paid for, told.
        arrived: Requests that came.
        good: Whose first token came in time.
        bad: Whose did not.
        refused: Of the bad ones, those that found no replica.
        in_system: That run or wait at the end.
        longest_wait_s: Seconds.
    """

    minutes: tuple[Minute, ...]
    decisions: tuple[Decision, ...]
    replica_hours: float
    arrived: float
    finished: float
    good: float
    bad: float
    refused: float
    in_system: float
    longest_wait_s: float

    @property
    def share(self) -> float | None:
        """Good ones of those that are known to be good or bad."""
        known = self.good + self.bad
        return self.good / known if known > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """
    What is simulated.

    Args:
        load: What came, and what one replica can do.
        told_per_s: Seconds that a second of the recording is told as.
        times: The load is multiplied by this.
        max_num_seqs: What demand is measured against.
        cold_start_s: From the decision to the first request that a new replica takes.
        patience_s: Longest good wait.
        refuses: At none replica requests are refused.
    """

    load: Load
    told_per_s: float
    times: float
    max_num_seqs: int
    cold_start_s: float
    patience_s: float
    refuses: bool = False

    @property
    def told_s(self) -> int:
        """How long it is told."""
        return max(MINUTE_S, round(self.load.seconds * self.told_per_s))

    def arrivals(self, t: int) -> float | None:
        """Requests a second at a told second; None where nothing is known."""
        second = min(self.load.seconds - 1, int(t / self.told_per_s))
        rate = self.load.arrivals[second]
        return None if rate is None else rate * self.times


@dataclass(slots=True)
class _Size:
    """How many replicas there are, and when the others will be."""

    ready: int
    starting: list[float] = field(default_factory=list)

    @property
    def desired(self) -> int:
        return self.ready + len(self.starting)

    def change(self, desired: int, ready_at: float) -> None:
        while self.desired > desired:
            # what does not serve yet goes first
            if self.starting:
                self.starting.pop()
            else:
                self.ready -= 1
        self.starting += [ready_at] * (desired - self.desired)

    def pass_time(self, now: float) -> None:
        started = sum(at <= now for at in self.starting)
        self.ready += started
        self.starting = self.starting[started:]


def simulate(scenario: Scenario, policy: TrackingPolicy, start: int) -> Run:
    """
    Let a policy scale the fleet.

    Args:
        scenario: The load.
        policy: What decides.
        start: Replicas at the beginning, all of which serve.
    """
    return _run(scenario, start, Tracker(policy))


def fixed(scenario: Scenario, replicas: int) -> Run:
    """The same load on a fleet whose size does not change."""
    return _run(scenario, replicas, None)


def _run(scenario: Scenario, start: int, tracker: Tracker | None) -> Run:
    server = scenario.load.server
    fleet = FluidFleet(server, scenario.patience_s, scenario.refuses)
    size = _Size(start)
    decisions: list[Decision] = []
    rows: list[tuple[int, int, float | None, float | None, float]] = []
    paid_s = 0
    for began in range(0, scenario.told_s, MINUTE_S):
        minute = _Mean(scenario.max_num_seqs, server)
        refused_before = fleet.refused
        end = min(began + MINUTE_S, scenario.told_s)
        for t in range(began, end):
            size.pass_time(t)
            rate = scenario.arrivals(t)
            fleet.step(t, 1.0, rate or 0.0, size.ready)
            minute.see(fleet, size.ready, rate)
            paid_s += size.desired
        rows.append(
            (size.desired, size.ready, minute.arrivals, minute.values["demand"], fleet.waiting)
        )
        if tracker is not None:
            before = size.desired
            after = tracker.decide(end, minute.values, before)
            if before == 0:
                after = tracker.wake(end) if fleet.refused > refused_before else 0
            if after != before:
                size.change(after, end + scenario.cold_start_s)
                decisions.append(Decision(float(end), before, after))
    fleet.close(scenario.told_s)
    return Run(
        minutes=tuple(Minute(*row, share=_share(fleet, number)) for number, row in enumerate(rows)),
        decisions=tuple(decisions),
        replica_hours=paid_s / 3600,
        arrived=fleet.arrived,
        finished=fleet.finished,
        good=sum(one.good for one in fleet.minutes.values()),
        bad=sum(one.bad for one in fleet.minutes.values()),
        refused=fleet.refused,
        in_system=fleet.running + fleet.waiting,
        longest_wait_s=fleet.longest_wait_s,
    )


def _share(fleet: FluidFleet, minute: int) -> float | None:
    judged = fleet.minutes.get(minute)
    if judged is None or judged.good + judged.bad <= 0:
        return None
    return judged.good / (judged.good + judged.bad)


class _Mean:
    """What the sidecars of a fleet publish of one minute."""

    def __init__(self, max_num_seqs: int, server: Server) -> None:
        self._seqs, self._server = max_num_seqs, server
        self._inside = self._running = self._came = 0.0
        self._seen = self._known = 0

    def see(self, fleet: FluidFleet, replicas: int, rate: float | None) -> None:
        if rate is None:
            # nobody could read the engine then
            return
        self._known += 1
        self._came += rate
        if replicas:
            self._seen += 1
            self._inside += (fleet.running + fleet.waiting) / replicas
            self._running += min(fleet.running / replicas, self._server.slots)

    @property
    def arrivals(self) -> float | None:
        return self._came / self._known if self._known else None

    @property
    def values(self) -> Values:
        found: dict[SignalName, float | None] = {"demand": None, "kv_cache": None}
        if self._seen:
            found["demand"] = 100 * self._inside / self._seen / self._seqs
            used = self._server.kv_percent * self._running / self._seen
            found["kv_cache"] = min(100.0, used)
        return found
