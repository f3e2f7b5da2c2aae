"""
Conditions: CEL expressions over features, three-valued when evaluated.

CEL (cel-spec) already knows the third value: an operand that is missing is an error, and ``&&`` and
``||`` absorb errors where the other side decides. What is left is "unknown".

A group of features is a map to CEL, not one typed variable per feature: only so can a condition ask
``has(group.feature)``. What the compiler then cannot check of types, samples find out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cel_expr_python import cel

from vllm_opsctl.errors import RunbookError
from vllm_opsctl.exporter.limits import MAX_CONDITION_CHARS
from vllm_opsctl.exporter.plain_text import plain
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

_SOURCE_CHARS = 160
_REASON_CHARS = 300
"""Of an expression, and of what CEL says of it, in a message."""

_NO_SUCH_KEY = "NOT_FOUND: "
"""How CEL's error begins where a map has no such key: a feature is missing."""


@dataclass(frozen=True)
class Condition:
    """
    A condition; it is compiled when it is first asked.

    Args:
        source: CEL, e.g. ``kv.usage_max >= 0.95 && preempt.count > 0.0``.
        where: File and key, for messages.
    """

    source: str
    where: str

    @functools.cached_property
    def features(self) -> tuple[str, ...]:
        """Names of the features it reads."""
        found = _DOTTED.findall(_STRING.sub('""', self.source))
        return tuple(dict.fromkeys(".".join(name) for name in found))

    @functools.cached_property
    def _program(self) -> cel.Expression:
        if len(self.source) > MAX_CONDITION_CHARS:
            raise RunbookError(
                f"{self.where}: {_shown(self.source)} is longer than {MAX_CONDITION_CHARS} characters"
            )
        try:
            program = _environment().compile(self.source)
        except Exception as problem:
            # whatever a library in C++ makes of it
            reason = _not_compiled(self.source, str(problem), self.where)
            raise RunbookError(f"{self.where}: {reason}") from None
        for name in self.features:
            check_feature(name, where=self.where)
        return program

    def holds(self, activation: cel.Activation) -> bool | None:
        """
        Evaluate over an :func:`activation_of` features.

        Returns:
            None when a feature that decides is missing.

        Raises:
            RunbookError: It does not parse, names an unknown feature, or cannot be evaluated.
        """
        program = self._program
        try:
            found = program.eval(activation)
        except Exception as problem:
            why = plain(str(problem), _REASON_CHARS)
            raise RunbookError(
                f"{self.where}: {_shown(self.source)} cannot be evaluated: {why}"
            ) from None
        if found.type() == cel.Type.BOOL:
            return bool(found.value())
        if found.type() != cel.Type.ERROR:
            reason = "is not a yes-or-no question"
        elif found.value().startswith(_NO_SUCH_KEY):
            return None
        else:
            why = plain(found.value().partition(": ")[2], _REASON_CHARS)
            reason = f"cannot be evaluated: {why}"
        raise RunbookError(f"{self.where}: {_shown(self.source)} {reason}")

    def check(self) -> None:
        """
        Evaluate over samples of every feature, which lead it through most of its branches.

        Raises:
            RunbookError: As :meth:`holds`, or it reads what is no feature.
        """
        for sample in _sample_activations():
            if self.holds(sample) is None:
                raise RunbookError(f"{self.where}: {_shown(self.source)} reads what is no feature")


def _not_compiled(source: str, problem: str, where: str) -> str:
    """CEL's first complaint in our words; a name that is no feature is told with the nearest."""
    first = (problem.splitlines() or [""])[0]
    hint = first.partition("ERROR: <input>:")[2] or first
    hint = plain(hint.removesuffix(" (in container '')"), _REASON_CHARS)
    if "Syntax error" in hint:
        return f"{_shown(source)} is not CEL (at {hint})"
    undeclared = _UNDECLARED.search(hint)
    if undeclared and f"{undeclared[1]}(" not in source:
        check_feature(undeclared[1], where=where)
    return f"{_shown(source)} cannot be evaluated (at {hint})"


def _shown(source: str) -> str:
    return repr(source if len(source) <= _SOURCE_CHARS else f"{source[:_SOURCE_CHARS]}…")


def check_feature(name: str, *, where: str) -> Feature:
    """
    Look a feature up.

    Raises:
        RunbookError: There is none of that name; names the nearest.
    """
    known = registry()
    if name in known:
        return known[name]
    hint = nearest(name[:_SOURCE_CHARS], known) or "see opsctl diagnose --show-features"
    raise RunbookError(f"{where}: unknown feature {_shown(name)}; {hint}")


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
