"""
Metric math, as far as our alarms use it: arithmetic, comparisons, AND, OR, IF, FILL and DIFF.

A series has one value or none for each period of a grid that all series of an expression share. Between
two series a missing value counts as 0 where the other has one; a division by zero leaves no value. DIFF is
the change since the value before, however long ago that was; the first has none.

Source:
    Using metric math, CloudWatch user guide (using-metric-math.html): the tables of operators, of IF and of
    functions.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

Series = tuple[float | None, ...]
"""Values of a grid's periods, newest last; None where there is none."""

Value = float | Series

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_LOGIC = {"&&": "AND", "||": "OR"}
_FUNCTIONS: Mapping[str, tuple[int, ...]] = {"IF": (2, 3), "FILL": (2,), "DIFF": (1,)}
"""Functions and how many arguments they take."""

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)"
    r"|(?P<word>[A-Za-z][A-Za-z0-9_]*)|(?P<sign>==|!=|<=|>=|&&|\|\||[-+*/<>(),]))"
)


class MathError(Exception):
    """An expression that CloudWatch would refuse; says what is wrong, and where."""


@dataclass(frozen=True, slots=True)
class Node:
    """
    One operation of an expression.

    Args:
        kind: ``number``, ``id``, ``-`` (of one argument), an operator, or a function's name.
        arguments: What it works on.
        number: The number, for ``number``.
        name: The id, for ``id``.
    """

    kind: str
    arguments: tuple[Node, ...] = ()
    number: float = 0.0
    name: str = ""

    def ids(self) -> Iterator[str]:
        """Every id that is referred to, in order, repeated as it is."""
        if self.kind == "id":
            yield self.name
        for argument in self.arguments:
            yield from argument.ids()


def parse(text: str) -> Node:
    """
    Read an expression.

    Raises:
        MathError: It is malformed, or beyond the subset that our alarms use.

    >>> sorted(set(parse("IF(bad >= 5, bad / (good + bad), 0)").ids()))
    ['bad', 'good']
    """
    parser = _Parser(_tokens(text), text)
    found = parser.logic("OR")
    if parser.next is not None:
        raise MathError(f"{text!r}: {parser.next!r} is one too many")
    return found


def evaluate(node: Node, series: Mapping[str, Series]) -> Value:
    """
    The value of an expression.

    Args:
        node: As parsed.
        series: By id, all of one length.

    Raises:
        KeyError: It refers to an id that is not given.
    """
    if node.kind == "number":
        return node.number
    if node.kind == "id":
        return series[node.name]
    values = [evaluate(argument, series) for argument in node.arguments]
    if node.kind == "IF":
        return _choose(values[0], values[1], values[2] if len(values) == 3 else None)
    if node.kind == "FILL":
        return _fill(values[0], values[1])
    if node.kind == "DIFF":
        return _changes(values[0])
    if len(values) == 1:
        return _joined(0.0, values[0], lambda a, b: a - b)
    return _joined(values[0], values[1], _operation(node.kind))


def _operation(sign: str) -> Callable[[float, float], float | None]:
    if sign in _COMPARISONS:
        compare = _COMPARISONS[sign]
        return lambda a, b: float(compare(a, b))
    operations: Mapping[str, Callable[[float, float], float | None]] = {
        "+": operator.add,
        "-": operator.sub,
        "*": operator.mul,
        "/": lambda a, b: a / b if b else None,
        "AND": lambda a, b: float(bool(a) and bool(b)),
        "OR": lambda a, b: float(bool(a) or bool(b)),
    }
    return operations[sign]


def _joined(a: Value, b: Value, operation: Callable[[float, float], float | None]) -> Value:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return tuple(
            None if x is None and y is None else operation(x or 0.0, y or 0.0)
            for x, y in zip(a, b, strict=True)
        )
    if isinstance(a, tuple):
        assert isinstance(b, float)
        return tuple(None if x is None else operation(x, b) for x in a)
    if isinstance(b, tuple):
        return tuple(None if y is None else operation(a, y) for y in b)
    found = operation(a, b)
    if found is None:
        raise MathError("a number is divided by zero")
    return found


def _choose(condition: Value, yes: Value, no: Value | None) -> Value:
    length = next((len(v) for v in (condition, yes, no) if isinstance(v, tuple)), None)
    if length is None:
        return yes if condition else (no if no is not None else 0.0)
    if not isinstance(condition, tuple):
        chosen = yes if condition else no
        return chosen if isinstance(chosen, tuple) else (chosen,) * length
    return tuple(
        None if test is None else ((_at(yes, i) or 0.0) if test else _at(no, i))
        for i, test in enumerate(condition)
    )


def _at(value: Value | None, index: int) -> float | None:
    return value[index] if isinstance(value, tuple) else value


def _fill(value: Value, filler: Value) -> Value:
    if not isinstance(value, tuple):
        return value
    return tuple(_at(filler, i) if x is None else x for i, x in enumerate(value))


def _changes(value: Value) -> Value:
    if not isinstance(value, tuple):
        return 0.0
    found: list[float | None] = []
    before: float | None = None
    for x in value:
        found.append(None if x is None or before is None else x - before)
        before = before if x is None else x
    return tuple(found)


def _tokens(text: str) -> list[str]:
    found, position = [], 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise MathError(f"{text!r}: {text[position:].strip()[:10]!r} is not understood")
        found.append(match[0].strip())
        position = match.end()
    return found


class _Parser:
    """Recursive descent; each method reads one level of precedence."""

    def __init__(self, tokens: list[str], text: str) -> None:
        self._tokens = tokens
        self._text = text

    @property
    def next(self) -> str | None:
        return self._tokens[0] if self._tokens else None

    def _take(self) -> str:
        if not self._tokens:
            raise MathError(f"{self._text!r}: it ends too early")
        return self._tokens.pop(0)

    def _expect(self, token: str) -> None:
        if self.next != token:
            raise MathError(
                f"{self._text!r}: {token!r} is missing before {self.next or 'its end'!r}"
            )
        self._take()

    def logic(self, word: str) -> Node:
        below = self._comparison if word == "AND" else (lambda: self.logic("AND"))
        found = below()
        while self.next is not None and _LOGIC.get(self.next, self.next) == word:
            self._take()
            found = Node(word, (found, below()))
        return found

    def _comparison(self) -> Node:
        found = self._sum()
        while self.next in _COMPARISONS:
            found = Node(self._take(), (found, self._sum()))
        return found

    def _sum(self) -> Node:
        found = self._product()
        while self.next in ("+", "-"):
            found = Node(self._take(), (found, self._product()))
        return found

    def _product(self) -> Node:
        found = self._unary()
        while self.next in ("*", "/"):
            found = Node(self._take(), (found, self._unary()))
        return found

    def _unary(self) -> Node:
        if self.next == "-":
            return Node(self._take(), (self._unary(),))
        return self._primary()

    def _primary(self) -> Node:
        first = self._take()
        if first == "(":
            found = self.logic("OR")
            self._expect(")")
            return found
        if first[0].isdigit() or first[0] == ".":
            return Node("number", number=float(first))
        if first[0].islower():
            return Node("id", name=first)
        if first in _FUNCTIONS:
            return self._call(first)
        raise MathError(
            f"{self._text!r}: {first!r} is no number, id or function that alarms may use"
        )

    def _call(self, name: str) -> Node:
        self._expect("(")
        arguments = [self.logic("OR")]
        while self.next == ",":
            self._take()
            arguments.append(self.logic("OR"))
        self._expect(")")
        if len(arguments) not in _FUNCTIONS[name]:
            wanted = " or ".join(map(str, _FUNCTIONS[name]))
            raise MathError(
                f"{self._text!r}: {name} takes {wanted} arguments, not {len(arguments)}"
            )
        return Node(name, tuple(arguments))
