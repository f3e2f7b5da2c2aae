"""
What things are called in PromQL: on the sidecar's page, or on that of a vLLM release itself.

Expressions are written once, with placeholders: ``${requests_running}`` is the metric of a concept of
the catalogue, ``${step_tokens_count}`` the count of a histogram, ``${http_requests:status="5xx"}`` a
metric with matchers, ``${5m}`` a duration (scaled in tests), ``${10m:s}`` its seconds, and
``${engine}``, ``${replica}`` and ``${model}`` the labels that tell engines, replicas and models apart;
``${served}`` those of a replica and of a model that it serves. What is no metric of an engine is named in
:mod:`.prometheus.conventions`, such as ``${target_up}``. Every selector is of the service's series alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from vllm_opsctl.alarms.burn import Clock
from vllm_opsctl.alarms.prometheus.conventions import (
    LEVELS,
    Scope,
    Source,
    named_series,
    scope_of,
)
from vllm_opsctl.exporter.catalogue import Concept, Name, Version, catalogue
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.units import parse_duration

_PLACEHOLDER = re.compile(r"\$\{([^}:]+)(?::([^}]*))?\}")
_DURATION = re.compile(r"\d+(?:ms|s|m|h|d)")
_SUFFIXES = ("_count", "_sum", "_bucket")


class NotMeasured(Exception):
    """A concept that the source does not have; the message says since when it does."""


class NeedsTap(NotMeasured):
    """What the tap alone tells, where there is none."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """
    Names of one source.

    Args:
        source: The sidecar's page, or vLLM's own.
        version: Release of vLLM, for its own page; None for the newest known.
        clock: How long the windows really are.
        chosen: More label matchers of every series, as boards have them.
        scope: Whose series.
    """

    source: Source
    version: Version | None = None
    clock: Clock = field(default_factory=Clock)
    chosen: str = ""
    scope: Scope = field(default_factory=Scope)

    def labels(self, level: str) -> str:
        """The labels of a level of the head of this file, for ``on`` and ``by``."""
        return LEVELS[self.source][level]

    def selector(self, concept: str, suffix: str = "", matchers: str = "") -> str:
        """
        A series selector of a concept.

        Args:
            concept: Name in the catalogue.
            suffix: ``_bucket``, ``_count`` or ``_sum`` of a histogram.
            matchers: More label matchers.

        Raises:
            NotMeasured: This vLLM does not expose it.
        """
        entry = catalogue()[concept]
        if self.source == "sidecar":
            total = "_total" if entry.kind == "counter" else ""
            name, where = f"{entry.exported_name}{total}", []
        else:
            name, where = self._name(entry).name, _where(entry)
        own = self.scope.raw(self.source)
        matches = ", ".join(filter(None, (own, *where, matchers, self.chosen)))
        return f"{name}{suffix}" + (f"{{{matches}}}" if matches else "")

    def has(self, concept: str) -> bool:
        """Whether the source can have it."""
        try:
            self.selector(concept)
        except NotMeasured:
            return False
        return True

    def _name(self, concept: Concept) -> Name:
        for name in concept.names:
            if self.version is None and name.until is None:
                return name
            if self.version is not None and name.since <= self.version <= _end(name):
                return name
        first = min(name.since for name in concept.names)
        asked = _dotted(self.version) if self.version else "the newest"
        raise NotMeasured(
            f"vLLM {asked} does not expose {concept.concept}; it is there from {_dotted(first)} on"
        )

    def expand(self, template: str, optional: Collection[str] = ()) -> str:
        """
        Fill the placeholders of an expression.

        Args:
            template: PromQL with placeholders.
            optional: Concepts without which it still holds; a release that lacks one has no series of
                its newest name either.

        Raises:
            NotMeasured: This vLLM does not expose one of its metrics.
            KeyError: A placeholder is no concept of the catalogue.
        """
        newest = replace(self, version=None)
        return _PLACEHOLDER.sub(
            lambda match: (newest if match[1] in optional else self)._placeholder(match), template
        )

    def _placeholder(self, match: re.Match[str]) -> str:
        name, matchers = match[1], match[2] or ""
        if _DURATION.fullmatch(name):
            nominal_s = parse_duration(name)
            return f"{self.clock.seconds(nominal_s):g}" if matchers else self.clock.text(nominal_s)
        if name in LEVELS[self.source]:
            return self.labels(name)
        named = named_series(name, matchers, self.scope, self.source)
        if named is not None:
            return named
        for suffix in _SUFFIXES:
            if name.endswith(suffix) and name.removesuffix(suffix) in known_concepts():
                return self.selector(name.removesuffix(suffix), suffix, matchers)
        return self.selector(name, "", matchers)


def vocabulary_of(
    config: Config, source: Source, version: Version | None = None, clock: Clock | None = None
) -> Vocabulary:
    """
    The names of a source, for the series of a configuration's service.

    Args:
        config: For the service's identity and ``alarms.match``.
        source: The sidecar's page, or vLLM's own.
        version: Release of vLLM, for its own page; None for the newest known.
        clock: How long the windows really are; None for real time.
    """
    return Vocabulary(source, version, clock or Clock(), scope=scope_of(config))


def known_concepts() -> frozenset[str]:
    """Names of all concepts."""
    return frozenset(concept.concept for concept in catalogue())


def concepts_in(template: str) -> list[str]:
    """
    The concepts whose metrics an expression reads, in the order of their first use.

    >>> concepts_in("rate(${step_tokens_count}[${3m}]) and on (${engine}) ${awake} == 0")
    ['step_tokens', 'awake']
    """
    found: dict[str, None] = {}
    for match in _PLACEHOLDER.finditer(template):
        for name in (match[1], *(match[1].removesuffix(suffix) for suffix in _SUFFIXES)):
            if name in known_concepts():
                found[name] = None
    return list(found)


def _where(concept: Concept) -> list[str]:
    return [
        f'{label}="{pattern.pattern}"'
        if re.fullmatch(r"\w+", pattern.pattern)
        else f'{label}=~"{pattern.pattern}"'
        for label, pattern in concept.where.items()
    ]


def _end(name: Name) -> Version:
    # 0.11.2 is the last release that has it: 0.11.2.post1 reads as 0.11.2, 0.12 is beyond
    return name.until if name.until is not None else (10**6,)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def as_model_and_target(expression: str, source: Source) -> str:
    """
    Give an expression on vLLM's own page the labels that the sidecar's have: model and target.

    Args:
        expression: PromQL whose result keeps ``model_name`` or ``instance``, where it has them.
        source: Where the expression reads.
    """
    if source == "sidecar":
        return expression
    inner = f'label_replace(\n{indented(expression)},\n  "model", "$1", "model_name", "(.+)")'
    return f'label_replace(\n{indented(inner)},\n  "target", "$1", "instance", "(.+)")'


def indented(text: str) -> str:
    """A block of PromQL, two spaces further in."""
    # not splitlines(): a model's name may have what that holds for a line's end
    return "\n".join(f"  {line}" for line in text.strip().split("\n"))
