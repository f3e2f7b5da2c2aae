"""
A fleet of replicas with one queue, as a fluid: amounts of requests, not single ones.

Whoever comes waits in line until a slot is free; all replicas are equally full. What arrived is at any time
what finished, runs, waits, or was refused.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from vllm_opsctl.alarms.autoscale.load import Server


@dataclass(slots=True)
class Judged:
    """
    Requests that arrived in one minute.

    Args:
        good: Whose first token came in time.
        bad: Whose did not, or who were refused.
    """

    good: float = 0.0
    bad: float = 0.0


@dataclass(slots=True)
class FluidFleet:
    """
    The fleet over time.

    Args:
        server: One replica.
        patience_s: Longest good wait, seconds.
        refuses: Without a replica requests are answered with an error; else they wait.
        running: Requests that run.
        arrived: All that came.
        finished: All that finished.
        refused: All that found nobody.
        longest_wait_s: Of those that got a slot, or wait still.
        minutes: By minute of arrival.
    """

    server: Server
    patience_s: float
    refuses: bool = False
    running: float = 0.0
    arrived: float = 0.0
    finished: float = 0.0
    refused: float = 0.0
    longest_wait_s: float = 0.0
    minutes: dict[int, Judged] = field(default_factory=dict)
    _line: deque[tuple[float, float]] = field(default_factory=deque)
    _waiting: float = 0.0

    @property
    def waiting(self) -> float:
        """Requests in line."""
        return self._waiting

    def step(self, now: float, seconds: float, arrivals: float, replicas: int) -> None:
        """
        Let time pass.

        Args:
            now: Seconds since the start.
            seconds: How long the step is.
            arrivals: Requests that come in it, evenly.
            replicas: Replicas that serve in it.
        """
        self.arrived += arrivals
        came = now + seconds / 2
        if not replicas and self.refuses:
            self.refused += arrivals
            self._judge(came, arrivals, is_good=False)
            return
        if arrivals > 0:
            self._line.append((came, arrivals))
            self._waiting += arrivals
        if not replicas:
            return
        room = replicas * self.server.slots
        most = replicas * self.server.most_per_s * seconds
        settled = replicas * self.server.running_at(arrivals / seconds / replicas)
        is_queued = self._waiting > arrivals
        pace_s = self.server.runs_s(self.running / replicas)
        # without a queue the number that runs nears the one at which as many finish as come
        after = settled + (self.running - settled) * math.exp(-seconds / pace_s)
        before, free = self.running, max(0.0, room - self.running)
        if is_queued or after > room or arrivals >= most:
            taken = min(self._waiting, free + most)
            after = min(room, settled, before + taken)
            self._admit(now, taken, free, most / seconds)
        else:
            taken = self._waiting
            after = min(after, before + taken)
            self._admit(now, taken, math.inf, math.inf)
        # no more finish than full batches do; so what replicas that left still had runs on
        after = max(after, before + taken - most)
        self.running = after
        self.finished += before + taken - after

    def _admit(self, now: float, amount: float, free: float, per_s: float) -> None:
        """
        Give slots to the first in line.

        Args:
            now: Seconds since the start.
            amount: How many get one.
            free: How many get one at once.
            per_s: How many of the others get one in a second.
        """
        done = 0.0
        left = amount
        while left > 0 and self._line:
            came, number = self._line[0]
            taken = min(number, left)
            behind = max(0.0, done + taken / 2 - free)
            waited = max(0.0, now + behind / per_s - came)
            self.longest_wait_s = max(self.longest_wait_s, waited)
            self._judge(came, taken, is_good=waited <= self.patience_s)
            done += taken
            left -= taken
            if taken == number:
                self._line.popleft()
            else:
                self._line[0] = (came, number - taken)
        # an empty line is empty, whatever many small differences say
        self._waiting = max(0.0, self._waiting - amount) if self._line else 0.0

    def close(self, now: float) -> None:
        """Judge those that still wait and have waited too long; of the others nothing is known."""
        for came, amount in self._line:
            self.longest_wait_s = max(self.longest_wait_s, now - came)
            if now - came > self.patience_s:
                self._judge(came, amount, is_good=False)

    def _judge(self, came: float, amount: float, *, is_good: bool) -> None:
        minute = self.minutes.setdefault(int(came // 60), Judged())
        if is_good:
            minute.good += amount
        else:
            minute.bad += amount
