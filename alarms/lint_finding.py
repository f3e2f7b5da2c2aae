"""One thing that is wrong with a configuration, as ``opsctl alarms lint`` shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One thing that is wrong.

    Args:
        where: Key of the configuration.
        what: What is wrong, and what to do.
        is_error: The objective is not measured or does not page; else it works, but not well.
        is_measured: False where a note is of an objective without rules: who has no tap has chosen so.
    """

    where: str
    what: str
    is_error: bool = True
    is_measured: bool = True
