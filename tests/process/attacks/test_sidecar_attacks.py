"""A sidecar that lies: its word alone sends no probe anywhere, and a key to nowhere but its own target."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from canaries import PAGE, Thief, thief_and_bad_server
from commands import Opsctl
from loopback import serving


@contextmanager
def lying_sidecar(targets: dict[str, str]) -> Iterator[str]:
    """A sidecar that says of its targets what it is told, and has a page of each."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Status or recording."""
            if self.path == "/api/v1/status":
                rows = [{"target": name, "url": url} for name, url in targets.items()]
                body = json.dumps({"targets": rows})
            else:
                name = next(name for name in targets if f"target={name}&" in self.path)
                page = {"kind": "metrics", "target": name, "text": PAGE.decode(), "seconds": 0.01}
                now = time.time()
                body = "\n".join(json.dumps({**page, "t": now - 5 + i}) for i in range(5))
            data = body.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url


def configure(folder: Path, **urls: str) -> None:
    targets = [{"name": n, "url": url, "api_key_env": "K"} for n, url in urls.items()]
    (folder / "opsctl.yaml").write_text(json.dumps({"targets": targets}))


def not_seen(opsctl: Opsctl, folder: Path, *words: str) -> list[str]:
    ran = opsctl.run(*words, "-o", "json", cwd=folder, env={"K": "sk-hunter2"})
    assert ran.stdout, ran.stderr
    return [spot for target in json.loads(ran.stdout)["targets"] for spot in target["blind_spots"]]


@pytest.mark.parametrize("path", ["", "/v1", "/x"])
def test_a_key_is_not_sent_to_the_url_that_a_sidecar_says(
    opsctl: Opsctl, tmp_path: Path, path: str
) -> None:
    configure(tmp_path, chat="http://127.0.0.1:9")
    with (
        thief_and_bad_server() as (thief, _),
        lying_sidecar({"chat": f"{thief.url}{path}"}) as url,
    ):
        spots = not_seen(opsctl, tmp_path, "diagnose", "--sidecar", url)

    assert thief.asked == []
    assert any(s.startswith("no canary: the sidecar has chat at http://127.0.0.1:") for s in spots)


def test_a_target_that_is_not_configured_gets_no_canary(opsctl: Opsctl, tmp_path: Path) -> None:
    with thief_and_bad_server() as (thief, _), lying_sidecar({"chat": thief.url}) as url:
        spots = not_seen(opsctl, tmp_path, "diagnose", "--sidecar", url)

        assert thief.asked == []
        assert (
            f"no canary: {thief.url} is not in this configuration; list it under targets" in spots
        )


def test_a_name_alone_is_no_consent(opsctl: Opsctl, tmp_path: Path) -> None:
    with thief_and_bad_server() as (thief, _), lying_sidecar({"chat": thief.url}) as url:
        not_seen(opsctl, tmp_path, "diagnose", "--sidecar", url, "chat")

    assert thief.asked == []


def test_another_targets_url_is_not_ones_own(opsctl: Opsctl, tmp_path: Path) -> None:
    """Two targets with two keys: the first one's must not reach the second one's server."""
    with thief_and_bad_server() as (other, _), lying_sidecar({"chat": other.url}) as url:
        configure(tmp_path, chat="http://127.0.0.1:9", embed=other.url)
        not_seen(opsctl, tmp_path, "diagnose", "--sidecar", url)

    assert other.asked == []


def keys_seen(server: Thief) -> set[bool]:
    return {"Bearer sk-hunter2" in request for request in server.asked}


def test_a_configured_target_gets_its_canary_and_its_key(opsctl: Opsctl, tmp_path: Path) -> None:
    with thief_and_bad_server() as (server, _), lying_sidecar({"chat": server.url}) as url:
        configure(tmp_path, chat=f"{server.url}/v1/")
        spots = not_seen(opsctl, tmp_path, "diagnose", "--sidecar", url)

    assert keys_seen(server) == {True}
    # it names no model, so no canary is sent; that it may be asked is not in question
    assert not any("configuration" in spot for spot in spots)


def test_a_url_that_somebody_typed_is_probed_without_a_key_of_others(
    opsctl: Opsctl, tmp_path: Path
) -> None:
    configure(tmp_path, embed="http://127.0.0.1:9")
    with thief_and_bad_server() as (server, _), lying_sidecar({"chat": server.url}) as url:
        not_seen(opsctl, tmp_path, "diagnose", "--sidecar", url, server.url)

    assert keys_seen(server) == {False}


@pytest.mark.parametrize(
    "body",
    [
        '{"targets": [{"target": "a", "url": "http://me:hunter2@h"}]}',
        '{"targets": [{"target": "\\u001b]0;x", "url": "http://h"}]}',
        '{"targets": 5}',
        '{"targets": [5]}',
        "[]",
        "[" * 100_000,
        '{"targets": [{"target": "a", "url": ["hunter2"]}]}',
        "\ud800",
    ],
)
def test_a_status_that_is_none_is_one_line(opsctl: Opsctl, tmp_path: Path, body: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """The body, whatever is asked."""
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode(errors="surrogatepass"))

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        for command in (("diagnose",), ("top", "--once")):
            ran = opsctl.run(*command, "--sidecar", url, cwd=tmp_path)
            (line,) = ran.stderr.splitlines()

            assert ran.returncode == 3
            assert "no sidecar answers there (its status is not a sidecar's)" in line
            assert "hunter2" not in line
            assert line.isprintable()
