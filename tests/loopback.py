"""Talking to servers on the loopback: wait for a condition, get a URL."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import HTTPServer

import pytest

_STOP_WITHIN_S = 0.02
"""By default a server of the standard library looks every half a second whether it is to stop."""


@contextmanager
def serving(server: HTTPServer) -> Iterator[str]:
    """Serve in a thread of this process: the base URL; nothing serves afterwards."""
    thread = threading.Thread(target=server.serve_forever, args=(_STOP_WITHIN_S,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


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
