"""
A failure mode as data: the schema of the files in ``library/`` and of a user's ``--runbooks``.

Pydantic holds the shape, `opsctl runbook schema` publishes it; conditions and sentences are compiled
and checked by :mod:`.load`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Severity = Literal["critical", "high", "medium", "low"]
ActionKind = Literal["check", "mitigate", "fix"]
NeedKind = Literal["probe", "log", "fleet", "history", "config", "host", "sagemaker"]
Area = Literal[
    "capacity",
    "kv-cache",
    "prefix-cache",
    "step-time",
    "front-end",
    "liveness",
    "api",
    "distributed",
    "observability",
    "sagemaker",
]
Id = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Sentence = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Clause(_Strict):
    """A condition with the sentences that report it."""

    when: Sentence
    """CEL over features."""
    say: Sentence
    """Evidence, when it holds; ``{feature}`` is replaced by its value with unit."""
    otherwise: Sentence | None = None
    """Why the failure mode is ruled out, when a required condition does not hold."""


class Support(Clause):
    """A condition that makes the failure mode likelier when it holds."""

    weight: Annotated[float, Field(gt=0, le=1)] = 0.5


class Exclusion(_Strict):
    """A condition that rules the failure mode out."""

    when: Sentence
    because: Sentence


class Signature(_Strict):
    """How the failure mode shows."""

    require: Annotated[tuple[Clause, ...], Field(min_length=1)]
    support: tuple[Support, ...] = ()
    rule_out: tuple[Exclusion, ...] = ()


class Action(_Strict):
    """Something to do."""

    kind: ActionKind
    text: Sentence
    helps_when: str | None = None
    """The condition under which a mitigation helps; every mitigation has one."""
    seen_by: str | None = None
    """How to see that a mitigation helped; every mitigation has one."""
    command: str | None = None
    only_if: str | None = None
    """CEL over features; the action is not printed where it is false or cannot be told."""

    @model_validator(mode="after")
    def _mitigation_is_complete(self) -> Action:
        if self.kind == "mitigate" and (self.helps_when is None or self.seen_by is None):
            raise ValueError("a mitigation needs helps_when and seen_by")
        return self


class Need(_Strict):
    """What metrics alone cannot show of a failure mode."""

    kind: NeedKind
    what: Sentence


class Twin(_Strict):
    """A failure mode with the same face in the metrics."""

    id: Id
    apart_by: Sentence
    """What would tell the two apart."""
    only_if: str | None = None
    """CEL over features; where it is false or cannot be told, the two can be told apart."""


class Mechanism(_Strict):
    """How a part of vLLM works, in a few plain sentences."""

    title: Sentence
    text: Sentence
    link: Sentence


class FailureMode(_Strict):
    """One failure mode."""

    id: Id
    title: Sentence
    severity: Severity
    users: Sentence
    """What users say when it happens."""
    liveness: bool = False
    """It pre-empts failure modes of performance: nothing performs on an engine that is not alive."""
    signature: Signature
    area: Area
    mechanisms: tuple[Id, ...] = ()
    """What of vLLM one has to know to understand it: keys of ``mechanisms.yaml``."""
    needs: tuple[Need, ...] = ()
    """What one page of metrics cannot show."""
    discriminators: Annotated[dict[Id, Sentence], Field(min_length=1)]
    """Failure modes that are easily taken for this one, and the difference."""
    twins: tuple[Twin, ...] = ()
    """Failure modes that metrics cannot tell from this one."""
    causes: tuple[Id, ...] = ()
    """Failure modes and symptoms that this one causes: edges of the causal graph."""
    actions: Annotated[tuple[Action, ...], Field(min_length=1)]
    sources: tuple[str, ...] = ()


class Symptom(_Strict):
    """What users or objectives feel; never a root cause."""

    id: Id
    title: Sentence
    when: Sentence
    say: Sentence


class Flag(_Strict):
    """A vLLM flag and the releases that have it."""

    since: str
    until: str | None = None
