"""
Prometheus rules of a configuration: recordings of every objective, and all alerts.

Bad and total events are recorded apart, so that every ratio is a ratio of sums and an idle hour is no
data instead of NaN. No alert rests on data that a dead server would have to send; companions.yaml
holds those that tell its silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vllm_opsctl.alarms.alert_rules import AlertRule, AlertWriter, labels_of
from vllm_opsctl.alarms.alerts import shipped_alerts
from vllm_opsctl.alarms.burn import PERIOD_S, WINDOWS_S, Clock, budget_of, duration_text
from vllm_opsctl.alarms.links import Links
from vllm_opsctl.alarms.prometheus.conventions import (
    BUDGET_LEFT,
    INFO,
    PERIOD,
    TARGET_RATIO,
    Source,
    recorded_name,
)
from vllm_opsctl.alarms.resource_names import board_prefix
from vllm_opsctl.alarms.sli import Indicator, NoBound, buckets_flag, indicator
from vllm_opsctl.alarms.vocabulary import NotMeasured, Vocabulary, vocabulary_of
from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.catalogue import Version
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.identity import Identity, identity_of

_SHORT_S = 60.0
_LONG_S = 120.0
"""Evaluation intervals; the long one well within the five minutes that Prometheus looks back."""

_LONG_FROM_S = 6 * 3600.0

_CUSTOM_SINCE: Version = (0, 32)


@dataclass(frozen=True, slots=True)
class Rulebook:
    """
    All rules of a configuration.

    Args:
        groups: Rule groups as Prometheus reads them.
        alerts: The alerting rules in them.
        indicators: The objectives that are measured.
        left_out: What there is no rule for, and why, one line each.
        names: The vocabulary they are written in.
    """

    groups: list[dict[str, Any]]
    alerts: list[AlertRule]
    indicators: list[Indicator]
    left_out: list[str]
    names: Vocabulary
    links: Links = field(repr=False)


def build_rules(
    config: Config, source: Source, *, version: Version | None = None, clock: Clock | None = None
) -> Rulebook:
    """
    Write the rules.

    Args:
        config: Objectives and links.
        source: The sidecar's metrics, or vLLM's own.
        version: Release of vLLM whose names are used with ``vllm``; None for the newest known.
        clock: Shorter windows for tests.

    Raises:
        ConfigError: A threshold is no bucket bound and may not be moved; one line an objective, the
            last with the flag that gives vLLM all the bounds.
    """
    names = vocabulary_of(config, source, version, clock)
    links = Links(config, source)
    left_out: list[str] = []
    indicators: list[Indicator] = []
    problems: list[str] = []
    for index, objective in enumerate(config.objectives):
        try:
            indicators.append(indicator(objective, names, config))
        except NotMeasured as problem:
            left_out.append(f"objective {objective.name}: {problem}")
        except NoBound as problem:
            problems.append(f"objectives[{index}] ({objective.name}).threshold: {problem}")
    if problems:
        raise ConfigError([*problems, *how_to_get_bounds(config, names)])
    identity = identity_of(config)
    writer = AlertWriter(identity, names, links)
    alerts = {"slo-alerts": [a for one in indicators for a in writer.of_objective(one, left_out)]}
    for name, specs in shipped_alerts().items():
        alerts[name] = writer.shipped(specs, left_out)
    recorder = _Recorder(identity, names, board_prefix(config.service.name))
    groups = [
        *recorder.groups(indicators),
        *(
            recorder.group(name, _SHORT_S, [rule.as_file(names.clock) for rule in rules])
            for name, rules in alerts.items()
        ),
    ]
    return Rulebook(
        [group for group in groups if group["rules"]],
        [rule for rules in alerts.values() for rule in rules],
        indicators,
        left_out,
        names,
        links,
    )


def how_to_get_bounds(config: Config, names: Vocabulary) -> list[str]:
    """The ways to a threshold that is no bucket bound, the flag for all objectives at once among them."""
    flag = buckets_flag(config.objectives, names, config)
    if flag is None:
        return []
    if names.source == "vllm" and names.version is not None and names.version < _CUSTOM_SINCE:
        first = "alarms: the bounds of this release are fixed; vLLM 0.32 takes --custom-histogram-buckets"
    else:
        first = (
            "alarms: give vLLM 0.32 or newer every threshold as a bound, and put the same into "
            f"alarms.histogram_buckets: {flag}"
        )
    return [
        first,
        "alarms: or run the sidecar with the tap (exporter.tap.dir, docs/tap.md), which has every "
        "threshold as a bound; or set bucket_policy: stricter or looser",
    ]


@dataclass(frozen=True, slots=True)
class _Recorder:
    """Writes the recording rules."""

    identity: Identity
    names: Vocabulary
    board_prefix: str

    def group(self, name: str, interval_s: float, rules: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "name": self.names.scope.group(name),
            "interval": self.names.clock.text(interval_s),
            "rules": rules,
        }

    def groups(self, indicators: list[Indicator]) -> list[dict[str, Any]]:
        short: list[dict[str, Any]] = []
        long: list[dict[str, Any]] = []
        period: list[dict[str, Any]] = []
        for one in indicators:
            for window_s in WINDOWS_S:
                rules = long if window_s >= _LONG_FROM_S else short
                rules += self._window(one, window_s)
            period += self._period(one)
        return [
            self.group("slo-short", _SHORT_S, short),
            self.group("slo-long", _LONG_S, long),
            self.group("slo-period", _LONG_S, period),
        ]

    def _record(self, one: Indicator, name: str, expr: str, **more: str) -> dict[str, Any]:
        return {"record": name, "expr": expr, "labels": {**labels_of(one, self.identity), **more}}

    def _window(self, one: Indicator, window_s: float) -> Iterator[dict[str, Any]]:
        # named by the nominal window, so that a scaled test reads like the real thing
        window = duration_text(window_s)
        yield self._record(one, recorded_name("total", window), one.total(window_s))
        yield self._record(one, recorded_name("bad", window), one.bad(window_s))
        yield self._record(
            one,
            recorded_name("error", window),
            f"{one.recorded('bad', window)}\n/ ({one.recorded('total', window)} > 0)",
        )

    def _period(self, one: Indicator) -> Iterator[dict[str, Any]]:
        objective = one.objective
        period = self.names.clock.text(PERIOD_S)
        budget = budget_of(objective.target)
        bad, total = (
            self.names.scope.recorded_over(recorded_name(what, "5m"), objective.name, period)
            for what in ("bad", "total")
        )
        yield self._record(one, TARGET_RATIO, f"vector({objective.target:.12g})")
        yield self._record(one, recorded_name("error", PERIOD), f"{bad}\n/ ({total} > 0)")
        yield self._record(one, BUDGET_LEFT, f"1 - {one.recorded('error', PERIOD)} / {budget:.12g}")
        facts: dict[str, str] = {"sli": objective.sli, "bucket_policy": objective.bucket_policy}
        if objective.threshold is not None:
            facts["threshold_asked"] = f"{objective.threshold:g}"
            facts["threshold_used"] = f"{one.bound:g}"
        # where a row of the fleet board leads: a uid cannot be made of a service by Grafana
        yield self._record(one, INFO, "vector(1)", board=self.board_prefix, **facts)
