"""
Objectives as OpenSLO v1 documents, and the shape that such documents have.

The shape is written after the published specification, not copied from its JSON schema: a mistake in a
document is told by its path. Unknown keys are allowed, as the specification asks of readers.

Source:
    OpenSLO v1, https://github.com/OpenSLO/OpenSLO (README.md and schemas/v1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from vllm_opsctl.alarms.prometheus.conventions import Scope
from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.config import Config, Objective
from vllm_opsctl.exporter.identity import Identity, identity_of
from vllm_opsctl.exporter.own_series import SLI_EVENTS
from vllm_opsctl.exporter.series import labels_text

API_VERSION = "openslo/v1"
ANNOTATION = "opsctl.vllm/"
"""Prefix of the annotations that carry what OpenSLO has no field for."""

PERIOD = "30d"
LONGEST_NAME = 63
"""Characters of a name that every implementation takes (RFC 1123)."""

LONGEST_DESCRIPTION = 1050

Kind = Literal[
    "DataSource",
    "SLO",
    "SLI",
    "AlertPolicy",
    "AlertCondition",
    "AlertNotificationTarget",
    "Service",
]
Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[a-z0-9][a-z0-9.|/\\-]*$")]
Description = Annotated[str, Field(max_length=LONGEST_DESCRIPTION)]


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, strict=True, frozen=True)


class Metadata(_Part):
    """What an object is called."""

    name: Name
    display_name: Annotated[str, Field(min_length=1)] | None = None
    labels: dict[str, str | list[str]] | None = None
    annotations: dict[str, str] | None = None


class Header(_Part):
    """What every document has; `spec` is checked by its kind."""

    api_version: Literal["openslo/v1"]
    kind: Kind
    metadata: Metadata


class MetricSource(_Part):
    """Where numbers come from; what stands in `spec` is the source's own."""

    metric_source_ref: Name | None = None
    type: str | None = None
    spec: dict[str, Any]


class Metric(_Part):
    """One query."""

    metric_source: MetricSource


class RatioMetric(_Part):
    """Good or bad events over all, or a ratio that somebody else computed."""

    counter: bool | None = None
    good: Metric | None = None
    bad: Metric | None = None
    total: Metric | None = None
    raw: Metric | None = None
    raw_type: Literal["success", "failure"] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> RatioMetric:
        if self.raw is not None:
            if self.good or self.bad or self.total:
                raise ValueError("raw excludes good, bad and total; keep one form")
            if self.raw_type is None:
                raise ValueError("raw needs rawType: success or failure")
            return self
        if self.total is None:
            raise ValueError("total is missing; add it")
        if (self.good is None) == (self.bad is None):
            raise ValueError("give one of good and bad beside total")
        if self.counter is None:
            raise ValueError("counter is missing; write counter: true for counters")
        return self


class SliSpec(_Part):
    """An indicator."""

    description: Description | None = None
    threshold_metric: Metric | None = None
    ratio_metric: RatioMetric | None = None

    @model_validator(mode="after")
    def _one_metric(self) -> SliSpec:
        if (self.threshold_metric is None) == (self.ratio_metric is None):
            raise ValueError("give one of ratioMetric and thresholdMetric")
        return self


class InlineSli(_Part):
    """An indicator that stands inside its SLO."""

    metadata: Metadata | None = None
    spec: SliSpec


class TimeWindow(_Part):
    """The period of the budget."""

    duration: Annotated[str, Field(pattern=r"^[1-9][0-9]*[mhdwMQY]$")]
    is_rolling: bool = False
    calendar: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _rolls_or_has_a_calendar(self) -> TimeWindow:
        if self.is_rolling == (self.calendar is not None):
            raise ValueError("give one of isRolling: true and calendar")
        return self


class Target(_Part):
    """One level of an SLO."""

    display_name: Annotated[str, Field(min_length=1)] | None = None
    op: Literal["lte", "gte", "lt", "gt"] | None = None
    value: float | None = None
    target: Annotated[float, Field(ge=0, lt=1)] | None = None
    target_percent: Annotated[float, Field(ge=0, lt=100)] | None = None

    @model_validator(mode="after")
    def _one_target(self) -> Target:
        if (self.target is None) == (self.target_percent is None):
            raise ValueError("give one of target and targetPercent")
        return self


class SloSpec(_Part):
    """An objective."""

    description: Description | None = None
    service: Name
    indicator: InlineSli | None = None
    indicator_ref: Name | None = None
    time_window: Annotated[list[TimeWindow], Field(max_length=1)] | None = None
    budgeting_method: Literal["Occurrences", "Timeslices"]
    objectives: Annotated[list[Target], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_indicator(self) -> SloSpec:
        if (self.indicator is None) == (self.indicator_ref is None):
            raise ValueError("give one of indicator and indicatorRef")
        return self


class ServiceSpec(_Part):
    """A service."""

    description: Description | None = None


class Dumper(yaml.SafeDumper):
    """YAML that reads back as it was: PyYAML alone loses Unicode's line breaks in single quotes."""


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, _string)


def seconds_text(seconds: float) -> str:
    """
    A duration that reads back as exactly the same number.

    >>> seconds_text(1.0), seconds_text(0.18), seconds_text(1e-05)
    ('1s', '0.18s', '0.00001s')
    """
    return format(Decimal(repr(seconds)), "f").removesuffix(".0") + "s"


def object_names(names: Sequence[str]) -> list[str]:
    """
    Names as every implementation of OpenSLO takes them, in the same order and all different.

    >>> object_names(["TTFT.p95", "ttft-p95", "e2e"])
    ['ttft-p95', 'ttft-p95-2', 'e2e']
    """
    found: dict[str, None] = {}
    for name in names:
        base = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        number, candidate = 1, base[:LONGEST_NAME].rstrip("-")
        while candidate in found:
            number += 1
            ending = f"-{number}"
            candidate = base[: LONGEST_NAME - len(ending)].rstrip("-") + ending
        found[candidate] = None
    return list(found)


def export_openslo(config: Config) -> str:
    """
    The configured objectives as OpenSLO v1: a Service, then an SLI and an SLO for each.

    The queries are the sidecar's counters, one series each target and model; `counter: true` asks the
    reader to take their increase.

    Returns:
        YAML documents; the same configuration gives the same bytes.

    Raises:
        ConfigError: An objective that OpenSLO has no room for; one line each.
    """
    problems = [
        f"objectives[{index}] ({objective.name}).{problem}"
        for index, objective in enumerate(config.objectives)
        for problem in _no_room(objective)
    ]
    if problems:
        raise ConfigError(problems)
    (service,) = object_names([config.service.name])
    documents = [_document("Service", {"name": service, "displayName": config.service.name}, {})]
    names = object_names([objective.name for objective in config.objectives])
    for name, objective in zip(names, config.objectives, strict=True):
        documents += _documents(name, objective, service, identity_of(config))
    return yaml.dump_all(
        documents,
        Dumper=Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
        explicit_start=True,
    )


def _no_room(objective: Objective) -> list[str]:
    found = []
    if objective.target >= 1:
        found.append("target: OpenSLO has no target of 100 %; write 99.9% or less")
    length = len(objective.description or "")
    if length > LONGEST_DESCRIPTION:
        found.append(
            f"description: {length} characters; OpenSLO takes {LONGEST_DESCRIPTION}, shorten it"
        )
    return found


def _documents(
    name: str, objective: Objective, service: str, identity: Identity
) -> list[dict[str, Any]]:
    sli = _document(
        "SLI",
        {"name": name},
        {
            "ratioMetric": {
                "counter": True,
                "good": _prometheus(identity, objective, outcome="good"),
                "total": _prometheus(identity, objective),
            }
        },
    )
    metadata = {
        "name": name,
        "displayName": objective.name,
        "annotations": {ANNOTATION + key: value for key, value in _annotations(objective).items()},
    }
    described = {} if objective.description is None else {"description": objective.description}
    slo = _document(
        "SLO",
        metadata,
        {
            **described,
            "service": service,
            "indicatorRef": name,
            "timeWindow": [{"duration": PERIOD, "isRolling": True}],
            "budgetingMethod": "Occurrences",
            "objectives": [{"target": objective.target}],
        },
    )
    return [sli, slo]


def _annotations(objective: Objective) -> dict[str, str]:
    found = {"objective": objective.name, "sli": objective.sli}
    if objective.threshold is not None:
        found["threshold"] = seconds_text(objective.threshold)
    found["bucket-policy"] = objective.bucket_policy
    found["notify"] = objective.notify
    if objective.model is not None:
        found["model"] = objective.model
    return found


def _prometheus(identity: Identity, objective: Objective, **more: str) -> dict[str, Any]:
    query = Scope(identity).exported(SLI_EVENTS, labels_text({"objective": objective.name, **more}))
    return {"metricSource": {"type": "Prometheus", "spec": {"query": query}}}


def _document(kind: Kind, metadata: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
