"""
How target tracking decides, minute by minute.

Each policy has two alarms: above its target in three of three minutes it grows the fleet, so that the metric
would meet the target; below nine tenths of it in fifteen of fifteen it shrinks it. Several policies grow it
when one wants, to the largest answer, and shrink it only when all want. While data are missing an alarm has
no state that acts.

Source:
    Application Auto Scaling user guide: how target tracking works (it shrinks "usually" more than 10 % below
    the target, and never so that the metric would be above it), cooldown periods, multiple policies. Three
    and fifteen minutes are those of the alarms that AWS makes (AlarmHigh, AlarmLow).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_opsctl.alarms.cloudwatch.evaluator import State, evaluation_range, state_of
from vllm_opsctl.exporter.config_autoscaling import Autoscaling, ScaledResource, SignalName

HIGH_MINUTES = 3
LOW_MINUTES = 15
LOW_SHARE = 0.9
"""Of the target, below which the fleet is too large."""

Values = Mapping[SignalName, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingPolicy:
    """
    What a fleet is held at.

    Args:
        targets: By signal, percent.
        least: Fewest replicas.
        most: Most replicas.
        scale_out_s: Pause after growing.
        scale_in_s: Pause after shrinking; a group has none.
    """

    targets: Mapping[SignalName, float]
    least: int
    most: int
    scale_out_s: float
    scale_in_s: float


def policy_of(settings: Autoscaling, resource: ScaledResource) -> TrackingPolicy:
    """The policy of a resource as it is configured."""
    targets: dict[SignalName, float] = {
        "demand": 100 * settings.demand_target,
        "kv_cache": 100 * settings.kv_cache_target,
    }
    return TrackingPolicy(
        targets={signal: targets[signal] for signal in settings.signals},
        least=resource.min,
        most=resource.max,
        scale_out_s=settings.scale_out_s,
        scale_in_s=0.0 if resource.kind == "auto-scaling-group" else settings.scale_in_s,
    )


@dataclass(slots=True)
class _Alarms:
    """The two alarms of one policy."""

    target: float
    points: deque[float | None] = field(
        default_factory=lambda: deque(maxlen=evaluation_range(LOW_MINUTES))
    )
    high: State = "INSUFFICIENT_DATA"
    low: State = "INSUFFICIENT_DATA"

    def see(self, value: float | None) -> None:
        self.points.append(value)
        self.high = self._judge(HIGH_MINUTES, self.high, is_high=True)
        self.low = self._judge(LOW_MINUTES, self.low, is_high=False)

    def _judge(self, minutes: int, before: State, *, is_high: bool) -> State:
        newest = list(self.points)[-evaluation_range(minutes) :]
        breaching: list[bool | None] = [None] * (evaluation_range(minutes) - len(newest))
        for point in newest:
            if point is None:
                breaching.append(None)
            else:
                breaching.append(
                    point > self.target if is_high else point < LOW_SHARE * self.target
                )
        return state_of(breaching, minutes, minutes, "missing", before)


class Tracker:
    """
    Decides how many replicas there shall be.

    Args:
        policy: What it holds.
    """

    def __init__(self, policy: TrackingPolicy) -> None:
        self._policy = policy
        self._alarms: dict[SignalName, _Alarms] = {
            signal: _Alarms(target) for signal, target in policy.targets.items()
        }
        self._out_until = self._in_until = -math.inf
        self._base = 0

    def decide(self, now: float, values: Values, desired: int) -> int:
        """
        What the minute that has ended makes of the fleet.

        Args:
            now: Seconds since the start.
            values: Mean of each signal over that minute, percent; None where nothing was published.
            desired: How many replicas there shall be so far.
        """
        for signal, alarms in self._alarms.items():
            alarms.see(values[signal])
        if now >= self._out_until:
            self._base = desired
        wishes = [
            math.ceil(self._base * value / alarms.target - 1e-9)
            for signal, alarms in self._alarms.items()
            if alarms.high == "ALARM" and (value := values[signal]) is not None
        ]
        grown = min(self._policy.most, max(wishes, default=0))
        if grown > desired:
            # a growth ends the pause after shrinking
            self._out_until, self._in_until = now + self._policy.scale_out_s, now
            return grown
        if wishes or now < max(self._out_until, self._in_until):
            return desired
        return self._shrunk(now, values, desired)

    def _shrunk(self, now: float, values: Values, desired: int) -> int:
        needed = self._policy.least
        for signal, alarms in self._alarms.items():
            value = values[signal]
            if alarms.low != "ALARM" or value is None:
                return desired
            needed = max(needed, math.ceil(desired * value / alarms.target - 1e-9))
        if needed >= desired:
            return desired
        self._in_until = now + self._policy.scale_in_s
        # one at a time: AWS says "more gradually" and not how
        return desired - 1

    def wake(self, now: float) -> int:
        """From none to one replica; the pause keeps it from growing until that one serves."""
        self._out_until, self._base = now + self._policy.scale_out_s, 1
        return 1
