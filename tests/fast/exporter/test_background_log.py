"""A log whose reader has stopped: nobody who logs waits, and what was dropped is counted."""

from __future__ import annotations

import io
import logging
import threading

from loopback import wait_for

from vllm_opsctl.exporter.background_log import MAX_WAITING_LINES, BackgroundLog, log_in_background


class Blocked(io.StringIO):
    """A stream that takes nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = threading.Event()

    def write(self, text: str) -> int:
        self.reads.wait(10)
        return super().write(text)


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.ERROR, "", 0, text, (), None)


def test_lines_are_written_in_order() -> None:
    stream = io.StringIO()
    log = BackgroundLog(stream)
    for number in range(100):
        log.emit(record(f"line {number}"))
    log.drain(10)

    assert stream.getvalue().splitlines() == [f"line {number}" for number in range(100)]


def test_nobody_waits_for_a_reader_that_has_stopped() -> None:
    stream = Blocked()
    log = BackgroundLog(stream)
    for number in range(5 * MAX_WAITING_LINES):
        log.emit(record(f"line {number}"))
    log.drain(0.1)
    stream.reads.set()
    log.drain(10)
    written = stream.getvalue().splitlines()
    told = [line for line in written if "dropped" in line]
    dropped = sum(int(line.split()[1]) for line in told)

    assert dropped
    assert len(written) - len(told) + dropped == 5 * MAX_WAITING_LINES


def test_a_stream_that_is_closed_ends_nothing() -> None:
    stream = io.StringIO()
    log = BackgroundLog(stream)
    stream.close()
    log.emit(record("a"))
    log.emit(record("b"))
    log.drain(10)

    assert log._waiting.unfinished_tasks == 0


def test_the_root_loggers_lines_keep_their_form() -> None:
    root = logging.getLogger()
    before = root.handlers[:]
    shaped = logging.StreamHandler(io.StringIO())
    shaped.setFormatter(logging.Formatter("opsctl: %(message)s"))
    root.handlers[:] = [shaped]
    stream = io.StringIO()
    try:
        background = log_in_background(stream)
        root.warning("chat-0: %s", "gone")
        wait_for(lambda: bool(stream.getvalue()), timeout_s=10, what="the line")
    finally:
        root.handlers[:] = before

    assert root.handlers == before
    assert stream.getvalue() == "opsctl: chat-0: gone\n"
    background.drain(1)
