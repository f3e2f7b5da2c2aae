"""Talking to servers on the loopback: reserve a port, wait for a condition, get a URL."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

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


def wait_for(
    condition: Callable[[], bool],
    *,
    timeout_s: float,
    what: str,
    said: Callable[[], str] = lambda: "",
) -> None:
    """Wait until something holds; when it does not in time, fail with its name and what was said instead."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout_s:g} s\n{said()}".rstrip())
        time.sleep(0.05)


def http_get(url: str, timeout_s: float = 5.0, **headers: str) -> tuple[int, str]:
    """GET a loopback URL: status and body."""
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as problem:
        with problem:
            return problem.code, problem.read().decode()


def answers(url: str) -> bool:
    """Whether anything answers there."""
    try:
        http_get(url, timeout_s=1.0)
    except OSError:
        return False
    return True
