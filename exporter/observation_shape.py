"""
Checks the shape of every kind of observation that comes from a file or from a sidecar.

Everything behind this edge relies on it: a field of the wrong type is reported in one line here and
can never fail a diagnosis halfway. Unknown fields are let through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from vllm_opsctl.exporter.limits import MAX_JSON_NODES, MAX_NESTING, MAX_TEXT_CHARS
from vllm_opsctl.exporter.plain_text import plain

LATEST_T: Final = 1e11
"""Unix seconds beyond any clock: the year 5138."""

_MOST: Final = 1e15
"""No number of an observation is so large; a float holds it exactly."""

_MAX_SHOWN: Final = 60
"""Characters of a value that is wrong."""

_SURROGATE = re.compile("[\ud800-\udfff]")

PAGE: Final = "text"
"""The field that holds a whole page, which stays as it is."""


class ShapeError(ValueError):
    """A field is not what its kind of observation has; the message says which and what it should be."""


Check = Callable[[Any, str], None]
"""Looks at a value; its place, for the message, is the second argument."""


def checked(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """
    The fields of an observation, of the types that its kind has, and with texts that can be shown.

    Args:
        kind: Of the observation.
        data: Its fields as JSON gave them.

    Raises:
        ShapeError: One is wrong.
    """
    found = {name: _harmless(value, name) for name, value in data.items() if name != PAGE}
    if PAGE in data:
        _refuse_surrogates(data[PAGE], PAGE)
        found[PAGE] = data[PAGE]
    for name, check in _SHAPES.get(kind, {}).items():
        if name in found:
            check(found[name], name)
        elif (kind, name) in _REQUIRED:
            raise ShapeError(f"no {name}; a {kind} observation has one")
    return {plain(name, MAX_TEXT_CHARS): value for name, value in found.items()}


def shown(value: object) -> str:
    """A value for a message: in one line, and cut."""
    if isinstance(value, str):
        # before repr: of five million characters nobody wants a copy
        value = value[: _MAX_SHOWN + 1]
    return plain(repr(value), _MAX_SHOWN)


def _harmless(value: Any, at: str) -> Any:
    """The same with all texts in one line each; bounded in depth and in number."""
    nodes = 0

    def walk(one: Any, depth: int) -> Any:
        nonlocal nodes
        nodes += 1
        if nodes > MAX_JSON_NODES:
            raise ShapeError(f"{plain(at, _MAX_SHOWN)} has more than {MAX_JSON_NODES} values in it")
        if depth > MAX_NESTING:
            raise ShapeError(f"{plain(at, _MAX_SHOWN)} is nested more than {MAX_NESTING} deep")
        if isinstance(one, str):
            _refuse_surrogates(one, at)
            return plain(one, MAX_TEXT_CHARS)
        if isinstance(one, list):
            return [walk(item, depth + 1) for item in one]
        if isinstance(one, dict):
            return {walk(name, depth): walk(item, depth + 1) for name, item in one.items()}
        if isinstance(one, float) and not -_MOST < one < _MOST:
            raise ShapeError(f"{plain(at, _MAX_SHOWN)} has {one!r} in it, which is no number")
        return one

    return walk(value, 1)


def _refuse_surrogates(text: object, at: str) -> None:
    if isinstance(text, str) and not text.isascii() and _SURROGATE.search(text):
        raise ShapeError(f"{plain(at, _MAX_SHOWN)} has half a character in it (a lone surrogate)")


def _wrong(value: object, at: str, wanted: str) -> ShapeError:
    return ShapeError(f"{plain(at, _MAX_SHOWN)} is {shown(value)}; expected {wanted}")


# -- checks --------------------------------------------------------------------------------------


def _text(value: Any, at: str) -> None:
    if not isinstance(value, str):
        raise _wrong(value, at, "text")


def _number(value: Any, at: str) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -_MOST < value < _MOST:
        raise _wrong(value, at, "a number")


def _count(value: Any, at: str) -> None:
    """Whatever is counted or measured: never below 0."""
    _number(value, at)
    if value < 0:
        raise _wrong(value, at, "a number of 0 or more")


def _whole(value: Any, at: str) -> None:
    _count(value, at)
    if not isinstance(value, int):
        raise _wrong(value, at, "a whole number")


def _time(value: Any, at: str) -> None:
    _count(value, at)
    if value >= LATEST_T:
        raise _wrong(value, at, "unix seconds")


def _flag(value: Any, at: str) -> None:
    if not isinstance(value, bool):
        raise _wrong(value, at, "true or false")


def _or_null(check: Check) -> Check:
    def either(value: Any, at: str) -> None:
        if value is not None:
            check(value, at)

    return either


def _list_of(check: Check) -> Check:
    def every(value: Any, at: str) -> None:
        if not isinstance(value, list):
            raise _wrong(value, at, "a list")
        for index, item in enumerate(value):
            check(item, f"{at}[{index}]")

    return every


def _pair_of(first: Check, second: Check) -> Check:
    def both(value: Any, at: str) -> None:
        if not isinstance(value, list) or len(value) != 2:
            raise _wrong(value, at, "a list of two")
        first(value[0], f"{at}[0]")
        second(value[1], f"{at}[1]")

    return both


def _by_name(check: Check) -> Check:
    def every(value: Any, at: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(value, at, "an object")
        for name, item in value.items():
            check(item, f"{at}.{name}")

    return every


def _object(**fields: Check) -> Check:
    def known(value: Any, at: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(value, at, "an object")
        for name, check in fields.items():
            if name in value:
                check(value[name], f"{at}.{name}")

    return known


def _event(value: Any, at: str) -> None:
    _object(t=_time, what=_text, failure=_flag)(value, at)
    for name in ("t", "what"):
        if name not in value:
            raise ShapeError(f"{at} has no {name}")


_SHAPES: Mapping[str, Mapping[str, Check]] = {
    "metrics": {PAGE: _text, "seconds": _count},
    "error": {"reason": _or_null(_text), "detail": _or_null(_text)},
    "health": {"status": _or_null(_whole), "seconds": _count, "reason": _or_null(_text)},
    "probe": {
        "name": _text,
        "ok": _flag,
        "seconds": _count,
        "cold_seconds": _count,
        "repeat_seconds": _count,
        "hit": _or_null(_flag),
        "reason": _or_null(_text),
        "detail": _or_null(_text),
    },
    "facts": {
        "version": _text,
        "models": _object(
            data=_list_of(
                _object(id=_or_null(_text), parent=_or_null(_text), max_model_len=_or_null(_count))
            )
        ),
        "max_num_seqs": _or_null(_count),
        "server_load": _number,
        "is_sleeping": _flag,
        "is_paused": _flag,
        "expected_models": _list_of(_text),
        "expected_max_model_len": _count,
    },
    "log": {"counts": _by_name(_count)},
    "host": {
        "engine_process": _flag,
        "engine_stopped": _flag,
        "oom_kills": _count,
        "xid_errors": _count,
        "gpu_throttled": _flag,
        "load_per_core": _count,
    },
    "sagemaker": {
        "status": _or_null(_text),
        "failure": _or_null(_text),
        "current": _or_null(_count),
        "desired": _or_null(_count),
        "weight": _or_null(_count),
        "unit": _text,
        "instance_type": _or_null(_text),
        "working": _list_of(_text),
        "deploying_s": _count,
        "starts": _count,
        "metrics": _by_name(_count),
        "objectives": _by_name(_pair_of(_count, _count)),
        "attempts": _list_of(_pair_of(_time, _count)),
        "events": _list_of(_event),
        "not_seen": _list_of(_text),
    },
    "header": {"format": _whole, "made_by": _text},
}
"""What is known of each kind's fields, which all may be missing."""

_REQUIRED = frozenset({("metrics", PAGE), ("probe", "ok")})
"""But for these."""
