"""A server on the loopback that treats each connection as a test says, byte by byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Treatment = Callable[[socket.socket], None]
"""What is done with a connection whose request has been read."""

_PAUSE_S = 0.05


@contextmanager
def misbehaving(treat: Treatment, *, reads: bool = True) -> Iterator[str]:
    """
    Serve until the test ends: the base URL.

    Args:
        treat: Called for each connection, in a thread of its own.
        reads: Read the request first.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(10)
            if reads:
                connection.recv(65536)
            treat(connection)

    def accept() -> None:
        while not over.is_set():
            with suppress(OSError):
                connection, _ = listener.accept()
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def dripping(head: bytes, byte: bytes = b"a") -> Treatment:
    """Send the beginning of an answer, then one byte again and again until the reader has had enough."""

    def treat(connection: socket.socket) -> None:
        connection.sendall(head)
        while not _gone(connection):
            connection.sendall(byte)

    return treat


def pouring(head: bytes, again: bytes) -> Treatment:
    """Send the beginning of an answer, then the same as fast as it goes."""

    def treat(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(again)

    return treat


def saying(answer: bytes) -> Treatment:
    """Send this and close."""
    return lambda connection: connection.sendall(answer)


def silent(connection: socket.socket) -> None:
    """Say nothing until the reader has gone."""
    while not _gone(connection):
        pass


def _gone(connection: socket.socket) -> bool:
    """Wait a moment; whether the other side has closed meanwhile."""
    connection.settimeout(_PAUSE_S)
    try:
        return connection.recv(65536) == b""
    except TimeoutError:
        return False
    finally:
        connection.settimeout(10)
