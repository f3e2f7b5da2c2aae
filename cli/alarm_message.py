"""
The page as it arrived: what alarm it is about, since when, and where to look.

Read are SNS's notification, what Alertmanager and CloudWatch put into it, and either alone: whoever is
paged pastes what there is. Nothing of it is run; of the command in it, the source and the targets are
taken. Anybody can write such a message, so no host is asked that it alone names: where to look must be
in the configuration too.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vllm_opsctl.cli.common import read_given
from vllm_opsctl.errors import InputFileError, UsageError
from vllm_opsctl.exporter.json_text import read_json
from vllm_opsctl.exporter.limits import MAX_MESSAGE_BYTES, MAX_NAME_CHARS
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.redaction import shown_url, without_secrets

if TYPE_CHECKING:
    from vllm_opsctl.exporter.config import Config

_LINE = r"^{title}: (.+)$"
FOLLOWED = ("sidecar", "prometheus", "sagemaker")
"""Sources of the command in a page that are followed."""

_TAKEN = (*(f"--{source}" for source in FOLLOWED), "--match")

_EARLIEST_S = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
_LATEST_S = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
"""An alarm of another time is none; Go's zero time is the year 1."""

_COMMAND_CHARS = 300
_MOST_CHARS = 4096
"""Of a command as it is shown, and as it is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmMessage:
    """
    One page.

    Args:
        origin: Where the message came from, for messages.
        name: The alarm.
        service: Name of the fleet; None where the message does not say.
        objective: The burning objective; None for alarms about something else.
        model: The model; None where the message does not say.
        since: Unix seconds; None where the message does not say, or nonsense.
        odd_since: The nonsense; None where there is none.
        runbook: URL of its page.
        sidecar: Where to look, as `diagnose` takes it; so are the next four.
        prometheus: The same.
        sagemaker: The same.
        match: The same.
        targets: The same.
    """

    origin: str
    name: str
    service: str | None = None
    objective: str | None = None
    model: str | None = None
    since: float | None = None
    odd_since: str | None = None
    runbook: str | None = None
    sidecar: str | None = None
    prometheus: str | None = None
    sagemaker: str | None = None
    match: str = ""
    targets: tuple[str, ...] = ()

    def at(self) -> str | None:
        """
        When to look, as ``--at`` takes it; None where the message does not say.

        Raises:
            InputFileError: The message says nonsense.
        """
        if self.odd_since is not None:
            raise InputFileError(
                f"{self.origin}: since {self.odd_since!r}, which cannot be an alarm's time; give --at"
            )
        return None if self.since is None else str(self.since)

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


def read_message(path: str) -> tuple[str, str]:
    """
    Read a message.

    Args:
        path: A plain file; ``-`` is stdin.

    Returns:
        The text, and what to call its origin.

    Raises:
        InputFileError: It cannot be read, is larger than any message, or no text.
    """
    return read_given(path, MAX_MESSAGE_BYTES, "message as SNS sent it")


def check_configured(alarm: AlarmMessage, config: Config) -> None:
    """
    Refuse to ask a host that a message alone names.

    Args:
        alarm: The message.
        config: What may be asked: its sidecar, its Prometheus, its targets.

    Raises:
        UsageError: Where to look is none of these; names the key to set, and the command to type.
    """
    from vllm_opsctl.alarms.links import Links
    from vllm_opsctl.exporter.matchers import matchers_in

    asked: list[tuple[str, str, str | None]] = []
    if alarm.sidecar is not None:
        asked.append(("sidecar_url", alarm.sidecar, Links(config, "sidecar").sidecar_url))
    if alarm.prometheus is not None:
        asked.append(("prometheus_url", alarm.prometheus, config.alarms.prometheus_url))
    for key, url, own in asked:
        if own is None or _base(url) is None or _base(url) != _base(own):
            has = "it is not set" if own is None else f"which is {own}"
            raise UsageError(
                f"{alarm.origin}: it leads to {shown_url(url)}, and a message alone is not followed to "
                f"any host; set alarms.{key} ({has}) in opsctl.yaml or "
                f"OPSCTL_ALARMS__{key.upper()}, or type: {_command(alarm)}"
            )
    try:
        # more than matchers would be a query of somebody else's
        if alarm.match:
            matchers_in(alarm.match)
    except ValueError:
        raise UsageError(
            f"{alarm.origin}: {_shown(alarm.match)!r} are not label matchers; type it yourself"
        ) from None
    if alarm.sidecar or alarm.prometheus or alarm.sagemaker:
        return
    known = {target.name for target in config.targets}
    urls = {target.url for target in config.targets}
    for text in alarm.targets:
        if text not in known and _base(text) not in urls:
            raise UsageError(
                f"{alarm.origin}: it leads to {shown_url(text)}, and a message alone is not followed to "
                f"any host; list it under targets in opsctl.yaml, or type: {_command(alarm)}"
            )


def _base(url: str) -> str | None:
    from vllm_opsctl.exporter.config import clean_url

    try:
        return clean_url(url)
    except ValueError:
        return None


def _command(alarm: AlarmMessage) -> str:
    """The command of a message, for people to judge and to type."""
    words = ["opsctl", "diagnose"]
    for source in FOLLOWED:
        value = getattr(alarm, source)
        words += [f"--{source}", shown_url(value)] if value is not None else []
    words += ["--match", alarm.match] if alarm.match else []
    words += [shown_url(target) for target in alarm.targets]
    is_past = alarm.since is not None and (alarm.sidecar or alarm.prometheus)
    words += ["--at", f"{alarm.since:.0f}"] if is_past else []
    return plain(shlex.join(words), _COMMAND_CHARS)


def read_alarm(text: str, origin: str) -> AlarmMessage:
    """
    Read a page.

    Args:
        text: SNS's notification, CloudWatch's or Alertmanager's message.
        origin: Where it came from, for messages.

    Raises:
        InputFileError: It is none of these, or does not say where to look.
    """
    envelope = _object(text, origin)
    if envelope is not None and "AlarmName" in envelope:
        return _cloudwatch(envelope, origin)
    if envelope is not None and isinstance(envelope.get("Message"), str):
        inner = _object(envelope["Message"], origin)
        if inner is not None and "AlarmName" in inner:
            return _cloudwatch(inner, origin)
        attributes = envelope.get("MessageAttributes")
        subject = _text(envelope.get("Subject"))
        return _alertmanager(
            envelope["Message"], subject, attributes if isinstance(attributes, dict) else {}, origin
        )
    return _alertmanager(text, "", {}, origin)


def _object(text: str, origin: str) -> dict[str, Any] | None:
    try:
        data = read_json(text)
    except ValueError as problem:
        if "nested" in str(problem):
            raise InputFileError(f"{origin}: {problem}; give the message as SNS sent it") from None
        return None
    return data if isinstance(data, dict) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _cloudwatch(alarm: Mapping[str, Any], origin: str) -> AlarmMessage:
    """
    CloudWatch's own message.

    Source:
        alarms/cloudwatch names alarms kind/service/objective/model, with - for what there is none of.
    """
    if not isinstance(alarm["AlarmName"], str):
        raise InputFileError(f"{origin}: AlarmName is not text; give the message as SNS sent it")
    parts: list[str | None] = [*alarm["AlarmName"].split("/", 3)]
    name, service, objective, model = (part if part != "-" else None for part in _padded(parts))
    return _with_command(
        _text(alarm.get("AlarmDescription")),
        origin,
        name=name or "",
        service=service,
        objective=objective,
        model=model,
        **_since(alarm.get("StateChangeTime")),
    )


def _padded(parts: list[str | None]) -> list[str | None]:
    return (parts + [None] * 4)[:4]


def _since(text: object) -> dict[str, Any]:
    """When it began, as the message says."""
    if not isinstance(text, str):
        return {}
    try:
        parsed = datetime.fromisoformat(text)
        t = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, ValueError):
        return {"odd_since": _shown(text)}
    return {"since": t} if _EARLIEST_S <= t < _LATEST_S else {"odd_since": _shown(text)}


def _alertmanager(
    message: str, subject: str, attributes: Mapping[str, Any], origin: str
) -> AlarmMessage:
    def attribute(name: str) -> str | None:
        one = attributes.get(name)
        text = one.get("Value") if isinstance(one, dict) else None
        return text if isinstance(text, str) and text != "none" else None

    since = _line(message, "Since")
    words = subject.split()
    return _with_command(
        message,
        origin,
        name=words[1] if len(words) > 1 else "alarm",
        service=attribute("service"),
        objective=attribute("objective"),
        model=attribute("model"),
        **_since(None if since is None else since.replace(" UTC", "+00:00")),
    )


def _with_command(message: str, origin: str, **known: Any) -> AlarmMessage:
    command = _line(message, "Diagnose")
    if command is None:
        raise InputFileError(
            f"{origin}: no line 'Diagnose: opsctl diagnose …' in it; give the whole message of an alarm "
            "that opsctl alarms build wrote, or name the source yourself"
        )
    try:
        words = shlex.split(command) if len(command) <= _MOST_CHARS else []
    except ValueError:
        words = []
    if words[:2] != ["opsctl", "diagnose"]:
        raise InputFileError(f"{origin}: {_shown(command)!r} is no opsctl diagnose command")
    options: dict[str, Any] = {}
    targets = []
    rest = iter(words[2:])
    for word in rest:
        if not word.startswith("-"):
            targets.append(word)
        elif word in _TAKEN:
            value = next(rest, "")
            if not value or word.removeprefix("--") in options:
                raise InputFileError(
                    f"{origin}: {word} without a value, or twice; type it yourself"
                )
            options[word.removeprefix("--")] = value
        else:
            raise InputFileError(
                f"{origin}: {_shown(word)} in {_shown(command)!r} is not followed; type it yourself"
            )
    shown: dict[str, Any] = {
        key: _shown(value) if isinstance(value, str) else value
        for key, value in {**known, "runbook": _line(message, "Runbook")}.items()
    }
    return AlarmMessage(origin=origin, targets=tuple(targets), **shown, **options)


def _shown(text: str) -> str:
    return plain(without_secrets(text), MAX_NAME_CHARS)


def _line(message: str, title: str) -> str | None:
    found = re.search(_LINE.format(title=title), message, re.MULTILINE)
    return found[1].strip() if found is not None else None
