"""How what is there differs from what shall be, in whatever account or server."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

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


class Acted(Protocol):
    """A change, of whatever."""

    @property
    def action(self) -> Action: ...


_Change = TypeVar("_Change", bound=Acted)


def to_do(changes: Iterable[_Change]) -> tuple[_Change, ...]:
    """Those that change something."""
    return tuple(one for one in changes if one.action in ("create", "change", "delete"))


def foreign(changes: Iterable[_Change]) -> tuple[_Change, ...]:
    """Those that must not be touched, and are in the way."""
    return tuple(one for one in changes if one.action == "foreign")
