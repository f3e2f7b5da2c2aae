"""The verdict: what diagnosis returns, and its JSON shape (schema_version 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vllm_opsctl.runbooks.features import Value

SCHEMA_VERSION = 1

Health = Literal["healthy", "degraded", "critical", "unknown"]
Role = Literal["root", "symptom"]

EXIT_CODES: dict[Health, int] = {"healthy": 0, "degraded": 1, "critical": 2, "unknown": 3}
"""As monitoring plugins exit (Nagios plugin API: OK, WARNING, CRITICAL, UNKNOWN)."""

WORST_FIRST: tuple[Health, ...] = ("critical", "degraded", "unknown", "healthy")
"""Unknown is worse than healthy, for nobody could look there."""


@dataclass(frozen=True, slots=True)
class EvidenceLine:
    """One fact that speaks for a cause."""

    statement: str
    feature: str
    value: Value | None
    condition: str


@dataclass(frozen=True, slots=True)
class PrintedAction:
    """An action that fits this engine."""

    kind: str
    text: str
    command: str | None = None
    helps_when: str | None = None
    seen_by: str | None = None


@dataclass(frozen=True, slots=True)
class Alternative:
    """A failure mode that metrics cannot tell from the one that was found."""

    id: str
    apart_by: str


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is other since the onset than it was before."""

    what: str
    before: str
    now: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the platform did: ``t`` unix seconds, ``what`` in words."""

    t: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCause:
    """A failure mode or symptom that is active."""

    id: str
    title: str
    role: Role
    severity: str
    confidence: float
    """How often a cause with such a score was right on recordings."""
    score: float
    """How much of the signature holds; ranks causes of equal confidence."""
    evidence: tuple[EvidenceLine, ...]
    explains: tuple[str, ...] = ()
    actions: tuple[PrintedAction, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    runbook: str | None = None
    engine: str | None = None


@dataclass(frozen=True, slots=True)
class RuledOut:
    """A look-alike, and the fact that rules it out."""

    id: str
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetVerdict:
    """The verdict on one target."""

    target: str
    verdict: Health
    summary: str
    source: str
    start: float
    end: float
    samples: int
    onset: float | None = None
    changes: tuple[Change, ...] = ()
    """What changed at the onset."""
    platform: str | None = None
    """What the platform says of the target, in a line."""
    events: tuple[Event, ...] = ()
    """What the platform did, oldest first."""
    vllm_version: str | None = None
    model: str | None = None
    causes: tuple[FoundCause, ...] = ()
    ruled_out: tuple[RuledOut, ...] = ()
    blind_spots: tuple[str, ...] = ()
    """What could not be seen, and why."""
    features: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def not_known(cls, target: str, why: str, *, source: str, at: float) -> TargetVerdict:
        """
        That nothing could be seen of a target.

        Args:
            target: Its name.
            why: The sentence of the verdict.
            source: How it was looked at.
            at: Unix seconds.
        """
        return cls(
            target=target,
            verdict="unknown",
            summary=why,
            source=source,
            start=at,
            end=at,
            samples=0,
        )

    @property
    def roots(self) -> tuple[FoundCause, ...]:
        """The root causes, surest first."""
        return tuple(cause for cause in self.causes if cause.role == "root")

    def to_json(self) -> dict[str, Any]:
        """The target's part of the JSON output."""
        return {
            "target": self.target,
            "verdict": self.verdict,
            "summary": self.summary,
            "vllm_version": self.vllm_version,
            "model": self.model,
            "window": {
                "start": round(self.start, 3),
                "end": round(self.end, 3),
                "samples": self.samples,
                "source": self.source,
                "onset": None if self.onset is None else round(self.onset, 3),
            },
            **self._of_platform(),
            "changes": [
                {"what": change.what, "before": change.before, "now": change.now}
                for change in self.changes
            ],
            "causes": [_cause_json(cause) for cause in self.causes],
            "ruled_out": [{"id": entry.id, "because": entry.because} for entry in self.ruled_out],
            "blind_spots": list(self.blind_spots),
            "features": {
                name: round(value, 6) if isinstance(value, float) else value
                for name, value in self.features.items()
            },
        }

    def _of_platform(self) -> dict[str, Any]:
        if self.platform is None:
            return {}
        events = [{"t": round(event.t, 3), "what": event.what} for event in self.events]
        return {"platform": self.platform, "events": events}


@dataclass(frozen=True, slots=True)
class CommonCause:
    """A root cause and the targets that have it."""

    id: str
    targets: tuple[str, ...]
    is_common: bool
    """On at least half of the fleet: what they share is to blame, not one replica."""


@dataclass(frozen=True, slots=True)
class Outlier:
    """A replica that is different from the others in one number."""

    target: str
    feature: str
    value: str
    others: str


@dataclass(frozen=True, slots=True)
class Mixed:
    """A setting that differs within the fleet: value to the targets that have it."""

    what: str
    values: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class FleetView:
    """What is to be said of the fleet as a whole."""

    common: tuple[CommonCause, ...]
    outliers: tuple[Outlier, ...]
    mixed: tuple[Mixed, ...]

    def to_json(self) -> dict[str, Any]:
        """The fleet's part of the JSON output."""
        return {
            "causes": [
                {"id": c.id, "targets": list(c.targets), "common": c.is_common} for c in self.common
            ],
            "outliers": [
                {"target": o.target, "feature": o.feature, "value": o.value, "others": o.others}
                for o in self.outliers
            ],
            "mixed": [
                {"what": m.what, "values": {v: list(t) for v, t in m.values.items()}}
                for m in self.mixed
            ],
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on all targets that were asked about."""

    targets: tuple[TargetVerdict, ...]
    fleet: FleetView | None = None

    @property
    def health(self) -> Health:
        """The worst of the targets; unknown is worse than healthy, for nobody looked there."""
        found = {target.verdict for target in self.targets}
        return next(health for health in WORST_FIRST if health in found)

    @property
    def exit_code(self) -> int:
        """What ``opsctl diagnose`` exits with."""
        return EXIT_CODES[self.health]

    def to_json(self) -> dict[str, Any]:
        """The JSON output."""
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.health,
            "targets": [target.to_json() for target in self.targets],
            **({"fleet": self.fleet.to_json()} if self.fleet else {}),
        }


def _cause_json(cause: FoundCause) -> dict[str, Any]:
    data: dict[str, Any] = {
        "id": cause.id,
        "title": cause.title,
        "role": cause.role,
        "severity": cause.severity,
        "confidence": round(cause.confidence, 2),
        "evidence": [
            {
                "statement": line.statement,
                "feature": line.feature,
                "value": round(line.value, 6) if isinstance(line.value, float) else line.value,
                "condition": line.condition,
            }
            for line in cause.evidence
        ],
        "explains": list(cause.explains),
        "actions": [
            {"kind": action.kind, "text": action.text}
            | {
                name: value
                for name in ("helps_when", "seen_by", "command")
                if (value := getattr(action, name)) is not None
            }
            for action in cause.actions
        ],
        "alternatives": [
            {"id": other.id, "apart_by": other.apart_by} for other in cause.alternatives
        ],
        "runbook": cause.runbook,
    }
    if cause.engine is not None:
        data["engine"] = cause.engine
    return data
