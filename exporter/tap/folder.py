"""
Decides whether the folder of the pages, and the files in it, can be trusted.

Whoever can put a page into the folder can make the engine look like anything. Neither side uses a
world-writable folder; a sticky bit keeps others from deleting pages, not from adding them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

DIRECTORY_MODE = 0o750
"""The sidecar may run as another user of the same group."""

_ROOT = 0


class UnsafeFolder(OSError):
    """A folder, or a file in it, that belongs to the wrong user; the message says what to do."""


def make_folder(folder: Path) -> None:
    """
    Make the folder that pages are written to, with all that is missing above it.

    Raises:
        UnsafeFolder: It is there already, and is not this user's own.
        OSError: It cannot be made.
    """
    for path in (*reversed(folder.parents), folder):
        if not path.is_dir():
            # one by one: the mode that is given for several counts for the last one only
            path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    own = os.geteuid()
    found = folder.stat()
    # a link may have been put there by whoever may write to the folder above
    for about in (found, folder.lstat()):
        if about.st_uid not in (own, _ROOT):
            raise UnsafeFolder(
                f"{folder} belongs to uid {about.st_uid}, this process is uid {own}: "
                f"chown {own} {folder}, or name another folder with OPSCTL_TAP"
            )
    if found.st_mode & stat.S_IWOTH:
        raise UnsafeFolder(
            f"{folder} is writable by everybody (mode {_mode(found)}): chmod o-w {folder}, "
            "or name a folder within it with OPSCTL_TAP"
        )


def check_folder(folder: Path, owner: int | None) -> None:
    """
    See whether a reader may believe what lies in a folder.

    Args:
        folder: Of the pages.
        owner: A user that is trusted as well: exporter.tap.owner.

    Raises:
        UnsafeFolder: It belongs to somebody else.
        OSError: It cannot be looked at.
    """
    found = folder.stat()
    if found.st_uid in _trusted(owner):
        return
    everybody = bool(found.st_mode & stat.S_IWOTH)
    if found.st_gid in _own_groups() and not everybody:
        return
    also = f" and is writable by everybody (mode {_mode(found)})" if everybody else ""
    raise UnsafeFolder(
        f"{folder} belongs to uid {found.st_uid}, group {found.st_gid}{also}; this is uid "
        f"{os.geteuid()}. Run as that user, share its group (and chmod o-w), or set "
        f"exporter.tap.owner: {found.st_uid}"
    )


def check_page(folder: Path, fd: int, owner: int | None) -> None:
    """
    See whether an open file is one that the folder's owner can have written.

    Args:
        folder: That it lies in.
        fd: The file.
        owner: As for :func:`check_folder`.

    Raises:
        UnsafeFolder: It is no plain file, or belongs to somebody else; the caller names the file.
        OSError: It cannot be looked at.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise UnsafeFolder("no plain file")
    if found.st_uid not in {folder.stat().st_uid, *_trusted(owner)}:
        raise UnsafeFolder(
            f"belongs to uid {found.st_uid}, not to the folder's owner; if that is the engine's "
            f"user, set exporter.tap.owner: {found.st_uid}"
        )


def _trusted(owner: int | None) -> set[int]:
    """Users whose pages are believed wherever they lie."""
    return {_ROOT, os.geteuid()} | (set() if owner is None else {owner})


def _own_groups() -> set[int]:
    return {os.getegid(), *os.getgroups()}


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}"
