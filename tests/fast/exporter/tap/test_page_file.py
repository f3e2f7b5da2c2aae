"""
Whatever is done to a page's file, the process that writes it lives, and readers have it again.

An operator's ``> page``, a cleaner of /dev/shm, a full tmpfs: none of them may end vLLM.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tap.fakes import FACTS, FakeClock, fake_identity, fake_iteration, fake_scheduler

from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.page import BadTapPage, read_tap_page
from vllm_opsctl.exporter.tap.writer import PUBLISH_EVERY_S, PageWriter

T0 = 1_700_000_000.0


class Written:
    """A page, its clock, and steps."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock(T0)
        self.failures: list[Exception] = []
        self.writer = PageWriter(
            folder,
            fake_identity(started=T0 - 100),
            FACTS,
            now=self.clock,
            monotonic=self.clock,
            on_failure=self.failures.append,
        )
        self.path = self.writer.path
        self.step()

    def step(self, running: int = 1) -> None:
        self.clock.t += 1.0
        self.writer.record(fake_scheduler(running), fake_iteration(ttft=[0.1]), None)

    @property
    def steps(self) -> int:
        """So many the file tells of."""
        return read_tap_page(self.path).counters["steps"]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Written]:
    written = Written(tmp_path / "pages")
    yield written
    os.close(written.writer._fd)


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x" * 4096)


def overwrite(path: Path) -> None:
    path.write_bytes(b"junk" * 100_000)


def replace_by_a_copy(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


def replace_by_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def remove_the_folder(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()


DONE_TO_IT: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: os.truncate(path, 0),
    "cut to a byte": lambda path: os.truncate(path, 1),
    "cut within its header": lambda path: os.truncate(path, 60),
    "cut to half": lambda path: os.truncate(path, layout.PAGE_SIZE // 2),
    "cut by a byte": lambda path: os.truncate(path, layout.PAGE_SIZE - 1),
    "extended": extend,
    "extended without end": lambda path: os.truncate(path, 2**40),
    "overwritten": overwrite,
    "deleted": Path.unlink,
    "deleted with its folder": remove_the_folder,
    "replaced by a copy": replace_by_a_copy,
    "replaced by a FIFO": replace_by_a_fifo,
    "replaced by a link": replace_by_a_link,
    "renamed": lambda path: path.rename(path.with_name("other")),
    "made unreadable": lambda path: path.chmod(0),
    "made writable by everybody": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("what", DONE_TO_IT)
def test_whatever_is_done_to_the_file_the_writer_goes_on_and_mends_it(
    page: Written, what: str
) -> None:
    """At its next step, or its next sign of life: vLLM sees to one every ten seconds."""
    DONE_TO_IT[what](page.path)
    page.step()
    page.writer.touch()

    assert page.steps == 2
    assert page.path.is_file()
    assert not page.path.is_symlink()
    assert stat.S_IMODE(page.path.stat().st_mode) & 0o137 == 0
    assert page.path.stat().st_size == layout.PAGE_SIZE
    page.step(running=5)
    assert page.steps == 3
    assert read_tap_page(page.path).gauges["running"] == 5


@pytest.mark.parametrize("what", ["emptied", "cut to half", "extended", "overwritten", "deleted"])
def test_a_step_alone_mends_what_can_be_seen_at_the_file_itself(page: Written, what: str) -> None:
    DONE_TO_IT[what](page.path)
    page.step()

    assert page.steps == 2


def test_a_folder_in_the_pages_place_is_an_error_and_no_harm(page: Written) -> None:
    page.path.unlink()
    page.path.mkdir()

    with pytest.raises(IsADirectoryError):
        page.step()


def refuse(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_system_that_is_full_is_an_error_and_nobody_waits_for_the_update(
    page: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emptied, and the space is gone to somebody else: the plugin gives up then."""
    os.truncate(page.path, 0)
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        return real(fd, data, offset) if len(data) <= 8 else refuse()

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        page.step()
    page.writer.give_up()

    with pytest.raises(BadTapPage):
        read_tap_page(page.path)


def test_half_a_page_on_a_full_file_system_is_an_error_too(
    page: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def half(fd: int, data: bytes, offset: int) -> int:
        return real(fd, data if len(data) <= 8 else data[: len(data) // 2], offset)

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(OSError, match="no room"):
        page.step()
    page.writer.give_up()
    found = read_tap_page(page.path)

    assert (found.state, found.torn) == (layout.GAVE_UP, False)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_after_an_update_that_failed_anywhere_the_next_one_is_whole(
    page: Written, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    real, calls = os.pwrite, 0

    def once(fd: int, data: bytes, offset: int) -> int:
        nonlocal calls
        calls += 1
        return refuse() if calls == call else real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", once)
    with pytest.raises(OSError, match="No space left"):
        page.step()
    page.step()
    found = read_tap_page(page.path)

    assert (found.torn, found.header["sequence"] % 2) == (False, 0)
    assert found.counters["steps"] == 3


# -- how often it is written ---------------------------------------------------------------------


def test_the_file_of_a_busy_engine_is_at_most_100_ms_behind(tmp_path: Path) -> None:
    """vLLM records on its event loop: many steps are one write, and the last one is not forgotten."""

    async def serve() -> tuple[int, int, int]:
        page = Written(tmp_path)
        first = page.steps
        for _ in range(50):
            page.clock.t += 0.001
            page.writer.record(fake_scheduler(1), None, None)
        busy = page.steps
        await asyncio.sleep(2 * PUBLISH_EVERY_S)
        idle = read_tap_page(page.path).counters["records"]
        os.close(page.writer._fd)
        return first, busy, idle

    assert asyncio.run(serve()) == (1, 1, 51)


def test_what_waits_for_its_time_is_written_when_the_page_is_closed(tmp_path: Path) -> None:
    async def serve() -> Written:
        page = Written(tmp_path)
        page.clock.t += 0.001
        page.writer.record(fake_scheduler(7), None, None)
        return page

    page = asyncio.run(serve())
    page.writer.close()
    found = read_tap_page(page.path)
    os.close(page.writer._fd)

    assert (found.state, found.gauges["running"]) == (layout.CLOSED, 7)


def test_an_error_between_two_steps_is_told_and_does_not_reach_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[Any] = []

    async def serve() -> Written:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: met.append(context))
        page = Written(tmp_path)
        page.clock.t += 0.001
        page.writer.record(fake_scheduler(1), None, None)
        monkeypatch.setattr(os, "pwrite", refuse)
        await asyncio.sleep(2 * PUBLISH_EVERY_S)
        return page

    page = asyncio.run(serve())
    os.close(page.writer._fd)

    assert met == []
    assert [str(failure) for failure in page.failures] == ["[Errno 28] No space left on device"]


def test_a_process_that_is_not_the_writers_writes_nothing(
    page: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked child has all of it in its memory: the writer, the open file, the atexit handlers."""
    before = page.path.read_bytes()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    page.step()
    page.writer.describe({"models": ["other"]})
    page.writer.record_sleep(asleep=True, level=1)
    page.writer.record_rejection("other")
    page.writer.touch()
    page.writer.give_up()
    page.writer.close()

    assert page.path.read_bytes() == before


def test_a_descriptor_that_became_another_files_is_neither_written_to_nor_closed(
    page: Written, tmp_path: Path
) -> None:
    """As after a closerange() of whoever turns the process into a daemon."""
    os.close(page.writer._fd)
    other = os.open(tmp_path / "weights", os.O_RDWR | os.O_CREAT)
    os.write(other, b"w" * 2 * layout.PAGE_SIZE)
    assert other == page.writer._fd

    page.step()
    assert (tmp_path / "weights").read_bytes() == b"w" * 2 * layout.PAGE_SIZE
    assert page.steps == 2
    os.close(other)


@pytest.mark.parametrize("act", ["step", "touch", "close", "give_up"])
def test_a_page_whose_descriptor_was_closed_is_begun_anew(page: Written, act: str) -> None:
    os.close(page.writer._fd)
    page.step() if act == "step" else getattr(page.writer, act)()

    assert page.steps == (2 if act == "step" else 1)
