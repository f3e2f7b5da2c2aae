"""Ports of the loopback that nobody else gets."""

from __future__ import annotations

import socket

_reserved: list[socket.socket] = []


def reserve_port() -> int:
    """
    A port of 127.0.0.1 that nothing listens on and that nobody else gets.

    For addresses that must not answer, and for servers that have to be told their port beforehand; all
    others bind port 0 and say what they got. The socket behind it stays bound for the life of this
    process. It does not listen, so connections are refused, and a server that sets SO_REUSEADDR, as all of
    ours do, can take the port over (socket(7)).
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _reserved.append(holder)
    port: int = holder.getsockname()[1]
    return port
