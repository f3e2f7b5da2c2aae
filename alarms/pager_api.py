"""What a running Prometheus and a running Alertmanager tell about the way of a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from prometheus_client.parser import text_string_to_metric_families

from vllm_opsctl.alarms.ask import ask, ask_json, not_a
from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.series import labels_text

_API = "/api/v2"


@dataclass(frozen=True, slots=True)
class LoadedRule:
    """
    An alerting rule that a Prometheus evaluates.

    Args:
        alert: Its name.
        labels: Those that the rule adds.
        group: The group that it is in.
        trouble: Why its last evaluation failed; None when it did not.
    """

    alert: str
    labels: Mapping[str, str]
    group: str
    trouble: str | None


@dataclass(frozen=True, slots=True)
class PrometheusApi:
    """
    A Prometheus.

    Args:
        url: Base URL.
    """

    url: str

    def alerting_rules(self) -> list[LoadedRule]:
        """
        Every alerting rule that is loaded.

        Raises:
            SourceError: It does not answer, or is none.
        """
        data = self._ask("/api/v1/rules?type=alert")
        try:
            return [
                LoadedRule(
                    rule["name"],
                    rule.get("labels", {}),
                    str(group["name"]),
                    rule.get("lastError", "unknown") if rule.get("health") == "err" else None,
                )
                for group in data["data"]["groups"]
                for rule in group["rules"]
            ]
        except (KeyError, TypeError, AttributeError):
            raise not_a("Prometheus", self.url, 200) from None

    def alertmanagers(self) -> list[str]:
        """
        URLs of the Alertmanagers that it sends alerts to.

        Raises:
            SourceError: It does not answer, or is none.
        """
        data = self._ask("/api/v1/alertmanagers")
        try:
            return [str(one["url"]) for one in data["data"]["activeAlertmanagers"]]
        except (KeyError, TypeError):
            raise not_a("Prometheus", self.url, 200) from None

    def _ask(self, path: str) -> Any:
        return ask_json(self.url, path, option="--prometheus", what="Prometheus")


@dataclass(frozen=True, slots=True)
class HeldAlert:
    """
    An alert as an Alertmanager holds it.

    Args:
        receivers: Who it is routed to.
        silences: Ids of the silences that mute it.
        inhibited: Another alert mutes it.
    """

    receivers: tuple[str, ...]
    silences: tuple[str, ...]
    inhibited: bool


@dataclass(frozen=True, slots=True)
class Notified:
    """
    How often an Alertmanager has notified one kind of receiver since it started.

    Args:
        sent: Attempts.
        failed: Those that failed.
    """

    sent: float
    failed: float


@dataclass(frozen=True, slots=True)
class AlertmanagerApi:
    """
    An Alertmanager.

    Args:
        url: Base URL.
    """

    url: str

    def status(self) -> tuple[str, str]:
        """
        Its version and its configuration as YAML, secrets masked.

        Raises:
            SourceError: It does not answer, or is none.
        """
        data = self._ask(f"{_API}/status")
        try:
            return str(data["versionInfo"]["version"]), str(data["config"]["original"])
        except (KeyError, TypeError):
            raise not_a("Alertmanager", self.url, 200) from None

    def post(self, alert: Mapping[str, object]) -> None:
        """
        Give it an alert, as a Prometheus does.

        Raises:
            SourceError: It does not take it.
        """
        answer = ask(self.url, f"{_API}/alerts", option="--alertmanager", body=[alert])
        if answer.status != 200:
            text = plain(answer.body[:200].decode(errors="replace").strip())
            raise BadPage("refused", f"{self.url}: HTTP {answer.status} to an alert: {text}")

    def held(self, **labels: str) -> list[HeldAlert]:
        """
        The alerts with these labels that it holds now.

        Raises:
            SourceError: It does not answer, or is none.
        """
        matchers = [labels_text({name: text}) for name, text in labels.items()]
        filters = "&".join(f"filter={quote(matcher)}" for matcher in matchers)
        data = self._ask(f"{_API}/alerts?{filters}")
        try:
            return [
                HeldAlert(
                    tuple(receiver["name"] for receiver in one["receivers"]),
                    tuple(one["status"]["silencedBy"]),
                    bool(one["status"]["inhibitedBy"]),
                )
                for one in data
            ]
        except (KeyError, TypeError):
            raise not_a("Alertmanager", self.url, 200) from None

    def notified(self, integration: str) -> Notified:
        """
        Its own counters.

        Args:
            integration: ``sns`` or ``webhook``.

        Raises:
            SourceError: It does not answer, or is none.
        """
        answer = ask(self.url, "/metrics", option="--alertmanager")
        counts = {"alertmanager_notifications": 0.0, "alertmanager_notifications_failed": 0.0}
        try:
            for family in text_string_to_metric_families(answer.body.decode()):
                if family.name in counts:
                    counts[family.name] += sum(
                        sample.value
                        for sample in family.samples
                        if sample.labels.get("integration") == integration
                    )
        except (ValueError, UnicodeDecodeError):
            raise not_a("Alertmanager", self.url, answer.status) from None
        return Notified(*counts.values())

    def _ask(self, path: str) -> Any:
        return ask_json(self.url, path, option="--alertmanager", what="Alertmanager")
