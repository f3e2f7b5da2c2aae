"""
What a supervised sidecar said when it could not start, so that its next start does not say it again.

Each start is a process of its own. They share a file in memory, which the supervisor holds: there may
be no other place to write to, and where there is none every start says what is wrong.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress

TOLD_VARIABLE = "_OPSCTL_TOLD_FD"
"""Environment variable of a supervised sidecar: the file's descriptor."""

TOLD_FD = 9


def told_file() -> int | None:
    """A new such file; closed for all that is started without asking for it."""
    try:
        return os.memfd_create("opsctl-told")
    except (AttributeError, OSError):
        return None


def is_told_already(problem: Exception) -> bool:
    """
    Whether the start before this one failed with the very same words; these are noted.

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
    """It runs: the next mistake is a new one."""
    with suppress(KeyError, ValueError, OSError):
        os.ftruncate(int(os.environ[TOLD_VARIABLE]), 0)
