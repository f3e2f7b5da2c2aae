"""The section ``autoscaling``: what is scaled, by which signals, how far and how fast."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from vllm_opsctl.exporter.config_types import Duration, Ratio, Strict

ResourceKind = Literal[
    "sagemaker-variant", "sagemaker-inference-component", "ecs-service", "auto-scaling-group"
]

SignalName = Literal["demand", "kv_cache"]

SHORTEST_SCALE_IN_S = 900.0
"""As long as target tracking itself watches before it scales in (15 of 15 minutes), seconds."""

SEEN_AFTER_S = 60.0
"""Until the mean of a minute shows what a new replica took over; before it, as many would be added again."""

_PART = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_NAMES: dict[str, tuple[str, str]] = {
    "sagemaker-variant": (rf"{_PART}/{_PART}", "endpoint/variant, e.g. chat/AllTraffic"),
    "sagemaker-inference-component": (_PART, "the component's name"),
    "ecs-service": (rf"{_PART}/{_PART}", "cluster/service, e.g. llm/chat"),
    "auto-scaling-group": (r"[A-Za-z0-9_./-]+", "the group's name"),
}

_NO_ZERO = {
    "sagemaker-variant": "SageMaker keeps at least one instance of a variant; only inference "
    "components go to 0",
    "ecs-service": "at 0 tasks nobody publishes metrics, and ECS has none of requests that found nobody, "
    "so nothing would wake it",
    "auto-scaling-group": "at 0 instances nobody publishes metrics, and EC2 has none of requests that found "
    "nobody, so nothing would wake it",
}


def _signal(text: object) -> object:
    """
    Refuse what does not tell load.

    Source:
        docs/autoscaling.md, on what target tracking needs of a metric.
    """
    if text in get_args(SignalName):
        return text
    known = ", ".join(get_args(SignalName))
    if re.search(r"gpu|cpu|utili[sz]ation|sm_active|power", str(text), re.IGNORECASE):
        raise ValueError(
            f"{text!r} does not tell load: an engine that batches continuously keeps its GPU near 100 % with "
            "one request as with a hundred, and its CPU tells what was answered and not what waits; it would "
            f"scale out at any load and never in; use {known}"
        )
    if re.search(r"wait|queue", str(text), re.IGNORECASE):
        raise ValueError(
            f"{text!r} alone is 0 until the batch is full, so it cannot tell how far to scale, nor when to "
            "scale in; demand is running and waiting requests together"
        )
    raise ValueError(f"{text!r} is no signal; there are {known}")


Signal = Annotated[SignalName, BeforeValidator(_signal)]

Target = Annotated[Ratio, Field(ge=0.1, le=1)]


class ScaledResource(Strict):
    """One thing whose size is scaled: the replicas of one model."""

    kind: ResourceKind = Field(description="What it is.")
    name: str = Field(
        description="endpoint/variant, the component's name, cluster/service, or the group's name."
    )
    model: str | None = Field(
        None, description="Served name of its model; unset: the one that targets name."
    )
    max_num_seqs: Annotated[int, Field(gt=0)] = Field(
        description="Requests that one engine runs at once, as vLLM was started with --max-num-seqs."
    )
    engines: Annotated[int, Field(gt=0)] = Field(
        1, description="Engines in one replica (--data-parallel-size)."
    )
    min: Annotated[int, Field(ge=0)] = Field(
        1, description="Fewest replicas; 0 for inference components alone."
    )
    max: Annotated[int, Field(ge=1)] = Field(description="Most replicas: what the bill may become.")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> ScaledResource:
        pattern, wanted = _NAMES[self.kind]
        if not re.fullmatch(pattern, self.name) or len(self.name) > 255:
            raise ValueError(f"name: {self.name!r} is not that of {self.kind}; write {wanted}")
        if self.min == 0 and self.kind in _NO_ZERO:
            raise ValueError(f"min: 0 is not possible for {self.kind}: {_NO_ZERO[self.kind]}")
        if self.min > self.max:
            raise ValueError(f"min: {self.min} is more than max, {self.max}")
        return self


class Autoscaling(Strict):
    """How fleets grow and shrink with their load (docs/autoscaling.md)."""

    cold_start: Duration | None = Field(
        None,
        description="From the decision to add a replica to its first token, measured: instance, image, "
        "weights, warm-up.",
    )
    signals: tuple[Signal, ...] = Field(
        ("demand", "kv_cache"),
        min_length=1,
        description="One policy each, the largest answer counts: demand (running and waiting requests "
        "over max_num_seqs), kv_cache (usage).",
    )
    demand_target: Target = Field(
        0.7, description="Requests an engine, running and waiting, over max_num_seqs."
    )
    kv_cache_target: Target = Field(0.8, description="Usage of an engine's KV cache.")
    scale_out_cooldown: Duration | None = Field(
        None, description="Pause after growing; unset: cold_start and a minute."
    )
    scale_in_cooldown: Duration | None = Field(
        None, description="Pause after shrinking; unset: twice the other, 15 minutes at least."
    )
    resources: tuple[ScaledResource, ...] = Field((), description="What is scaled.")

    @field_validator("signals")
    @classmethod
    def _each_once(cls, signals: tuple[Signal, ...]) -> tuple[Signal, ...]:
        return tuple(dict.fromkeys(signals))

    @field_validator("resources")
    @classmethod
    def _different(cls, resources: tuple[ScaledResource, ...]) -> tuple[ScaledResource, ...]:
        seen: set[tuple[str, str]] = set()
        for one in resources:
            if (one.kind, one.name) in seen:
                raise ValueError(f"{one.kind} {one.name} stands twice; one entry scales it")
            seen.add((one.kind, one.name))
        return resources

    @model_validator(mode="after")
    def _outlasts_a_cold_start(self) -> Autoscaling:
        if self.cold_start is None:
            if self.resources:
                raise ValueError(
                    "cold_start is missing: measure how long a new replica takes to its first token, and "
                    "write it like 6m; cooldowns follow from it"
                )
            return self
        if self.scale_out_s < self.cold_start:
            raise ValueError(
                f"scale_out_cooldown: {self.scale_out_s:g} s is shorter than cold_start, "
                f"{self.cold_start:g} s: what was added would be added again before it serves"
            )
        if self.scale_in_s <= self.scale_out_s:
            raise ValueError(
                f"scale_in_cooldown: {self.scale_in_s:g} s is not longer than the {self.scale_out_s:g} s "
                "after growing: a replica costs a cold start to get back"
            )
        return self

    @property
    def scale_out_s(self) -> float:
        """Pause after growing, seconds."""
        if self.scale_out_cooldown is not None or self.cold_start is None:
            return self.scale_out_cooldown or 0.0
        return self.cold_start + SEEN_AFTER_S

    @property
    def scale_in_s(self) -> float:
        """Pause after shrinking, seconds."""
        return self.scale_in_cooldown or max(SHORTEST_SCALE_IN_S, 2 * self.scale_out_s)
