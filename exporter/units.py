"""Durations, ratios and sizes as people write them, and as they are printed."""

from __future__ import annotations

import math
import re

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNITS_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration(text: str | int | float) -> float:
    """
    Read a duration such as ``500ms``, ``1s``, ``30m`` or ``1h30m``; a bare number is seconds.

    Returns:
        Seconds.

    Raises:
        ValueError: Not a duration; the message shows one that is.

    >>> parse_duration("1h30m")
    5400.0
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text)
    compact = str(text).replace(" ", "")
    if re.fullmatch(r"\d+(?:\.\d+)?", compact):
        return float(compact)
    if not compact or _DURATION.sub("", compact):
        raise ValueError(f"{text!r} is not a duration; write it like 500ms, 10s, 30m or 1h")
    return sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION.findall(compact))


def parse_ratio(text: str | int | float) -> float:
    """
    Read a ratio such as ``99.9%`` or ``0.999``.

    Raises:
        ValueError: Not a ratio, or not within 0 and 1.

    >>> parse_ratio("99.9%")
    0.999
    """
    try:
        if isinstance(text, str) and text.strip().endswith("%"):
            value = round(float(text.strip()[:-1]) / 100, 12)
        elif isinstance(text, bool):
            raise ValueError
        else:
            value = float(text)
    except (ValueError, TypeError):
        raise ValueError(f"{text!r} is not a ratio; write 99.9% or 0.999") from None
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is not within 0 and 1; write 99.9% or 0.999")
    return value


def parse_size(text: str | int) -> int:
    """
    Read a size such as ``64MiB``; a bare number is bytes.

    Raises:
        ValueError: Not a size.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB)?\s*", str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a size; write it like 512KiB or 64MiB")
    return int(float(match[1]) * _UNITS_BYTES[match[2] or "B"])


def format_duration(seconds: float) -> str:
    """
    Print a duration with three significant digits in the unit that reads best.

    >>> format_duration(0.0127), format_duration(8.3), format_duration(754)
    ('12.7 ms', '8.3 s', '12.6 min')
    """
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 1:
        return f"{_digits(seconds * 1000)} ms"
    if seconds < 120:
        return f"{_digits(seconds)} s"
    if seconds < 7200:
        return f"{_digits(seconds / 60)} min"
    return f"{_digits(seconds / 3600)} h"


def format_number(value: float) -> str:
    """
    Print a count or a mean: whole numbers with separators, others with three significant digits.

    >>> format_number(1234567.0), format_number(2.3456)
    ('1,234,567', '2.35')
    """
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return _digits(value)


def format_percent(ratio: float) -> str:
    """
    Print a ratio as a percentage; what is not quite all never reads as 100 %.

    >>> format_percent(0.9812), format_percent(0.0), format_percent(1.0), format_percent(0.99957)
    ('98.1 %', '0 %', '100 %', '99.957 %')
    """
    if 0.99 < ratio < 1:
        return f"{math.floor(ratio * 1e5) / 1e3:g} %"
    return f"{_digits(ratio * 100)} %"


def _digits(value: float) -> str:
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{float(text):.0f}" if "e" in text else text


def number_of(text: str | None) -> float | None:
    """A label's number, or None when it is missing or none."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
