"""Servers that misbehave, over real sockets: each gets a named error within the deadline."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from paths import PAGES
from ports import reserve_port

from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.sources.scrape import Scraper

PAGE = (PAGES / "vllm-0.33.0-v1.logger.prom").read_bytes()
TIMEOUT_S = 0.5


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """A server that treats each connection as the test says: its URL."""
    listeners: list[socket.socket] = []

    def start(treat: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def loop() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(65536)
                        treat(connection)
                    except OSError:
                        pass

        threading.Thread(target=loop, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


def answer(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [
        "HTTP/1.1 200 OK",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def scraped(url: str) -> Observation:
    scraper = Scraper(Target(name="chat-0", url=url), timeout_s=TIMEOUT_S)
    found = scraper.read()
    scraper.close()
    return found


def test_a_page_is_read(serve: Callable[..., str]) -> None:
    assert scraped(serve(lambda c: c.sendall(answer(PAGE)))).text == PAGE.decode()


def test_a_chunked_answer_is_read(serve: Callable[..., str]) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    parts = [PAGE[:5000], PAGE[5000:]]
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    assert scraped(serve(lambda c: c.sendall(head + body))).text == PAGE.decode()


@pytest.mark.parametrize("headers", [["Content-Encoding: gzip"], []])
def test_gzip_is_undone_whether_declared_or_not(
    serve: Callable[..., str], headers: list[str]
) -> None:
    body = gzip.compress(PAGE)

    assert scraped(serve(lambda c: c.sendall(answer(body, *headers)))).text == PAGE.decode()


def drip(connection: socket.socket) -> None:
    connection.sendall(answer(b"", length=1000))
    for _ in range(50):
        connection.sendall(b"x")
        time.sleep(TIMEOUT_S / 5)


def pour(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    for _ in range(20):
        connection.sendall(b"x" * 2**20)


@pytest.mark.parametrize(
    ("treat", "reason"),
    [
        (lambda c: c.recv(1), "timeout"),
        (drip, "timeout"),
        (pour, "too-large"),
        (lambda c: c.sendall(answer(PAGE[:1000], length=len(PAGE))), "truncated"),
        (lambda c: c.sendall(answer(gzip.compress(PAGE)[:-20])), "truncated"),
        (lambda c: c.sendall(answer(gzip.compress(b"\0" * 2**25))), "too-large"),
        (lambda c: c.close(), "reset"),
        (lambda c: c.sendall(b"HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n"), "http-503"),
        (lambda c: c.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"), "reset"),
    ],
    ids=["hangs", "drips", "pours", "cut", "cut-gzip", "gzip-bomb", "closes", "503", "not-http"],
)
def test_a_server_that_misbehaves_is_named(
    serve: Callable[..., str], treat: Callable[[socket.socket], None], reason: str
) -> None:
    started = time.monotonic()
    found = scraped(serve(treat))

    assert (found.kind, found.data["reason"]) == ("error", reason)
    assert time.monotonic() - started < 5 * TIMEOUT_S  # a bound on hanging, no benchmark


def test_nothing_that_listens_is_refused() -> None:
    assert scraped(f"http://127.0.0.1:{reserve_port()}").data["reason"] == "refused"
