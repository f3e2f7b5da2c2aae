"""How what is there differs from what shall be, in whatever account or server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Action = Literal["create", "change", "delete", "unchanged", "foreign"]
"""What is to be done about one thing; foreign is what is in the way and somebody else's."""


@dataclass(frozen=True, slots=True)
class Difference:
    """
    A property that is not as it shall be.

    Args:
        path: Such as ``Threshold`` or ``Metrics.number.Expression``.
        is_: What it is; None when there is none.
        shall: What it shall be; None when it shall go.
    """

    path: str
    is_: Any
    shall: Any
