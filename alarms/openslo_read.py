"""
Reads OpenSLO v1 documents into objectives; what cannot be one is refused by document, field and fix.

Documents that opsctl wrote come back as they were. Those of others are understood by the metrics that
their queries name (:mod:`.openslo_query`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vllm_opsctl.alarms.openslo import (
    ANNOTATION,
    PERIOD,
    Dumper,
    Header,
    Metadata,
    Metric,
    RatioMetric,
    ServiceSpec,
    SliSpec,
    SloSpec,
    Target,
    seconds_text,
)
from vllm_opsctl.alarms.openslo_query import NotUnderstood, meaning
from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.config import Objective
from vllm_opsctl.exporter.units import parse_ratio
from vllm_opsctl.exporter.yaml_text import YamlMistake, read_user_documents
from vllm_opsctl.runbooks.names import nearest

_Model = TypeVar("_Model", bound=BaseModel)

_FIELDS = {
    "objective": "name",
    "sli": "sli",
    "threshold": "threshold",
    "bucket-policy": "bucket_policy",
    "notify": "notify",
    "model": "model",
}
"""Annotation to field of the objective."""


@dataclass(frozen=True, slots=True)
class Imported:
    """
    What a file held.

    Args:
        objectives: In the order of the file.
        notes: What was left behind, one line each.
    """

    objectives: tuple[Objective, ...]
    notes: tuple[str, ...]


class _Refused(Exception):
    """One field that cannot be had, and why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")


@dataclass(frozen=True, slots=True)
class _Document:
    """A document whose header is right."""

    where: str
    header: Header
    spec: Any


class _Reader:
    """Collects all mistakes of a file before it gives up."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.objectives: dict[str, Objective] = {}
        self.slis: dict[str, SliSpec] = {}

    def document(self, number: int, data: object) -> _Document | None:
        where = f"{self.origin}: document {number}"
        if not isinstance(data, dict):
            self.problems.append(f"{where}: expected apiVersion, kind, metadata and spec")
            return None
        metadata = data.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        where = f"{where} ({data.get('kind', 'no kind')} {name or 'without a name'})"
        header = self._checked(Header, data, where, "")
        return None if header is None else _Document(where, header, data.get("spec"))

    def _checked(self, model: type[_Model], data: object, where: str, path: str) -> _Model | None:
        try:
            return model.model_validate(data)
        except ValidationError as problem:
            self.problems += [f"{where}: {_line(error, path)}" for error in problem.errors()]
            return None

    def sli(self, document: _Document) -> None:
        spec = self._checked(SliSpec, document.spec, document.where, "spec")
        if spec is not None:
            self.slis[document.header.metadata.name] = spec

    def service(self, document: _Document) -> None:
        self._checked(ServiceSpec, document.spec or {}, document.where, "spec")

    def slo(self, document: _Document) -> None:
        spec = self._checked(SloSpec, document.spec, document.where, "spec")
        if spec is None:
            return
        try:
            _check_period(spec)
            sli = self._indicator(spec)
            ours = _ours(document.header.metadata)
            found = [_from_annotations(ours, spec)] if ours else self._foreign(document, spec, *sli)
        except _Refused as problem:
            self.problems.append(f"{document.where}: {problem}")
            return
        for objective in found:
            if objective.name in self.objectives:
                self.problems.append(
                    f"{document.where}: metadata.name: a second objective {objective.name!r}; "
                    "rename one"
                )
            self.objectives[objective.name] = objective

    def _indicator(self, spec: SloSpec) -> tuple[SliSpec, str]:
        if spec.indicator is not None:
            return spec.indicator.spec, "spec.indicator.spec"
        assert spec.indicator_ref is not None
        if spec.indicator_ref not in self.slis:
            near = nearest(spec.indicator_ref, self.slis) or "add the SLI's document to the file"
            raise _Refused("spec.indicatorRef", f"no usable SLI {spec.indicator_ref!r}; {near}")
        return self.slis[spec.indicator_ref], f"spec.indicatorRef ({spec.indicator_ref})"

    def _foreign(
        self, document: _Document, spec: SloSpec, sli: SliSpec, path: str
    ) -> list[Objective]:
        ratio = _ratio(sli, path)
        part = "good" if ratio.good is not None else "bad"
        events, total = ratio.good or ratio.bad, ratio.total
        assert events is not None
        assert total is not None
        path += ".ratioMetric"
        queries = [
            _query(metric, f"{path}.{one}") for metric, one in ((events, part), (total, "total"))
        ]
        try:
            found = meaning(part, *queries)
        except NotUnderstood as problem:
            raise _Refused(f"{path}.{problem.part}", str(problem)) from None
        if found.dropped:
            self.notes.append(
                f"{document.where}: objectives cover every target: "
                f"{', '.join(found.dropped)} of the queries left out"
            )
        if found.sli == "availability":
            self.notes.append(
                f"{document.where}: counted as opsctl counts availability: 2xx against 5xx on the "
                "inference routes, or finishes by reason"
            )
        name = re.sub(r"[^a-z0-9.-]", "-", document.header.metadata.name)
        several = len(spec.objectives) > 1
        description = spec.description or document.header.metadata.display_name
        return [
            _objective(
                {
                    "name": f"{name}-{index}" if several else name,
                    "sli": found.sli,
                    "threshold": found.threshold_s,
                    "target": _target(target),
                    "model": found.model,
                    "description": target.display_name if several else description,
                },
                f"spec.objectives[{index - 1}]",
            )
            for index, target in enumerate(spec.objectives, 1)
        ]


def read_openslo(text: str, origin: str) -> Imported:
    """
    Read the objectives of OpenSLO v1 documents.

    Args:
        text: YAML, one document or many.
        origin: Name of the file, for messages.

    Raises:
        InputFileError: All mistakes, one line each: file, document, path, what is wrong, the fix.
    """
    reader = _Reader(origin)
    documents = [
        document
        for number, data in _parsed(text, origin)
        if (document := reader.document(number, data)) is not None
    ]
    by_kind = {
        kind: [document for document in documents if document.header.kind == kind]
        for kind in ("Service", "SLI", "SLO")
    }
    # an SLO may stand before the SLI that it names
    for read, kind in ((reader.service, "Service"), (reader.sli, "SLI"), (reader.slo, "SLO")):
        for document in by_kind[kind]:
            read(document)
    for document in documents:
        if document.header.kind not in by_kind:
            reader.notes.append(
                f"{document.where}: left out; opsctl alarms build writes alerts of its own"
            )
    if not reader.problems and not by_kind["SLO"]:
        reader.problems.append(f"{origin}: no document of kind SLO; add one")
    if reader.problems:
        raise InputFileError("\n".join(reader.problems))
    return Imported(tuple(reader.objectives.values()), tuple(reader.notes))


def objectives_section(objectives: tuple[Objective, ...]) -> str:
    """The `objectives:` section of opsctl.yaml; what is at its default is left out."""
    entries = []
    for objective in objectives:
        entry = objective.model_dump(exclude_defaults=True)
        if objective.threshold is not None:
            entry["threshold"] = seconds_text(objective.threshold)
        entry["target"] = ratio_text(objective.target)
        entries.append(entry)
    return yaml.dump(
        {"objectives": entries}, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100
    )


def ratio_text(ratio: float) -> str | float:
    """
    A ratio as a percentage where that reads back as exactly the same number.

    >>> ratio_text(0.999), ratio_text(1 / 3)
    ('99.9%', 0.3333333333333333)
    """
    text = f"{ratio * 100:.10g}%"
    return text if parse_ratio(text) == ratio else ratio


def _parsed(text: str, origin: str) -> list[tuple[int, object]]:
    try:
        # an empty document, as after a last ---, is none
        documents = read_user_documents(text)
    except YamlMistake as problem:
        raise InputFileError(
            f"{origin}{problem.place}: not YAML: {problem.reason}; check indentation and quotes"
        ) from None
    return [(number, data) for number, data in enumerate(documents, 1) if data is not None]


def _line(error: Any, path: str) -> str:
    """One mistake: path, what is wrong."""
    for part in error["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in ("str", "list[str]"):
            path += f".{part}" if path else str(part)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        message = "missing; add it"
    elif error["type"] != "value_error":
        shown = repr(error["input"])
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        message = f"{message[0].lower()}{message[1:]}, got {shown}"
    return f"{path or '(top)'}: {message}"


def _check_period(spec: SloSpec) -> None:
    if spec.budgeting_method != "Occurrences":
        raise _Refused(
            "spec.budgetingMethod",
            "opsctl counts events, not slices of time; write budgetingMethod: Occurrences",
        )
    for window in spec.time_window or ():
        if not window.is_rolling or window.duration != PERIOD:
            kind = "rolling" if window.is_rolling else "of the calendar"
            raise _Refused(
                "spec.timeWindow[0]",
                f"{window.duration} {kind}; opsctl's budgets are of {PERIOD}, write "
                f"duration: {PERIOD} and isRolling: true",
            )


def _ours(metadata: Metadata) -> dict[str, str]:
    """The annotations of a document that opsctl wrote, without their prefix."""
    return {
        key.removeprefix(ANNOTATION): value
        for key, value in (metadata.annotations or {}).items()
        if key.startswith(ANNOTATION)
    }


def _from_annotations(ours: Mapping[str, str], spec: SloSpec) -> Objective:
    path = "metadata.annotations"
    for key in ours:
        if key not in _FIELDS:
            near = nearest(key, _FIELDS) or f"there are {', '.join(_FIELDS)}"
            raise _Refused(f"{path}.{ANNOTATION}{key}", f"unknown; {near}")
    if len(spec.objectives) != 1:
        raise _Refused("spec.objectives", "opsctl's own SLOs have one target; keep one")
    fields: dict[str, Any] = {_FIELDS[key]: value for key, value in ours.items()}
    fields |= {"target": _target(spec.objectives[0]), "description": spec.description}
    return _objective(fields, path)


def _objective(fields: Mapping[str, Any], path: str) -> Objective:
    try:
        return Objective.model_validate(fields)
    except ValidationError as problem:
        error = problem.errors()[0]
        names = {field: ANNOTATION + key for key, field in _FIELDS.items()}
        loc = ".".join(names.get(str(part), str(part)) for part in error["loc"][:1])
        message = str(error["msg"]).removeprefix("Value error, ")
        if error["type"] == "missing":
            message = "missing; add it"
        raise _Refused(f"{path}.{loc}" if loc else path, message) from None


def _target(target: Target) -> float:
    if target.target is not None:
        return target.target
    return parse_ratio(f"{target.target_percent}%")


def _ratio(sli: SliSpec, path: str) -> RatioMetric:
    if sli.ratio_metric is None:
        raise _Refused(
            f"{path}.thresholdMetric",
            "a number over time does not count events; write a ratioMetric of the histogram's "
            '_bucket{le="SECONDS"} over its _count',
        )
    if sli.ratio_metric.raw is not None:
        raise _Refused(
            f"{path}.ratioMetric.raw",
            "a ratio does not tell how many events there were; write good and total",
        )
    return sli.ratio_metric


def _query(metric: Metric, path: str) -> str:
    source = metric.metric_source
    if source.type is not None and source.type.lower() != "prometheus":
        raise _Refused(
            f"{path}.metricSource.type", f"{source.type!r} is not read; write Prometheus queries"
        )
    query = source.spec.get("query", source.spec.get("promql"))
    if not isinstance(query, str):
        raise _Refused(f"{path}.metricSource.spec.query", "missing; write the PromQL query there")
    return query
