"""Clients that hold what others need: each is let go, whether it reads or not."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from loopback import wait_for
from waitress.adjustments import Adjustments

from vllm_opsctl.exporter.door import (
    ANSWER_TIMEOUT_S,
    HTTP_THREADS,
    MAX_PIPELINED,
    SEND_TIMEOUT_S,
    Door,
    listener_on,
)

LONGEST_S = 10.0


FULL = Adjustments.outbuf_high_watermark
"""Bytes of an answer that wait before its thread waits, too."""

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Endless:
    """An application whose answers have no end; counts those that were ended for it."""

    def __init__(self) -> None:
        self.ended = threading.Semaphore(0)

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return self._body()

    def _body(self) -> Iterator[bytes]:
        try:
            while True:
                yield bytes(2**20)
        finally:
            self.ended.release()


@pytest.fixture
def application() -> Endless:
    return Endless()


@pytest.fixture
def door(application: Endless) -> Iterator[Door]:
    opened = Door(application, listener_on("127.0.0.1", 0))
    # the tests say when
    opened.next_channel_cleanup = math.inf

    def serve() -> None:
        with suppress(OSError):
            opened.run()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    yield opened
    for channel in list(opened.active_channels.values()):
        channel.handle_close()
    opened.close()
    server.join(LONGEST_S)


def asking(door: Door) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", int(door.effective_port)), timeout=LONGEST_S)
    client.sendall(REQUEST)
    return client


@contextmanager
def stuck(door: Door, number: int) -> Iterator[None]:
    """Clients whose answers wait for them, and which take nothing."""
    with ExitStack() as clients:
        for _ in range(number):
            clients.enter_context(asking(door))
        wait_for(
            lambda: (
                [c.total_outbufs_len > FULL for c in door.active_channels.values()]
                == [True] * number
            ),
            timeout_s=LONGEST_S,
            what="answers that wait",
        )
        yield


def test_a_client_that_takes_nothing_holds_its_thread_for_no_longer_than_the_bound(
    door: Door, application: Endless
) -> None:
    """Its socket is never writable, so it must not be waited for until it is."""
    with stuck(door, HTTP_THREADS):
        door.maintenance(time.time())
        door.maintenance(time.time() + SEND_TIMEOUT_S + LONGEST_S)

        for _ in range(HTTP_THREADS):
            assert application.ended.acquire(timeout=LONGEST_S)


def test_a_client_that_takes_a_little_for_ever_is_let_go(door: Door, application: Endless) -> None:
    with stuck(door, 1):
        (channel,) = door.active_channels.values()
        began = time.time()
        for second in range(int(ANSWER_TIMEOUT_S)):
            channel.last_activity = began + second
            door.maintenance(began + second)
        assert not application.ended.acquire(blocking=False)

        channel.last_activity = began + ANSWER_TIMEOUT_S
        door.maintenance(began + ANSWER_TIMEOUT_S + 1)

        assert application.ended.acquire(timeout=LONGEST_S)


def test_who_asks_again_and_takes_no_answer_is_let_go(door: Door, application: Endless) -> None:
    """A thread would hold the second answer until the client has taken the first."""
    with socket.create_connection(("127.0.0.1", int(door.effective_port)), LONGEST_S) as client:
        client.sendall(REQUEST * 2)

        assert application.ended.acquire(timeout=LONGEST_S)


def test_who_asks_many_times_at_once_is_let_go(door: Door) -> None:
    with socket.create_connection(("127.0.0.1", int(door.effective_port)), LONGEST_S) as client:
        client.sendall(REQUEST * (MAX_PIPELINED + 1))
        with suppress(ConnectionResetError):
            while client.recv(2**16):
                pass


def test_what_waits_for_a_thread_is_not_logged(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    with stuck(door, HTTP_THREADS), asking(door):
        wait_for(lambda: len(door.task_dispatcher.queue) > 0, timeout_s=LONGEST_S, what="a request")

    assert "queue" not in caplog.text
