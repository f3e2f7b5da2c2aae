"""PromQL label matchers: read from configuration, written in one form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

Operator = Literal["=", "!=", "=~", "!~"]

_STRING = r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|`[^`\n]*`'
_MATCHER = re.compile(rf"\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*({_STRING})\s*(,|$)")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))")
_CONTROL = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
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
        is_pattern = self.operator in ("=~", "!~")
        hit = bool(re.fullmatch(self.value, value)) if is_pattern else value == self.value
        return hit is (self.operator in ("=", "=~"))


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
        raise ValueError(f"{text!r} has one brace only; {_EXAMPLE}")
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
            try:
                re.compile(value)
            except re.error as problem:
                raise ValueError(f"{label}: {value!r} is not a pattern ({problem})") from None
        yield Matcher(label, cast(Operator, operator), value)
        at = match.end()


def _unescaped(match: re.Match[str]) -> str:
    """
    A character that is escaped in a string of PromQL.

    Source:
        Prometheus, Querying basics, string literals: the escapes of Go.
    """
    code = match[1] or match[2]
    return chr(int(code, 16)) if code else _CONTROL.get(match[3], match[3])


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
