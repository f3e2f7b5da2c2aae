"""
YAML, by libyaml where PyYAML has it: ten times as fast.

What the package brings is read as it is. What users give is looked at first, event by event, without
building anything: its size with all aliases resolved, its nesting, its tags and its keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml import events as seen

from vllm_opsctl.exporter.limits import MAX_NESTING, MAX_YAML_NODES
from vllm_opsctl.exporter.plain_text import plain

try:
    from yaml import CSafeDumper as Dumper
    from yaml import CSafeLoader as _Loader
except ImportError:
    from yaml import SafeDumper as Dumper  # type: ignore[assignment]
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

__all__ = ["Dumper", "YamlMistake", "read_user_documents", "read_user_yaml", "read_yaml"]

_MAX_DIGITS = 64
"""Of a number; Python refuses to print those of more than 4,300."""

_SHOWN_CHARS = 60
_EXPLAINED_CHARS = 2**11

_QUOTED = re.compile(r"'([^']*)'")

_YAMLS_OWN = "tag:yaml.org,2002:"
_TAGS = frozenset(
    f"{_YAMLS_OWN}{name}" for name in ("bool", "float", "int", "map", "null", "seq", "str")
)
_DATE = f"{_YAMLS_OWN}timestamp"


_OF_CONSTRUCTORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What PyYAML's constructors raise for values that do not fit their tags, such as !!bool x."""


class YamlMistake(ValueError):
    """
    A text is not the YAML that opsctl reads.

    Args:
        line: Where, from 1; None where it cannot be told.
        reason: What is wrong, and perhaps the fix; one harmless line.
    """

    def __init__(self, line: int | None, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = plain(reason, 4 * _SHOWN_CHARS)

    @property
    def place(self) -> str:
        """``:LINE`` to stand behind a file's name."""
        return "" if self.line is None else f":{self.line}"


def read_yaml(text: str) -> Any:
    """
    Read one document of the package's own.

    Raises:
        yaml.YAMLError: It is none.
    """
    return yaml.load(text, Loader=_Loader)


def read_user_yaml(text: str) -> Any:
    """
    Read one document that somebody gave.

    Dates stay texts. A key that stands twice is a mistake, for PyYAML would drop the first.

    Raises:
        YamlMistake: It is none, several, or beyond a bound.
    """
    documents = list(_documents(text, any_text=False))
    if len(documents) > 1:
        raise YamlMistake(None, "several documents; give one")
    return documents[0] if documents else None


def read_user_documents(text: str) -> list[Any]:
    """
    Read all documents that somebody gave in one text; control characters may stand in them as escapes.

    Raises:
        YamlMistake: As :func:`read_user_yaml`, but for several documents and escapes.
    """
    return list(_documents(text, any_text=True))


def _documents(text: str, *, any_text: bool) -> Iterator[Any]:
    try:
        look = _Look(any_text)
        for event in yaml.parse(text, Loader=_Loader):
            look.at(event)
        yield from yaml.load_all(text, Loader=_TextDates)
    except yaml.MarkedYAMLError as problem:
        told = _told_better(text) or problem
        mark = told.problem_mark
        reason = _QUOTED.sub(_kind_alone, told.problem or "not YAML")
        raise YamlMistake(mark.line + 1 if mark else None, reason) from None
    except yaml.reader.ReaderError as problem:
        line = _line_of(text, problem.position)
        raise YamlMistake(line, "control characters are not allowed") from None
    except YamlMistake:
        raise
    except (yaml.YAMLError, *_OF_CONSTRUCTORS) as problem:
        raise YamlMistake(None, f"a value that cannot be read ({type(problem).__name__})") from None


def _kind_alone(quoted: re.Match[str]) -> str:
    """What PyYAML quotes is kept as a character or a kind; a tag may be an unquoted password."""
    return quoted[0] if len(quoted[1]) == 1 or quoted[1].startswith("<") else "'…'"


def _told_better(text: str) -> yaml.MarkedYAMLError | None:
    """The same mistake in the words of PyYAML's own parser, which is slow and says what it expected."""
    if len(text) > _EXPLAINED_CHARS or text.count("[") + text.count("{") > MAX_NESTING:
        return None
    try:
        for _ in yaml.parse(text, Loader=yaml.SafeLoader):
            pass
    except yaml.MarkedYAMLError as problem:
        return problem
    except (yaml.YAMLError, ValueError, RecursionError):
        pass
    return None


def _line_of(text: str, position: object) -> int | None:
    return text.count("\n", 0, position) + 1 if isinstance(position, int) else None


class _TextDates(_Loader):
    """Dates stay texts: nothing of opsctl's is a date of YAML's."""


_TextDates.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


@dataclass(slots=True)
class _Open:
    """A list or mapping that is being read; nodes are counted with the aliases in it resolved."""

    is_mapping: bool
    anchor: str | None
    nodes: int = 1
    children: int = 0
    keys: set[str] = field(default_factory=set)

    @property
    def wants_key(self) -> bool:
        return self.is_mapping and self.children % 2 == 0


class _Look:
    """
    Looks at the events of a text, and stops at the first thing that opsctl does not read.

    Args:
        any_text: Escapes of control characters are taken.
    """

    def __init__(self, any_text: bool) -> None:
        self._any_text = any_text
        self._open: list[_Open] = []
        self._nodes: dict[str, int] = {}
        """Of what an anchor names; 0 while that is still being read."""

        self._scalars: dict[str, str] = {}
        self._total = 0

    def at(self, event: Any) -> None:
        """
        Look at the next event.

        Raises:
            YamlMistake: It is beyond a bound, or of a kind that is not read.
        """
        line = event.start_mark.line + 1
        if isinstance(event, seen.DocumentStartEvent):
            self._nodes.clear()
            self._scalars.clear()
        elif not isinstance(event, seen.AliasEvent) and _anchor_of(event) in self._nodes:
            raise YamlMistake(line, "an anchor (&) stands twice")
        elif isinstance(event, seen.ScalarEvent):
            self._scalar(event, line)
        elif isinstance(event, seen.AliasEvent):
            self._alias(event.anchor, line)
        elif isinstance(event, seen.SequenceStartEvent | seen.MappingStartEvent):
            self._begin(event, line)
        elif isinstance(event, seen.SequenceEndEvent | seen.MappingEndEvent):
            done = self._open.pop()
            if done.anchor is not None:
                self._nodes[done.anchor] = done.nodes
            self._add(done.nodes, line)

    def _scalar(self, event: Any, line: int) -> None:
        _check_tag(event.tag, line)
        value: str = event.value
        if not self._any_text and any(_is_control(c) for c in value):
            raise YamlMistake(line, "control characters are not allowed")
        if len(value) > _MAX_DIGITS and _is_number(event, value):
            raise YamlMistake(line, f"a number of more than {_MAX_DIGITS} digits")
        if event.anchor is not None:
            self._nodes[event.anchor] = 1
            self._scalars[event.anchor] = value
        self._key(value, line)
        self._add(1, line)

    def _alias(self, anchor: str | None, line: int) -> None:
        if anchor is None or anchor not in self._nodes:
            raise YamlMistake(line, "an alias (*) without an anchor (&) before it")
        nodes = self._nodes[anchor]
        if nodes == 0:
            raise YamlMistake(line, "an alias (*) within what it names")
        if self._open and self._open[-1].wants_key and anchor not in self._scalars:
            raise YamlMistake(line, "a key is a list or a mapping; write a text")
        self._key(self._scalars.get(anchor, ""), line)
        self._add(nodes, line)

    def _begin(self, event: Any, line: int) -> None:
        _check_tag(event.tag, line)
        if self._open and self._open[-1].wants_key:
            raise YamlMistake(line, "a key is a list or a mapping; write a text")
        if len(self._open) >= MAX_NESTING:
            raise YamlMistake(line, f"nested more than {MAX_NESTING} deep")
        if event.anchor is not None:
            self._nodes[event.anchor] = 0
            self._scalars.pop(event.anchor, None)
        self._open.append(_Open(isinstance(event, seen.MappingStartEvent), event.anchor))

    def _key(self, value: str, line: int) -> None:
        inner = self._open[-1] if self._open else None
        if inner is None or not inner.wants_key:
            return
        if value in inner.keys:
            raise YamlMistake(line, f"the key {_cut(value)!r} stands twice")
        inner.keys.add(value)

    def _add(self, nodes: int, line: int) -> None:
        self._total += nodes if not self._open else 0
        if self._open:
            self._open[-1].nodes += nodes
            self._open[-1].children += 1
        if self._total + sum(one.nodes for one in self._open) > MAX_YAML_NODES:
            raise YamlMistake(
                line, f"more than {MAX_YAML_NODES:,} values with its aliases resolved"
            )


def _anchor_of(event: Any) -> str | None:
    anchor = getattr(event, "anchor", None)
    return str(anchor) if anchor is not None else None


def _is_number(event: Any, value: str) -> bool:
    if event.tag is not None:
        return str(event.tag).endswith((":int", ":float"))
    resolved = _Loader.yaml_implicit_resolvers.get(value[0], []) if event.implicit[0] else []
    return any(tag.endswith((":int", ":float")) and p.match(value) for tag, p in resolved)


def _check_tag(tag: str | None, line: int) -> None:
    if tag is None or tag == "!" or tag in _TAGS:
        return
    short = tag.removeprefix(_YAMLS_OWN)
    # another tag is not shown: an unquoted password may begin with !
    named = f"the tag !!{short}" if short != tag and short.isalpha() else "a tag (!)"
    raise YamlMistake(line, f"{named} is not read; write a text in quotes")


def _is_control(character: str) -> bool:
    number = ord(character)
    if 0x20 <= number < 0x7F:
        return False
    return character not in "\t\n\r\x85" and (number < 0xA0 or 0xD800 <= number <= 0xDFFF)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
