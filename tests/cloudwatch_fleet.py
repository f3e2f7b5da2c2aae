"""Configurations, the templates that a build makes of them, and synthetic traffic on their metrics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from vllm_opsctl.alarms.cloudwatch.build import template_text
from vllm_opsctl.alarms.cloudwatch.definitions import read_definitions
from vllm_opsctl.alarms.cloudwatch.metrics import Metrics
from vllm_opsctl.alarms.cloudwatch.timeline import Timeline
from vllm_opsctl.dashboards.cloudwatch import service_template
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.sinks.cloudwatch.datum import Dimensions
from vllm_opsctl.exporter.yaml_text import read_yaml

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def config(**more: Any) -> Config:
    """One service with one model, and whatever a test sets."""
    given: dict[str, Any] = {
        "service": {"name": "chat"},
        "targets": [{"name": "chat-0", "url": "http://chat-0:8000", "models": ["tiny"]}],
        "objectives": [
            {"name": "availability", "sli": "availability", "target": "99.9%"},
            {"name": "ttft", "sli": "time_to_first_token", "threshold": "1s", "target": "95%"},
        ],
        "exporter": {"cloudwatch": {"sink": "put"}},
        **more,
    }
    return Config.model_validate(given)


def text_of(one: Config) -> str:
    """The template's file."""
    return template_text(service_template(one))


def body_of(one: Config) -> dict[str, Any]:
    """The template as CloudFormation reads its file."""
    found: dict[str, Any] = read_yaml(text_of(one))
    return found


class Fleet:
    """
    A fleet whose sidecar publishes every minute, and the alarms of its template.

    Args:
        one: The configuration.
        model: Value of the dimension, and of the template's parameter.
        late_s: How long after its timestamp a datum is there, seconds.
    """

    def __init__(self, one: Config, model: str = "tiny", *, late_s: float = MINUTE) -> None:
        self._service = one.service.name
        self._objectives = [objective.name for objective in one.objectives]
        self._model = model
        self.metrics = Metrics(one.exporter.cloudwatch.namespace, late_s=late_s)
        self.definitions = read_definitions(text_of(one), {"Model": model})
        self.timeline = Timeline(
            self.definitions.metric_alarms, self.definitions.composites, self.metrics
        )

    def publish(
        self,
        start: float,
        end: float,
        *,
        per_minute: float = 600.0,
        bad: Mapping[str, float] | float = 0.0,
        gauges: Mapping[str, float] | None = None,
        preempted: float = 0.0,
        silent: tuple[str, ...] = (),
    ) -> None:
        """
        Minutes of even traffic.

        Args:
            start: Seconds, of the first minute.
            end: Seconds, the end of the last.
            per_minute: Events a minute of every objective.
            bad: Share of bad ones, of all objectives or by name.
            gauges: RequestsRunning, RequestsWaiting and KVCacheUsage where they are not those of calm.
            preempted: Preemptions a minute.
            silent: Metrics that do not come.
        """
        model: Dimensions = (("Service", self._service), ("Model", self._model))
        levels = {"RequestsRunning": 8.0, "RequestsWaiting": 0.0, "KVCacheUsage": 40.0}
        levels |= gauges or {}
        for number in range(round((end - start) / MINUTE)):
            t = start + number * MINUTE
            found: list[tuple[str, Dimensions, float]] = [
                ("Heartbeat", (("Service", self._service),), 1.0),
                ("Preemptions", model, preempted),
                *((name, model, level) for name, level in levels.items()),
            ]
            if per_minute:
                found += [
                    (name, model, 0.1)
                    for name in ("TimeToFirstToken", "InterTokenLatency", "EndToEndLatency")
                ]
            for objective in self._objectives:
                share = bad if isinstance(bad, int | float) else bad.get(objective, 0.0)
                of_objective: Dimensions = (*model, ("Objective", objective))
                found.append(("GoodEvents", of_objective, per_minute * (1 - share)))
                found.append(("BadEvents", of_objective, per_minute * share))
            for name, dimensions, number_of in found:
                if name not in silent:
                    self.metrics.put(name, dimensions, t, number_of)

    def notified(self, start: float, end: float) -> list[tuple[float, str]]:
        """
        What notifies between two times: seconds since ``start``, and the alarm without service and model.
        """
        began = len(self.timeline.actions)
        self.timeline.run(start + MINUTE, end)
        return [
            (action.t - start, action.alarm.replace(f"/{self._service}", "").rsplit("/", 1)[0])
            for action in self.timeline.actions[began:]
            if action.state == "ALARM" and action.alarm in self.definitions.notify
        ]


def mutated(body: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A copy of a template with one change."""
    mutant = copy.deepcopy(body)
    change(mutant)
    return mutant
