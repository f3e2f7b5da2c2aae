"""
One series of a page: which concept of which engine it belongs to.

A page's series hardly ever change from one read to the next, only their values do. So the part of a
line before the value is parsed once and remembered: by a regular expression where it is as plain as
vLLM writes it, by prometheus-client's own parser where it is not.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_opsctl.exporter.catalogue import Concept, catalogue
from vllm_opsctl.exporter.engine import EngineKey
from vllm_opsctl.exporter.plain_text import plain

REMEMBERED = 32768
"""Series kept in memory: about a hundred targets' pages of 300 catalogued series."""

REMEMBERED_CHARS = 512
"""A longer one is parsed each time: remembered by the thousand they would be gigabytes."""

Role = Literal["value", "bucket", "sum", "count"]

_IDENTITY_LABELS = ("ReplicaId",)
"""Labels that tell engines apart besides ``engine``: Ray Serve adds ``ReplicaId`` (vLLM 0.33)."""

_LABEL = re.compile(r'((?!__)[a-zA-Z_]\w*)="([^"\\\n]*)"', re.ASCII)
_PLAIN = re.compile(
    rf"([a-zA-Z_:][\w:]*)(?:\{{((?:{_LABEL.pattern},)*{_LABEL.pattern})\}})?", re.ASCII
)
"""Name and labels without an escape, a blank or anything else that needs a parser."""

_MANGLED = re.compile(r"^(?:ray_)?vllm_")
_ROLES: tuple[tuple[str, Role], ...] = (("_bucket", "bucket"), ("_sum", "sum"), ("_count", "count"))


@dataclass(frozen=True, slots=True)
class Series:
    """
    What a series is.

    Args:
        name: Sample name, as vLLM spells it.
        identity: Name and labels, whatever their order.
        concept: The concept it belongs to.
        rank: 0 for the concept's newest name.
        role: Which part of the family it is.
        key: The concept, with the split label's value where there is one.
        bound: Upper bound of a bucket.
        engine: The engine it names; None for the page's and for those that name no model.
        engine_label: The bare ``engine`` label.
        facts: Labels of an info metric, less those that name the engine.
    """

    name: str
    identity: tuple[str, frozenset[tuple[str, str]]]
    concept: Concept
    rank: int
    role: Role
    key: str
    bound: float
    engine: EngineKey | None
    engine_label: str | None
    facts: Mapping[str, str]


def labels_text(labels: Mapping[str, str]) -> str:
    """
    Labels as a page has them between its braces, which is how PromQL matches them.

    >>> labels_text({"engine": "0", "model_name": 'ch"at'})
    'engine="0",model_name="ch\\\\"at"'
    """
    return ",".join(f"{name}={quoted(value)}" for name, value in labels.items())


def quoted(value: str) -> str:
    """A label's value as a page and PromQL have it, with its quotes."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def unmangled(name: str) -> str:
    """
    vLLM's own name behind a collector's: Ray and others turn ``vllm:x`` into ``vllm_x``.

    >>> unmangled("ray_vllm_num_requests_running"), unmangled("process_open_fds")
    ('vllm:num_requests_running', 'process_open_fds')
    """
    if name.startswith(("vllm_", "ray_vllm_")):
        return _MANGLED.sub("vllm:", name)
    return name


def read_series(text: str) -> Series | None:
    """
    Read the part of a line before its value.

    Args:
        text: E.g. ``vllm:num_requests_running{model_name="m",engine="0"}``.

    Returns:
        None for a series that is none of the catalogue's concepts.

    Raises:
        ValueError: It breaks the Prometheus text format.
    """
    return _remembered(text) if len(text) <= REMEMBERED_CHARS else _series(text)


def _series(text: str) -> Series | None:
    name, labels = name_and_labels(text)
    name = unmangled(name)
    if not text.isprintable() or "\\" in text:
        # an escape may stand for a line break
        labels = {label: plain(value) for label, value in labels.items()}
    found = _concept_of(name)
    if found is None:
        return None
    concept, rank, role = found
    if not all(p.fullmatch(labels.get(k, "")) for k, p in concept.where.items()):
        return None
    key = concept.concept
    if concept.split is not None and role == "value":
        key = f"{key}{{{labels.get(concept.split, '')}}}"
    named = concept.scope == "engine" and "model_name" in labels
    return Series(
        name=name,
        identity=(name, frozenset(labels.items())),
        concept=concept,
        rank=rank,
        role=role,
        key=key,
        bound=float(labels.get("le", "")) if role == "bucket" else math.nan,
        engine=_engine_key(labels) if named else None,
        engine_label=labels.get("engine"),
        facts=_facts(concept, labels) if concept.kind == "info" else {},
    )


_remembered = functools.lru_cache(maxsize=REMEMBERED)(_series)


def name_and_labels(text: str) -> tuple[str, dict[str, str]]:
    """
    Split the part of a line before its value.

    Raises:
        ValueError: It breaks the Prometheus text format.
    """
    simple = _PLAIN.fullmatch(text)
    if simple is not None:
        pairs = _LABEL.findall(simple[2] or "")
        labels = dict(pairs)
        if len(labels) == len(pairs):
            return simple[1], labels
    # it brings a whole HTTP server along, and no page of vLLM's own needs it
    from prometheus_client.parser import text_string_to_metric_families

    try:
        (family,) = text_string_to_metric_families(f"{text} 0\n")
        (sample,) = family.samples
    except (ValueError, KeyError, IndexError) as problem:
        raise ValueError(f"{plain(text, 80)}: {plain(str(problem), 80)}") from problem
    return sample.name, sample.labels


def _concept_of(name: str) -> tuple[Concept, int, Role] | None:
    known = catalogue().by_family
    if name in known:
        return (*known[name], "value")
    for suffix, role in _ROLES:
        family = name.removesuffix(suffix)
        if family != name and family in known:
            concept, rank = known[family]
            if concept.kind in ("histogram", "summary"):
                return concept, rank, role
    return None


def _engine_key(labels: Mapping[str, str]) -> EngineKey:
    parts = [labels[name] for name in _IDENTITY_LABELS if labels.get(name)]
    return EngineKey(labels["model_name"], "/".join([*parts, labels.get("engine") or "0"]))


def _facts(concept: Concept, labels: Mapping[str, str]) -> dict[str, str]:
    prefix = "" if concept.scope == "engine" else f"{concept.concept}."
    return {prefix + k: v for k, v in labels.items() if k not in ("model_name", "engine")}
