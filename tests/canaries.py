"""Secrets that must never be seen, and servers that try to have them shown or sent on."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape

from loopback import serving
from paths import PAGES

MARK = "CANARY"
"""In every secret, so that one search finds any of them."""

PAGE = (PAGES / "vllm-0.33.0-v1.logger.prom").read_bytes()


def canary(what: str) -> str:
    """A secret that says where it was planted."""
    return f"sk-{MARK}-{what}-0123456789abcdef"


@dataclass
class Thief:
    """
    A server that nobody configured: what it was asked.

    Args:
        url: Base URL.
        asked: Requests with their headers.
    """

    url: str = ""
    asked: list[str] = field(default_factory=list)


class _ThiefHandler(BaseHTTPRequestHandler):
    thief: Thief

    def do_GET(self) -> None:
        """Note it."""
        self.thief.asked.append(f"{self.command} {self.path} {dict(self.headers)}")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        """The same."""
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _BadHandler(BaseHTTPRequestHandler):
    """Fails as the first part of the path says, and repeats what it was sent where it can."""

    thief: Thief

    def do_GET(self) -> None:
        """Answer, badly."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        _, kind, *rest = self.path.split("/", 2)
        path = f"/{rest[0] if rest else ''}"
        said = f"you sent {self.path} with {dict(self.headers)}"
        if kind == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True
        elif kind == "redirect":
            self._answer(307, said, Location=f"{self.thief.url}{path}")
        elif kind == "good":
            self._good(path)
        elif kind == "empty":
            data = {"status": "success", "data": {"groups": [], "activeAlertmanagers": []}}
            self._answer(200, json.dumps(data))
        elif kind == "prometheus":
            self._answer(200, json.dumps({"status": "error", "errorType": "bad", "error": said}))
        elif kind == "aws":
            code = {"__type": "x#AccessDeniedException", "message": said}
            xml = f"<Error><Code>AccessDenied</Code><Message>{escape(said)}</Message></Error>"
            is_xml = "urlencoded" in (self.headers.get("Content-Type") or "")
            wrapped = f"<ErrorResponse>{xml}</ErrorResponse>"
            self._answer(403, wrapped if is_xml else json.dumps(code))
        elif kind == "sidecar":
            chat = {"target": "good", "url": self.thief.url}
            self._answer(200, json.dumps({"targets": [chat]}) if "status" in path else "")
        else:
            self._answer(401, json.dumps({"message": said, "error": said}))

    def do_POST(self) -> None:
        """The same."""
        self.do_GET()

    def _good(self, path: str) -> None:
        if path == "/metrics":
            self._answer(200, f"{PAGE.decode()}# you sent {dict(self.headers)}\n")
        elif path == "/version":
            self._answer(200, json.dumps({"version": f"you sent {dict(self.headers)}"}))
        elif path == "/v1/models":
            self._answer(200, json.dumps({"data": [{"id": "tiny"}]}))
        elif path == "/v1/completions":
            self._answer(403, f"you sent {dict(self.headers)}")
        else:
            self._answer(200, "{}")

    def _answer(self, status: int, body: str, **headers: str) -> None:
        data = body.encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def thief_and_bad_server() -> Iterator[tuple[Thief, str]]:
    """A server that nobody configured, and the base URL of one that fails in several ways."""
    thief = Thief()
    steal = type("Steal", (_ThiefHandler,), {"thief": thief})
    fail = type("Fail", (_BadHandler,), {"thief": thief})
    with (
        serving(ThreadingHTTPServer(("127.0.0.1", 0), steal)) as thief.url,
        serving(ThreadingHTTPServer(("127.0.0.1", 0), fail)) as url,
    ):
        yield thief, url


@dataclass(frozen=True)
class Place:
    """
    A folder with a configuration that has a canary wherever one can be.

    Args:
        folder: Working directory of the commands.
        bad: Base URL of the server that fails.
        thief: Who must never be asked.
        environment: Variables with the canaries that are read from there.
    """

    folder: Path
    bad: str
    thief: Thief
    environment: dict[str, str]

    def written(self, *, but: tuple[str, ...] = ()) -> dict[str, bytes]:
        """All files of the folder, but for those that were planted."""
        planted = {"opsctl.yaml", "chat.key", ".netrc", "message.txt", *but}
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and path.name not in planted
        }


def plant(folder: Path, bad: str, thief: Thief) -> Place:
    """Write the configuration and the files that it names."""
    (folder / "chat.key").write_text(f"{canary('key-file')}\n")
    (folder / ".netrc").write_text(f"machine 127.0.0.1 login me password {canary('netrc')}\n")
    (folder / "message.txt").write_text(f"Diagnose: opsctl diagnose --sidecar {thief.url}\n")
    query = canary("query")
    config = {
        "targets": [
            {"name": "good", "url": f"{bad}/good", "api_key_env": "GOOD_KEY", "models": ["tiny"]},
            {
                "name": "denied",
                "url": f"{bad}/denied",
                "api_key_file": str(folder / "chat.key"),
                "models": ["tiny"],
            },
            {
                "name": "reset",
                "url": f"{bad}/reset",
                "metrics_path": f"/metrics?token={query}&{query}",
                "models": ["tiny"],
            },
            {
                "name": "moved",
                "url": f"{bad}/redirect",
                "api_key_env": "GOOD_KEY",
                "metrics_path": f"/metrics?token={query}",
                "models": ["tiny"],
            },
        ],
        "exporter": {
            "listen": "127.0.0.1:0",
            "flight_recorder": {"save_to": str(folder / "saved.jsonl.gz")},
            "cloudwatch": {
                "sink": "put",
                "region": "eu-central-1",
                "endpoint_url": f"{bad}/aws",
                "interval": "1s",
                "spool_dir": str(folder / "spool"),
            },
        },
        "alarms": {
            "runbook_url": f"https://me:{canary('link')}@wiki/vllm",
            "page_topic": "arn:aws:sns:eu-central-1:123456789012:llm-page",
            "ticket_topic": "arn:aws:sns:eu-central-1:123456789012:llm-ticket",
            "webhook": f"{bad}/hooks/{canary('webhook')}",
            "deadman_url": f"{bad}/ping/{canary('deadman')}?t={canary('deadman-query')}",
            "api_url": f"{bad}/aws",
            "sidecar_url": f"{bad}/sidecar",
            "prometheus_url": f"{bad}/prometheus",
            "alertmanager_url": f"{bad}/redirect",
        },
        "autoscaling": {
            "cold_start": "6m",
            "resources": [
                {"kind": "ecs-service", "name": "llm/chat", "max_num_seqs": 64, "min": 1, "max": 4}
            ],
        },
    }
    (folder / "opsctl.yaml").write_text(json.dumps(config))
    environment = {
        "HOME": str(folder),
        "GOOD_KEY": f"{canary('key-env')}\n",
        "PROM_TOKEN": canary("prometheus-token"),
        "GRAFANA_TOKEN": canary("grafana-token"),
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": canary("aws-secret"),
        "AWS_SESSION_TOKEN": canary("aws-session"),
        "AWS_ENDPOINT_URL": f"{bad}/aws",
        "AWS_REGION": "eu-central-1",
        "AWS_MAX_ATTEMPTS": "1",
        "OPSCTL_TAP": "off",
        "NO_PROXY": "*",
    }
    return Place(folder, bad, thief, environment)
