"""The curated set: which metrics go to CloudWatch, and what each is made of."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vllm_opsctl.exporter.catalogue import catalogue
from vllm_opsctl.exporter.yaml_text import read_yaml

Kind = Literal["gauge", "increase", "distribution", "ratio", "events", "heartbeat"]
Unit = Literal["Count", "Percent", "Seconds"]

_KINDS_OF = {
    "gauge": ("gauge",),
    "increase": ("counter", "gauge"),
    "ratio": ("counter",),
    "distribution": ("histogram",),
}


class CuratedMetric(BaseModel):
    """One metric; fields as in the head of data/cloudwatch.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str = Field(pattern=r"[A-Z][A-Za-z]+")
    concept: str | None = None
    of: str | None = None
    kind: Kind = Field(alias="as")
    unit: Unit
    scale: float = 1.0
    why: str

    @model_validator(mode="after")
    def _is_made_of_what_there_is(self) -> CuratedMetric:
        if self.kind in ("events", "heartbeat"):
            return self
        for name in (self.concept, *((self.of,) if self.kind == "ratio" else ())):
            known = {concept.concept: concept for concept in catalogue()}
            if name not in known or known[name].kind not in _KINDS_OF[self.kind]:
                raise ValueError(f"{self.metric}: {name} is no concept for {self.kind}")
        return self


@functools.cache
def curated() -> tuple[CuratedMetric, ...]:
    """
    The set, in the file's order.

    Raises:
        pydantic.ValidationError: The file is wrong; only in development, a test loads it.
    """
    text = (
        files("vllm_opsctl.exporter").joinpath("data/cloudwatch.yaml").read_text(encoding="utf-8")
    )
    return tuple(CuratedMetric.model_validate(entry) for entry in read_yaml(text))
