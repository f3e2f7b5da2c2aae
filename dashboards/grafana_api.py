"""
What a Grafana tells of its boards and folders, and how it gets new ones.

Source:
    Grafana's HTTP API, docs/sources/developers/http_api (dashboard, folder, folder_dashboard_search).
    Grafana 13 calls these paths legacy and keeps them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from vllm_opsctl.dashboards.grafana_http import GrafanaHttp
from vllm_opsctl.errors import BadPage

OLDEST = 10
"""Major release: before it there are panels that it cannot draw."""

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Folder:
    """
    A folder of boards.

    Args:
        uid: Its identity.
        title: As people see it.
    """

    uid: str
    title: str


@dataclass(frozen=True, slots=True)
class Found:
    """
    A board that a Grafana has.

    Args:
        body: The JSON model.
        folder_uid: Where it is; empty at the root.
        folder_title: How people know that.
        provisioned: It comes from a file: the API cannot change it.
    """

    body: dict[str, Any]
    folder_uid: str
    folder_title: str
    provisioned: bool

    @property
    def version(self) -> int:
        """Counts its changes."""
        found = self.body.get("version")
        return found if isinstance(found, int) else 0

    @property
    def tags(self) -> tuple[str, ...]:
        """As people search for it."""
        found = self.body.get("tags")
        return tuple(map(str, found)) if isinstance(found, list) else ()


@dataclass(frozen=True, slots=True)
class Listed:
    """
    A board as a search tells it.

    Args:
        uid: Its identity.
        title: As people see it.
        tags: As people search for it.
    """

    uid: str
    title: str
    tags: tuple[str, ...]


class GrafanaApi:
    """
    A Grafana.

    Args:
        url: Base URL.
        token: Of a service account; None where nobody needs one.
        wait: Sleeps before a question is asked again.

    Raises:
        UsageError: The URL or the token can be none.
    """

    def __init__(
        self, url: str, token: str | None = None, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self._http = GrafanaHttp(url, token, wait)
        self.url = self._http.url

    def check(self) -> str | None:
        """
        Look whether it is a Grafana, and new enough.

        Returns:
            Its version; None where it does not tell strangers (auth.anonymous.hide_version).

        Raises:
            SourceError: It is none, too old, or does not answer.
        """
        found = self._http.ask("GET", "/api/health")
        if not isinstance(found, dict) or "database" not in found:
            raise self._http.no_grafana("HTTP 200")
        version = found.get("version")
        if not version:
            return None
        major = re.match(r"(\d+)\.", str(version))
        if major and int(major[1]) < OLDEST:
            raise BadPage(
                "too-old",
                f"--url {self.url}: Grafana {version}; the boards need {OLDEST} or newer",
            )
        return str(version)

    def folders(self) -> list[Folder]:
        """
        Those at the root that the token may see.

        Raises:
            SourceError: It does not tell.
        """
        found: list[Folder] = []
        page = 1
        while True:
            some = self._list(
                f"/api/folders?{urlencode({'limit': _PAGE, 'page': page})}", "folders:read"
            )
            found += [Folder(str(one["uid"]), str(one["title"])) for one in some]
            if len(some) < _PAGE:
                return found
            page += 1

    def create_folder(self, folder: Folder) -> None:
        """
        Make one at the root.

        Raises:
            SourceError: It refuses.
        """
        body = {"uid": folder.uid, "title": folder.title}
        self._http.ask("POST", "/api/folders", may="folders:create", body=body)

    def boards_in(self, folder: Folder) -> list[Listed]:
        """
        Boards of a folder that the token may see.

        Raises:
            SourceError: It does not tell.
        """
        query = {"type": "dash-db", "folderUIDs": folder.uid, "limit": 5 * _PAGE}
        return [
            Listed(str(one["uid"]), str(one["title"]), tuple(one.get("tags") or ()))
            for one in self._list(f"/api/search?{urlencode(query)}", "dashboards:read")
        ]

    def board(self, uid: str) -> Found | None:
        """
        One board; None when there is none of that identity.

        Raises:
            SourceError: It does not tell.
        """
        found = self._http.ask(
            "GET", f"/api/dashboards/uid/{uid}", may="dashboards:read", missing_is_none=True
        )
        if found is None:
            return None
        try:
            meta = found["meta"]
            body = found["dashboard"]
            assert isinstance(body, dict)
            return Found(
                body,
                str(meta.get("folderUid") or ""),
                str(meta.get("folderTitle") or "General"),
                bool(meta.get("provisioned")),
            )
        except (KeyError, TypeError, AttributeError, AssertionError):
            raise self._http.no_grafana("HTTP 200") from None

    def save(
        self, body: Mapping[str, Any], folder: Folder, *, over: int | None, message: str
    ) -> None:
        """
        Make or change a board.

        Grafana's ``overwrite`` is never used: it would take the place of a newer version, and before Grafana
        11.3 of another board of the same title in the folder.

        Args:
            body: The JSON model.
            folder: Where it goes.
            over: The version that it takes the place of; None for a new board.
            message: For the history of the board.

        Raises:
            SourceError: It refuses, also when somebody was faster.
        """
        board = {key: value for key, value in body.items() if key not in ("id", "version")}
        if over is not None:
            board["version"] = over
        self._http.ask(
            "POST",
            "/api/dashboards/db",
            may="dashboards:write" if over is not None else "dashboards:create",
            body={
                "dashboard": board,
                "folderUid": folder.uid,
                "message": message,
                "overwrite": False,
            },
        )

    def annotations(self, tags: Sequence[str], start: float, end: float) -> list[dict[str, Any]]:
        """
        What was annotated.

        Args:
            tags: All of them.
            start: Unix seconds.
            end: Unix seconds.

        Raises:
            SourceError: It refuses.
        """
        asked = [("from", _ms(start)), ("to", _ms(end)), *(("tags", tag) for tag in tags)]
        found = self._http.ask(
            "GET", f"/api/annotations?{urlencode(asked)}", may="annotations:read"
        )
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise self._http.no_grafana("HTTP 200")
        return found

    def annotate(self, text: str, tags: Sequence[str], start: float, end: float) -> None:
        """
        Annotate a time on all boards that ask for one of the tags.

        Args:
            text: What is shown.
            tags: Of the annotation.
            start: Unix seconds.
            end: Unix seconds.

        Raises:
            SourceError: It refuses.
        """
        body = {"time": _ms(start), "timeEnd": _ms(end), "tags": list(tags), "text": text}
        self._http.ask("POST", "/api/annotations", may="annotations:create", body=body)

    def _list(self, path: str, may: str) -> list[dict[str, Any]]:
        found = self._http.ask("GET", path, may=may)
        if not isinstance(found, list) or not all(
            isinstance(one, dict) and "uid" in one and "title" in one for one in found
        ):
            raise self._http.no_grafana("HTTP 200")
        return found


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
