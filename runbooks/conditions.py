"""
Conditions: CEL expressions over features, checked on load, three-valued when evaluated.

CEL (cel-spec) already knows the third value: an operand that is missing is an error, and ``&&`` and
``||`` absorb errors where the other side decides. What is left is "unknown".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import celpy
import lark
from celpy.adapter import json_to_cel
from celpy.celparser import CELParseError
from celpy.evaluation import CELEvalError

from vllm_opsctl.errors import RunbookError
from vllm_opsctl.runbooks.features import REGISTRY, Feature, Value, format_value, registry
from vllm_opsctl.runbooks.names import nearest

_PLACEHOLDER = re.compile(r"\{([a-z_0-9.]+)\}")

_UNKNOWN_ASIDE = re.compile(r" ?\([^()]*\bunknown\b[^()]*\)")

_SAMPLE_VALUES: dict[str, Value] = {"bool": True, "text": "text"}


@dataclass(frozen=True, slots=True)
class Condition:
    """
    A compiled condition.

    Args:
        source: The CEL expression.
        features: Names of the features it reads.
    """

    source: str
    features: tuple[str, ...]
    program: Any

    def holds(self, activation: Any) -> bool | None:
        """
        Evaluate over an :func:`activation_of` features.

        Returns:
            None when a feature that decides is missing.
        """
        try:
            return bool(self.program.evaluate(activation))
        except CELEvalError:
            return None


@functools.cache
def _environment() -> Any:
    return celpy.Environment()


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
        tree = _environment().compile(source)
    except CELParseError as problem:
        hint = str(problem).strip().splitlines()[-1].strip()
        raise RunbookError(f"{where}: {source!r} is not CEL (at {hint!r})") from None
    names = tuple(dict.fromkeys(_feature_names(tree)))
    for name in names:
        check_feature(name, where=where)
    program = _environment().program(tree)
    samples = {name: _SAMPLE_VALUES.get(REGISTRY[name].unit, 1.0) for name in names}
    try:
        result = program.evaluate(activation_of(samples))
    except CELEvalError as problem:
        raise RunbookError(f"{where}: {source!r} cannot be evaluated: {problem.args[0]}") from None
    if not isinstance(result, bool | celpy.celtypes.BoolType):
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


def _feature_names(tree: lark.Tree[lark.Token]) -> list[str]:
    """Dotted names that the expression reads, e.g. ``kv.usage_max``."""
    found = []
    for dotted in tree.find_data("member_dot"):
        group, field = _name_under(dotted.children[0]), dotted.children[1]
        if group is not None:
            found.append(f"{group}.{field}")
    lonely = {str(node.children[0]) for node in tree.find_data("ident")}
    groups = {name.partition(".")[0] for name in found}
    return found + sorted(lonely - groups)


def _name_under(node: lark.Tree[lark.Token] | lark.Token) -> str | None:
    while isinstance(node, lark.Tree):
        if node.data == "ident":
            return str(node.children[0])
        if len(node.children) != 1:
            return None
        node = node.children[0]
    return None


def activation_of(features: Mapping[str, Value]) -> Any:
    """What CEL evaluates over: one map per group of features; every number is a double."""
    groups: dict[str, dict[str, Value]] = {name.partition(".")[0]: {} for name in registry()}
    for name, value in features.items():
        group, _, field = name.partition(".")
        groups[group][field] = value if isinstance(value, bool | str) else float(value)
    return json_to_cel(groups)


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
