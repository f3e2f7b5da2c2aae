"""
Files that others may have put there: only plain ones are read, and only so much of them.

A FIFO hangs whoever opens it, a device may never end, and a file may hold more than memory does. What
a path leads to is looked at on the open descriptor, so that nothing can change in between.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.limits import MAX_BUILT_BYTES

_GZIP = b"\x1f\x8b"

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class _Reading(io.FileIO):
    """
    An open file of which whatever fails is told like what fails when it is opened.

    Args:
        fd: Open, and closed with this.
        path: Its path, for messages.
    """

    def __init__(self, fd: int, path: Path) -> None:
        super().__init__(fd, "rb")
        self._path = path

    def readinto(self, buffer: Any) -> int:
        """
        Read what is there; a file of the kernel that has nothing more now is at its end.

        Raises:
            InputFileError: The disk or the server that holds it fails.
        """
        try:
            return self._into(buffer) or 0
        except OSError as problem:
            raise _unreadable(self._path, problem) from None

    def _into(self, buffer: Any) -> int | None:
        return super().readinto(buffer)


def kind_of(mode: int) -> str | None:
    """What a mode (``st_mode``) says a path is, in words; None for a plain file."""
    return next((name for is_one, name in _KINDS if is_one(mode)), None)


def open_plain(path: Path, wanted: str = "file") -> IO[bytes]:
    """
    Open a plain file for reading; never waits for a FIFO's other end.

    Args:
        path: Links are followed.
        wanted: What should have been there, for the message.

    Returns:
        The file; to read from it raises InputFileError too, where the disk fails.

    Raises:
        InputFileError: Not there, not readable, or no plain file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise InputFileError(f"{path}: no such file") from None
    except (OSError, ValueError) as problem:
        other = _kind_at(path)
        if other is not None:
            # a socket cannot even be opened, and what the system says of that helps nobody
            raise InputFileError(f"{path}: {other}; give a {wanted}") from None
        raise _unreadable(path, problem) from None
    other = kind_of(os.fstat(fd).st_mode)
    if other is not None:
        os.close(fd)
        raise InputFileError(f"{path}: {other}; give a {wanted}")
    return cast(IO[bytes], io.BufferedReader(_Reading(fd, path)))


def _unreadable(path: Path, problem: Exception) -> InputFileError:
    why = getattr(problem, "strerror", None) or problem
    return InputFileError(f"{path}: cannot be read ({why})")


def _kind_at(path: Path) -> str | None:
    try:
        return kind_of(os.stat(path).st_mode)
    except (OSError, ValueError):
        return None


def read_plain(path: Path, max_bytes: int, wanted: str = "file") -> bytes:
    """
    Read a plain file whole.

    Args:
        path: Links are followed.
        max_bytes: A larger file is refused before it is read.
        wanted: What should have been there, for the message.

    Raises:
        InputFileError: Not there, not readable, no plain file, or too large.
    """
    with open_plain(path, wanted) as stream:
        size = os.fstat(stream.fileno()).st_size
        # files of /proc say 0 and have more
        data = stream.read(max_bytes + 1) if size <= max_bytes else b""
        if size > max_bytes or len(data) > max_bytes:
            raise InputFileError(f"{path}: larger than {_size(max_bytes)}; give a {wanted}")
        return data


def read_plain_text(path: Path, max_bytes: int, wanted: str = "file") -> str:
    """
    Read a plain file of UTF-8.

    Raises:
        InputFileError: As :func:`read_plain`, or it is not UTF-8.
    """
    try:
        return read_plain(path, max_bytes, wanted).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise InputFileError(
            f"{path}: not UTF-8 text (byte {problem.start}); give a {wanted}"
        ) from None


def unpacked(stream: IO[bytes]) -> IO[bytes]:
    """
    A file without its gzip, if it has one, whatever it is called: browsers, mail and trackers pack,
    unpack and rename what passes through them.

    Args:
        stream: At its beginning.
    """
    magic = stream.read(len(_GZIP))
    stream.seek(0)
    return cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if magic == _GZIP else stream


@contextmanager
def written_whole(
    path: Path, move: Callable[[Path, Path], object] = Path.replace
) -> Iterator[IO[bytes]]:
    """
    A stream whose file is there once it is complete, or not at all.

    Args:
        path: The file.
        move: Gives what is complete its name; called with the unfinished file and the path.

    Raises:
        InputFileError: It cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        # a link of that name, in a folder that others write to as well, would lead to any file
        unfinished.unlink(missing_ok=True)
        with unfinished.open("xb") as stream:
            yield stream
        move(unfinished, path)
    except BaseException as problem:
        # what is half written helps nobody, and may be what has filled the disk
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(problem, OSError):
            why = problem.strerror or problem
            raise InputFileError(f"{path}: cannot be written ({why})") from problem
        raise


def plain_text_of(path: Path) -> str | None:
    """The text of a file of an earlier build; None where there is none that could be one."""
    try:
        return read_plain_text(path, MAX_BUILT_BYTES)
    except InputFileError:
        return None


def _size(size: Any) -> str:
    return f"{size >> 20} MiB" if size >= 2**20 else f"{size >> 10} KiB"
