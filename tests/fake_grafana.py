"""
A server that behaves as the documented HTTP API of Grafana 10 to 13 does, over real sockets.

No Grafana runs here. What it does is from docs/sources/developers/http_api and pkg/services/dashboards of
Grafana's sources: versions that count, 412 for a stale one and for a title that is taken, folders,
provisioned boards, permissions, and what it adds to boards that it is given.
"""

from __future__ import annotations

import copy
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from loopback import serving

TOKEN = "glsa_hunter2_0123abcd"  # noqa: S105 - of the fake
EVERYTHING = frozenset(
    (
        *("dashboards:read", "dashboards:write", "dashboards:create"),
        *("folders:read", "folders:create"),
        *("annotations:read", "annotations:create"),
    )
)

Answer = tuple[int, dict[str, str], str]


@dataclass
class Kept:
    """A board as it is kept."""

    body: dict[str, Any]
    folder: str
    provisioned: bool = False


@dataclass
class FakeGrafana:
    """
    What it has, and how it is disposed.

    Args:
        url: Base URL, while it runs.
        version: As it tells it; None when it hides it.
        may: Permissions of the token.
        canned: Answers given instead, by the start of "METHOD /path"; used up one by one.
        adds: It fills in defaults when it is read, as newer ones do.
        hidden: Uids of folders that the token may neither see nor write, with all that is in them.
    """

    url: str = ""
    version: str | None = "11.2.0"
    may: frozenset[str] = EVERYTHING
    canned: list[tuple[str, Answer]] = field(default_factory=list)
    adds: bool = False
    hidden: frozenset[str] = frozenset()
    folders: dict[str, str] = field(default_factory=dict)
    boards: dict[str, Kept] = field(default_factory=dict)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    before_save: Any = None

    @property
    def writes(self) -> list[str]:
        """What it was asked to change."""
        return [one for one in self.asked if one.startswith("POST")]

    def answer(self, method: str, target: str, token: str | None, body: Any) -> Answer:
        """Answer one request."""
        parts = urlsplit(target)
        asked = f"{method} {parts.path}"
        self.asked.append(asked)
        for index, (start, answer) in enumerate(self.canned):
            if asked.startswith(start):
                del self.canned[index]
                return answer
        if asked == "GET /api/health":
            told = {} if self.version is None else {"version": self.version}
            return _json(200, {"database": "ok", **told})
        if token != f"Bearer {TOKEN}":
            return _json(401, {"message": "Unauthorized", "statusCode": 401})
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if asked == "GET /api/folders":
            return self._needs("folders:read") or self._list_folders(query)
        if asked == "POST /api/folders":
            return self._needs("folders:create") or self._create_folder(body)
        if asked == "GET /api/annotations":
            tags = {*parse_qs(parts.query).get("tags", [])}
            return self._needs("annotations:read") or self._annotated(tags, query)
        if asked == "POST /api/annotations":
            return self._needs("annotations:create") or self._annotate(body)
        if asked == "GET /api/search":
            return self._search(query)
        if asked == "POST /api/dashboards/db":
            return self._save(body)
        if asked.startswith("GET /api/dashboards/uid/"):
            return self._needs("dashboards:read") or self._read(parts.path.rpartition("/")[2])
        return _json(404, {"message": "Not found"})

    @property
    def _titles_are_unique(self) -> bool:
        """In a folder, before Grafana 11.3 (grafana/grafana#90687)."""
        major, minor = (int(part) for part in str(self.version).split(".")[:2])
        return (major, minor) < (11, 3)

    def _needs(self, permission: str) -> Answer | None:
        return None if permission in self.may else self._denied(permission)

    @staticmethod
    def _denied(permission: str) -> Answer:
        text = f"You'll need additional permissions to perform this action. Permissions needed: {permission}"
        return _json(403, {"message": text, "title": "Access denied", "accessErrorId": "ACE1"})

    def _list_folders(self, query: dict[str, str]) -> Answer:
        limit, page = int(query.get("limit", 1000)), int(query.get("page", 1))
        every = [
            {"id": number, "uid": uid, "title": title}
            for number, (uid, title) in enumerate(self.folders.items(), 1)
            if uid not in self.hidden
        ]
        return _json(200, every[(page - 1) * limit : page * limit])

    def _create_folder(self, body: Any) -> Answer:
        if body["uid"] in self.folders or len(body["uid"]) > 40:
            return _json(409, {"message": "a folder with the same uid already exists"})
        self.folders[body["uid"]] = body["title"]
        return _json(200, {"id": len(self.folders), **body, "version": 1})

    def _annotated(self, tags: set[str], query: dict[str, str]) -> Answer:
        start, end = int(query["from"]), int(query["to"])
        return _json(
            200,
            [
                one
                for one in self.annotations
                if tags <= {*one["tags"]} and one["time"] <= end and one["timeEnd"] >= start
            ],
        )

    def _annotate(self, body: Any) -> Answer:
        self.annotations.append(dict(body))
        return _json(200, {"message": "Annotation added", "id": len(self.annotations)})

    def _search(self, query: dict[str, str]) -> Answer:
        return _json(
            200,
            [
                {
                    "uid": uid,
                    "title": kept.body["title"],
                    "type": "dash-db",
                    "tags": kept.body.get("tags", []),
                    "folderUid": kept.folder,
                }
                for uid, kept in self.boards.items()
                if kept.folder == query["folderUIDs"] and kept.folder not in self.hidden
            ],
        )

    def _read(self, uid: str) -> Answer:
        kept = self.boards.get(uid)
        if kept is None:
            return _json(404, {"message": "Dashboard not found"})
        if kept.folder in self.hidden:
            return self._denied("dashboards:read")
        body = copy.deepcopy(kept.body)
        if self.adds:
            add_defaults(body)
        meta = {
            "type": "db",
            "slug": "slug",
            "folderUid": kept.folder,
            "folderTitle": self.folders.get(kept.folder, "General"),
            "provisioned": kept.provisioned,
        }
        return _json(200, {"meta": meta, "dashboard": body})

    def _save(self, body: Any) -> Answer:
        if self.before_save is not None:
            self.before_save()
        board, folder, overwrite = body["dashboard"], body["folderUid"], body["overwrite"]
        uid = board["uid"]
        there = self.boards.get(uid)
        denied = self._needs("dashboards:create" if there is None else "dashboards:write")
        if denied is not None:
            return denied
        if folder in self.hidden:
            return self._denied("dashboards:write")
        if folder and folder not in self.folders:
            return _json(400, {"message": "folder not found"})
        if there is not None and there.provisioned:
            return _json(400, {"message": "Cannot save provisioned dashboard"})
        if there is not None and not overwrite and board.get("version") != there.body["version"]:
            return _json(
                412,
                {
                    "status": "version-mismatch",
                    "message": "The dashboard has been changed by someone else",
                },
            )
        for other_uid, other in self.boards.items() if self._titles_are_unique else ():
            same = other.folder == folder and other.body["title"] == board["title"]
            if other_uid != uid and same and not overwrite:
                return _json(
                    412,
                    {
                        "status": "name-exists",
                        "message": "A dashboard with the same name in the folder already exists",
                    },
                )
        version = 1 if there is None else there.body["version"] + 1
        kept = {**board, "id": len(self.boards) + 1, "version": version}
        self.boards[uid] = Kept(kept, folder)
        return _json(200, {"uid": uid, "status": "success", "version": version})


def add_defaults(body: dict[str, Any]) -> None:
    """What newer Grafanas fill in when a board is read, and what their editors save along."""
    body |= {
        "iteration": 1700000000,
        "schemaVersion": 42,
        "fiscalYearStartMonth": 0,
        "weekStart": "",
        "preload": False,
    }
    body["annotations"]["list"].insert(
        0,
        {
            "builtIn": 1,
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "enable": True,
            "hide": True,
            "iconColor": "rgba(0, 211, 255, 1)",
            "name": "Annotations & Alerts",
            "type": "dashboard",
        },
    )
    for variable in body["templating"]["list"]:
        variable |= {
            "regex": variable.get("regex", ""),
            "skipUrlSync": False,
            "options": [{"v": 1}],
        }
        variable.get("current", {}).pop("selected", None)
    for panel in body["panels"]:
        if panel["type"] == "row":
            continue
        panel["pluginVersion"] = "12.0.0"
        panel.pop("transparent")
        panel.pop("links") if panel.get("links") == [] else None
        for target in panel["targets"]:
            target["editorMode"] = "code"
        if panel["type"] == "timeseries":
            panel["fieldConfig"]["defaults"]["custom"] |= {
                "axisBorderShow": False,
                "axisLabel": "",
                "axisPlacement": "auto",
                "barAlignment": 0,
                "hideFrom": {"legend": False, "tooltip": False, "viz": False},
                "lineInterpolation": "linear",
                "pointSize": 5,
                "scaleDistribution": {"type": "linear"},
            }


def _json(status: int, body: Any) -> Answer:
    return status, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(body)


@contextmanager
def running(grafana: FakeGrafana, certificate: Path | None = None) -> Iterator[FakeGrafana]:
    """
    Serve it on a free port.

    Args:
        grafana: What it has.
        certificate: File with key and certificate, for TLS.
    """

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            token = self.headers.get("Authorization")
            status, headers, text = grafana.answer(self.command, self.path, token, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = _serve  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Be silent."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Be silent when somebody does not trust it."""

    server = Server(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        # the handshake fails in the thread of the request, not in that which accepts
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        scheme = "https"
    with serving(server) as url:
        grafana.url = url.replace("http", scheme)
        yield grafana
