"""
The page as it arrived: what alarm it is about, since when, and where to look.

Read are SNS's notification, what Alertmanager and CloudWatch put into it, and either alone: whoever is
paged pastes what there is. Nothing of it is run; of the command in it, the source and the targets are
taken.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from vllm_opsctl.errors import InputFileError

_LINE = r"^{title}: (.+)$"
_SINCE = re.compile(r"^Since: (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC$", re.MULTILINE)
FOLLOWED = ("sidecar", "prometheus", "sagemaker")
"""Sources of the command in a page that are followed."""

_TAKEN = (*(f"--{source}" for source in FOLLOWED), "--match")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmMessage:
    """
    One page.

    Args:
        name: The alarm.
        service: Name of the fleet; None where the message does not say.
        objective: The burning objective; None for alarms about something else.
        model: The model; None where the message does not say.
        since: Unix seconds; None where the message does not say.
        runbook: URL of its page.
        sidecar: Where to look, as `diagnose` takes it; so are the next four.
        prometheus: The same.
        sagemaker: The same.
        match: The same.
        targets: The same.
    """

    name: str
    service: str | None = None
    objective: str | None = None
    model: str | None = None
    since: float | None = None
    runbook: str | None = None
    sidecar: str | None = None
    prometheus: str | None = None
    sagemaker: str | None = None
    match: str = ""
    targets: tuple[str, ...] = ()

    def headline(self) -> str:
        """One line for people."""
        parts = [self.name]
        for title, text in (
            ("service", self.service),
            ("objective", self.objective),
            ("model", self.model),
        ):
            if text is not None:
                parts.append(f"{title} {text}")
        if self.since is not None:
            parts.append(f"since {datetime.fromtimestamp(self.since, UTC):%Y-%m-%d %H:%M:%S} UTC")
        if self.runbook is not None:
            parts.append(self.runbook)
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """For the JSON output: what is known of the alarm itself."""
        known = asdict(self)
        return {
            key: known[key] for key in ("name", "service", "objective", "model", "since", "runbook")
        }


def read_alarm(text: str, origin: str) -> AlarmMessage:
    """
    Read a page.

    Args:
        text: SNS's notification, CloudWatch's or Alertmanager's message.
        origin: Where it came from, for messages.

    Raises:
        InputFileError: It is none of these, or does not say where to look.
    """
    envelope = _object(text)
    if envelope is not None and "AlarmName" in envelope:
        return _cloudwatch(envelope, origin)
    if envelope is not None and isinstance(envelope.get("Message"), str):
        inner = _object(envelope["Message"])
        if inner is not None and "AlarmName" in inner:
            return _cloudwatch(inner, origin)
        attributes = envelope.get("MessageAttributes")
        subject = str(envelope.get("Subject") or "")
        return _alertmanager(
            envelope["Message"], subject, attributes if isinstance(attributes, dict) else {}, origin
        )
    return _alertmanager(text, "", {}, origin)


def _object(text: str) -> dict[str, Any] | None:
    try:
        data = json.loads(text)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _cloudwatch(alarm: Mapping[str, Any], origin: str) -> AlarmMessage:
    """
    CloudWatch's own message.

    Source:
        alarms/cloudwatch names alarms kind/service/objective/model, with - for what there is none of.
    """
    parts: list[str | None] = [*str(alarm["AlarmName"]).split("/", 3)]
    name, service, objective, model = (part if part != "-" else None for part in _padded(parts))
    return _with_command(
        str(alarm.get("AlarmDescription") or ""),
        origin,
        name=name or "",
        service=service,
        objective=objective,
        model=model,
        since=_iso(alarm.get("StateChangeTime")),
    )


def _padded(parts: list[str | None]) -> list[str | None]:
    return (parts + [None] * 4)[:4]


def _iso(text: object) -> float | None:
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _alertmanager(
    message: str, subject: str, attributes: Mapping[str, Any], origin: str
) -> AlarmMessage:
    def attribute(name: str) -> str | None:
        one = attributes.get(name)
        text = one.get("Value") if isinstance(one, dict) else None
        return text if isinstance(text, str) and text != "none" else None

    since = _SINCE.search(message)
    words = subject.split()
    return _with_command(
        message,
        origin,
        name=words[1] if len(words) > 1 else "alarm",
        service=attribute("service"),
        objective=attribute("objective"),
        model=attribute("model"),
        since=_iso(f"{since[1]}+00:00") if since is not None else None,
    )


def _with_command(message: str, origin: str, **known: Any) -> AlarmMessage:
    command = _line(message, "Diagnose")
    if command is None:
        raise InputFileError(
            f"{origin}: no line 'Diagnose: opsctl diagnose …' in it; give the whole message of an alarm "
            "that opsctl alarms build wrote, or name the source yourself"
        )
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if words[:2] != ["opsctl", "diagnose"]:
        raise InputFileError(f"{origin}: {command!r} is no opsctl diagnose command")
    options: dict[str, Any] = {}
    targets = []
    rest = iter(words[2:])
    for word in rest:
        if not word.startswith("-"):
            targets.append(word)
        elif word in _TAKEN:
            options[word.removeprefix("--")] = next(rest, "")
        else:
            raise InputFileError(
                f"{origin}: {word} in {command!r} is not followed; type it yourself"
            )
    return AlarmMessage(
        **known, runbook=_line(message, "Runbook"), targets=tuple(targets), **options
    )


def _line(message: str, title: str) -> str | None:
    found = re.search(_LINE.format(title=title), message, re.MULTILINE)
    return found[1].strip() if found is not None else None
