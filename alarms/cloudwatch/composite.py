"""
Composite alarms: their rules, and when a suppressor keeps one from acting.

Source:
    Combining alarms (alarm-combining.html) and Suppressing composite alarm actions
    (Create_Composite_Alarm_Suppression.html), CloudWatch user guide; the latter's six examples are tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_opsctl.alarms.cloudwatch.evaluator import State

_STATES: Mapping[str, State] = {
    "ALARM": "ALARM",
    "OK": "OK",
    "INSUFFICIENT_DATA": "INSUFFICIENT_DATA",
}
_AT_LEAST = (
    r"AT_LEAST\s*\(\s*(?P<least>\d+)(?P<percent>%?)\s*,\s*(?P<negated>NOT\s+)?"
    r"(?P<state>ALARM|OK|INSUFFICIENT_DATA)\s*,\s*\((?P<names>[^()]*)\)\s*\)"
)
_TOKEN = re.compile(
    rf"\s*(?:(?P<many>{_AT_LEAST})|"
    r"(?P<test>ALARM|OK|INSUFFICIENT_DATA)\s*\(\s*(?:\"(?P<quoted>[^\"]+)\"|(?P<bare>[^\s()\"]+))\s*\)"
    r"|(?P<word>[A-Za-z_]+)|(?P<sign>[()]))"
)


class RuleError(Exception):
    """A rule that CloudWatch would refuse; says what is wrong, and where."""


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One operation of a rule.

    Args:
        kind: ``AND``, ``OR``, ``NOT``, ``AT_LEAST``, ``TRUE``, ``FALSE``, or the state that an alarm must be
            in.
        arguments: What it joins.
        alarm: The alarm, where it is about one.
        least: How many of the arguments must hold, for ``AT_LEAST``.
    """

    kind: str
    arguments: tuple[Rule, ...] = ()
    alarm: str | None = None
    least: float = 0

    def alarms(self) -> Iterator[str]:
        """Every alarm that it refers to, in order, repeated as it is."""
        if self.alarm is not None:
            yield self.alarm
        for argument in self.arguments:
            yield from argument.alarms()

    def holds(self, states: Mapping[str, State]) -> bool:
        """
        Whether it is true.

        Args:
            states: Of every alarm that it refers to.

        Raises:
            KeyError: An alarm has no state.
        """
        if self.alarm is not None:
            return states[self.alarm] == _STATES[self.kind]
        if self.kind == "NOT":
            return not self.arguments[0].holds(states)
        if self.kind in ("TRUE", "FALSE"):
            return self.kind == "TRUE"
        found = [argument.holds(states) for argument in self.arguments]
        if self.kind == "AT_LEAST":
            return sum(found) >= self.least
        return all(found) if self.kind == "AND" else any(found)


def parse_rule(text: str) -> Rule:
    """
    Read a rule.

    Raises:
        RuleError: It is malformed.

    >>> list(parse_rule('ALARM("long") AND NOT ALARM(short)').alarms())
    ['long', 'short']
    """
    parser = _Parser(text)
    found = parser.read("OR")
    if parser.tokens:
        raise RuleError(f"{_short(text)}: {parser.tokens[0][0]!r} is one too many")
    return found


class _Parser:
    """Recursive descent: OR, then AND, then NOT, then what is tested."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.tokens: list[tuple[str, str | Rule | None]] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise RuleError(
                    f"{_short(text)}: {text[position:].strip()[:12]!r} is not understood"
                )
            if match["many"] is not None:
                self.tokens.append(("AT_LEAST", _at_least(match)))
            else:
                alarm = match["quoted"] or match["bare"]
                self.tokens.append((match["test"] or match["word"] or match["sign"], alarm))
            position = match.end()

    def read(self, word: Literal["OR", "AND"]) -> Rule:
        found = [self._below(word)]
        while self.tokens and self.tokens[0] == (word, None):
            self.tokens.pop(0)
            found.append(self._below(word))
        return Rule(word, tuple(found)) if len(found) > 1 else found[0]

    def _below(self, word: Literal["OR", "AND"]) -> Rule:
        return self.read("AND") if word == "OR" else self._single()

    def _single(self) -> Rule:
        if not self.tokens:
            raise RuleError(f"{_short(self._text)}: it ends too early")
        kind, alarm = self.tokens.pop(0)
        if isinstance(alarm, Rule):
            return alarm
        if alarm is not None:
            return Rule(kind, alarm=alarm)
        if kind == "NOT":
            return Rule("NOT", (self._single(),))
        if kind in ("TRUE", "FALSE"):
            return Rule(kind)
        if kind == "(":
            found = self.read("OR")
            if not self.tokens or self.tokens.pop(0) != (")", None):
                raise RuleError(f"{_short(self._text)}: a parenthesis is not closed")
            return found
        raise RuleError(f"{_short(self._text)}: {kind!r} is no state of an alarm, AND, OR or NOT")


def _at_least(match: re.Match[str]) -> Rule:
    names = [name.strip().strip('"') for name in match["names"].split(",")]
    tests = [Rule(match["state"], alarm=name) for name in names if name]
    if match["negated"]:
        tests = [Rule("NOT", (test,)) for test in tests]
    least = float(match["least"])
    needed = least * len(tests) / 100 if match["percent"] else least
    if not 0 < needed <= len(tests):
        raise RuleError(f"{_short(match['many'])}: it can never, or always, hold")
    return Rule("AT_LEAST", tuple(tests), least=needed)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompositeAlarm:
    """
    One composite alarm.

    Args:
        name: Its name.
        rule: When it is in alarm.
        suppressor: Alarm that keeps it from acting while in alarm.
        wait_s: How long it waits for the suppressor before it acts, seconds.
        extension_s: How long it waits after the suppressor has ended, seconds.
    """

    name: str
    rule: Rule
    suppressor: str | None = None
    wait_s: float = 0.0
    extension_s: float = 0.0


@dataclass(slots=True)
class Actions:
    """
    When a composite alarm acts.

    Args:
        alarm: The alarm.
    """

    alarm: CompositeAlarm
    _state: State = "INSUFFICIENT_DATA"
    _suppressed: bool = False
    _owed: bool = False
    _until: float | None = None

    def step(self, now: float, state: State, suppressor: State | None) -> bool:
        """
        Whether the actions of its state are taken now.

        Args:
            now: Unix seconds, not before the last step.
            state: The composite alarm's.
            suppressor: The suppressor's; None without one.
        """
        changed, self._state = state != self._state, state
        self._owed = self._owed or changed
        if suppressor is None:
            return self._act()
        was, self._suppressed = self._suppressed, suppressor == "ALARM"
        if self._suppressed:
            self._until = None
            return False
        if changed:
            self._until = now + self.alarm.wait_s
        elif was:
            self._until = now + self.alarm.extension_s
        if self._until is not None and now >= self._until:
            self._until = None
            return self._act()
        return False

    def _act(self) -> bool:
        acts, self._owed = self._owed, False
        return acts
