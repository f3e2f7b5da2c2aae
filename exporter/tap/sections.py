"""
Reads the sections of a page by its directory, and refuses those that are damaged or made up.

The cost of reading is bounded by the page's size, and the results have the types and ranges that
readers rely on. All functions raise ValueError (or struct.error).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_opsctl.exporter.tap import layout

LATEST_T = float(2**32)
"""Unix seconds beyond any clock: the year 2106."""

_MOST = 1e15
"""No gauge and no second's sum is so large."""

_MAX_NAMES = 256
"""Counters, adapters, fields of a second, and facts of one kind: a page has 33, 48, 38 and 40."""

_MAX_OCTAVES = 64
_MAX_EXPONENT = 64
_MAX_ADAPTER_NAME_BYTES = 1024

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_CODES = frozenset(("Q", "I", "f", "d"))
_SECOND_FIELDS = frozenset(name for name, _, _ in layout.SLOT_FIELDS)


def part(data: bytes, offset: object, size: object) -> bytes:
    """A range of the page's bytes, checked."""
    start, length = _whole(offset, len(data)), _whole(size, len(data))
    if start + length > len(data):
        raise ValueError(f"{length} bytes at {start} lie outside")
    return data[start : start + length]


def time_of(value: float) -> float:
    """A time, Unix seconds."""
    if not 0.0 <= value < LATEST_T:
        raise ValueError(f"{value!r} is no time")
    return value


def mapping(data: bytes) -> dict[str, Any]:
    """The directory or the facts: a JSON object."""
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def checked_facts(told: Mapping[str, Any]) -> dict[str, Any]:
    """
    The engine's configuration, with the types that readers rely on; unknown nested facts are dropped.

    Args:
        told: What stands on the page.
    """
    facts: dict[str, Any] = {
        name: value
        for name, value in told.items()
        if isinstance(value, str | bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    }
    for name in layout.WHOLE_FACTS:
        if told.get(name) is not None:
            facts[name] = _whole(told[name], layout.MAX_FACT)
    if told.get("port") is not None:
        facts["port"] = _whole(told["port"], layout.PORTS[-1])
    if not isinstance(told.get("vllm_version", ""), str):
        raise ValueError("vllm_version is no text")
    models = told.get("models")
    if models is not None:
        if not isinstance(models, list) or not all(isinstance(name, str) for name in models):
            raise ValueError("models is no list of names")
        facts["models"] = models[:_MAX_NAMES]
    cache = told.get("kv_config")
    if cache is not None:
        if not isinstance(cache, dict):
            raise ValueError("kv_config is no object")
        facts["kv_config"] = {
            name: value
            for name, value in list(cache.items())[:_MAX_NAMES]
            if _NAME.fullmatch(name) and isinstance(value, str)
        }
    return facts


def scales(where: Mapping[str, Any]) -> dict[str, layout.Scale]:
    """The kinds of histogram of which this reader knows the buckets, by unit."""
    found = {}
    for unit in (layout.SECONDS.unit, layout.TOKENS.unit):
        scale = where["scales"].get(unit)
        if scale is not None and scale["subdivisions"] == layout.SUBDIVISIONS:
            lowest = scale["lowest_exponent"]
            if (
                isinstance(lowest, bool)
                or not isinstance(lowest, int)
                or abs(lowest) > _MAX_EXPONENT
            ):
                raise ValueError("a scale begins nowhere")
            found[unit] = layout.Scale(lowest, _whole(scale["octaves"], _MAX_OCTAVES, 1), unit)
    return found


def counters(data: bytes, where: Mapping[str, Any], untold: int) -> dict[str, int]:
    """Name to count, of those that this vLLM tells."""
    told = _cells(data, where["counters"], "Q")
    return {name: count for bit, (name, count) in enumerate(told) if not untold >> bit & 1}


def gauges(data: bytes, where: Mapping[str, Any]) -> dict[str, float]:
    """Name to newest value; NaN, infinite and negative ones are left out."""
    return {name: value for name, value in _cells(data, where["gauges"], "d") if 0 <= value < _MOST}


def histograms(
    data: bytes, where: Mapping[str, Any]
) -> Iterator[tuple[str, layout.Scale, tuple[int, ...], float, float]]:
    """Name, scale, counts, sum and largest value of every known histogram."""
    known = scales(where)
    for name, _, _ in layout.HISTOGRAMS:
        entry = where["histograms"].get(name)
        if entry is None or entry["scale"] not in known:
            continue
        scale = known[entry["scale"]]
        offset = _whole(entry["offset"], len(data))
        total, largest = struct.unpack_from("<2d", data, offset)
        if not (0.0 <= total < math.inf and 0.0 <= largest < math.inf):
            raise ValueError(f"histogram {name} has no sum")
        counts = struct.unpack_from(f"<{scale.buckets}Q", data, offset + 8 * layout.HISTOGRAM_HEAD)
        yield name, scale, counts, total, largest


def adapters(data: bytes, where: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Name to requests running and waiting."""
    entry = where["adapters"]
    row = struct.Struct(f"<{_whole(entry['name_bytes'], _MAX_ADAPTER_NAME_BYTES, 1)}sII")
    count = _whole(entry["count"], _MAX_NAMES)
    rows = part(data, entry["offset"], count * row.size)
    found = {}
    for name, running, waiting in row.iter_unpack(rows):
        text = name.rstrip(b"\0").decode(errors="replace")
        if not text:
            break
        found[text] = (running, waiting)
    return found


def seconds(data: bytes, where: Mapping[str, Any]) -> tuple[dict[str, float], ...]:
    """
    The seconds with any update, oldest first.

    Empty if the ring lacks a field that this reader needs.
    """
    entry = where["ring"]
    fields = entry["fields"]
    if len(fields) > _MAX_NAMES or not all(
        isinstance(name, str) and code in _CODES for name, code in fields
    ):
        raise ValueError("the ring has no valid fields")
    names = [name for name, _ in fields]
    if not set(names) >= _SECOND_FIELDS:
        return ()
    row = struct.Struct("<" + "".join(code for _, code in fields))
    stride = _whole(entry["stride"], len(data), row.size)
    count = _whole(entry["count"], len(data) // stride)
    ring = part(data, entry["offset"], count * stride)
    found = []
    for index in range(count):
        values = row.unpack_from(ring, index * stride)
        slot = dict(zip(names, values, strict=True))
        if 0 < slot["second"] < LATEST_T:
            for (name, code), value in zip(fields, values, strict=True):
                if code in "fd" and not 0 <= value < _MOST:
                    slot[name] = 0.0
            found.append(slot)
    if not found:
        return ()
    found.sort(key=lambda slot: slot["second"])
    # an idle engine writes no seconds: what is older than a round of the ring is of an earlier one
    oldest = found[-1]["second"] - count
    return tuple(slot for slot in found if slot["second"] > oldest)


def _cells(data: bytes, entry: Mapping[str, Any], code: str) -> list[tuple[str, Any]]:
    names = entry["names"]
    if not isinstance(names, list) or len(names) > _MAX_NAMES:
        raise ValueError("no list of names")
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise ValueError("not a name")
    values = struct.unpack_from(f"<{len(names)}{code}", data, _whole(entry["offset"], len(data)))
    return list(zip(names, values, strict=True))


def _whole(value: object, most: int, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError("not a number, or out of range")
    return value
