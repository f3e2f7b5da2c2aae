"""
Reads a tap page: a consistent copy of it, as values.

By ``pread`` and never through a mapping, so that nothing that happens to the file can hurt the
reader. Reads what the page's own directory names, so a page of a newer writer is read as far as it
is understood. A file that is not a page, belongs to somebody else or contradicts itself is refused;
where the header is enough to see that, nothing else is read.
"""

from __future__ import annotations

import fcntl
import math
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_opsctl.exporter.tap import layout, sections
from vllm_opsctl.exporter.tap.folder import UnsafeFolder, check_page

PATIENCE_S = 2.0
"""An update takes microseconds; a writer that lost its core within one is back long before this."""

_PAUSE_S = 50e-6

_MAX_TOLD = 120
"""Characters of what a parser says of damaged bytes."""

_STRONG_ORDER = platform.machine() in ("x86_64", "AMD64")
"""
On x86-64 stores become visible in order, so the sequence is enough. Elsewhere (aarch64) a copy is
trusted when the sequence still stands after a pause far longer than stores are held back.
"""


class BadTapPage(Exception):
    """A file that is no readable page; the message says why, without the path."""


@dataclass(frozen=True, slots=True)
class TapHistogram:
    """
    One histogram of the page.

    Args:
        scale: Its buckets' bounds.
        counts: Observations per bucket, shape (scale.buckets,).
        sum: Of all observations, ``largest`` of them.
    """

    scale: layout.Scale
    counts: tuple[int, ...]
    sum: float
    largest: float

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.counts)

    def quantile(self, q: float) -> float | None:
        """
        The middle of the bucket that a quantile falls into: within 1.1 % of the exact one.

        Args:
            q: Within 0 and 1.

        Returns:
            None without observations.
        """
        rank, seen = max(1, math.ceil(q * self.count)), 0
        for index, count in enumerate(self.counts):
            seen += count
            if seen >= rank:
                lower, upper = self.scale.lower(index), self.scale.upper(index)
                return min((lower + upper) / 2, self.largest)
        return None

    def plus(self, other: TapHistogram) -> TapHistogram:
        """Both together; of another scale it says nothing."""
        if self.scale != other.scale:
            return self
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        largest = max(self.largest, other.largest)
        return TapHistogram(self.scale, counts, self.sum + other.sum, largest)


Slot = Mapping[str, float]
"""One second: field to value; fields as in ``layout.SLOT_FIELDS``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapPage:
    """
    A consistent copy of a page.

    Args:
        path: The file.
        header: Field to value, see ``layout.HEADER_FIELDS``.
        alive: The process that writes it lives: it holds the lock on the file.
        torn: The writer died within an update; the newest one may be incomplete.
        facts: The engine's configuration.
        counters: Name to cumulative count; those that this vLLM does not tell are absent.
        gauges: Name to newest value; those that this vLLM does not tell are absent.
        histograms: By name.
        adapters: Name to requests running and waiting.
        slots: The seconds with any update, oldest first.
    """

    path: Path
    header: Mapping[str, Any]
    alive: bool
    torn: bool
    facts: Mapping[str, Any]
    counters: Mapping[str, int]
    gauges: Mapping[str, float]
    histograms: Mapping[str, TapHistogram]
    adapters: Mapping[str, tuple[int, int]]
    slots: tuple[Slot, ...]

    @property
    def touched(self) -> float:
        """Unix seconds of the newest update."""
        return float(self.header["touched"])

    @property
    def state(self) -> int:
        """One of layout.LIVE, CLOSED and GAVE_UP."""
        return int(self.header["state"])


def read_tap_page(
    path: Path, *, owner: int | None = None, patience_s: float = PATIENCE_S
) -> TapPage:
    """
    Read one page; never from the process that writes it, whose lock would be lost with the descriptor.

    Args:
        path: The file.
        owner: A user whose pages are believed as well as the folder owner's.
        patience_s: Longest wait for the end of an update.

    Raises:
        BadTapPage: No page, somebody else's, of an unknown layout version, or its writer stands
            still within an update.
        OSError: It cannot be opened or read.
    """
    # a FIFO would wait for its other end
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    fd = os.open(path, flags)
    try:
        _check_owner(path.parent, fd, owner)
        alive = _is_locked(fd)
        data, torn = consistent_copy(fd, alive=alive, patience_s=patience_s)
    finally:
        os.close(fd)
    return parse(data, path, alive=alive, torn=torn)


def _check_owner(folder: Path, fd: int, owner: int | None) -> None:
    try:
        check_page(folder, fd, owner)
    except UnsafeFolder as problem:
        raise BadTapPage(str(problem)) from problem


def parse(data: bytes, path: Path, *, alive: bool, torn: bool) -> TapPage:
    """
    Take the bytes of a page apart.

    Raises:
        BadTapPage: The bytes contradict themselves.
    """
    header = _header(data, len(data))
    try:
        for name in ("started", "created", "touched"):
            sections.time_of(header[name])
        where = sections.mapping(
            sections.part(data, header["directory_offset"], header["directory_size"])
        )
        facts = sections.mapping(sections.part(data, header["facts_offset"], header["facts_size"]))
        return TapPage(
            path=path,
            header=header,
            alive=alive,
            torn=torn,
            facts=sections.checked_facts(facts),
            counters=sections.counters(data, where, header["untold"]),
            gauges=sections.gauges(data, where),
            histograms={
                name: TapHistogram(scale, counts, total, largest)
                for name, scale, counts, total, largest in sections.histograms(data, where)
            },
            adapters=sections.adapters(data, where),
            slots=sections.seconds(data, where),
        )
    except Exception as problem:
        # any kind: JSON alone may recurse too deeply, and one file must not stop the reading of others;
        # some messages hold everything that could not be decoded
        why = ascii(f"{type(problem).__name__}: {problem}"[:_MAX_TOLD])[1:-1]
        raise BadTapPage(f"its directory or facts are damaged ({why})") from problem


def _header(data: bytes, size: int) -> dict[str, Any]:
    """
    The header of a page of a size.

    Raises:
        BadTapPage: Not a page, or of another layout version or size.
    """
    if len(data) < layout.HEADER.size or data[:8] != layout.MAGIC:
        raise BadTapPage("no tap page")
    values = layout.HEADER.unpack_from(data)
    header = {name: value for (name, _, _), value in zip(layout.HEADER_FIELDS, values, strict=True)}
    if header["version"] != layout.VERSION:
        raise BadTapPage(
            f"layout version {header['version']}; this opsctl reads {layout.VERSION}: "
            "bring both to one release"
        )
    if not size == header["page_size"] == layout.PAGE_SIZE:
        raise BadTapPage(f"cut off or extended: {size} bytes, a page has {layout.PAGE_SIZE}")
    return header


def consistent_copy(fd: int, *, alive: bool, patience_s: float = PATIENCE_S) -> tuple[bytes, bool]:
    """
    The page between two equal, even sequence numbers; of a dead writer as it is.

    Args:
        fd: The open file.
        alive: Somebody holds its lock.
        patience_s: Longest wait for the end of an update; what needs none is read without any.

    Returns:
        The bytes, and whether they may be half of an update.

    Raises:
        BadTapPage: No page, or its writer stands still within an update.
    """
    # by its first bytes and its size: a sparse file may be larger than memory
    _header(os.pread(fd, layout.HEADER.size, 0), os.fstat(fd).st_size)
    size = layout.PAGE_SIZE
    deadline = time.monotonic() + patience_s
    while True:
        before = _sequence(fd)
        if before is None:
            raise BadTapPage("no tap page")
        if before % 2 == 0:
            data = os.pread(fd, size, 0)
            if not _STRONG_ORDER:
                time.sleep(_PAUSE_S)
            if _sequence(fd) == before:
                return data, False
        elif not alive:
            return os.pread(fd, size, 0), True
        else:
            time.sleep(_PAUSE_S)
        if time.monotonic() >= deadline:
            break
    if not _is_locked(fd):
        return os.pread(fd, size, 0), True
    raise BadTapPage("its writer stands still within an update")


def _sequence(fd: int) -> int | None:
    raw = os.pread(fd, 8, layout.HEADER_OFFSETS["sequence"])
    return int.from_bytes(raw, "little") if len(raw) == 8 else None


def _is_locked(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.lockf(fd, fcntl.LOCK_UN)
    return False
