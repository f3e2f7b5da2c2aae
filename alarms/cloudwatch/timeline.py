"""
Alarms over time: which change their state, and which act, while metrics come in.

Metric alarms are judged first, then composites, those that others refer to before these, all at one time;
a circle of composites is not judged, as CloudWatch does not either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from vllm_opsctl.alarms.cloudwatch.composite import Actions, CompositeAlarm
from vllm_opsctl.alarms.cloudwatch.evaluator import MetricAlarm, State
from vllm_opsctl.alarms.cloudwatch.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Transition:
    """
    An alarm's change of state.

    Args:
        t: Unix seconds.
        alarm: Its name.
        before: The state until then.
        after: The state from then on.
    """

    t: float
    alarm: str
    before: State
    after: State


@dataclass(frozen=True, slots=True)
class Action:
    """
    An alarm that notifies.

    Args:
        t: Unix seconds.
        alarm: Its name.
        state: Which of its actions are taken: those of this state.
    """

    t: float
    alarm: str
    state: State


class Timeline:
    """
    Judges alarms from one time to another.

    Args:
        metric_alarms: Of one metric or expression each.
        composites: Of other alarms.
        metrics: What is published; may be filled before or between runs.

    Raises:
        ValueError: Composites refer to each other in a circle.
    """

    def __init__(
        self,
        metric_alarms: Sequence[MetricAlarm],
        composites: Sequence[CompositeAlarm],
        metrics: Metrics,
    ) -> None:
        self.metrics = metrics
        names = [*(one.name for one in metric_alarms), *(one.name for one in composites)]
        self.states: dict[str, State] = dict.fromkeys(names, "INSUFFICIENT_DATA")
        self.transitions: list[Transition] = []
        self.actions: list[Action] = []
        self._metric_alarms = metric_alarms
        self._composites = _in_order({alarm.name: alarm for alarm in composites})
        self._acting = {alarm.name: Actions(alarm) for alarm in composites}
        self._step_s = min((alarm.every_s for alarm in metric_alarms), default=60.0)

    def run(self, start: float, end: float) -> None:
        """
        Judge at every full minute, or every 10 s where an alarm has so short a period.

        Args:
            start: Unix seconds, included.
            end: Unix seconds, included.
        """
        now = -(-start // self._step_s) * self._step_s
        while now <= end:
            self._judge(now)
            now += self._step_s

    def _judge(self, now: float) -> None:
        for alarm in self._metric_alarms:
            if now % alarm.every_s == 0:
                before = self.states[alarm.name]
                after = alarm.next_state(before, self.metrics, now)
                if self._becomes(now, alarm.name, after):
                    self.actions.append(Action(now, alarm.name, after))
        for composite in self._composites:
            state: State = "ALARM" if composite.rule.holds(self.states) else "OK"
            self._becomes(now, composite.name, state)
            suppressor = self.states[composite.suppressor] if composite.suppressor else None
            if self._acting[composite.name].step(now, state, suppressor):
                self.actions.append(Action(now, composite.name, state))

    def _becomes(self, now: float, alarm: str, after: State) -> bool:
        before = self.states[alarm]
        if before == after:
            return False
        self.states[alarm] = after
        self.transitions.append(Transition(now, alarm, before, after))
        return True

    def went_off(self) -> Iterator[Action]:
        """Actions of the state ALARM, in order."""
        return (action for action in self.actions if action.state == "ALARM")


def _in_order(composites: Mapping[str, CompositeAlarm]) -> list[CompositeAlarm]:
    graph = {
        name: [
            other
            for other in (*alarm.rule.alarms(), *((alarm.suppressor,) if alarm.suppressor else ()))
            if other in composites
        ]
        for name, alarm in composites.items()
    }
    try:
        return [composites[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError as problem:
        circle = " -> ".join(problem.args[1])
        raise ValueError(f"composite alarms refer to each other in a circle: {circle}") from None
