"""
Unit tests of the rules for ``promtool test rules``: of every alert, and of what must not alert.

Each alert is shown to fire when it should and not before, with its labels and texts. Busy traffic, no
traffic, counter resets, rolling restarts and a deploy that adds a bucket are shown to be silent, and
when every replica dies, that somebody stays paged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_opsctl.alarms.alert_rules import AlertRule
from vllm_opsctl.alarms.alerts import AlertSpec
from vllm_opsctl.alarms.burn import time_to_fire, time_to_floor
from vllm_opsctl.alarms.fleet import HEALTHY, IDLE, MODEL, REPLICAS, Phase, State, series_of
from vllm_opsctl.alarms.prometheus.conventions import BUCKET_ALERT, BURN_ALERT, FLOOR_ALERT
from vllm_opsctl.alarms.rules import Rulebook
from vllm_opsctl.exporter.series import labels_text
from vllm_opsctl.exporter.units import parse_duration

_ONSET = 30
"""Minutes of healthy traffic before something happens."""

_OUTAGE = 195
"""Minutes of an outage: the slowest row holds for three hours."""

_WATCHDOG = "LLMWatchdog"

_FIRST_ERROR = "LLMNewServerErrors"


def unit_tests(rulebook: Rulebook) -> dict[str, Any]:
    """The test file of a rule file, as promtool reads it."""
    writer = _Tests(rulebook)
    return {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": writer.at(1),
        # recordings before what reads them; promtool's own order is none
        "group_eval_order": [group["name"] for group in rulebook.groups],
        "tests": list(writer.all()),
    }


@dataclass(frozen=True, slots=True)
class _Tests:
    book: Rulebook

    def all(self) -> Iterator[dict[str, Any]]:
        yield self._silent(
            "busy traffic with a few errors", _both(Phase(120, _busy())), _FIRST_ERROR
        )
        yield self._silent("no traffic", _both(Phase(90, IDLE)))
        yield self._silent("one failed request at night", _both(*_one_failure()), _FIRST_ERROR)
        yield self._silent("counter resets", _resets(), _FIRST_ERROR)
        yield self._silent("a rolling restart", _rolling(HEALTHY, HEALTHY))
        if self._named(BUCKET_ALERT):
            yield self._deploy()
        models = sorted({one.objective.model or MODEL for one in self.book.indicators})
        for model in models:
            yield self._outage(model)
            yield self._outage_texts(model)
        if self.book.indicators:
            yield self._everyone_dies(models[0])
        for rule in self.book.alerts:
            if rule.spec is not None:
                yield self._fires(rule)

    # -- times and checks ----------------------------------------------------------------------------

    def at(self, minute: float) -> str:
        """A time of the test; minutes are as scaled as the windows."""
        return self.book.names.clock.text(minute * 60)

    def _test(
        self,
        name: str,
        phases: Mapping[str, Sequence[Phase]],
        checks: list[dict[str, Any]],
        *,
        alerts: list[dict[str, Any]] | None = None,
        model: str = MODEL,
        series: Mapping[str, str] | None = None,
        with_objectives: bool = True,
    ) -> dict[str, Any]:
        indicators = self.book.indicators if with_objectives else ()
        fleet = series_of(phases, self.book.names, indicators, model)
        more = [{"series": key, "values": values} for key, values in (series or {}).items()]
        return {
            "name": name,
            "interval": self.at(1),
            "input_series": [*fleet, *more],
            **({"alert_rule_test": alerts} if alerts else {}),
            "promql_expr_test": checks,
        }

    def _check(self, minute: int, expr: str, value: float | None) -> dict[str, Any]:
        samples = [] if value is None else [{"labels": "{}", "value": value}]
        return {"expr": expr, "eval_time": self.at(minute), "exp_samples": samples}

    def _is_firing(self, minute: int, value: int, **labels: str) -> dict[str, Any]:
        expr = f'count(ALERTS{{alertstate="firing",{labels_text(labels)}}}) or vector(0)'
        return self._check(minute, expr, value)

    def _has_fired(self, minutes: int, *but: str) -> str:
        """What has fired at any minute until now, the watchdog and some others aside."""
        others = "|".join((_WATCHDOG, *but))
        return (
            "count by (alertname, objective, window) (count_over_time("
            f'ALERTS{{alertstate="firing", alertname!~"{others}"}}[{self.at(minutes)}]))'
        )

    def _silent(
        self, name: str, phases: Mapping[str, Sequence[Phase]], *may_fire: str
    ) -> dict[str, Any]:
        end = sum(phase.minutes for phase in phases[REPLICAS[0]]) - 1
        checks = [self._check(end, self._has_fired(end, *may_fire), None)]
        return self._test(f"silent: {name}", phases, checks)

    def _named(self, alert: str) -> list[AlertRule]:
        return [rule for rule in self.book.alerts if rule.alert == alert]

    # -- what must not page, and what must -----------------------------------------------------------

    def _deploy(self) -> dict[str, Any]:
        """Replicas without the bound are told, and count neither as good nor as bad."""
        phases = _rolling(HEALTHY.changed({"has_bound": 0}), HEALTHY)
        missing = len(self._named(BUCKET_ALERT)) * len(REPLICAS)
        end = sum(phase.minutes for phase in phases[REPLICAS[0]]) - 1
        checks = [
            self._is_firing(_ONSET - 5, missing, alertname=BUCKET_ALERT),
            self._is_firing(end, 0, alertname=BUCKET_ALERT),
        ]
        checks.append(self._check(end, self._has_fired(end, BUCKET_ALERT), None))
        return self._test("a deploy that adds a bucket: told, and no false page", phases, checks)

    def _outage(self, model: str) -> dict[str, Any]:
        """Every row of every objective fires when the arithmetic says so."""
        checks = []
        for rule in self._of_model(model):
            assert rule.indicator is not None
            objective = rule.indicator.objective
            if rule.row is not None:
                seconds = time_to_fire(rule.row, objective.target, 1.0, history_s=_ONSET * 60)
                key = {"alertname": BURN_ALERT, "window": rule.labels["window"]}
            else:
                seconds = time_to_floor(objective.target, 1.0)
                key = {"alertname": FLOOR_ALERT}
            assert seconds is not None
            # not much before, and by a scrape and two evaluations after; rate() extrapolates counters
            # as young as these, which is some percent of the time
            before = _ONSET + math.floor(seconds / 60 * 0.95) - 2
            after = _ONSET + math.ceil(seconds / 60) + 2
            for minute, value in ((before, 0), (after, 1)):
                checks.append(self._is_firing(minute, value, objective=objective.name, **key))
        bad = HEALTHY.changed({"bad_share": 1.0})
        phases = _both(Phase(_ONSET, HEALTHY), Phase(_OUTAGE, bad))
        return self._test("everything fails: when each row fires", phases, checks, model=model)

    def _outage_texts(self, model: str) -> dict[str, Any]:
        """The labels and texts of a total outage, where every ratio is 100 %."""
        phases = _both(Phase(_OUTAGE, HEALTHY.changed({"bad_share": 1.0})))
        rules = self._of_model(model)
        alerts = []
        for name in dict.fromkeys(rule.alert for rule in rules):
            expected = [
                self._expected(r, {"model": model}, "100%") for r in rules if r.alert == name
            ]
            alerts.append(
                {"eval_time": self.at(_OUTAGE - 5), "alertname": name, "exp_alerts": expected}
            )
        return self._test(
            "everything fails: what the alerts say", phases, [], alerts=alerts, model=model
        )

    def _of_model(self, model: str) -> list[AlertRule]:
        return [
            rule
            for rule in (*self._named(BURN_ALERT), *self._named(FLOOR_ALERT))
            if rule.indicator is not None and (rule.indicator.objective.model or model) == model
        ]

    def _everyone_dies(self, model: str) -> dict[str, Any]:
        """Errors, then silence: the burn alerts resolve, somebody stays paged."""
        failing, dead = 45, 120
        phases = _both(
            Phase(_ONSET, HEALTHY),
            Phase(failing, HEALTHY.changed({"bad_share": 1.0})),
            Phase(dead, HEALTHY.changed({"up": 0})),
        )
        death, end = _ONSET + failing, _ONSET + failing + dead - 1
        paged = 'count(ALERTS{alertstate="firing", notify="page"}) > bool 0 or vector(0)'
        pages = [rule for rule in self._of_model(model) if rule.labels["notify"] == "page"]
        checks = [self._is_firing(end, 1, alertname="LLMModelVanished")]
        first = death - 1 if pages else death + 3
        minutes = sorted({*range(first, death + 15), *range(death + 15, end, 5), end})
        checks += [self._check(minute, paged, 1) for minute in minutes if minute >= first]
        checks.append(self._is_firing(end, 0, alertname=BURN_ALERT, notify="page"))
        return self._test("every replica dies: the page stays", phases, checks, model=model)

    # -- alerts that are data ------------------------------------------------------------------------

    def _fires(self, rule: AlertRule) -> dict[str, Any]:
        spec = rule.spec
        assert spec is not None
        test = spec.test
        onset, after = (int(parse_duration(text) / 60) for text in (test.history, test.after))
        course = [Phase(onset, HEALTHY), Phase(after + 1, HEALTHY.changed(test.becomes))]
        calm = [Phase(onset + after + 1, HEALTHY)]
        alone = spec.per in ("engine", "replica")
        phases = {REPLICAS[0]: course, REPLICAS[1]: calm if alone else course}
        labels = {**self._own_labels(spec), **test.labels}
        checks = []
        if rule.alert != _WATCHDOG:
            checks.append(self._is_firing(onset - 1, 0, alertname=rule.alert))
            if after >= 2:
                checks.append(self._is_firing(onset + after - 2, 0, alertname=rule.alert))
        # all of what it is about: a cause without its model would mute nothing
        checks.append(self._is_firing(onset + after, 1, alertname=rule.alert, **labels))
        alerts = []
        if test.value is not None:
            expected = self._expected(rule, labels, test.value)
            alerts.append(
                {
                    "eval_time": self.at(onset + after),
                    "alertname": rule.alert,
                    "exp_alerts": [expected],
                }
            )
        name = f"{rule.alert}: fires after {test.after}"
        return self._test(
            name, phases, checks, alerts=alerts, series=test.series, with_objectives=False
        )

    def _own_labels(self, spec: AlertSpec) -> dict[str, str]:
        """The labels that an alert has of what it is about; a cause names the model that it mutes."""
        target = REPLICAS[0]
        is_vllm = self.book.names.source == "vllm"
        found: dict[str, str] = {}
        if spec.per in ("engine", "replica"):
            found |= {"target": target}
            found |= {"job": "vllm", "instance": target} if is_vllm else {}
        if spec.per in ("engine", "model") or spec.role == "cause":
            found |= {"model": MODEL}
            found |= {"model_name": MODEL} if is_vllm else {}
        if spec.per == "engine":
            found |= {"engine": "0"}
        return found

    def _expected(self, rule: AlertRule, labels: Mapping[str, str], value: str) -> dict[str, Any]:
        """An alert as Alertmanager gets it."""
        merged = {**labels, **rule.labels}
        annotations = {
            name: _filled(text, merged, value) for name, text in rule.annotations.items()
        }
        return {"exp_labels": merged, "exp_annotations": annotations}


def _filled(text: str, labels: Mapping[str, str], value: str) -> str:
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda match: labels.get(match[1], ""), text)
    return re.sub(r"\{\{ \$value(?: \| \w+)? \}\}", lambda _: value, text)


def _busy() -> State:
    """Full batches, a short queue, an error in two thousand."""
    return HEALTHY.changed(
        {"requests": 600, "bad_share": 0.0005, "requests_running": 200, "requests_waiting": 3}
    )


def _both(*course: Phase) -> dict[str, Sequence[Phase]]:
    return {replica: course for replica in REPLICAS}


def _one_failure() -> tuple[Phase, ...]:
    """Three requests an hour, then one more, which fails: a share of bad events that would page."""
    night = HEALTHY.changed({"requests": 0.05, "requests_running": 0, "steps": 3})
    return (
        Phase(60, night),
        Phase(1, night.changed({"requests": 1, "bad_share": 1.0})),
        Phase(90, night),
    )


def _resets() -> dict[str, Sequence[Phase]]:
    """Processes and sidecar start anew between two scrapes; nobody is down."""
    course = (
        Phase(_ONSET, _busy()),
        Phase(30, _busy(), is_new=True, is_sidecar_new=True),
        Phase(30, _busy(), is_new=True, is_sidecar_new=True),
    )
    return _both(*course)


def _rolling(before: State, after: State) -> dict[str, Sequence[Phase]]:
    """One replica after the other is away for three minutes."""
    down = after.changed({"up": 0})
    return {
        REPLICAS[0]: (
            Phase(_ONSET, before),
            Phase(3, down),
            Phase(47, after, is_new=True),
        ),
        REPLICAS[1]: (
            Phase(_ONSET + 10, before),
            Phase(3, down),
            Phase(37, after, is_new=True),
        ),
    }
