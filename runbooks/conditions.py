"""
Conditions: CEL expressions over features, checked on load, three-valued when evaluated.

CEL (cel-spec) already knows the third value: an operand that is missing is an error, and ``&&`` and
``||`` absorb errors where the other side decides. What is left is "unknown".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import cel

from vllm_opsctl.errors import RunbookError
from vllm_opsctl.runbooks.features import (
    REGISTRY,
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

_SAMPLES: tuple[dict[str, Value], ...] = tuple(
    {"bool": is_true, "text": "text", "number": number}
    for is_true in (True, False)
    for number in (0.0, 1.0, 1e9)
)
"""Values that lead an expression through most of its branches, so that each is type-checked."""


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
    program: cel.Program

    def holds(self, activation: cel.Context) -> bool | None:
        """
        Evaluate over an :func:`activation_of` features.

        Returns:
            None when a feature that decides is missing.
        """
        try:
            return bool(self.program.execute(activation))
        except KeyError:
            return None


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
        program = cel.compile(source)
    except ValueError as problem:
        hint = str(problem).splitlines()[0].partition("ERROR: <input>:")[2]
        raise RunbookError(f"{where}: {source!r} is not CEL (at {hint or problem})") from None
    names = tuple(dict.fromkeys(_feature_names(source, program)))
    for name in names:
        check_feature(name, where=where)
    for samples in _SAMPLES:
        sample = {name: samples.get(REGISTRY[name].unit, samples["number"]) for name in names}
        try:
            result = program.execute(_by_group(sample))
        except (TypeError, RuntimeError, KeyError) as problem:
            reason = str(problem).split(": the operation")[0].split(". ")[0]
            raise RunbookError(f"{where}: {source!r} cannot be evaluated: {reason}") from None
        if not isinstance(result, bool):
            raise RunbookError(f"{where}: {source!r} is not a yes-or-no question")
    return Condition(source, names, program)


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


def _feature_names(source: str, program: cel.Program) -> list[str]:
    """Dotted names that the expression reads, e.g. ``kv.usage_max``, and bare ones, which are wrong."""
    found = _DOTTED.findall(_STRING.sub('""', source))
    bare = set(program.variables()) - {group for group, _ in found}
    return [f"{group}.{field}" for group, field in found] + sorted(bare)


def activation_of(features: Mapping[str, Value]) -> cel.Context:
    """What conditions are evaluated over: one map per group of features, every number a double."""
    return cel.Context({group: {} for group in feature_groups()} | _by_group(features))


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
