"""
Writes a tap page: a file of fixed size on a tmpfs, mapped into vLLM's process.

The hot path makes no system call and takes no lock: :mod:`.totals` adds up, and the result is
copied to the page between two steps of a sequence counter. All that may fail comes before the
first of these steps, so that no error leaves a page half written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.identity import Identity
from vllm_opsctl.exporter.tap.totals import FIRST_BUCKETS, Totals, adapter_counts

FILE_MODE = 0o640
"""The sidecar may run as another user of the same group."""

DIRECTORY_MODE = 0o750

_COUNTERS = slice(layout.COUNTERS_OFFSET, layout.GAUGES_OFFSET)
_GAUGES = slice(layout.GAUGES_OFFSET, layout.GAUGES_OFFSET + 8 * len(layout.GAUGES))
_ADAPTERS_SIZE = layout.ADAPTERS * layout.ADAPTER.size
_SEQUENCE = layout.HEADER_OFFSETS["sequence"] // 8
_TOUCHED = layout.HEADER_OFFSETS["touched"] // 8
_UNTOLD = layout.HEADER_OFFSETS["untold"] // 8
_MAX_COUNT = 2**32 - 1


class PageWriter:
    """
    One engine's page, held for as long as the process lives.

    Args:
        directory: On a tmpfs; made when it is not there.
        identity: Whose page it is.
        facts: Configuration of the engine.
        now: Unix seconds.
        monotonic: Seconds of a clock that never goes back.

    Raises:
        OSError: The page cannot be created, for example because the file system is full.
    """

    def __init__(
        self,
        directory: Path,
        identity: Identity,
        facts: Mapping[str, object],
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if sys.byteorder != "little":
            raise OSError("pages are little-endian, and this machine is not")
        self.path = directory / identity.file_name
        self.totals = Totals()
        self._now = now
        self._monotonic = monotonic
        self._sequence = 0
        self._adapters: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {})
        created = now()
        # by the clock that never goes back; a second more, for the start is told in ticks
        self._born = monotonic() - max(0.0, created - identity.started) - 1.0
        with _new_file(self.path) as (fd, publish):
            self._map = mmap.mmap(fd, layout.PAGE_SIZE)
            self._cells = memoryview(self._map).cast("Q")
            self._floats = memoryview(self._map).cast("d")
            self._write_head(identity, facts, created)
            self._publish(created, None)
            publish()
        # stays open: the lock on it tells readers that this process lives
        self._fd = fd

    def record(self, scheduler: Any, iteration: Any, mm_cache: Any) -> None:
        """Take in a step; arguments as of vLLM's ``record()``."""
        now = self._now()
        self.totals.step(now, self._monotonic() - self._born, scheduler, iteration, mm_cache)
        counts = adapter_counts(scheduler)
        table = None
        if counts is not None and counts != self._adapters:
            table = self._table(*counts)
            self._adapters = (dict(counts[0]), dict(counts[1]))
        elif counts is None and scheduler is not None and self._adapters != ({}, {}):
            table = bytes(_ADAPTERS_SIZE)
            self._adapters = ({}, {})
        self._publish(now, table)

    def record_sleep(self, *, asleep: bool, level: int) -> None:
        """Sleep mode began or ended."""
        self.totals.sleep(asleep=asleep, level=level)
        self._publish(self._now(), None)

    def record_rejection(self, reason: str) -> None:
        """Admission control refused a request."""
        now = self._now()
        self.totals.rejection(now, reason)
        self._publish(now, None)

    def describe(self, facts: Mapping[str, object]) -> None:
        """What is now known of the engine's configuration."""
        text = _facts_bytes(facts)
        now = self._now()
        with self._update():
            self._map[layout.FACTS_OFFSET : layout.FACTS_OFFSET + len(text)] = text
            self._put("facts_size", "<I", len(text))
            self._floats[_TOUCHED] = now

    def touch(self) -> None:
        """The process lives, also when there is nothing to do."""
        self._mark(layout.LIVE)

    def close(self) -> None:
        """Nothing more will come; the page stays, for whoever wants to know how it was."""
        self._mark(layout.CLOSED)

    def give_up(self) -> None:
        """Nothing more will come from the tap; readers have to look elsewhere."""
        self._mark(layout.GAVE_UP)

    def _mark(self, state: int) -> None:
        now = self._now()
        with self._update():
            self._put("state", "<I", state)
            self._floats[_TOUCHED] = now

    def _publish(self, now: float, adapters: bytes | None) -> None:
        """Copy to the page what has been added up."""
        totals = self.totals
        where = layout.RING_OFFSET + totals.second % layout.SLOTS * layout.SLOT.size
        counts, floats = totals.counts, totals.floats
        middle = where + 4 * len(counts)
        page, cells, doubles = self._map, self._cells, self._floats
        self._sequence += 1
        cells[_SEQUENCE] = self._sequence
        try:
            doubles[_TOUCHED] = now
            cells[_UNTOLD] = totals.untold
            page[_COUNTERS] = totals.counters
            page[_GAUGES] = totals.gauges
            if totals.second:
                page[where:middle] = counts
                page[middle : middle + 4 * len(floats)] = floats
            for cell, times in totals.added:
                cells[cell] += times
            for histogram in totals.touched:
                cell = FIRST_BUCKETS[histogram] - layout.HISTOGRAM_HEAD
                doubles[cell] = totals.sums[histogram]
                doubles[cell + 1] = totals.largest[histogram]
            if adapters is not None:
                page[layout.ADAPTERS_OFFSET : layout.ADAPTERS_OFFSET + _ADAPTERS_SIZE] = adapters
        finally:
            # KeyboardInterrupt comes anywhere, and the page is still marked as closed after it
            self._sequence += 1
            cells[_SEQUENCE] = self._sequence
        totals.clear()

    @contextlib.contextmanager
    def _update(self) -> Any:
        self._sequence += 1
        self._cells[_SEQUENCE] = self._sequence
        try:
            yield
        finally:
            self._sequence += 1
            self._cells[_SEQUENCE] = self._sequence

    def _table(self, running: Mapping[str, int], waiting: Mapping[str, int]) -> bytes:
        names = list(dict.fromkeys([*running, *waiting]))
        if len(names) > layout.ADAPTERS:
            # the busiest stay
            names.sort(key=lambda name: -(running.get(name, 0) + waiting.get(name, 0)))
            left_out = layout.COUNTERS.index("adapters_left_out")
            self.totals.counters[left_out] += len(names) - layout.ADAPTERS
        rows = [
            layout.ADAPTER.pack(
                _shortened(name),
                min(running.get(name, 0), _MAX_COUNT),
                min(waiting.get(name, 0), _MAX_COUNT),
            )
            for name in names[: layout.ADAPTERS]
        ]
        return b"".join(rows).ljust(_ADAPTERS_SIZE, b"\0")

    def _write_head(self, identity: Identity, facts: Mapping[str, object], created: float) -> None:
        where, text = layout.directory_bytes(), _facts_bytes(facts)
        self._map[layout.DIRECTORY_OFFSET : layout.DIRECTORY_OFFSET + len(where)] = where
        self._map[layout.FACTS_OFFSET : layout.FACTS_OFFSET + len(text)] = text
        values: dict[str, Any] = {
            "magic": layout.MAGIC,
            "version": layout.VERSION,
            "page_size": layout.PAGE_SIZE,
            "sequence": 0,
            "pid": identity.pid,
            "started_ticks": identity.started_ticks,
            "started": identity.started,
            "created": created,
            "touched": created,
            "state": layout.LIVE,
            "engine": identity.engine,
            "api_rank": identity.api_rank,
            "api_count": identity.api_count,
            "server_pid": identity.server_pid,
            "server_ticks": identity.server_ticks,
            "directory_offset": layout.DIRECTORY_OFFSET,
            "directory_size": len(where),
            "facts_offset": layout.FACTS_OFFSET,
            "facts_size": len(text),
            "untold": 0,
        }
        fields = [values[name] for name, _, _ in layout.HEADER_FIELDS]
        layout.HEADER.pack_into(self._map, 0, *fields)

    def _put(self, field: str, code: str, value: float) -> None:
        struct.pack_into(code, self._map, layout.HEADER_OFFSETS[field], value)


@contextlib.contextmanager
def _new_file(path: Path) -> Any:
    """
    A locked file of a page's size under another name, and what gives it its own.

    Space is reserved here: a file system that is full refuses now, where a write to the mapping
    would end the process.
    """
    path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.unlink(missing_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(unfinished, flags, FILE_MODE)
    try:
        os.posix_fallocate(fd, 0, layout.PAGE_SIZE)
        # of the process, not of the descriptor: a forked child does not hold it
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fd, lambda: unfinished.replace(path)
    except BaseException:
        os.close(fd)
        unfinished.unlink(missing_ok=True)
        raise


def _facts_bytes(facts: Mapping[str, object]) -> bytes:
    """JSON of the facts; the last ones stay away when they do not fit."""
    kept = dict(facts)
    while True:
        text = json.dumps(kept, separators=(",", ":")).encode()
        if len(text) <= layout.FACTS_CAPACITY:
            return text
        kept.popitem()


def _shortened(name: str) -> bytes:
    """A name within its cell, without half a character at the end."""
    raw = name.encode(errors="replace")[: layout.ADAPTER_NAME_BYTES]
    return raw.decode(errors="ignore").encode()
