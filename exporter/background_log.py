"""
A log that nobody waits for: lines are written by a thread of their own.

Where whoever reads stderr has stopped reading, a pipe of 64 KiB fills, and the next thread that logs
would stand still with whatever lock it holds. Here lines wait, and beyond a bound are counted and dropped.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import IO

MAX_WAITING_LINES = 1000
"""A minute of a fleet that goes up and down all at once."""


class BackgroundLog(logging.Handler):
    """
    Writes to a stream in a thread.

    Args:
        stream: Where lines go; only the thread ever waits for it.
    """

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self._stream = stream
        self._waiting: queue.Queue[str] = queue.Queue(MAX_WAITING_LINES)
        self._dropped = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line in; never waits."""
        try:
            self._waiting.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1
        except Exception:
            self.handleError(record)

    def drain(self, within_s: float) -> None:
        """Wait until all lines are written, as long as that may take (seconds)."""
        deadline = time.monotonic() + within_s
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _write(self) -> None:
        while True:
            line = self._waiting.get()
            dropped, self._dropped = self._dropped, 0
            more = f"opsctl: {dropped} log lines were dropped\n" if dropped else ""
            try:
                self._stream.write(f"{line}\n{more}")
                self._stream.flush()
            except (OSError, ValueError):
                # nobody reads any more, or the stream is closed: there is no place to say so
                pass
            self._waiting.task_done()


def log_in_background(stream: IO[str]) -> BackgroundLog:
    """Let the root logger's lines, as they are formatted now, be written by a thread."""
    root = logging.getLogger()
    background = BackgroundLog(stream)
    for handler in list(root.handlers):
        background.setFormatter(handler.formatter)
        root.removeHandler(handler)
    root.addHandler(background)
    return background
