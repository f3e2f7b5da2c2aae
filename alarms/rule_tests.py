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
from vllm_opsctl.alarms.fleet import HEALTHY, IDLE, REPLICAS, Phase, State, series_of
from vllm_opsctl.alarms.made_up import Service
from vllm_opsctl.alarms.prometheus.conventions import (
    BUCKET_ALERT,
    BURN_ALERT,
    EVERY_SERVICE,
    FIRST_ERROR_ALERT,
    FLOOR_ALERT,
    VANISHED_ALERT,
    WATCHDOG_ALERT,
)
from vllm_opsctl.alarms.rules import Rulebook
from vllm_opsctl.alarms.sli import Indicator
from vllm_opsctl.exporter.series import labels_text, quoted
from vllm_opsctl.exporter.units import parse_duration

_ONSET = 30
"""Minutes of healthy traffic before something happens."""

_DEAD = 15
"""Minutes without any replica, when one of two services is gone."""

_OUTAGE = 195
"""Minutes of an outage: the slowest row holds for three hours."""


RULES = "rules.yaml"
SECOND_RULES = "rules_test.second-service"
"""The rules of a second service, for the unit tests alone; its name keeps it out of rule_files' patterns."""


def unit_tests(own: Service, second: Service | None) -> dict[str, Any]:
    """
    The test file of a rule file, as promtool reads it.

    Args:
        own: The service of the rules.
        second: Another one beside it, whose rules are loaded too; None where nothing tells the two apart.
    """
    writer = _Tests(own, second)
    services = (own,) if second is None else (own, second)
    return {
        "rule_files": [RULES, SECOND_RULES][: len(services)],
        "evaluation_interval": writer.at(1),
        # recordings before what reads them; promtool's own order is none
        "group_eval_order": [group["name"] for one in services for group in one.book.groups],
        "tests": list(writer.all()),
    }


@dataclass(frozen=True, slots=True)
class _Tests:
    own: Service
    second: Service | None

    @property
    def book(self) -> Rulebook:
        return self.own.book

    def all(self) -> Iterator[dict[str, Any]]:
        yield self._silent(
            "busy traffic with a few errors", _both(Phase(120, _busy())), FIRST_ERROR_ALERT
        )
        yield self._silent("no traffic", _both(Phase(90, IDLE)))
        yield self._silent("one failed request at night", _both(*_one_failure()), FIRST_ERROR_ALERT)
        yield self._silent("counter resets", _resets(), FIRST_ERROR_ALERT)
        yield self._silent("a rolling restart", _rolling(HEALTHY, HEALTHY))
        if self._named(BUCKET_ALERT):
            yield self._deploy()
        models = sorted({one.objective.model or self.own.model for one in self.book.indicators})
        for model in models:
            yield self._outage(model)
            yield self._outage_texts(model)
        if self.book.indicators:
            yield self._everyone_dies(models[0])
        if self.second is not None and self.book.indicators:
            yield from self._one_of_two(self.second)
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
        model: str | None = None,
        series: Mapping[str, str] | None = None,
        with_objectives: bool = True,
        beside: Mapping[str, Sequence[Phase]] | None = None,
    ) -> dict[str, Any]:
        indicators = self.book.indicators if with_objectives else ()
        fleet = self._fleet(self.own, phases, indicators, model)
        if beside is not None and self.second is not None:
            fleet += self._fleet(self.second, beside, self.second.book.indicators, model)
        more = [
            {"series": key.replace("${group}", self._group), "values": values}
            for key, values in (series or {}).items()
        ]
        return {
            "name": name,
            "interval": self.at(1),
            "input_series": [*fleet, *more],
            **({"alert_rule_test": alerts} if alerts else {}),
            "promql_expr_test": checks,
        }

    @staticmethod
    def _fleet(
        service: Service,
        phases: Mapping[str, Sequence[Phase]],
        indicators: Sequence[Indicator],
        model: str | None,
    ) -> list[dict[str, str]]:
        names = service.book.names
        return series_of(phases, names, indicators, model or service.model, service.labels)

    @property
    def _group(self) -> str:
        """One of the service's rule groups."""
        return self.book.names.scope.group("slo-short")

    def _check(self, minute: int, expr: str, value: float | None) -> dict[str, Any]:
        samples = [] if value is None else [{"labels": "{}", "value": value}]
        return {"expr": expr, "eval_time": self.at(minute), "exp_samples": samples}

    def _is_firing(self, minute: int, value: int, **labels: str) -> dict[str, Any]:
        return self._check(minute, f"count({self._alerts(labels)}) or vector(0)", value)

    def _alerts(
        self, labels: Mapping[str, str], service: Service | None = None, more: str = ""
    ) -> str:
        """The alerts of a service that are firing."""
        scope = (service or self.own).book.names.scope
        return scope.alerts(",".join(filter(None, (labels_text(labels), more))))

    def _has_fired(self, minutes: int, *but: str) -> str:
        """What has fired at any minute until now, the watchdog and some others aside."""
        others = "|".join((WATCHDOG_ALERT, *but))
        return (
            "count by (alertname, objective, window) (count_over_time("
            f"{EVERY_SERVICE.alerts(f'alertname!~{quoted(others)}')}[{self.at(minutes)}]))"
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
        paged = f"count({self._alerts({'notify': 'page'})}) > bool 0 or vector(0)"
        pages = [rule for rule in self._of_model(model) if rule.labels["notify"] == "page"]
        checks = [self._is_firing(end, 1, alertname=VANISHED_ALERT)]
        first = death - 1 if pages else death + 3
        minutes = sorted({*range(first, death + 15), *range(death + 15, end, 5), end})
        checks += [self._check(minute, paged, 1) for minute in minutes if minute >= first]
        checks.append(self._is_firing(end, 0, alertname=BURN_ALERT, notify="page"))
        return self._test("every replica dies: the page stays", phases, checks, model=model)

    def _one_of_two(self, second: Service) -> Iterator[dict[str, Any]]:
        """Of two services in one Prometheus the one that fails pages, and it alone."""
        model = second.book.indicators[0].objective.model or self.own.model
        first_page = [_first_page(one, model) for one in (self.own, second)]
        failing = max((math.ceil(s / 60) for s in first_page if s is not None), default=10) + 3
        end = _ONSET + failing + _DEAD - 1
        healthy = _both(Phase(end + 1, HEALTHY))
        broken = _both(
            Phase(_ONSET, HEALTHY),
            Phase(failing, HEALTHY.changed({"bad_share": 1.0})),
            Phase(_DEAD, HEALTHY.changed({"up": 0})),
        )
        for name, phases, beside, hurt, other in (
            ("this one", broken, healthy, self.own, second),
            ("the other", healthy, broken, second, self.own),
        ):
            quiet = self._alerts({}, other, f'alertname!="{WATCHDOG_ALERT}"')
            vanished = self._alerts({"alertname": VANISHED_ALERT}, hurt)
            checks = [
                self._check(end, f"count({vanished})", 1),
                self._check(end, f"count(count_over_time({quiet}[{self.at(end)}]))", None),
            ]
            if _first_page(hurt, model) is not None:
                page = self._alerts({"notify": "page", "role": "symptom"}, hurt)
                checks.append(self._check(_ONSET + failing - 1, f"count({page}) > bool 0", 1))
            yield self._test(
                f"two services: {name} fails and pages alone",
                phases,
                checks,
                beside=beside,
                model=model,
            )

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
        if rule.alert != WATCHDOG_ALERT:
            checks.append(self._is_firing(onset - 1, 0, alertname=rule.alert))
            if after >= 2:
                checks.append(self._is_firing(onset + after - 2, 0, alertname=rule.alert))
        # all of what it is about: a cause without its model would mute nothing
        checks.append(self._is_firing(onset + after, 1, alertname=rule.alert, **labels))
        alerts = []
        # what alarms.match demands is a label of some expressions, and aggregated away in others
        has_more = self.book.names.source == "vllm" and spec.per != "none" and self.own.labels
        if test.value is not None and not has_more:
            rules = [rule, *self._same_of_second(rule)]
            alerts.append(
                {
                    "eval_time": self.at(onset + after),
                    "alertname": rule.alert,
                    "exp_alerts": [self._expected(one, labels, test.value) for one in rules],
                }
            )
        name = f"{rule.alert}: fires after {test.after}"
        return self._test(
            name, phases, checks, alerts=alerts, series=test.series, with_objectives=False
        )

    def _same_of_second(self, rule: AlertRule) -> Iterator[AlertRule]:
        """The second service's rule where it asks the same: what both share is about both."""
        for other in self.second.book.alerts if self.second is not None else ():
            if (other.alert, other.expr) == (rule.alert, rule.expr):
                yield other

    def _own_labels(self, spec: AlertSpec) -> dict[str, str]:
        """The labels that an alert has of what it is about; a cause names the model that it mutes."""
        target = REPLICAS[0]
        is_vllm = self.book.names.source == "vllm"
        found: dict[str, str] = {}
        if spec.per in ("engine", "replica"):
            found |= {"target": target}
            found |= {"job": "vllm", "instance": target} if is_vllm else {}
        if spec.per in ("engine", "model") or spec.role == "cause":
            found |= {"model": self.own.model}
            found |= {"model_name": self.own.model} if is_vllm else {}
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


def _first_page(service: Service, model: str) -> float | None:
    """Seconds until a total outage pages by an objective of a model; None when none pages."""
    times = []
    for rule in service.book.alerts:
        if rule.indicator is None or rule.labels["notify"] != "page":
            continue
        objective = rule.indicator.objective
        if objective.model not in (None, model):
            continue
        if rule.row is not None:
            times.append(time_to_fire(rule.row, objective.target, 1.0, history_s=_ONSET * 60))
        elif rule.alert == FLOOR_ALERT:
            times.append(time_to_floor(objective.target, 1.0))
    return min((seconds for seconds in times if seconds is not None), default=None)


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
