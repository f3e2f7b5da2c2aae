"""Servers that misbehave, over real sockets: each gets a named error within the deadline."""

from __future__ import annotations

import gzip
import os
import resource
import socket
import ssl
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import self_signed, server_context
from hypothesis import given, settings
from hypothesis import strategies as st
from misbehaving import Treatment, dripping, misbehaving, pouring, saying, silent
from paths import PAGES
from ports import reserve_port

from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.limits import MAX_PAGE_BYTES
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.sources.http import CA_VARIABLES
from vllm_opsctl.exporter.sources.scrape import Scraper

PAGE = (PAGES / "vllm-0.33.0-v1.logger.prom").read_bytes()
TIMEOUT_S = 0.4
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

HANGS_FOR_EVER_S = 10.0
"""A reader that has not come back by then hangs; whatever the machine does meanwhile."""


def answer(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [
        "HTTP/1.1 200 OK",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def scraped(url: str, timeout_s: float = TIMEOUT_S) -> Observation:
    """One read, in a thread of its own: a test that hangs says so."""
    found: list[Observation] = []

    def read() -> None:
        scraper = Scraper(Target(name="chat-0", url=url), timeout_s=timeout_s)
        found.append(scraper.read())
        scraper.close()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(HANGS_FOR_EVER_S)
    assert found, "the reader hangs"
    return found[0]


def reason_of(treat: Treatment) -> str:
    with misbehaving(treat) as url:
        found = scraped(url)
    assert found.kind == "error", found
    return str(found.data["reason"])


# -- pages that can be read --------------------------------------------------------------------


def test_a_page_is_read() -> None:
    with misbehaving(saying(answer(PAGE))) as url:
        assert scraped(url, 5.0).text == PAGE.decode()


def test_a_chunked_answer_is_read() -> None:
    parts = [PAGE[:5000], PAGE[5000:]]
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    with misbehaving(saying(CHUNKED + body)) as url:
        assert scraped(url, 5.0).text == PAGE.decode()


@pytest.mark.parametrize("headers", [["Content-Encoding: gzip"], []])
def test_gzip_is_undone_whether_declared_or_not(headers: list[str]) -> None:
    with misbehaving(saying(answer(gzip.compress(PAGE), *headers))) as url:
        assert scraped(url, 5.0).text == PAGE.decode()


# -- one deadline for everything -----------------------------------------------------------------

DRIPS = {
    "nothing": b"",
    "status-line": b"HTTP/1.1 200 O",
    "header": OK + b"X: ",
    "body": OK + b"Content-Length: 5000\r\n\r\n",
    "body-without-length": OK + b"\r\n",
    "chunk-size": CHUNKED,
    "chunk-extension": CHUNKED + b"5;a=",
    "chunk": CHUNKED + b"ffff\r\n",
    "trailer": CHUNKED + b"3\r\nabc\r\n0\r\nX: ",
    "gzip-body": OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(PAGE)[:50],
}


@pytest.mark.parametrize("head", DRIPS.values(), ids=DRIPS.keys())
def test_a_server_that_drips_anything_is_left_at_the_deadline(head: bytes) -> None:
    assert reason_of(dripping(head, b"0" if head == CHUNKED else b"a")) == "timeout"


@pytest.mark.parametrize("head", DRIPS.values(), ids=DRIPS.keys())
def test_a_server_that_stops_anywhere_is_left_at_the_deadline(head: bytes) -> None:
    def treat(connection: socket.socket) -> None:
        connection.sendall(head)
        silent(connection)

    assert reason_of(treat) == "timeout"


@pytest.mark.parametrize("pace", [dripping, pouring])
def test_answers_that_only_promise_one_end_at_the_deadline(pace: object) -> None:
    assert callable(pace)
    assert reason_of(pace(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 3)) == "timeout"


def test_a_tls_handshake_that_drips_is_left_at_the_deadline() -> None:
    # a handshake record of 16 KiB that never comes to its end
    with misbehaving(dripping(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc")) as url:
        assert scraped(url.replace("http:", "https:")).data["reason"] == "timeout"


def test_a_connection_that_was_kept_has_a_deadline_for_every_answer() -> None:
    def treat(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(PAGE) + PAGE)
        connection.recv(65536)
        dripping(OK + b"X: ")(connection)

    with misbehaving(treat) as url:
        scraper = Scraper(Target(name="chat-0", url=url), timeout_s=TIMEOUT_S)
        assert scraper.read().kind == "metrics"
        assert scraper.read().data["reason"] == "timeout"
        scraper.close()


def test_a_resolver_that_hangs_holds_one_thread_however_often_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hangs = threading.Event()

    def lookup(*_: object) -> list[object]:
        hangs.wait(HANGS_FOR_EVER_S)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    found = [scraped("http://slow-dns.invalid:8000", timeout_s=0.1) for _ in range(5)]
    waiting = [t for t in threading.enumerate() if t.name == "resolve slow-dns.invalid"]
    hangs.set()

    assert {o.data["reason"] for o in found} == {"timeout"}
    assert len(waiting) == 1


def test_a_first_address_that_swallows_everything_leaves_time_for_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
    with misbehaving(saying(answer(PAGE))) as url:
        good = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        addresses = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", where)
            for where in (full.getsockname(), good)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: addresses)
        found = scraped("http://two-addresses.invalid:8000", timeout_s=1.0)
    for filler in [*fillers, full]:
        filler.close()

    assert found.kind == "metrics"


def test_exchanges_leave_no_descriptor_behind() -> None:
    with misbehaving(dripping(OK + b"X: ")) as url:
        scraped(url)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            scraped(url, timeout_s=0.1)
        # what the server's side of a connection holds comes and goes with its threads
        after = len(os.listdir("/proc/self/fd"))

    assert after <= before + 3


# -- answers that are none -------------------------------------------------------------------------


def bomb(depth: int) -> bytes:
    body = b"\0" * 2**25
    for _ in range(depth):
        body = gzip.compress(body, 9)
    return body


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


MISBEHAVIOUR: dict[str, tuple[Treatment, str]] = {
    "pours": (pouring(OK + b"\r\n", b"x" * 2**20), "too-large"),
    "pours a declared GiB": (
        pouring(OK + b"Content-Length: 1073741824\r\n\r\n", b"x" * 2**20),
        "too-large",
    ),
    "cut": (saying(answer(PAGE[:1000], length=len(PAGE))), "truncated"),
    "cut gzip": (saying(answer(gzip.compress(PAGE)[:-20])), "truncated"),
    "gzip bomb": (saying(answer(bomb(1))), "too-large"),
    "declared gzip bomb": (saying(answer(bomb(1), "Content-Encoding: gzip")), "too-large"),
    "gzip bomb in gzip in gzip": (
        saying(answer(bomb(3), "Content-Encoding: gzip, gzip, gzip")),
        "too-large",
    ),
    "deflate bomb": (
        saying(answer(zlib.compress(b"\0" * 2**25), "Content-Encoding: deflate")),
        "too-large",
    ),
    "gzip that is none": (saying(answer(PAGE, "Content-Encoding: gzip")), "truncated"),
    "closes": (lambda c: c.close(), "reset"),
    "resets": (reset, "reset"),
    "bad chunk": (saying(CHUNKED + b"ZZZ\r\nabc\r\n"), "truncated"),
    "negative chunk": (saying(CHUNKED + b"-5\r\nabc\r\n0\r\n\r\n"), "truncated"),
    "huge chunk size": (saying(CHUNKED + b"F" * 5000 + b"\r\nabc\r\n"), "truncated"),
    "two lengths": (saying(OK + b"Content-Length: 10, 20\r\n\r\nabc"), "truncated"),
    "503": (saying(b"HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n"), "http-503"),
    "204": (saying(b"HTTP/1.1 204 No Content\r\n\r\n"), "http-204"),
    "HTTP/0.9": (saying(PAGE), "not-http"),
    "SSH": (saying(b"SSH-2.0-OpenSSH_9.2\r\n"), "not-http"),
    "garbage": (saying(b"\x1b[2J\x00\xff" * 100 + b"\r\n"), "not-http"),
    "many headers": (
        saying(OK + b"".join(b"X-%d: a\r\n" % i for i in range(500))),
        "header-too-large",
    ),
    "long header": (saying(OK + b"X: " + b"a" * 2**20), "header-too-large"),
    "long status line": (saying(b"HTTP/1.1 200 " + b"O" * 2**20), "header-too-large"),
    "TLS alert": (saying(b"\x15\x03\x03\x00\x02\x02\x46\r\n"), "tls-only"),
}


@pytest.mark.parametrize(("treat", "reason"), MISBEHAVIOUR.values(), ids=MISBEHAVIOUR.keys())
def test_a_server_that_misbehaves_is_named(treat: Treatment, reason: str) -> None:
    with misbehaving(treat) as url:
        found = scraped(url, timeout_s=5.0)

    assert (found.kind, found.data["reason"]) == ("error", reason)
    assert str(found.data["detail"]).isprintable()


@given(
    st.binary(max_size=300), st.sampled_from([b"", OK, CHUNKED, OK + b"Content-Length: 50\r\n\r\n"])
)
@settings(max_examples=60, deadline=None)
def test_no_answer_raises(tail: bytes, head: bytes) -> None:
    with misbehaving(saying(head + tail)) as url:
        assert scraped(url, timeout_s=5.0).kind in ("metrics", "error")


@pytest.mark.parametrize(
    ("status", "key", "hint"),
    [
        (401, None, "HTTP 401; it wants an API key: name it with api_key_env or api_key_file"),
        (403, "sk-1", "HTTP 403; it refuses the API key"),
        (404, None, "HTTP 404; is metrics_path right?"),
        (307, None, "HTTP 307; a redirect is not followed: give the URL that it leads to"),
        (503, None, "HTTP 503"),
    ],
)
def test_a_status_names_the_fix(status: int, key: str | None, hint: str) -> None:
    head = f"HTTP/1.1 {status} no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with misbehaving(saying(head.encode())) as url:
        found = Scraper(Target(name="chat-0", url=url), timeout_s=5.0, api_key=key).read()

    assert found.data["detail"] == f"{url}/metrics: {hint}"


def test_nothing_that_listens_is_refused() -> None:
    assert scraped(f"http://127.0.0.1:{reserve_port()}").data["reason"] == "refused"


@pytest.mark.parametrize(
    "location",
    ["http://elsewhere.invalid/latest/", "file:///etc/passwd", "http://127.0.0.1:1/metrics"],
)
def test_a_redirect_is_not_followed(location: str) -> None:
    head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"

    assert reason_of(saying(head.encode())) == "http-302"


def test_the_body_of_a_redirect_is_bounded_like_any_other() -> None:
    bomb = gzip.compress(bytes(2 * MAX_PAGE_BYTES))
    head = (
        "HTTP/1.1 302 Found\r\nLocation: http://elsewhere.invalid/\r\n"
        f"Content-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
    )

    assert reason_of(saying(head.encode() + bomb)) == "too-large"


@pytest.mark.parametrize("location", [b"http://[", b"//\xff\xfe", b"http://a b/"])
def test_a_redirect_to_no_url_is_named(location: bytes) -> None:
    head = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"

    assert reason_of(saying(head)) == "http-302"


def test_what_a_server_sets_as_cookies_is_not_kept() -> None:
    cookies = [f"Set-Cookie: c{number}=x" for number in range(50)]
    with misbehaving(saying(answer(PAGE, *cookies))) as url:
        scraper = Scraper(Target(name="chat-0", url=url), timeout_s=5.0)
        scraper.read()

    assert len(scraper._session.cookies) == 0


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server that speaks TLS with a certificate that nobody has heard of: URL and certificate."""
    certificate = self_signed(tmp_path)
    context = server_context(certificate)

    def treat(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as wrapped:
                wrapped.recv(65536)
                wrapped.sendall(answer(PAGE))
        except ssl.SSLError:
            pass

    with misbehaving(treat, reads=False) as url:
        yield url.replace("http:", "https:"), certificate


def test_a_certificate_that_nobody_trusts_names_the_fix(
    tls_server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, certificate = tls_server
    refused = scraped(url, timeout_s=5.0)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    trusted = scraped(url, timeout_s=5.0)

    assert refused.data["reason"] == "tls-untrusted"
    assert refused.data["detail"].endswith(
        "not trusted (self-signed certificate); name the file of its CA in SSL_CERT_FILE "
        "(of a target: ca_file)"
    )
    assert trusted.kind == "metrics"


def test_a_target_names_its_own_ca(tls_server: tuple[str, Path]) -> None:
    url, certificate = tls_server
    target = Target(name="chat-0", url=url, ca_file=str(certificate))

    assert Scraper(target, timeout_s=5.0).read().kind == "metrics"


def test_plain_http_to_a_tls_port_is_told_to_speak_tls(tls_server: tuple[str, Path]) -> None:
    found = scraped(tls_server[0].replace("https:", "http:"), timeout_s=5.0)

    assert found.kind == "error"
    assert "https://" in str(found.data["detail"])


def test_tls_to_a_plain_port_is_told_to_speak_http() -> None:
    with misbehaving(saying(answer(PAGE))) as url:
        found = scraped(url.replace("http:", "https:"), timeout_s=5.0)

    assert (found.data["reason"], "write http://" in found.data["detail"]) == ("not-tls", True)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_file_of_certificates_that_is_not_there_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in CA_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "/nowhere/ca.pem")
    with pytest.raises(UsageError, match=f"{name}=/nowhere/ca.pem: no such file"):
        Scraper(Target(name="chat-0", url="https://127.0.0.1:1"), timeout_s=1.0)


# -- this side -------------------------------------------------------------------------------------


def test_no_descriptor_left_here_is_named() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with misbehaving(saying(answer(PAGE))) as url:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
        try:
            found = scraped(url)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert found.data["reason"] == "no-descriptors"


def test_a_host_is_looked_up_again_after_a_moment_without_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith("resolve"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with misbehaving(saying(answer(PAGE))) as url:
        scraper = Scraper(
            Target(name="chat-0", url=url.replace("127.0.0.1", "localhost")), timeout_s=5.0
        )
        monkeypatch.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError):
            scraper.read()
        monkeypatch.undo()

        assert scraper.read().kind == "metrics"


# -- AWS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 O", OK + b"X: ", CHUNKED])
def test_an_aws_endpoint_that_drips_is_left_at_the_deadline(
    head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ReadTimeoutError

    from vllm_opsctl.exporter import aws

    monkeypatch.setattr(aws, "_CONNECT_S", 0.1)
    monkeypatch.setattr(aws, "_READ_S", 0.3)
    monkeypatch.setattr(aws, "_ATTEMPTS", 1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with misbehaving(dripping(head, b"0")) as url:
        client = aws.aws_client("sns", "eu-central-1", url)
        with pytest.raises(ReadTimeoutError):
            client.list_topics()
