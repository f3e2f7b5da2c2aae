"""
Reads a tap page: a consistent copy of it, as values.

By ``pread`` and never through a mapping, so that nothing that happens to the file can hurt the
reader. Reads what the page's own directory names, so a page of a newer writer is read as far as it
is understood.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_opsctl.exporter.tap import layout

_PATIENCE_S = 2.0
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
        """Both together; of the same scale."""
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


def read_tap_page(path: Path) -> TapPage:
    """
    Read one page; never from the process that writes it, whose lock would be lost with the descriptor.

    Raises:
        BadTapPage: No page, of an unknown layout version, or its writer stands still within an
            update.
        OSError: It cannot be opened or read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        alive = _is_locked(fd)
        data, torn = consistent_copy(fd, alive=alive)
    finally:
        os.close(fd)
    return parse(data, path, alive=alive, torn=torn)


def parse(data: bytes, path: Path, *, alive: bool, torn: bool) -> TapPage:
    """
    Take the bytes of a page apart.

    Raises:
        BadTapPage: The bytes contradict themselves.
    """
    header = _header(data)
    try:
        where = json.loads(_part(data, header["directory_offset"], header["directory_size"]))
        facts = json.loads(_part(data, header["facts_offset"], header["facts_size"]))
        scales = {
            unit: layout.Scale(scale["lowest_exponent"], scale["octaves"], unit)
            for unit, scale in where["scales"].items()
            if scale["subdivisions"] == layout.SUBDIVISIONS
        }
        gauges = _cells(data, where["gauges"], "d")
        return TapPage(
            path=path,
            header=header,
            alive=alive,
            torn=torn,
            facts=facts,
            counters={
                name: count
                for bit, (name, count) in enumerate(_cells(data, where["counters"], "Q").items())
                if not header["untold"] >> bit & 1
            },
            gauges={name: value for name, value in gauges.items() if not math.isnan(value)},
            histograms={
                name: _histogram(data, entry["offset"], scales[entry["scale"]])
                for name, entry in where["histograms"].items()
                if entry["scale"] in scales
            },
            adapters=dict(_adapters(data, where["adapters"])),
            slots=_slots(data, where["ring"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as problem:
        # the message of some holds all that could not be decoded
        why = f"{type(problem).__name__}: {problem}"[:_MAX_TOLD]
        raise BadTapPage(f"its directory or facts are damaged ({why})") from problem


def _header(data: bytes) -> dict[str, Any]:
    if len(data) < layout.HEADER.size or data[:8] != layout.MAGIC:
        raise BadTapPage("no tap page")
    values = layout.HEADER.unpack_from(data)
    header = {name: value for (name, _, _), value in zip(layout.HEADER_FIELDS, values, strict=True)}
    if header["version"] != layout.VERSION:
        raise BadTapPage(
            f"layout version {header['version']}; this opsctl reads {layout.VERSION}: "
            "bring both to one release"
        )
    if len(data) != header["page_size"]:
        raise BadTapPage(f"cut off: {len(data)} of {header['page_size']} bytes")
    return header


def consistent_copy(fd: int, *, alive: bool) -> tuple[bytes, bool]:
    """The page between two equal, even sequence numbers; of a dead writer as it is."""
    size = os.fstat(fd).st_size
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
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


def _part(data: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(data):
        raise ValueError(f"{size} bytes at {offset} lie outside")
    return data[offset : offset + size]


def _cells(data: bytes, entry: Mapping[str, Any], code: str) -> dict[str, Any]:
    names = entry["names"]
    values = struct.unpack_from(f"<{len(names)}{code}", data, entry["offset"])
    return dict(zip(names, values, strict=True))


def _histogram(data: bytes, offset: int, scale: layout.Scale) -> TapHistogram:
    total, largest = struct.unpack_from("<2d", data, offset)
    counts = struct.unpack_from(f"<{scale.buckets}Q", data, offset + 8 * layout.HISTOGRAM_HEAD)
    return TapHistogram(scale, counts, total, largest)


def _adapters(data: bytes, entry: Mapping[str, Any]) -> Any:
    row = struct.Struct(f"<{entry['name_bytes']}sII")
    for index in range(entry["count"]):
        name, running, waiting = row.unpack_from(data, entry["offset"] + index * row.size)
        text = name.rstrip(b"\0").decode(errors="replace")
        if not text:
            return
        yield text, (running, waiting)


def _slots(data: bytes, entry: Mapping[str, Any]) -> tuple[Slot, ...]:
    names = [name for name, _ in entry["fields"]]
    row = struct.Struct("<" + "".join(code for _, code in entry["fields"]))
    found = []
    for index in range(entry["count"]):
        values = row.unpack_from(data, entry["offset"] + index * entry["stride"])
        if values[0]:
            found.append(dict(zip(names, values, strict=True)))
    if not found:
        return ()
    found.sort(key=lambda slot: slot["second"])
    # an idle engine writes no seconds: what is older than a round of the ring is of an earlier one
    oldest = found[-1]["second"] - entry["count"]
    return tuple(slot for slot in found if slot["second"] > oldest)
