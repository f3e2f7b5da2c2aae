"""
Remembers why a supervised sidecar could not start, so that its next start does not repeat the message.

Each start is a process of its own. They share a memory file that the supervisor holds, because there
may be no writable disk; without it, every start prints its message.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress

TOLD_VARIABLE = "_OPSCTL_TOLD_FD"
"""Environment variable of a supervised sidecar: the file's descriptor."""

TOLD_FD = 9


def told_file() -> int | None:
    """Create the memory file; only processes that it is passed to inherit it."""
    try:
        return os.memfd_create("opsctl-told")
    except (AttributeError, OSError):
        return None


def is_told_already(problem: Exception) -> bool:
    """
    Whether the previous start failed with the same message; remembers this one.

    Args:
        problem: What it fails with now.
    """
    words = hashlib.sha256(f"{type(problem).__name__}: {problem}".encode(errors="replace")).digest()
    with suppress(KeyError, ValueError, OSError):
        fd = int(os.environ[TOLD_VARIABLE])
        if os.pread(fd, len(words), 0) == words:
            return True
        os.pwrite(fd, words, 0)
    return False


def forget_what_was_told() -> None:
    """The sidecar runs: print the next failure, whatever it is."""
    with suppress(KeyError, ValueError, OSError):
        os.ftruncate(int(os.environ[TOLD_VARIABLE]), 0)
