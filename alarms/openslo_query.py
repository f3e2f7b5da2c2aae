"""
What a PromQL query of somebody else's SLI counts, told by the names of vLLM's metrics in it.

Names are the catalogue's, vLLM's own of every release and the sidecar's. The query is not evaluated:
what its selectors pick is compared, and what they do not tell is refused.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from vllm_opsctl.exporter.catalogue import SUFFIXES, catalogue
from vllm_opsctl.exporter.config import SLI_CONCEPTS, Sli

_STRING = r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""
_SELECTOR = re.compile(rf"([A-Za-z_:][A-Za-z0-9_:]*)(?:\s*\{{((?:[^}}\"']|{_STRING})*)\}})?")
_MATCHER = re.compile(rf"(\w+)\s*(=~|!=|!~|=)\s*({_STRING})")

_OUTCOMES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "requests_finished": ("stop", "error", ("finished_reason",)),
    "http_requests": ("2xx", "5xx", ("status", "code")),
}
"""Concept to a value of good events, one of bad events, and the labels that hold it."""

_MODEL_LABELS = ("model_name", "model")
_UNDERSTOOD = {"le", "handler", "method", "finished_reason", "status", "code", *_MODEL_LABELS}


class NotUnderstood(Exception):
    """
    A query that names no objective of opsctl's.

    Args:
        part: `good`, `bad` or `total`.
        reason: What is wrong, and what would be right.
    """

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(reason)
        self.part = part


@dataclass(frozen=True, slots=True)
class Selector:
    """
    One selector of a known metric.

    Args:
        concept: Name in the catalogue.
        suffix: `_bucket`, `_count` or `_sum` of a histogram, else empty.
        matchers: Label to operator and value.
    """

    concept: str
    suffix: str
    matchers: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Meaning:
    """
    What a good and a total query count together.

    Args:
        sli: Kind of objective.
        threshold_s: Longest good duration, seconds; None for availability.
        model: The one model; None for every model.
        dropped: Labels that narrowed the queries and that an objective does not have.
    """

    sli: Sli
    threshold_s: float | None
    model: str | None
    dropped: tuple[str, ...]


@functools.cache
def _known() -> dict[str, tuple[str, str]]:
    """Series name to concept and suffix."""
    found = {}
    for concept in catalogue():
        counter = "_total" if concept.kind == "counter" else ""
        families = [*(name.name for name in concept.names), concept.exported_name + counter]
        for family in families:
            for suffix in SUFFIXES[concept.kind]:
                found[family + suffix] = (concept.concept, suffix)
    return found


def selectors(query: str) -> list[Selector]:
    """
    The selectors of known metrics in a query.

    >>> [s.concept for s in selectors('sum(rate(vllm:request_success_total{job="a"}[5m]))')]
    ['requests_finished']
    """
    return [
        Selector(*_known()[match[1]], _matchers(match[2] or ""))
        for match in _SELECTOR.finditer(query)
        if match[1] in _known()
    ]


def _matchers(text: str) -> dict[str, tuple[str, str]]:
    return {
        label: (operator, re.sub(r"\\(.)", r"\1", quoted[1:-1]))
        for label, operator, quoted in _MATCHER.findall(text)
    }


def meaning(part: str, events: str, total: str) -> Meaning:
    """
    What a pair of queries counts.

    Args:
        part: Whether `events` are the `good` or the `bad` ones.
        events: Query of those.
        total: Query of all events.

    Raises:
        NotUnderstood: No objective of opsctl's, or one that the queries do not tell.
    """
    chosen, everything = selectors(events), selectors(total)
    for name, found, query in ((part, chosen, events), ("total", everything, total)):
        if not found:
            raise NotUnderstood(name, _no_metric(query))
    concepts = sorted({selector.concept for selector in (*chosen, *everything)})
    if len(concepts) > 1:
        raise NotUnderstood(
            part, f"counts {' and '.join(concepts)} against each other; use one metric in both"
        )
    (concept,) = concepts
    model = _model(part, (*chosen, *everything))
    dropped = {label for s in (*chosen, *everything) for label in s.matchers} - _UNDERSTOOD
    if concept in _OUTCOMES:
        _check_outcomes(part, concept, chosen, everything)
        return Meaning("availability", None, model, tuple(sorted(dropped)))
    for sli, histogram in SLI_CONCEPTS.items():
        if histogram == concept:
            threshold = _threshold(part, chosen, everything)
            return Meaning(cast(Sli, sli), threshold, model, tuple(sorted(dropped)))
    raise NotUnderstood(
        part, f"{concept} is no objective's metric; there are {', '.join(_measured())}"
    )


def _measured() -> list[str]:
    concepts = (*_OUTCOMES, *SLI_CONCEPTS.values())
    return [catalogue()[concept].names[0].name for concept in concepts]


def _no_metric(query: str) -> str:
    shown = " ".join(query.split())
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"no metric of vLLM's in {shown!r}; objectives count {', '.join(_measured())}"


def _model(part: str, found: Sequence[Selector]) -> str | None:
    models: set[tuple[str, str] | None] = set()
    for selector in found:
        given = [selector.matchers[label] for label in _MODEL_LABELS if label in selector.matchers]
        models.add(given[0] if given else None)
    if len(models) > 1:
        raise NotUnderstood(part, "picks other models than total; give both the same model_name")
    (model,) = models
    if model is not None and model[0] != "=":
        raise NotUnderstood(
            part,
            f'picks models by {model[0]}"{model[1]}"; an objective is for one model, '
            'model_name="NAME", or for every model, without it',
        )
    return model[1] if model is not None else None


def _check_outcomes(
    part: str, concept: str, chosen: Sequence[Selector], everything: Sequence[Selector]
) -> None:
    good, bad, labels = _OUTCOMES[concept]
    wanted, other = (good, bad) if part == "good" else (bad, good)
    if not _picks(chosen, labels, wanted) or _picks(chosen, labels, other):
        raise NotUnderstood(
            part,
            f'must pick {labels[0]}="{wanted}" and leave out "{other}"; narrow it by that label',
        )
    for outcome in (good, bad):
        if not _picks(everything, labels, outcome):
            raise NotUnderstood("total", f'leaves out {labels[0]}="{outcome}"; count both')


def _picks(found: Sequence[Selector], labels: Sequence[str], value: str) -> bool:
    # an HTTP status may be written as a class or as a code
    values = (value, value.replace("xx", "00"))
    return any(
        all(
            any(_matches(*selector.matchers[label], one) for one in values)
            for label in labels
            if label in selector.matchers
        )
        for selector in found
    )


def _matches(operator: str, pattern: str, value: str) -> bool:
    if operator in ("=", "!="):
        return (pattern == value) == (operator == "=")
    try:
        return (re.fullmatch(pattern, value) is not None) == (operator == "=~")
    except re.error:
        return False


def _threshold(part: str, chosen: Sequence[Selector], everything: Sequence[Selector]) -> float:
    if not all(_is_count(selector) for selector in everything):
        raise NotUnderstood(
            "total", 'is not all requests; use the histogram\'s _count, or le="+Inf"'
        )
    below = [selector for selector in chosen if not _is_count(selector)]
    if not below or (part == "good") != (len(below) == len(chosen)):
        wants = '_bucket{le="SECONDS"}' if part == "good" else '_count minus _bucket{le="SECONDS"}'
        raise NotUnderstood(part, f"does not tell a threshold; write the histogram's {wants}")
    bounds = {_bound(part, selector) for selector in below}
    if len(bounds) > 1:
        shown = ", ".join(f"{bound:g}" for bound in sorted(bounds))
        raise NotUnderstood(part, f"has several thresholds, {shown}; write one SLO for each")
    return bounds.pop()


def _is_count(selector: Selector) -> bool:
    infinite = ("=", "+Inf")
    return selector.suffix == "_count" or (
        selector.suffix == "_bucket" and selector.matchers.get("le") == infinite
    )


def _bound(part: str, selector: Selector) -> float:
    operator, text = selector.matchers.get("le", ("", ""))
    # le=~"1(\\.0)?" is how both spellings of a whole number are matched
    plain = text.replace("(\\.0)?", "").replace("\\.", ".")
    try:
        bound = float(plain) if selector.suffix == "_bucket" and operator in ("=", "=~") else 0.0
    except ValueError:
        bound = 0.0
    if not 0 < bound < math.inf:
        shown = f'le{operator}"{text}"' if operator else f"{selector.suffix} without le"
        raise NotUnderstood(part, f'{shown} is no threshold; write _bucket{{le="SECONDS"}}')
    return bound
