"""Clients that try to take the sidecar's door: /livez and /metrics are answered all the same."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from commands import Opsctl, said_url
from fake_vllm import FakeVllm, Reply, fake_vllm
from loopback import http_get, wait_for

SLOW_CLIENTS = 200

Client = Callable[[socket.socket], None]


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    with fake_vllm() as running:
        yield running


@pytest.fixture
def sidecar(opsctl: Opsctl, server: FakeVllm) -> tuple[str, int]:
    """URL and process id."""
    process = opsctl.start("exporter", "run", "--listen", "127.0.0.1:0", server.url)
    url = said_url(process)
    wait_for(lambda: http_get(f"{url}/readyz")[0] == 200, timeout_s=20, what="the first read")
    return url, process.pid


@contextlib.contextmanager
def clients(url: str, number: int, begin: Client) -> Iterator[list[socket.socket]]:
    """So many connections, each begun in the same way and kept open."""
    parts = urlsplit(url)
    opened = []
    for _ in range(number):
        one = socket.create_connection((parts.hostname, parts.port), timeout=10)
        with contextlib.suppress(OSError):
            begin(one)
        opened.append(one)
    try:
        yield opened
    finally:
        for one in opened:
            one.close()


def nothing(_: socket.socket) -> None:
    """Connects and says nothing."""


def half_a_header(client: socket.socket) -> None:
    client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: ")


def half_a_body(client: socket.socket) -> None:
    client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")


def a_large_body(client: socket.socket) -> None:
    client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1073741823\r\n\r\n")
    client.sendall(b"x" * 2**16)


def endless_chunks(client: socket.socket) -> None:
    client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.sendall(b"ffff\r\n" + b"x" * 65535 + b"\r\n")


def an_endless_header(client: socket.socket) -> None:
    client.sendall(b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 65536)


def does_not_read_metrics(client: socket.socket) -> None:
    client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)


def does_not_read_a_recording(client: socket.socket) -> None:
    client.sendall(b"GET /api/v1/recording HTTP/1.1\r\nHost: localhost\r\n\r\n")


def a_tls_hello(client: socket.socket) -> None:
    client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100)


KINDS: list[Client] = [
    *(nothing, half_a_header, half_a_body, a_large_body, endless_chunks),
    *(an_endless_header, does_not_read_metrics, does_not_read_a_recording, a_tls_hello),
]


def spooled_bytes(pid: int) -> int:
    """What a process holds in files that have no name any more."""
    found = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if "(deleted)" in os.readlink(fd):
                found += fd.stat().st_size
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_slow_clients_leave_room_for_the_probe(sidecar: tuple[str, int], kind: Client) -> None:
    url, pid = sidecar
    with clients(url, SLOW_CLIENTS, kind):
        statuses = [http_get(f"{url}{path}", timeout_s=10)[0] for path in ("/livez", "/metrics")]
        held = spooled_bytes(pid)

    assert statuses == [200, 200]
    assert held < 2**20


def test_clients_of_all_kinds_at_once_leave_room_for_the_probe(sidecar: tuple[str, int]) -> None:
    url, _ = sidecar
    with contextlib.ExitStack() as stack:
        for kind in KINDS:
            stack.enter_context(clients(url, SLOW_CLIENTS // len(KINDS), kind))
        for _ in range(3):
            assert http_get(f"{url}/livez", timeout_s=10)[0] == 200
            assert http_get(f"{url}/metrics", timeout_s=10)[0] == 200


def test_a_request_that_does_not_end_is_given_up(sidecar: tuple[str, int]) -> None:
    """However steadily it goes on: a byte a second is activity, and no request."""
    url, _ = sidecar
    with clients(url, 1, half_a_header) as (client,):
        closed_after = 0.0
        began = time.monotonic()
        client.settimeout(1.0)
        while time.monotonic() - began < 60:
            with contextlib.suppress(TimeoutError):
                if client.recv(100) == b"":
                    closed_after = time.monotonic() - began
                    break
            client.sendall(b"a")

    assert closed_after > 0


def test_a_body_is_refused_before_it_is_read(sidecar: tuple[str, int]) -> None:
    url, _ = sidecar
    with clients(url, 1, a_large_body) as (client,):
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_connection_that_is_kept_stays_open_between_scrapes(sidecar: tuple[str, int]) -> None:
    url, _ = sidecar
    with clients(url, 1, nothing) as (client,):
        for _ in range(2):
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"ok\n"):
                answer += client.recv(1000)
            time.sleep(6)


# -- a log that nobody reads -----------------------------------------------------------------------


def test_a_log_that_nobody_reads_stops_nothing(opsctl: Opsctl, server: FakeVllm) -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        opsctl.command("exporter", "run", "--listen", "127.0.0.1:0", server.url), stderr=writing
    )
    try:
        found = re.search(rb"(http://\S+)/metrics", os.read(reading, 4096))
        assert found is not None
        url = found[1].decode()
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 4096)
        os.set_blocking(writing, True)
        for up, route in ((0, Reply(status=500)), (1, server.routes["/metrics"])) * 2:
            server.routes["/metrics"] = route
            wait_for(partial(_is_up, url, up), timeout_s=30, what=f"up = {up}")
        assert http_get(f"{url}/livez")[0] == 200
    finally:
        process.terminate()
        process.wait(20)
        os.close(reading)
        os.close(writing)


def _is_up(url: str, up: int) -> bool:
    found = re.search(r"(?m)^opsctl_target_up{.*} (.*)$", http_get(f"{url}/metrics")[1])
    return found is not None and float(found[1]) == up


# -- descriptors -----------------------------------------------------------------------------------


def test_the_last_descriptor_makes_nobody_spin(
    opsctl: Opsctl, server: FakeVllm, tmp_path: Path
) -> None:
    targets = "".join(f"  - {{name: t{n}, url: '{server.url}'}}\n" for n in range(100))
    (tmp_path / "opsctl.yaml").write_text(f"targets:\n{targets}")
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *("/bin/sh", "-c", 'ulimit -n 64 && exec "$@"', "sh"),
                *opsctl.command("exporter", "run", "--listen", "127.0.0.1:0"),
            ],
            stderr=out,
            cwd=tmp_path,
        )
    try:
        wait_for(lambda: b"/metrics" in log.read_bytes(), timeout_s=20, what="the sidecar")
        found = re.search(rb"(http://\S+)/metrics", log.read_bytes())
        assert found is not None
        url = found[1].decode()
        with clients(url, 100, nothing):
            answers = [http_get(f"{url}/livez", timeout_s=60)[0] for _ in range(3)]
        cpu_s = sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().split()[13:15]))
        took = cpu_s / os.sysconf("SC_CLK_TCK")
        said = log.read_text()
    finally:
        process.terminate()
        process.wait(20)

    assert answers == [200, 200, 200]
    assert "raise ulimit -n" in said
    assert "Traceback" not in said
    assert len(said) < 100_000
    assert took < 60  # it spun at a whole core


def test_the_limit_of_open_files_is_raised(opsctl: Opsctl, server: FakeVllm) -> None:
    process = subprocess.Popen(
        [
            *("/bin/sh", "-c", 'ulimit -Sn 64 && exec "$@"', "sh"),
            *opsctl.command("exporter", "run", "--listen", "127.0.0.1:0", server.url),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said_url(process)
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    finally:
        process.terminate()
        process.communicate(timeout=20)

    assert soft > 512 or soft == hard


# -- addresses and names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("nohost.invalid:9", "no such host"),
        ("192.0.2.1:9836", "Cannot assign requested address"),
        ("[2001:db8::1]:9836", "Cannot assign requested address"),
    ],
)
def test_an_address_that_cannot_be_had_is_a_message(opsctl: Opsctl, listen: str, why: str) -> None:
    found = opsctl.run("exporter", "run", "--listen", listen, "http://127.0.0.1:9")

    assert found.returncode == 64
    assert f"cannot listen on {listen} ({why}); write an address of this machine" in found.stderr


def test_the_sidecar_listens_on_ipv6(opsctl: Opsctl, server: FakeVllm) -> None:
    url = said_url(opsctl.start("exporter", "run", "--listen", "[::1]:0", server.url))

    assert url.startswith("http://[::1]:")
    assert http_get(f"{url}/livez")[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example:9836", 403),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost", 200),
        ("LOCALHOST:9836", 200),
        ("127.0.0.1:9836", 200),
        ("[::1]:9836", 200),
    ],
)
def test_a_browser_that_was_led_here_by_another_name_reads_nothing(
    sidecar: tuple[str, int], host: str, status: int
) -> None:
    assert http_get(f"{sidecar[0]}/api/v1/status", Host=host)[0] == status


# -- requests that make no sense -------------------------------------------------------------------

NONSENSE: dict[str, tuple[bytes, bytes]] = {
    "traversal": (b"GET /../../etc/passwd HTTP/1.1\r\n", b"404"),
    "encoded traversal": (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n", b"404"),
    "another method": (b"DELETE / HTTP/1.1\r\n", b"405"),
    "a made-up method": (b"FOO / HTTP/1.1\r\n", b"405"),
    "a proxy's request": (b"GET http://elsewhere.invalid/livez HTTP/1.1\r\n", b"200"),
    "CONNECT": (b"CONNECT elsewhere.invalid:443 HTTP/1.1\r\n", b"40"),
    "NUL": (b"GET /\0 HTTP/1.1\r\n", b"40"),
    "no version": (b"GET /livez\r\n", b"200"),
    "HTTP/9": (b"GET /livez HTTP/9.9\r\n", b""),
    "NaN": (b"GET /api/v1/recording?start=nan HTTP/1.1\r\n", b""),
    "infinite": (b"GET /api/v1/recording?start=-inf&end=inf HTTP/1.1\r\n", b"200"),
    "a number without end": (b"GET /api/v1/recording?start=%s HTTP/1.1\r\n" % (b"9" * 5000), b""),
    "no number": (b"GET /api/v1/recording?start=x HTTP/1.1\r\n", b"400"),
    "a step of nothing": (
        b"GET /api/v1/recording?target=x&full_from=0&step_s=0 HTTP/1.1\r\n",
        b"404",
    ),
    "20,000 fields": (b"GET /readyz?%s HTTP/1.1\r\n" % b"&".join([b"a=b"] * 3000), b""),
    "another's Accept": (b"GET /metrics HTTP/1.1\r\nAccept: ;;;q=banana, */*;q=9\r\n", b"200"),
    "smuggling": (
        b"GET /livez HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"",
    ),
    "two lengths": (b"GET /livez HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n", b"400"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n", b""),
    "script": (b"GET /readyz?target=<script>alert(1)</script> HTTP/1.1\r\n", b"404"),
    "line break": (b"GET /readyz?target=x%0d%0aSet-Cookie:%20a=b HTTP/1.1\r\n", b"404"),
}


def test_requests_that_make_no_sense_are_answered_in_order(sidecar: tuple[str, int]) -> None:
    url, pid = sidecar
    for what, (head, status) in NONSENSE.items():
        with clients(url, 1, nothing) as (client,):
            client.sendall(head + b"Host: localhost\r\nConnection: close\r\n\r\n")
            answer = b""
            with contextlib.suppress(ConnectionError, TimeoutError):
                while len(answer) < 4096 and (more := client.recv(4096)):
                    answer += more
        assert not answer or answer.startswith(b"HTTP/1."), what
        assert answer.partition(b" ")[2].startswith(status), (what, answer[:80])
        assert b" 500 " not in answer[:20], what
        if b"<script" in answer:
            assert b"Content-Type: text/plain" in answer, what
            assert b"X-Content-Type-Options: nosniff" in answer, what
        assert b"\nSet-Cookie" not in answer, what
        assert b"root:" not in answer, what
    assert http_get(f"{url}/livez")[0] == 200
    assert Path(f"/proc/{pid}").exists()


# -- many targets ----------------------------------------------------------------------------------


def test_a_hundred_targets_of_which_half_are_dead(
    opsctl: Opsctl, server: FakeVllm, tmp_path: Path
) -> None:
    dead = "http://127.0.0.1:9"
    targets = "".join(
        f"  - {{name: t{n}, url: '{server.url if n % 2 else dead}'}}\n" for n in range(100)
    )
    (tmp_path / "opsctl.yaml").write_text(f"targets:\n{targets}")
    process = opsctl.start("exporter", "run", "--listen", "127.0.0.1:0", cwd=tmp_path)
    url = said_url(process)

    def up() -> int:
        return len(
            re.findall(r"(?m)^opsctl_target_up{.*} 1\.0$", http_get(f"{url}/metrics", 30)[1])
        )

    wait_for(lambda: up() == 50, timeout_s=60, what="50 targets")
    assert http_get(f"{url}/livez")[0] == 200
    process.terminate()
    assert process.wait(20) == 0
