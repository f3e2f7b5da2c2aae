"""
Features: named numbers and facts computed from the evidence, the vocabulary of all signatures.

The registry is :data:`REGISTRY`; the definitions stand by subject in ``features_*.py``. A feature
that cannot be computed is missing, which is a value of its own and never 0.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal, TypeVar

from vllm_opsctl.exporter.units import format_duration, format_number, format_percent
from vllm_opsctl.exporter.yaml_text import read_yaml
from vllm_opsctl.runbooks.evidence import Evidence

Unit = Literal["seconds", "ratio", "factor", "count", "per_second", "cores", "bool", "text"]
Value = float | bool | str


@dataclass(frozen=True, slots=True)
class Feature:
    """
    One named number or fact.

    Args:
        name: ``group.name``; the name that signatures use.
        unit: How it is counted and printed.
        meaning: One line.
        compute: From the evidence; None when it cannot be told.
    """

    name: str
    unit: Unit
    meaning: str
    compute: Callable[[Evidence], Value | None]

    def format(self, value: Value) -> str:
        """Print a value with its unit."""
        return format_value(value, self.unit)


@dataclass(frozen=True, slots=True)
class FeatureGroup:
    """
    What the features of one group (``group.name``) share.

    Args:
        title: What they are about.
        source: vLLM's metrics or routes behind them.
        missing: When they cannot be computed.
        mechanisms: Keys of ``mechanisms.yaml``.
    """

    title: str
    source: str
    missing: str
    mechanisms: tuple[str, ...] = ()


@functools.cache
def feature_groups() -> Mapping[str, FeatureGroup]:
    """All groups by name; the data of ``feature_groups.yaml``."""
    text = files("vllm_opsctl.runbooks").joinpath("feature_groups.yaml").read_text(encoding="utf-8")
    return {
        name: FeatureGroup(
            title=entry["title"],
            source=entry["source"],
            missing=entry["missing"],
            mechanisms=tuple(entry.get("mechanisms", ())),
        )
        for name, entry in read_yaml(text).items()
    }


REGISTRY: dict[str, Feature] = {}

_MODULES = (
    "features_endpoint",
    "features_process",
    "features_frontend",
    "features_latency",
    "features_lengths",
    "features_traffic",
    "features_load",
    "features_probe",
    "features_outside",
    "features_sagemaker",
    "features_fleet",
)


_Compute = TypeVar("_Compute", bound=Callable[[Evidence], Value | None])


def feature(name: str, unit: Unit, meaning: str) -> Callable[[_Compute], _Compute]:
    """Register the decorated function as a feature."""

    def decorate(compute: _Compute) -> _Compute:
        register(Feature(name, unit, meaning, compute))
        return compute

    return decorate


def register(entry: Feature) -> None:
    """Add a feature to the registry."""
    assert entry.name not in REGISTRY, f"feature {entry.name} stands twice"
    REGISTRY[entry.name] = entry


def registry() -> dict[str, Feature]:
    """All features by name; loads the definitions."""
    _load_definitions()
    return REGISTRY


@functools.cache
def _load_definitions() -> None:
    names = [f"vllm_opsctl.runbooks.{module}" for module in _MODULES]
    for name in names:
        importlib.import_module(name)
    # whoever imported one of them first must not change the order in which people read them
    ordered = sorted(REGISTRY.values(), key=lambda entry: names.index(entry.compute.__module__))
    REGISTRY.clear()
    REGISTRY.update((entry.name, entry) for entry in ordered)


def compute_features(evidence: Evidence) -> dict[str, Value]:
    """Compute every feature; those that cannot be told are left out."""
    computed: dict[str, Value] = {}
    for name, entry in registry().items():
        value = entry.compute(evidence)
        if value is not None:
            computed[name] = value
    return computed


def format_value(value: Value, unit: Unit) -> str:
    """Print a feature's value for people, with its unit."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if unit == "seconds":
        return format_duration(value)
    if unit == "ratio":
        return format_percent(value)
    if unit == "factor":
        return f"{value:.2g}x" if value < 10 else f"{value:.0f}x"
    if unit == "per_second":
        return f"{format_number(value)}/s"
    if unit == "cores":
        return f"{format_number(value)} cores"
    return format_number(value)


def quotient(top: float | None, bottom: float | None) -> float | None:
    """A ratio, or None when either part is missing or nothing is below the line."""
    return top / bottom if top is not None and bottom else None


def median_of(e: Evidence, concept: str) -> float | None:
    """Median of a histogram within the window, interpolated within vLLM's bucket."""
    return quantile_of(e, concept, 0.5)


def quantile_of(e: Evidence, concept: str, q: float) -> float | None:
    """A quantile of a histogram within the window, interpolated within vLLM's bucket."""
    histogram = e.window.histogram(concept)
    quantile = histogram.quantile(q) if histogram else None
    return quantile.value if quantile else None
