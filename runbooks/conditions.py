"""
Conditions: CEL expressions over features, checked on load, three-valued when evaluated.

CEL (cel-spec) already knows the third value: an operand that is missing is an error, and ``&&`` and
``||`` absorb errors where the other side decides. What is left is "unknown".

A group of features is a map to CEL, not one typed variable per feature: only so can a condition ask
``has(group.feature)``. What the compiler then cannot check of types, samples find out on load.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cel_expr_python import cel

from vllm_opsctl.errors import RunbookError
from vllm_opsctl.runbooks.features import (
    Feature,
    Value,
    feature_groups,
    format_value,
    registry,
)
from vllm_opsctl.runbooks.names import nearest

_PLACEHOLDER = re.compile(r"\{([a-z_0-9.]+)\}")

_UNKNOWN_ASIDE = re.compile(r" ?\([^()]*\bunknown\b[^()]*\)")

_STRING = re.compile(r"\"[^\"]*\"|'[^']*'")
_DOTTED = re.compile(r"(?<![\w.])([a-z_]\w*)\.([a-z_]\w*)")

_UNDECLARED = re.compile(r"undeclared reference to '([\w.]+)'")

_SAMPLES: tuple[dict[str, Value], ...] = tuple(
    {"bool": is_true, "text": "text", "number": number}
    for is_true in (True, False)
    for number in (0.0, 1.0, 1e9)
)
"""Values that lead an expression through most of its branches, so that each is type-checked."""

_NO_SUCH_KEY = "NOT_FOUND: "
"""How CEL's error begins where a map has no such key: a feature is missing."""


@dataclass(frozen=True, slots=True)
class Condition:
    """
    A compiled condition.

    Args:
        source: The CEL expression.
        features: Names of the features it reads.
        program: The compiled expression.
    """

    source: str
    features: tuple[str, ...]
    program: cel.Expression

    def holds(self, activation: cel.Activation) -> bool | None:
        """
        Evaluate over an :func:`activation_of` features.

        Returns:
            None when a feature that decides is missing.

        Raises:
            RunbookError: It cannot be evaluated over these values, and the samples did not tell.
        """
        found = self.program.eval(activation)
        if found.type() == cel.Type.BOOL:
            return bool(found.value())
        if found.type() == cel.Type.ERROR and found.value().startswith(_NO_SUCH_KEY):
            return None
        raise RunbookError(f"{self.source!r} {_mistake(found)}")


def compile_condition(source: str, *, where: str) -> Condition:
    """
    Compile and check a condition.

    Args:
        source: CEL, e.g. ``kv.usage_max >= 0.95 && preempt.count > 0.0``.
        where: File and key, for messages.

    Raises:
        RunbookError: It does not parse, names an unknown feature, compares what cannot be
            compared, or is no yes-or-no question.
    """
    try:
        program = _environment().compile(source)
    except RuntimeError as problem:
        raise RunbookError(f"{where}: {_not_compiled(source, str(problem), where)}") from None
    names = tuple(dict.fromkeys(_feature_names(source)))
    for name in names:
        check_feature(name, where=where)
    for sample in _sample_activations():
        found = program.eval(sample)
        if found.type() != cel.Type.BOOL:
            raise RunbookError(f"{where}: {source!r} {_mistake(found)}")
    return Condition(source, names, program)


def _not_compiled(source: str, problem: str, where: str) -> str:
    """CEL's first complaint in our words; a name that is no feature is told with the nearest."""
    hint = problem.splitlines()[0].partition("ERROR: <input>:")[2] or problem
    hint = hint.removesuffix(" (in container '')")
    if "Syntax error" in hint:
        return f"{source!r} is not CEL (at {hint})"
    undeclared = _UNDECLARED.search(hint)
    if undeclared and f"{undeclared[1]}(" not in source:
        check_feature(undeclared[1], where=where)
    return f"{source!r} cannot be evaluated (at {hint})"


def _mistake(found: cel.Value) -> str:
    """Why an outcome is neither yes nor no."""
    if found.type() != cel.Type.ERROR:
        return "is not a yes-or-no question"
    return f"cannot be evaluated: {found.value().partition(': ')[2]}"


def check_feature(name: str, *, where: str) -> Feature:
    """
    Look a feature up.

    Raises:
        RunbookError: There is none of that name; names the nearest.
    """
    known = registry()
    if name in known:
        return known[name]
    hint = nearest(name, known) or "see opsctl diagnose --show-features"
    raise RunbookError(f"{where}: unknown feature {name!r}; {hint}")


def _feature_names(source: str) -> list[str]:
    """Dotted names that the expression reads, e.g. ``kv.usage_max``."""
    return [".".join(found) for found in _DOTTED.findall(_STRING.sub('""', source))]


@functools.cache
def _environment() -> cel.Env:
    a_group = cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
    return cel.NewEnv(variables=dict.fromkeys(feature_groups(), a_group))


@functools.cache
def _sample_activations() -> tuple[cel.Activation, ...]:
    return tuple(
        activation_of(
            {name: sample.get(entry.unit, sample["number"]) for name, entry in registry().items()}
        )
        for sample in _SAMPLES
    )


def activation_of(features: Mapping[str, Value]) -> cel.Activation:
    """What conditions are evaluated over: one map per group of features, every number a double."""
    groups: dict[str, dict[str, Value]] = {group: {} for group in feature_groups()}
    return _environment().Activation(groups | _by_group(features))


def _by_group(features: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    groups: dict[str, dict[str, Value]] = {}
    for name, value in features.items():
        group, _, field = name.partition(".")
        number = value if isinstance(value, bool | str) else float(value)
        groups.setdefault(group, {})[field] = number
    return groups


def check_template(template: str, *, where: str) -> None:
    """
    Check that a sentence names known features only.

    Raises:
        RunbookError: It names an unknown one.
    """
    for name in _PLACEHOLDER.findall(template):
        check_feature(name, where=where)


def fill_template(template: str, features: Mapping[str, Value]) -> str:
    """Put the features' values into a sentence; a missing one reads ``unknown``."""

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name not in features:
            return "unknown"
        return format_value(features[name], registry()[name].unit)

    # an aside whose number is missing says nothing
    return _UNKNOWN_ASIDE.sub("", _PLACEHOLDER.sub(value_of, template))
