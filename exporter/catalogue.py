"""
The metric catalogue: which concept hides behind which name in which vLLM.

The data is ``data/catalogue.yaml``; nothing else in the project knows vLLM's metric names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Literal

from vllm_opsctl.exporter.yaml_text import read_yaml

Kind = Literal["gauge", "counter", "histogram", "summary", "info"]
Scope = Literal["engine", "page"]
Merge = Literal["sum", "max", "newest"]
Version = tuple[int, ...]

SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "gauge": ("",),
    "counter": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
    "info": ("",),
}
"""What vLLM's Prometheus client appends to a family's name, by kind."""


def parse_version(text: str) -> Version:
    """
    Read the release numbers of a vLLM version; anything behind them (``rc1``, ``+cu129``) is dropped.

    >>> parse_version("0.11.1rc2+cu129")
    (0, 11, 1)
    """
    match = re.match(r"v?(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


@dataclass(frozen=True, slots=True)
class Name:
    """One name of a concept, with the first and the last release that expose it."""

    name: str
    since: Version
    until: Version | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """One thing that vLLM measures, whatever its name; fields as in the data file's head."""

    concept: str
    kind: Kind
    unit: str
    merge: Merge
    meaning: str
    names: tuple[Name, ...]
    scope: Scope = "engine"
    split: str | None = None
    where: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    default_bounds: Mapping[Version, tuple[float, ...]] = field(default_factory=dict)

    @property
    def exported_name(self) -> str:
        """The family's name on the sidecar's page, without a counter's ``_total``."""
        return f"vllm_engine_{self.concept}"

    def bounds_of(self, version: Version | None) -> tuple[float, ...]:
        """
        vLLM's default bucket bounds of this histogram in a release (the newest when None).

        Returns:
            Finite upper bounds, ascending; empty when the catalogue does not hold them.
        """
        known = sorted(self.default_bounds)
        usable = [since for since in known if version is None or since <= version]
        return self.default_bounds[usable[-1]] if usable else ()


class Catalogue:
    """All concepts, by name and by the sample names they are found under."""

    def __init__(self, concepts: tuple[Concept, ...]) -> None:
        self._by_concept = {concept.concept: concept for concept in concepts}
        #: sample name -> (concept, rank of the name: 0 is the preferred one)
        self.by_family: dict[str, tuple[Concept, int]] = {}
        self.sample_names: set[str] = set()
        for concept in concepts:
            for rank, name in enumerate(concept.names):
                self.by_family[name.name] = (concept, rank)
                self.sample_names.update(name.name + suffix for suffix in SUFFIXES[concept.kind])

    def __getitem__(self, concept: str) -> Concept:
        return self._by_concept[concept]

    def __iter__(self) -> Iterator[Concept]:
        return iter(self._by_concept.values())


@functools.cache
def catalogue() -> Catalogue:
    """The shipped catalogue, read once."""
    text = files("vllm_opsctl.exporter").joinpath("data/catalogue.yaml").read_text(encoding="utf-8")
    concepts = tuple(_concept(entry) for entry in read_yaml(text)["concepts"])
    return Catalogue(concepts)


def _concept(entry: dict[str, object]) -> Concept:
    fields = dict(entry)
    names = fields.pop("names")
    where = fields.pop("where", {})
    bounds = fields.pop("default_bounds", {})
    assert isinstance(names, list)
    assert isinstance(where, dict)
    assert isinstance(bounds, dict)
    return Concept(
        names=tuple(
            Name(
                name["name"],
                parse_version(name["since"]),
                parse_version(name["until"]) if "until" in name else None,
            )
            for name in names
        ),
        where={label: re.compile(pattern) for label, pattern in where.items()},
        default_bounds={
            parse_version(since): tuple(float(bound) for bound in values)
            for since, values in bounds.items()
        },
        **fields,  # type: ignore[arg-type]
    )
