"""PromQL label matchers: read from configuration, written in one form."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

Operator = Literal["=", "!=", "=~", "!~"]

_STRING = r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|`[^`\n]*`'
_MATCHER = re.compile(rf"\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*({_STRING})\s*(,|$)")
_ESCAPE = re.compile(
    r"\\(?:x([0-7][0-9a-fA-F])|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|(.))"
)
_PLAIN = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"} | {
    one: one for one in "\\\"'"
}
_PYTHON_ONLY = re.compile(r"\(\?(?:=|!|<=|<!|>|P=|#|\()|[*+?}]\+|\\[1-9]")
"""Lookaround, backreferences and possessive repeats: RE2, which Prometheus uses, has none of them."""
_RE2_ONLY = re.compile(r"\\[pPzC]|\[\[:|.\(\?")
_MOST_REPEATS = 1000

ON_SERVERS_PAGE = frozenset(
    ("model_name", "engine", "le", "handler", "method", "status", "finished_reason")
)
"""Labels that some series of a vLLM's page have and others lack."""
_EXAMPLE = 'write label matchers like \'{cluster="eu",namespace="llm"}\''


@dataclass(frozen=True, slots=True)
class Matcher:
    """
    One label matcher.

    Args:
        label: Name of the label.
        operator: How it is compared.
        value: What with, unescaped; a regular expression with ``=~`` and ``!~``.
    """

    label: str
    operator: Operator
    value: str

    def __str__(self) -> str:
        """As PromQL has it; an apostrophe is escaped, for shells."""
        escaped = self.value.replace("\\", "\\\\").replace('"', '\\"').replace("'", "\\x27")
        return f'{self.label}{self.operator}"{escaped}"'

    def matches(self, value: str) -> bool:
        """Whether a label's value matches; a series without the label has an empty one."""
        if self.operator in ("=", "!="):
            return (value == self.value) is (self.operator == "=")
        pattern = _compiled(self.value)
        return pattern is not None and bool(pattern.fullmatch(value)) is (self.operator == "=~")


def matchers_in(text: str) -> tuple[Matcher, ...]:
    """
    Read matchers, with or without braces around them.

    Raises:
        ValueError: Not label matchers.

    >>> [str(one) for one in matchers_in("{cluster='eu', namespace=~\\"llm|chat\\"}")]
    ['cluster="eu"', 'namespace=~"llm|chat"']
    """
    return tuple(_read(text))


def _read(text: str) -> Iterator[Matcher]:
    body = text.strip()
    if body.startswith("{") != body.endswith("}"):
        raise ValueError(f"{text!r} has text beside its braces, or one of them only; {_EXAMPLE}")
    body = body.removeprefix("{").removesuffix("}").strip()
    if not body:
        raise ValueError(f"no matcher in it; {_EXAMPLE}")
    at = 0
    while at < len(body):
        match = _MATCHER.match(body, at)
        if match is None:
            raise ValueError(f"cannot be read from {body[at : at + 40]!r} on; {_EXAMPLE}")
        label, operator, quoted, _ = match.groups()
        if label == "__name__":
            raise ValueError("__name__ cannot be matched; metrics are chosen by opsctl")
        value = quoted[1:-1] if quoted[0] == "`" else _ESCAPE.sub(_unescaped, quoted[1:-1])
        if re.search(r"[\x00-\x1f]|\{\{|\$\{", value):
            raise ValueError(f"{label}: {value!r} must not hold control characters, {{{{ or ${{")
        if operator in ("=~", "!~"):
            _check_pattern(label, value)
        yield Matcher(label, cast(Operator, operator), value)
        at = match.end()


def _unescaped(match: re.Match[str]) -> str:
    """
    A character that is escaped in a string of PromQL.

    Source:
        Prometheus, Querying basics, string literals: the escapes of Go.
    """
    code = match[1] or match[2] or match[3]
    if code:
        return chr(int(code, 16))
    if match[4]:
        return chr(int(match[4], 8))
    if match[5] not in _PLAIN:
        raise ValueError(f"{match[0]} is not an escape in PromQL; write \\{match[0]}")
    return _PLAIN[match[5]]


def _check_pattern(label: str, pattern: str) -> None:
    """
    Make sure that Prometheus takes a pattern.

    Source:
        RE2 syntax (github.com/google/re2/wiki/Syntax), which Go's regexp has.
    """
    foreign = _PYTHON_ONLY.search(pattern)
    if foreign is not None:
        raise ValueError(
            f"{label}: Prometheus has no {foreign[0]!r} in patterns; to leave values out, add a matcher "
            f'such as {label}!~"canary.*"'
        )
    if any(int(count) > _MOST_REPEATS for count in re.findall(r"\{(?:\d+,)?(\d+)\}", pattern)):
        raise ValueError(f"{label}: Prometheus repeats at most {_MOST_REPEATS} times in a pattern")
    if _compiled(pattern) is None and _RE2_ONLY.search(pattern) is None:
        raise ValueError(f"{label}: {pattern!r} is not a pattern; see its brackets and repeats")


def _compiled(pattern: str) -> re.Pattern[str] | None:
    """A pattern as Python reads it; None for what RE2 alone has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return re.compile(pattern)
        except re.error:
            return None


def example_labels(matchers: tuple[Matcher, ...]) -> dict[str, str] | None:
    """
    Labels that all matchers accept, for generated tests.

    Returns:
        None when no example is found, as for patterns without plain alternatives.

    >>> example_labels(matchers_in('{cluster="eu",namespace=~"llm-.*|chat"}'))
    {'cluster': 'eu', 'namespace': 'llm-'}
    """
    found: dict[str, str] = {}
    for label in dict.fromkeys(one.label for one in matchers):
        mine = [one for one in matchers if one.label == label]
        value = next((v for v in _candidates(mine) if all(one.matches(v) for one in mine)), None)
        if value is None:
            return None
        if value:
            found[label] = value
    return found


def _candidates(matchers: list[Matcher]) -> Iterator[str]:
    for one in matchers:
        if one.operator == "=":
            yield one.value
        elif one.operator == "=~":
            for part in one.value.strip("^$()").split("|"):
                yield re.sub(
                    r"\\(.)|\.[*+?]?|\[[^]]*\][*+?]?", lambda m: m[1] or _filled(m[0]), part
                )
    yield from ("", "other")


def _filled(wildcard: str) -> str:
    return "" if wildcard.endswith(("*", "?")) else "0"
