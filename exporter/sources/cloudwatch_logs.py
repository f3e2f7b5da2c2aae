"""
A container's log out of CloudWatch Logs: the newest lines first, and never more than a bound.

Source:
    CloudWatch Logs API reference, FilterLogEvents: events come oldest first, at most 10,000 or 1 MB a
    call, so the newest lines are had by asking for short stretches from the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vllm_opsctl.exporter.sources.aws_reading import AwsReader

MAX_BYTES = 4 * 2**20
"""As much as is read of a log file's end."""

MAX_LINES = 50_000

MAX_SECONDS = 20.0
"""Whoever is on call waits no longer for lines."""

_FIRST_STRETCH_S = 60.0


@dataclass(slots=True)
class LogTail:
    """
    The newest lines.

    Args:
        since: Unix seconds from which on all lines were read.
        streams: Lines by log stream, each in order of time.
    """

    since: float
    streams: dict[str, list[str]] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """All lines."""
        for lines in self.streams.values():
            yield from lines


@dataclass(slots=True)
class _Budget:
    """What may still be read."""

    lines: int
    bytes: int
    until: float
    clock: Callable[[], float]

    def is_spent(self) -> bool:
        """Nothing more."""
        return self.lines <= 0 or self.bytes <= 0 or self.clock() >= self.until


def read_tail(
    reader: AwsReader,
    group: str,
    prefix: str | None,
    start: float,
    end: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    max_lines: int = MAX_LINES,
) -> LogTail:
    """
    Read the newest lines of a log group.

    Args:
        reader: Calls AWS.
        group: Its name.
        prefix: Of the streams' names; None for all streams.
        start: Nothing older is wanted (unix seconds).
        end: Nothing newer is wanted.
        clock: For the bound in time.
        max_lines: For the bound in lines.

    Raises:
        AwsError: There is no such group, or it may not be read.
    """
    budget = _Budget(max_lines, MAX_BYTES, clock() + MAX_SECONDS, clock)
    tail = LogTail(end)
    length = _FIRST_STRETCH_S
    until = end
    while until > start and not budget.is_spent():
        since = max(start, until - length)
        stretch = _stretch(reader, group, prefix, since, until, budget)
        for stream, lines in stretch.items():
            tail.streams[stream] = lines + tail.streams.get(stream, [])
        if budget.is_spent():
            # of this stretch only the older part is here: it still counts, but not as complete
            return tail
        tail.since = since
        until, length = since, 2 * length
    return tail


def _stretch(
    reader: AwsReader, group: str, prefix: str | None, start: float, end: float, budget: _Budget
) -> dict[str, list[str]]:
    asked: dict[str, object] = {
        "logGroupName": group,
        "startTime": int(start * 1000),
        # both ends belong to it
        "endTime": int(end * 1000) - 1,
    }
    if prefix is not None:
        asked["logStreamNamePrefix"] = prefix
    found: dict[str, list[str]] = {}
    while True:
        said = reader.call("logs", "FilterLogEvents", **asked)
        for event in said.get("events", ()):
            # one event may hold several lines
            lines = str(event["message"]).splitlines()
            found.setdefault(str(event["logStreamName"]), []).extend(lines)
            budget.lines -= len(lines)
            budget.bytes -= len(event["message"])
        token = said.get("nextToken")
        if not token or token == asked.get("nextToken") or budget.is_spent():
            return found
        asked["nextToken"] = token
