"""
Writes a tap page: kept in vLLM's memory, and written to a file of fixed size on a tmpfs.

The hot path makes no system call and takes no lock: :mod:`.totals` adds up, and the result is
copied to the page in memory. All that may fail comes before that, so that no error leaves a page
half written. The file gets the whole page at most every 100 ms, between two steps of a sequence
counter: by ``pwrite``, because whoever cuts off a mapped file ends the process that maps it
(SIGBUS), and whole, because then whatever was done to the file is mended by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import stat
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.folder import make_folder
from vllm_opsctl.exporter.tap.identity import Identity
from vllm_opsctl.exporter.tap.totals import FIRST_BUCKETS, Totals, adapter_counts

FILE_MODE = 0o640
"""The sidecar may run as another user of the same group."""

PUBLISH_EVERY_S = 0.1
"""How far the file may be behind a busy engine: what a ``kill -9`` loses at most."""

_COUNTERS = slice(layout.COUNTERS_OFFSET, layout.GAUGES_OFFSET)
_GAUGES = slice(layout.GAUGES_OFFSET, layout.GAUGES_OFFSET + 8 * len(layout.GAUGES))
_ADAPTERS_SIZE = layout.ADAPTERS * layout.ADAPTER.size
_SEQUENCE_OFFSET = layout.HEADER_OFFSETS["sequence"]
_SEQUENCE = _SEQUENCE_OFFSET // 8
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
        on_failure: Told when the file cannot be written outside any call of the caller's.

    Raises:
        UnsafeFolder: The folder is not this user's own.
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
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        if sys.byteorder != "little":
            raise OSError("pages are little-endian, and this machine is not")
        self.path = directory / identity.file_name
        self.totals = Totals()
        self._now = now
        self._monotonic = monotonic
        self._on_failure = on_failure
        self._sequence = 0
        self._adapters: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {})
        created = now()
        # by the clock that never goes back; a second more, for the start is told in ticks
        self._born = monotonic() - max(0.0, created - identity.started) - 1.0
        self._page = bytearray(layout.PAGE_SIZE)
        self._cells = memoryview(self._page).cast("Q")
        self._floats = memoryview(self._page).cast("d")
        self._due = 0.0
        self._later: asyncio.TimerHandle | None = None
        self._pid = os.getpid()
        self._write_head(identity, facts, created)
        self._take(created, None)
        # stays open: the lock on it tells readers that this process lives
        self._fd, self._mode = _new_file(self.path, self._page)
        self._file = _identity(os.fstat(self._fd))

    def record(self, scheduler: Any, iteration: Any, mm_cache: Any) -> None:
        """Take in a step; arguments as of vLLM's ``record()``."""
        now, t = self._now(), self._monotonic()
        self.totals.step(now, t - self._born, scheduler, iteration, mm_cache)
        counts = adapter_counts(scheduler)
        table = None
        if counts is not None and counts != self._adapters:
            table = self._table(*counts)
            self._adapters = (dict(counts[0]), dict(counts[1]))
        elif counts is None and scheduler is not None and self._adapters != ({}, {}):
            table = bytes(_ADAPTERS_SIZE)
            self._adapters = ({}, {})
        self._take(now, table)
        self._publish_soon(t)

    def record_sleep(self, *, asleep: bool, level: int) -> None:
        """Sleep mode began or ended."""
        self.totals.sleep(asleep=asleep, level=level)
        self._take(self._now(), None)
        self._publish()

    def record_rejection(self, reason: str) -> None:
        """Admission control refused a request."""
        now = self._now()
        self.totals.rejection(now, reason)
        self._take(now, None)
        self._publish_soon(self._monotonic())

    def describe(self, facts: Mapping[str, object]) -> None:
        """What is now known of the engine's configuration."""
        text = _facts_bytes(facts)
        self._page[layout.FACTS_OFFSET : layout.FACTS_OFFSET + len(text)] = text
        self._put("facts_size", "<I", len(text))
        self._floats[_TOUCHED] = self._now()
        self._publish()

    def touch(self) -> None:
        """The process lives, also when there is nothing to do; its file is looked after."""
        if self._is_own() and not self._has_its_name():
            self._renew()
        self._mark(layout.LIVE)

    def close(self) -> None:
        """Nothing more will come; the page stays, for whoever wants to know how it was."""
        self._mark(layout.CLOSED)

    def give_up(self) -> None:
        """
        Nothing more will come from the tap; readers have to look elsewhere.

        Raises:
            OSError: Not even that can be written.
        """
        try:
            self._mark(layout.GAVE_UP)
        except OSError:
            # where there is no room for the whole page: nobody must wait for the end of its update
            if self._look() is None:
                raise
            state = layout.HEADER_OFFSETS["state"]
            os.pwrite(self._fd, self._page[state : state + 4], state)
            self._sequence += self._sequence % 2
            self._write_sequence()

    def _mark(self, state: int) -> None:
        self._put("state", "<I", state)
        self._floats[_TOUCHED] = self._now()
        self._publish()

    def _take(self, now: float, adapters: bytes | None) -> None:
        """Copy to the page in memory what has been added up."""
        totals = self.totals
        where = layout.RING_OFFSET + totals.second % layout.SLOTS * layout.SLOT.size
        counts, floats = totals.counts, totals.floats
        middle = where + 4 * len(counts)
        page, cells, doubles = self._page, self._cells, self._floats
        doubles[_TOUCHED] = now
        cells[_UNTOLD] = totals.untold
        page[_COUNTERS] = totals.counters.tobytes()
        page[_GAUGES] = totals.gauges.tobytes()
        if totals.second:
            page[where:middle] = counts.tobytes()
            page[middle : middle + 4 * len(floats)] = floats.tobytes()
        for cell, times in totals.added:
            cells[cell] += times
        for histogram in totals.touched:
            cell = FIRST_BUCKETS[histogram] - layout.HISTOGRAM_HEAD
            doubles[cell] = totals.sums[histogram]
            doubles[cell + 1] = totals.largest[histogram]
        if adapters is not None:
            page[layout.ADAPTERS_OFFSET : layout.ADAPTERS_OFFSET + _ADAPTERS_SIZE] = adapters
        totals.clear()

    def _publish_soon(self, t: float) -> None:
        """Write the file now where that was long ago, else when the time has come."""
        if t >= self._due:
            self._publish()
        elif self._later is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                # nobody would come back to it
                self._publish()
            else:
                self._later = loop.call_later(self._due - t, self._publish_late)

    def _publish_late(self) -> None:
        """Called by the event loop, which must not meet an exception."""
        try:
            self._publish()
        except Exception as problem:
            if self._on_failure is not None:
                self._on_failure(problem)

    def _publish(self) -> None:
        """Write the whole page to the file, whatever has become of that."""
        if not self._is_own():
            return
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._due = self._monotonic() + PUBLISH_EVERY_S
        found = self._look()
        if found is None or not found.st_nlink:
            self._renew()
            return
        if found.st_size > layout.PAGE_SIZE:
            os.ftruncate(self._fd, layout.PAGE_SIZE)
        # an update that failed or was interrupted left it odd
        self._sequence += 1 + self._sequence % 2
        self._write_sequence()
        try:
            _write(self._fd, self._page, 0)
        except OSError:
            # half of it may stand there: the update stays unfinished
            raise
        except BaseException:
            # KeyboardInterrupt comes before a system call or after it, and the page goes on
            self._finish_update()
            raise
        self._finish_update()

    def _finish_update(self) -> None:
        self._sequence += 1
        self._write_sequence()

    def _write_sequence(self) -> None:
        self._cells[_SEQUENCE] = self._sequence
        _write(self._fd, self._page[_SEQUENCE_OFFSET : _SEQUENCE_OFFSET + 8], _SEQUENCE_OFFSET)

    def _is_own(self) -> bool:
        """A forked child has the page in its memory and the file open, and both are its parent's."""
        return os.getpid() == self._pid

    def _look(self) -> os.stat_result | None:
        """
        What has become of the file.

        Returns:
            None where somebody closed its descriptor, whose number may be another file's by now.
        """
        try:
            found = os.fstat(self._fd)
        except OSError:
            return None
        return found if _identity(found) == self._file else None

    def _has_its_name(self) -> bool:
        """Whether readers still find this very file, and may read it."""
        found = self._look()
        if found is None:
            return False
        if stat.S_IMODE(found.st_mode) != self._mode:
            # one that was given away stays as it is
            with contextlib.suppress(PermissionError):
                os.fchmod(self._fd, self._mode)
        try:
            there = self.path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            # a folder that cannot be looked into now: what is open goes on
            return True
        return _identity(there) == self._file

    def _renew(self) -> None:
        """The file was deleted or closed, or another one has its name: begin one anew."""
        self._sequence += self._sequence % 2
        self._cells[_SEQUENCE] = self._sequence
        before = self._fd if self._look() is not None else None
        self._fd, self._mode = _new_file(self.path, self._page)
        self._file = _identity(os.fstat(self._fd))
        if before is not None:
            os.close(before)

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
        self._page[layout.DIRECTORY_OFFSET : layout.DIRECTORY_OFFSET + len(where)] = where
        self._page[layout.FACTS_OFFSET : layout.FACTS_OFFSET + len(text)] = text
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
        layout.HEADER.pack_into(self._page, 0, *fields)

    def _put(self, field: str, code: str, value: float) -> None:
        struct.pack_into(code, self._page, layout.HEADER_OFFSETS[field], value)


def _identity(found: os.stat_result) -> tuple[int, int]:
    """What no two files share."""
    return found.st_dev, found.st_ino


def _new_file(path: Path, page: bytearray) -> tuple[int, int]:
    """
    Create a page's file, locked, which has its name only when it is complete.

    Space is reserved: a file system that is full refuses now, not in the middle of an update.

    Returns:
        Its descriptor and its mode.
    """
    make_folder(path.parent)
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.unlink(missing_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(unfinished, flags, FILE_MODE)
    try:
        os.posix_fallocate(fd, 0, layout.PAGE_SIZE)
        # of the process, not of the descriptor: a forked child does not hold it
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write(fd, page, 0)
        unfinished.replace(path)
        return fd, stat.S_IMODE(os.fstat(fd).st_mode)
    except BaseException:
        os.close(fd)
        unfinished.unlink(missing_ok=True)
        raise


def _write(fd: int, data: bytearray, offset: int) -> None:
    """Write all of it; a file that was cut off may find no room to grow again."""
    written = os.pwrite(fd, data, offset)
    if written != len(data):
        raise OSError(errno.ENOSPC, "no room for the whole page")


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
