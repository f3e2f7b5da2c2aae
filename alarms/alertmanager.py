"""
Alertmanager's configuration (0.25 and newer): who hears of what, and what is muted by what.

Two things lose a page for good, for SNS refuses them and Alertmanager does not try again: a subject of
100 characters or more, and an empty message attribute. So the subject is cut to 99 ASCII characters
and every attribute has a fallback; failed notifications are told over the webhook.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from vllm_opsctl.alarms.burn import ROWS, Clock, duration_text
from vllm_opsctl.alarms.prometheus.conventions import FLOOR_ALERT, SIDECARS_ALERT, VANISHED_ALERT
from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.config import Alarms
from vllm_opsctl.exporter.identity import Identity

TEMPLATE_FILE = "sns.tmpl"

SUBJECT = (
    "{{ $told := .Alerts }}{{ with .Alerts.Firing }}{{ $told = . }}{{ end }}{{ $first := index $told 0 }}"
    '{{ $state := printf "%s:%d" (.Status | toUpper) (len $told) }}'
    '{{ $text := printf "[%s] %s %s %s" $state $first.Labels.alertname '
    '(or .CommonLabels.objective "-") (or .CommonLabels.model .CommonLabels.target "-") }}'
    '{{ printf "%.99s" ($text | reReplaceAll "[^ -~]" "?") }}'
)
"""Body of the subject's template; also inlined where there are no template files."""

_PLAIN = r'reReplaceAll "[\\pC\\p{Zl}\\p{Zp}]" "?"'
"""
What came from a server's page, such as a model's name, has no line of its own in a message.

Source:
    RE2's syntax: \\pC is control, format, private and surrogate; Zl and Zp are line and paragraph ends.
"""

_ALERT = (
    f"{{{{ .Status | toUpper }}}} {{{{ .Labels.severity }}}}: {{{{ .Annotations.summary | {_PLAIN} }}}}\n"
    "Service: {{ .Labels.service }}FREE_LABELS\n"
    f"{{{{ .Annotations.description | {_PLAIN} }}}}\n"
    f"{{{{ with .Annotations.command }}}}Diagnose: {{{{ . | {_PLAIN} }}}}\n{{{{ end }}}}"
    f"{{{{ with .Annotations.runbook_url }}}}Runbook: {{{{ . | {_PLAIN} }}}}\n{{{{ end }}}}"
    # from an hour before it began: in a rule's own texts no time is known
    "{{ $from := (.StartsAt.Add -3600000000000).UnixMilli }}"
    f"{{{{ with .Annotations.dashboard_url }}}}Board: {{{{ . | {_PLAIN} }}}}"
    "&from={{ $from }}&to=now\n{{ end }}"
    'Since: {{ .StartsAt.UTC.Format "2006-01-02 15:04:05" }} UTC\n\n'
)

_ATTRIBUTES = ("severity", "service", "model", "objective")

_MOST_ATTRIBUTES = 10
"""With raw delivery SNS drops a message that has more (SNS developer guide, message attributes)."""

_GROUP_BY = ("service", "model")
"""One fault burns several objectives of a model, and is one page."""

_BUDGET = (*_GROUP_BY, "objective")

_GROUP_WAIT_S, _GROUP_INTERVAL_S, _REPEAT_S = 30.0, 300.0, 4 * 3600.0
_DEADMAN_S = 60.0

Matchers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Inhibition:
    """
    What is muted while something else fires.

    Args:
        source: Labels of what mutes.
        target: Labels of what is muted.
        equal: Labels that both share.
        because: Why.
    """

    source: Matchers
    target: Matchers
    equal: tuple[str, ...]
    because: str


def _one_page_a_burn() -> Iterator[Inhibition]:
    """A burn that is told already is not told again when it has lasted long enough for a slower row."""
    page = (("role", "symptom"), ("notify", "page"))
    rows = [(*page, ("window", duration_text(row.long_s))) for row in ROWS if row.notify == "page"]
    floor = (*page, ("alertname", FLOOR_ALERT))
    for fast, slow in (*combinations(rows, 2), *((floor, row) for row in rows)):
        yield Inhibition(fast, slow, _BUDGET, "one page is enough for one burn")


INHIBITIONS: tuple[Inhibition, ...] = (
    Inhibition(
        (("role", "cause"), ("notify", "page")),
        (("role", "symptom"),),
        ("service", "model"),
        "a page with the cause is enough",
    ),
    Inhibition(
        (("role", "cause"), ("notify", "ticket")),
        (("role", "symptom"), ("notify", "ticket")),
        ("service", "model"),
        "a ticket with the cause is enough; it never mutes a page",
    ),
    Inhibition(
        (("role", "symptom"), ("notify", "page")),
        (("role", "symptom"), ("notify", "ticket")),
        _BUDGET,
        "whoever is paged needs no ticket for the same budget",
    ),
    Inhibition(
        (("alertname", SIDECARS_ALERT),),
        (("alertname", VANISHED_ALERT),),
        ("service",),
        "without a sidecar all models seem to be gone",
    ),
    *_one_page_a_burn(),
)


@dataclass(frozen=True, slots=True)
class Receiver:
    """
    Who hears: an SNS topic, a webhook, or nobody.

    Args:
        name: As routes call it.
        topic: ARN.
        region: AWS region that signs.
        webhook: URL.
    """

    name: str
    topic: str | None = None
    region: str | None = None
    webhook: str | None = None


@dataclass(frozen=True, slots=True)
class Pager:
    """
    Routes, receivers and what mutes what, in no file's form yet.

    Args:
        receivers: By name.
        api_url: SNS endpoint; None for AWS's own.
        clock: How long the waits really are.
        free_labels: Names of the labels that tell fleets of one service apart.
    """

    receivers: tuple[Receiver, ...]
    api_url: str | None
    clock: Clock
    free_labels: tuple[str, ...] = ()

    @property
    def group_by(self) -> tuple[str, ...]:
        """Labels that the alerts of one notification share."""
        return (*_GROUP_BY, *self.free_labels)

    def equal(self, inhibition: Inhibition) -> tuple[str, ...]:
        """Labels by which an inhibition compares: never another cluster's or environment's."""
        return (*inhibition.equal, *self.free_labels)

    @property
    def attributes(self) -> dict[str, str]:
        """SNS message attributes, for filter policies of subscriptions; "none" where alerts differ."""
        names = (*_ATTRIBUTES, *self.free_labels)[:_MOST_ATTRIBUTES]
        return {name: f'{{{{ or .CommonLabels.{name} "none" }}}}' for name in names}

    @property
    def message(self) -> str:
        """Body of the message's template; SNS takes 256 KB."""
        free = "".join(
            f"{{{{ with .Labels.{name} }}}}, {name} {{{{ . }}}}{{{{ end }}}}"
            for name in self.free_labels
        )
        alert = _ALERT.replace("FREE_LABELS", free)
        return (
            "{{ with .CommonLabels.scale }}TEST RULES: every window is scaled by {{ . }}.\n\n{{ end }}"
            f"{{{{ range .Alerts.Firing }}}}{alert}{{{{ end }}}}"
            f"{{{{ range .Alerts.Resolved }}}}{alert}{{{{ end }}}}"
        )

    def template(self) -> str:
        """The template file: subject and message of an SNS notification."""
        return (
            f'{{{{ define "llm.sns.subject" }}}}{SUBJECT}{{{{ end }}}}\n'
            f'{{{{ define "llm.sns.message" }}}}{self.message}{{{{ end }}}}\n'
        )

    def waits(self) -> tuple[str, str, str]:
        """group_wait, group_interval, repeat_interval."""
        texts = [self.clock.text(s) for s in (_GROUP_WAIT_S, _GROUP_INTERVAL_S, _REPEAT_S)]
        return texts[0], texts[1], texts[2]

    def deadman_interval(self) -> str:
        """How often the dead-man's switch is told."""
        return self.clock.text(_DEADMAN_S)


ROUTES: tuple[tuple[str, str], ...] = (
    ("deadman", "deadman"),
    ("pager", "pager-failures"),
    ("page", "page"),
    ("ticket", "ticket"),
)
"""Label ``notify`` to receiver."""


def pager(alarms: Alarms, clock: Clock, identity: Identity) -> Pager | None:
    """
    Who hears of what.

    Args:
        alarms: Topics and webhooks.
        clock: How long the waits really are.
        identity: Labels of the service's alerts.

    Returns:
        None when no topic pages.

    Raises:
        ConfigError: Tickets have no receiver, or a topic is in another region.
    """
    if alarms.page_topic is None:
        return None
    problems = []
    if alarms.ticket_topic is None and alarms.webhook is None:
        problems.append(
            "alarms.ticket_topic: tickets have no receiver; set it, or alarms.webhook for both "
            "tickets and the pager's own failures"
        )
    for key, topic in (("page_topic", alarms.page_topic), ("ticket_topic", alarms.ticket_topic)):
        if topic is not None and alarms.region not in (None, region_of(topic)):
            problems.append(
                f"alarms.region: {alarms.region} is not the region of alarms.{key}, "
                f"{region_of(topic)}; remove it or change one of them"
            )
    if problems:
        raise ConfigError(problems)
    ticket = Receiver("ticket", webhook=alarms.webhook)
    if alarms.ticket_topic is not None:
        ticket = Receiver("ticket", alarms.ticket_topic, region_of(alarms.ticket_topic))
    receivers = (
        Receiver("page", alarms.page_topic, region_of(alarms.page_topic)),
        ticket,
        Receiver("pager-failures", webhook=alarms.webhook),
        Receiver("deadman", webhook=alarms.deadman_url),
    )
    return Pager(receivers, alarms.api_url, clock, identity.names[1:])


def region_of(arn: str) -> str:
    """
    The region of a topic.

    >>> region_of("arn:aws:sns:eu-central-1:123456789012:llm-page")
    'eu-central-1'
    """
    return arn.split(":")[3]


def notices(alarms: Alarms) -> list[str]:
    """What the pager cannot do as configured, one line each."""
    if alarms.page_topic is None:
        return ["alarms.page_topic is not set: no Alertmanager configuration is written"]
    found = []
    if alarms.webhook is None:
        found.append("alarms.webhook is not set: nobody hears of a page that SNS refuses")
    if alarms.deadman_url is None:
        found.append("alarms.deadman_url is not set: nobody hears when Prometheus itself is down")
    return found


def configuration(found: Pager) -> dict[str, Any]:
    """Alertmanager's own configuration file."""
    wait, interval, repeat = found.waits()
    routes = []
    for notify, receiver in ROUTES:
        route: dict[str, Any] = {"matchers": [f'notify="{notify}"'], "receiver": receiver}
        if notify == "deadman":
            route |= {"group_wait": "0s", "group_interval": found.deadman_interval()}
            route |= {"repeat_interval": found.deadman_interval()}
        routes.append(route)
    return {
        "route": {
            "receiver": "ticket",
            "group_by": list(found.group_by),
            "group_wait": wait,
            "group_interval": interval,
            "repeat_interval": repeat,
            "routes": routes,
        },
        "inhibit_rules": [
            {
                "source_matchers": [f'{name}="{value}"' for name, value in one.source],
                "target_matchers": [f'{name}="{value}"' for name, value in one.target],
                "equal": list(found.equal(one)),
            }
            for one in INHIBITIONS
        ],
        "receivers": [_receiver(one, found) for one in found.receivers],
        "templates": [TEMPLATE_FILE],
    }


def _receiver(one: Receiver, found: Pager) -> dict[str, Any]:
    if one.topic is not None:
        endpoint = {"api_url": found.api_url} if found.api_url is not None else {}
        sns = {
            **endpoint,
            "sigv4": {"region": one.region},
            "topic_arn": one.topic,
            "subject": '{{ template "llm.sns.subject" . }}',
            "message": '{{ template "llm.sns.message" . }}',
            "attributes": found.attributes,
            "send_resolved": True,
        }
        return {"name": one.name, "sns_configs": [sns]}
    if one.webhook is not None:
        resolved = one.name != "deadman"
        return {
            "name": one.name,
            "webhook_configs": [{"url": one.webhook, "send_resolved": resolved}],
        }
    return {"name": one.name}
