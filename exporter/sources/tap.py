"""
The tap source: the servers whose statistics pages lie in a folder, living and dead.

Pages are grouped by the server that wrote them: a server is one process, or several API processes
with one parent, and has one or more engines.
"""

from __future__ import annotations

import logging
import math
import os
import pwd
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from vllm_opsctl.errors import ConfigError, UsageError
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.engine import PageSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS, MAX_TAP_ENTRIES, MAX_TAP_PAGES
from vllm_opsctl.exporter.observation import Observation, metrics
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.sources.tap_server import TapServer, how_it_ended
from vllm_opsctl.exporter.sources.tap_text import Bounds
from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.folder import UnsafeFolder, check_folder
from vllm_opsctl.exporter.tap.page import PATIENCE_S, BadTapPage, TapPage, read_tap_page

__all__ = [
    "TapFolder",
    "TapServer",
    "assigned",
    "harmless",
    "how_it_ended",
    "owner_id",
    "pages_now",
    "read_folder",
]

log = logging.getLogger(__name__)

_LEAST_PATIENCE_S = 0.02
"""Of every file, even where others have used up all patience: an update takes microseconds."""

_LOCAL_HOSTS = frozenset(("localhost", "127.0.0.1", "::1", "0.0.0.0"))  # noqa: S104 - no bind


class TapFolder:
    """
    A folder of pages.

    Args:
        path: The folder; it need not exist yet.
        bounds: Of the histograms of the pages' text.
        owner: A user whose pages are believed as well (exporter.tap.owner).
    """

    def __init__(self, path: Path, bounds: Bounds, owner: int | None = None) -> None:
        self.path = path
        self.bounds = bounds
        self.owner = owner
        self._complaints: dict[Path, str] = {}

    def bounded(self, bounds: Bounds) -> TapFolder:
        """The same folder with other bounds; a complaint about a file is not logged again."""
        other = TapFolder(self.path, bounds, self.owner)
        other._complaints = self._complaints
        return other

    def servers(self) -> list[TapServer]:
        """All servers, oldest first; what is no readable page is logged once and left out."""
        try:
            check_folder(self.path, self.owner)
        except OSError as problem:
            if not isinstance(problem, FileNotFoundError):
                self._complain(self.path, f"{_why(problem)}; no page of it is read")
            return []
        self._complaints.pop(self.path, None)
        groups: dict[tuple[int, int], list[TapPage]] = {}
        # of all files together: one whose writer stands still may not keep the others waiting
        deadline = time.monotonic() + PATIENCE_S
        for file in self._files():
            page = self._read(file, max(_LEAST_PATIENCE_S, deadline - time.monotonic()))
            if page is not None:
                key = int(page.header["server_pid"]), int(page.header["server_ticks"])
                groups.setdefault(key, []).append(page)
        servers = [TapServer(tuple(pages)) for pages in groups.values()]
        return sorted(servers, key=lambda server: server.started)

    def _files(self) -> list[Path]:
        """The newest files that are called pages, by name; how many were left out is logged."""
        try:
            with os.scandir(self.path) as entries:
                seen = list(islice(entries, MAX_TAP_ENTRIES + 1))
        except OSError as problem:
            self._complain(self.path, _why(problem))
            return []
        found = [Path(entry.path) for entry in seen if entry.name.endswith(layout.SUFFIX)]
        found = [file for file in found if not file.name.startswith(".")]
        if len(seen) > MAX_TAP_ENTRIES:
            self._complain(
                self.path, f"more than {MAX_TAP_ENTRIES} files in it; the rest is not read"
            )
        if len(found) > MAX_TAP_PAGES:
            self._complain(
                self.path,
                f"{len(found)} tap pages in it; the {MAX_TAP_PAGES} newest are read",
            )
            found = sorted(found, key=_changed, reverse=True)[:MAX_TAP_PAGES]
        return sorted(found)

    def _read(self, file: Path, patience_s: float) -> TapPage | None:
        try:
            page = read_tap_page(file, owner=self.owner, patience_s=patience_s)
        except FileNotFoundError:
            self._complaints.pop(file, None)
            return None
        except (BadTapPage, OSError) as problem:
            self._complain(file, f"{_why(problem)}; left out")
            return None
        self._complaints.pop(file, None)
        return harmless(page)

    def _complain(self, about: Path, why: str) -> None:
        """Log once what is wrong with a file, and again when something else is."""
        if self._complaints.get(about) == why:
            return
        if len(self._complaints) >= MAX_TAP_ENTRIES:
            self._complaints.clear()
        self._complaints[about] = why
        log.warning("%s: %s", plain(str(about)), why)

    def remove_unfinished(self, before: float) -> None:
        """Delete what writers left that died while they created a page before a time (Unix seconds)."""
        for file in islice(self.path.glob(f".*{layout.SUFFIX}.new"), MAX_TAP_ENTRIES):
            if _changed(file) < before:
                self._delete(file)

    def remove_read(
        self, servers: Sequence[TapServer], read: Mapping[tuple[int, int], float], before: float
    ) -> None:
        """
        Delete the pages of dead servers that were read before a time.

        How old a page is does not count: what ended before the reader began is older than all that a
        flight recorder keeps, so the page alone tells of it.

        Args:
            servers: Those that have pages.
            read: When each was read to its end, by its key (Unix seconds).
            before: Unix seconds.
        """
        for server in servers:
            if not server.alive and read.get(server.key, math.inf) < before:
                deleted = [self._delete(page.path) for page in server.pages]
                if any(deleted):
                    log.warning("%s: its tap page was read long ago; deleted", server.name)

    def _delete(self, file: Path) -> bool:
        """Delete a file; logs once where that is not possible, on a read-only mount for example."""
        try:
            file.unlink()
        except FileNotFoundError:
            return False
        except OSError as problem:
            self._complain(file, f"cannot be deleted ({problem.strerror})")
            return False
        return True


def harmless(page: TapPage) -> TapPage:
    """A page whose names can be shown: models, adapters, versions and all else that it calls itself."""
    return replace(
        page,
        facts={_plain(name): _shown(value) for name, value in page.facts.items()},
        adapters={_plain(name): counts for name, counts in page.adapters.items()},
    )


def _shown(value: object) -> object:
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if isinstance(value, dict):
        return {_plain(str(name)): _shown(item) for name, item in value.items()}
    return value


def _plain(name: str) -> str:
    return plain(name, MAX_NAME_CHARS)


def _why(problem: Exception) -> str:
    """What is wrong, without the path where the system names it."""
    if isinstance(problem, OSError) and not isinstance(problem, UnsafeFolder):
        return str(problem.strerror or problem)
    return str(problem)


def _changed(file: Path) -> float:
    try:
        return file.lstat().st_mtime
    except OSError:
        return 0.0


def owner_id(owner: int | str | None) -> int | None:
    """
    The number of the user that exporter.tap.owner names.

    Raises:
        ConfigError: This machine knows no such user.
    """
    if owner is None or isinstance(owner, int):
        return owner
    try:
        return pwd.getpwnam(owner).pw_uid
    except (KeyError, ValueError):
        raise ConfigError(
            [f"exporter.tap.owner: no user {plain(owner, 64)!r} here; write its number"]
        ) from None


def assigned(servers: Sequence[TapServer], targets: Sequence[Target]) -> dict[str, list[TapServer]]:
    """
    Which target each server is, oldest server first.

    A target on this machine is the server of its port. Where there is one target and one kind of
    server, as in a pod, they belong together whatever the address. Other servers are called by
    their model and port.
    """
    names = {server.name for server in servers}
    found: dict[str, list[TapServer]] = {}
    for server in servers:
        target = next((t.name for t in targets if _is_at(server, t)), None)
        if target is None and len(targets) == 1 and len(names) == 1:
            target = targets[0].name
        found.setdefault(target or server.name, []).append(server)
    return found


def pages_now(
    folder: TapFolder, targets: Sequence[Target], *, clock: Callable[[], float] = time.time
) -> dict[str, PageSample]:
    """
    One page of every living server, by target.

    Args:
        folder: Where they lie; its bounds are the pages'.
        targets: Configured ones, for their names.
        clock: Unix seconds.
    """
    now, found = clock(), {}
    for name, own in assigned(folder.servers(), targets).items():
        newest = own[-1]
        if newest.alive and newest.usable:
            found[name] = read_page(newest.text(folder.bounds, since=now), t=now, target=name)
    return found


def _is_at(server: TapServer, target: Target) -> bool:
    parts = urlsplit(target.url)
    return parts.hostname in _LOCAL_HOSTS and server.port is not None and parts.port == server.port


def read_folder(
    folder: TapFolder,
    targets: Sequence[Target],
    *,
    full_s: float,
    step_s: float,
    clock: Callable[[], float] = time.time,
) -> list[Observation]:
    """
    Everything that the pages of a folder still tell.

    Args:
        folder: Where they lie.
        targets: Configured ones, for their names.
        full_s: So many seconds of each server's end are wanted one by one.
        step_s: Before that, seconds at least so far apart.
        clock: Unix seconds.

    Raises:
        UsageError: There is no page, or the folder is somebody else's.
    """
    servers = folder.servers()
    if not servers:
        why = "no tap page in it"
        try:
            check_folder(folder.path, folder.owner)
            if not folder.path.is_dir():
                why = "no such folder"
        except UnsafeFolder as problem:
            raise UsageError(str(problem)) from None
        except FileNotFoundError:
            why = "no such folder"
        except OSError as problem:
            why = f"cannot be looked into ({problem.strerror})"
        raise UsageError(
            f"{folder.path}: {why}; vLLM writes them when vllm-opsctl is installed beside it, "
            "where OPSCTL_TAP says (see docs/tap.md)"
        )
    found: list[Observation] = []
    for name, own in assigned(servers, targets).items():
        for server in own:
            found += server.history(
                name, folder.bounds, start=0.0, full_from=server.touched - full_s, step_s=step_s
            )
            if server.alive:
                now = clock()
                found.append(metrics(now, name, server.text(folder.bounds, since=now - 2.0)))
    return sorted(found, key=lambda observation: observation.t)
