"""
A drill: a page that says so goes the whole way, from the rules to a subscriber, and each link is shown.

A rule cannot be made to fire without an incident, so the way has two halves that meet in Alertmanager:
the watchdog, which always fires, proves that what Prometheus evaluates arrives there; an alert of the
drill's own proves that what is there arrives at the topic's subscribers.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from vllm_opsctl.alarms.alerts import SEVERITIES
from vllm_opsctl.alarms.pager_api import AlertmanagerApi, LoadedRule, Notified, PrometheusApi
from vllm_opsctl.alarms.prometheus.conventions import DRILL_ALERT, WATCHDOG_ALERT
from vllm_opsctl.alarms.rules import Rulebook
from vllm_opsctl.alarms.sns_topic import Listener, Notification, Topic
from vllm_opsctl.exporter.identity import SERVICE, Identity
from vllm_opsctl.exporter.units import format_duration

Way = Literal["page", "ticket"]
State = Literal["ok", "failed", "note"]

_NOTHING_IS_WRONG = "drill-nothing-is-wrong"
"""The drill's objective: subjects show it."""

_ENDS_BY_ITSELF_S = 600.0
"""An alert that nobody could take back resolves after so long."""

_SEEN_S = 10.0
"""Alertmanager shows an alert that it took within this."""

_STEP_S = 0.2


@dataclass(frozen=True, slots=True)
class Step:
    """
    One link of the chain.

    Args:
        link: Which.
        state: ``ok``, ``failed``, or a ``note`` on what works but not as one may think.
        text: What was seen; of a failure also what to do.
        seconds: Of the delivery: from Alertmanager's taking the drill to its arrival.
    """

    link: str
    state: State
    text: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """
    One drill.

    Args:
        way: What is drilled.
        identity: Labels of the service's alerts.
        rulebook: The rules that should be loaded.
        alertmanager: Takes the drill.
        prometheus: Evaluates the rules; None when it is not asked.
        receiver: Integration behind the way: ``sns`` or ``webhook``.
        topic: The way's topic; None for a webhook.
        listen: Subscribe a queue for a while, to see the drill arrive.
        timeout_s: How long the delivery may take.
    """

    way: Way
    identity: Identity
    rulebook: Rulebook
    alertmanager: AlertmanagerApi
    prometheus: PrometheusApi | None
    receiver: str
    topic: Topic | None
    listen: bool
    timeout_s: float

    def run(self) -> Iterator[Step]:
        """
        Go the whole way; each link is told when it is known.

        Raises:
            SourceError: Prometheus or Alertmanager does not answer.
            AwsError: AWS refuses what the drill needs.
        """
        if self.prometheus is not None:
            yield from self._rules(self.prometheus)
        version, configured = self.alertmanager.status()
        yield from self._watchdog()
        if self.topic is not None:
            yield from self._receivers(self.topic, configured)
        yield from self._deliver(version)
        for text in self.topic.left_behind if self.topic is not None else ():
            yield Step("clean-up", "failed", f"{text}; remove it by hand")

    # -- Prometheus --------------------------------------------------------------------------------

    def _rules(self, prometheus: PrometheusApi) -> Iterator[Step]:
        loaded = prometheus.alerting_rules()
        missing = self._missing(loaded)
        total = len(self.rulebook.alerts)
        names = {rule.alert for rule in self.rulebook.alerts}
        troubled = [rule for rule in loaded if rule.alert in names and rule.trouble is not None]
        if missing:
            yield Step(
                "rules",
                "failed",
                f"{len(missing)} of {total} alerts are not loaded by {prometheus.url}: "
                f"{', '.join(sorted(set(missing)))}; put rules.yaml of opsctl alarms build into its "
                "rule_files, and reload it",
            )
        elif troubled:
            first = troubled[0]
            yield Step(
                "rules",
                "failed",
                f"{len(troubled)} alerts fail to evaluate, {first.alert} for one: {first.trouble}",
            )
        else:
            yield Step("rules", "ok", f"{prometheus.url} evaluates all {total} alerts")
        yield from self._twice(loaded)
        scales = sorted({rule.labels["scale"] for rule in loaded if "scale" in rule.labels})
        if scales:
            yield Step(
                "rules",
                "note",
                f"rules for tests are loaded: every window is scaled by {', '.join(scales)}",
            )
        receivers = prometheus.alertmanagers()
        if receivers:
            yield Step("alerting", "ok", f"it sends alerts to {', '.join(receivers)}")
        else:
            yield Step(
                "alerting",
                "failed",
                "it sends alerts to nobody: name the Alertmanager under alerting.alertmanagers",
            )

    def _missing(self, loaded: list[LoadedRule]) -> list[str]:
        """Names of our alerts that are not there, once for each rule."""
        there = [(rule.alert, _identity(rule.labels)) for rule in loaded]
        found = []
        for rule in self.rulebook.alerts:
            key = rule.alert, _identity(rule.labels)
            if key in there:
                there.remove(key)
            else:
                found.append(rule.alert)
        return found

    def _twice(self, loaded: list[LoadedRule]) -> Iterator[Step]:
        """Alerts of the service that stand in more groups than one, as after an upgrade."""
        groups: dict[tuple[str, frozenset[tuple[str, str]]], set[str]] = {}
        names = {rule.alert for rule in self.rulebook.alerts}
        wanted = self.identity.labels()
        for rule in loaded:
            own = {name: text for name, text in rule.labels.items() if name in wanted}
            # rules of 0.1 lack the free labels
            if rule.alert in names and SERVICE in own and own.items() <= wanted.items():
                others = {k: v for k, v in rule.labels.items() if k not in (*wanted, "scale")}
                key = rule.alert, frozenset(others.items())
                groups.setdefault(key, set()).add(rule.group)
        double = [found for found in groups.values() if len(found) > 1]
        if double:
            where = ", ".join(sorted({name for found in double for name in found}))
            yield Step(
                "rules",
                "failed",
                f"{len(double)} alerts of {self.identity} are loaded twice, in the groups {where}: each "
                "pages twice. Remove the older rule file or PrometheusRule",
            )

    def _watchdog(self) -> Iterator[Step]:
        if self.alertmanager.held(alertname=WATCHDOG_ALERT, **self.identity.labels()):
            yield Step(
                "watchdog",
                "ok",
                f"{WATCHDOG_ALERT} of {self.identity}, which always fires, has reached "
                f"{self.alertmanager.url}",
            )
        else:
            yield Step(
                "watchdog",
                "failed",
                f"{WATCHDOG_ALERT} of {self.identity} always fires, and {self.alertmanager.url} does not "
                "have it: no alert of these rules gets there. Are the rules loaded, and does Prometheus "
                "name this Alertmanager?",
            )

    # -- the topic ---------------------------------------------------------------------------------

    def _receivers(self, topic: Topic, configured: str) -> Iterator[Step]:
        if topic.arn not in configured:
            yield Step(
                "receiver",
                "failed",
                f"{self.alertmanager.url} does not know {topic.arn}: load alertmanager.yaml of opsctl "
                "alarms build",
            )
        yield from subscribers(topic)

    # -- the delivery ------------------------------------------------------------------------------

    def _deliver(self, version: str) -> Iterator[Step]:
        drill = secrets.token_hex(4)
        labels = {
            "alertname": DRILL_ALERT,
            "severity": SEVERITIES[self.way],
            "notify": self.way,
            "role": "drill",
            **self.identity.labels(),
            "model": f"drill-{drill}",
            "objective": _NOTHING_IS_WRONG,
        }
        with ExitStack() as cleanup:
            listener: Listener | None = None
            if self.topic is not None and self.listen:
                listener = cleanup.enter_context(
                    self.topic.listener(f"opsctl-drill-{drill}", {"model": labels["model"]})
                )
            before = self.alertmanager.notified(self.receiver)
            began = time.monotonic()
            self.alertmanager.post(self._alert(labels, drill, timedelta(seconds=_ENDS_BY_ITSELF_S)))
            cleanup.callback(
                lambda: self.alertmanager.post(self._alert(labels, drill, timedelta(0)))
            )
            yield from self._taken(labels, version)
            yield from self._arrival(listener, before, drill, began)

    def _alert(
        self, labels: Mapping[str, str], drill: str, ends_in: timedelta
    ) -> dict[str, object]:
        now = datetime.now(UTC)
        return {
            "labels": dict(labels),
            "annotations": {
                "summary": f"DRILL {drill}: nothing is wrong.",
                "description": "Somebody checks with opsctl alarms test that this way of alarms works. "
                "Nothing needs to be done.",
                "command": self.rulebook.links.command("none"),
            },
            "startsAt": now.isoformat(),
            "endsAt": (now + ends_in).isoformat(),
        }

    def _taken(self, labels: Mapping[str, str], version: str) -> Iterator[Step]:
        deadline = time.monotonic() + _SEEN_S
        while not (held := self.alertmanager.held(model=labels["model"])):
            if time.monotonic() > deadline:
                text = f"{self.alertmanager.url} took the drill and does not show it"
                yield Step("Alertmanager", "failed", text)
                return
            time.sleep(_STEP_S)
        (alert,) = held
        yield Step(
            "Alertmanager",
            "ok",
            f"{version} at {self.alertmanager.url} took the drill for {', '.join(alert.receivers)}",
        )
        if self.way not in alert.receivers:
            yield Step(
                "route",
                "failed",
                f"what is labelled notify={self.way} goes to {', '.join(alert.receivers)}, not to the "
                f"receiver {self.way}",
            )
        if alert.silences:
            yield Step(
                "route",
                "failed",
                f"a silence mutes it, and so real ones too: amtool silence expire {alert.silences[0]}",
            )
        if alert.inhibited:
            yield Step(
                "route", "failed", "another alert mutes it by an inhibition that is not ours"
            )

    def _arrival(
        self, listener: Listener | None, before: Notified, drill: str, began: float
    ) -> Iterator[Step]:
        deadline = began + self.timeout_s
        while time.monotonic() < deadline:
            now = self.alertmanager.notified(self.receiver)
            if now.failed > before.failed:
                yield Step(
                    "delivery",
                    "failed",
                    f"Alertmanager failed to notify {self.receiver} since the drill began; its log says "
                    "why (level=error component=dispatcher)",
                )
                return
            if listener is not None:
                if (found := arrived(listener, drill)) is not None:
                    seconds = time.monotonic() - began
                    text = f"a subscriber received it after {format_duration(seconds)}"
                    yield Step("delivery", "ok", f'{text}: "{found.subject}"', seconds)
                    return
            elif now.sent > before.sent:
                seconds = time.monotonic() - began
                yield Step(
                    "delivery",
                    "ok",
                    f"Alertmanager has notified {self.receiver} after {format_duration(seconds)}; whether "
                    "anybody got it was not looked at",
                    seconds,
                )
                return
            else:
                time.sleep(_STEP_S)
        yield Step(
            "delivery",
            "failed",
            f"nothing arrived within {format_duration(self.timeout_s)}; Alertmanager waits for group_wait "
            "first, so give it more with --timeout, or read its log",
        )


def _identity(labels: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    """What tells a rule from others; rules for tests are the same rules."""
    return frozenset((name, text) for name, text in labels.items() if name != "scale")


def subscribers(topic: Topic) -> Iterator[Step]:
    """
    Who hears of a topic.

    Raises:
        AwsError: Not allowed, or no such topic.
    """
    everybody = topic.subscriptions()
    hear = [one for one in everybody if one.confirmed]
    pending = [one for one in everybody if not one.confirmed]
    if hear:
        kinds = ", ".join(sorted({one.protocol for one in hear}))
        yield Step("subscribers", "ok", f"{topic.name} has {len(hear)} ({kinds})")
    else:
        yield Step(
            "subscribers",
            "failed",
            f"nobody hears of {topic.name}: it has no confirmed subscription; aws sns subscribe "
            f"--topic-arn {topic.arn} --protocol … --notification-endpoint …",
        )
    for one in pending:
        yield Step(
            "subscribers",
            "note",
            f"{one.protocol} {one.endpoint} has not confirmed yet, and hears nothing",
        )


def arrived(listener: Listener, drill: str) -> Notification | None:
    """
    The notification of a drill, if it has come; waits a moment for it.

    Raises:
        AwsError: Not allowed.
    """
    for one in listener.receive():
        if f"DRILL {drill}" in one.message:
            return one
    return None
