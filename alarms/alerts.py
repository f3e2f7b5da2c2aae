"""The alerts that are data: companions.yaml and causes.yaml, checked on load."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vllm_opsctl.alarms.prometheus.conventions import Source
from vllm_opsctl.alarms.vocabulary import concepts_in
from vllm_opsctl.exporter.units import parse_duration
from vllm_opsctl.exporter.yaml_text import read_yaml
from vllm_opsctl.runbooks.load import shipped_library

Role = Literal["symptom", "cause", "companion", "forecast", "pager", "watchdog"]
Notify = Literal["page", "ticket", "pager", "deadman"]
Per = Literal["engine", "replica", "model", "none"]
Command = Literal["diagnose", "targets", "drill"]

SEVERITIES: dict[str, str] = {
    "page": "critical",
    "ticket": "warning",
    "pager": "critical",
    "deadman": "none",
}
"""Severity as in kubernetes-mixin, by what an alert does."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FiresWhen(_Strict):
    """The generated unit test of an alert."""

    becomes: dict[str, float | str] = Field({}, description="The fleet from the onset on.")
    series: dict[str, str] = Field({}, description="Series instead, in promtool's notation.")
    labels: dict[str, str] = Field({}, description="Labels that the series bring into the alert.")
    history: str = Field("20m", description="Healthy traffic before the onset.")
    after: str = Field(description="From the onset until it fires.")
    value: str | None = Field(
        "", description="$value as the description prints it; null where it is not known exactly."
    )


class AlertSpec(_Strict):
    """One alert; fields as in the head of companions.yaml."""

    alert: str = Field(pattern=r"LLM[A-Za-z]+")
    role: Role
    notify: Notify
    per: Per
    modes: tuple[str, ...] = ()
    command: Command = "diagnose"
    expr: str | dict[Source, str]
    optional: tuple[str, ...] = Field((), description="Concepts that a release may lack.")
    hold: str = Field(alias="for")
    summary: str
    description: str
    because: str | None = None
    test: FiresWhen

    @model_validator(mode="after")
    def _refers_to_what_is_there(self) -> AlertSpec:
        unknown = [mode for mode in self.modes if mode not in shipped_library().modes]
        if unknown:
            raise ValueError(f"{self.alert}: no failure mode {', '.join(unknown)}")
        if (self.per == "none") != (self.command != "diagnose"):
            raise ValueError(
                f"{self.alert}: what is about no server (per: none), and nothing else, names its command"
            )
        parse_duration(self.hold)
        return self

    def expression(self, source: Source) -> str | None:
        """The template for a source; None where the alert is not for it."""
        return self.expr if isinstance(self.expr, str) else self.expr.get(source)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Every concept that some of its expressions read."""
        texts = [self.expr] if isinstance(self.expr, str) else list(self.expr.values())
        return tuple(dict.fromkeys(c for text in texts for c in concepts_in(text)))


@functools.cache
def shipped_alerts() -> Mapping[str, tuple[AlertSpec, ...]]:
    """
    All alerts by file, ``companions`` and ``causes``.

    Raises:
        pydantic.ValidationError: A file is wrong; only in development, a test loads both.
    """
    root = files("vllm_opsctl.alarms")
    found: dict[str, tuple[AlertSpec, ...]] = {}
    for name in ("companions", "causes"):
        data = read_yaml(root.joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
        found[name] = tuple(AlertSpec.model_validate(entry) for entry in data)
    return found
