"""How CloudWatch spells statistics."""

from __future__ import annotations

import re

_STATISTICS = ("Sum", "Average", "Minimum", "Maximum", "SampleCount", "IQM")
_PERCENTILE = re.compile(r"(p|tm|tc|ts|wm)(100|\d{1,2}(\.\d+)?)|(PR|TM|TC|TS|WM)\([^()]*:[^()]*\)")


def is_statistic(text: object) -> bool:
    """
    Whether CloudWatch knows it.

    Source:
        CloudWatch statistics definitions (user guide).

    >>> is_statistic("p99.9"), is_statistic("pp99"), is_statistic("Sum")
    (True, False, True)
    """
    return text in _STATISTICS or _PERCENTILE.fullmatch(str(text)) is not None
