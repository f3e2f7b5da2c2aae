"""What a Grafana has against the boards of a configuration, and the way from one to the other."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from vllm_opsctl.alarms.differences import Action
from vllm_opsctl.dashboards.board_diff import Difference, differences
from vllm_opsctl.dashboards.grafana_api import Folder, Found, Listed
from vllm_opsctl.errors import UsageError

OWNER = "opsctl"
"""The tag of boards that opsctl writes."""

MESSAGE = "opsctl dashboards push"


class Board(Protocol):
    """A board as it shall be."""

    @property
    def uid(self) -> str: ...

    @property
    def body(self) -> dict[str, Any]: ...


class Grafana(Protocol):
    """Who has boards."""

    def folders(self) -> list[Folder]: ...

    def create_folder(self, folder: Folder) -> None: ...

    def boards_in(self, folder: Folder) -> list[Listed]: ...

    def board(self, uid: str) -> Found | None: ...

    def save(
        self, body: dict[str, Any], folder: Folder, *, over: int | None, message: str
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Change:
    """
    What is to be done about one board.

    Args:
        action: ``foreign`` when it must not or cannot be touched.
        uid: Its identity.
        body: As it shall be.
        differences: Of a change, or of what cannot be changed.
        over: The version that was compared; None for a new board.
        why: Of something foreign.
    """

    action: Action
    uid: str
    body: dict[str, Any]
    differences: tuple[Difference, ...] = ()
    over: int | None = None
    why: str = ""

    @property
    def title(self) -> str:
        """As people see it."""
        return str(self.body["title"])


@dataclass(frozen=True, slots=True)
class Plan:
    """
    Everything that is to be done.

    Args:
        folder: Where the boards go.
        new_folder: It is not there yet.
        changes: Of every board; unchanged ones are among them.
        notes: What stands beside them and is left alone, one line each.
    """

    folder: Folder
    new_folder: bool
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def to_do(self) -> tuple[Change, ...]:
        """Those that change something."""
        return tuple(one for one in self.changes if one.action in ("create", "change"))

    @property
    def foreign(self) -> tuple[Change, ...]:
        """Those that are left alone and should not be."""
        return tuple(one for one in self.changes if one.action == "foreign")


def folder_of(title: str) -> Folder:
    """
    A folder with an identity of its name, at most 40 characters of those that Grafana takes.

    Raises:
        UsageError: It has no name.
    """
    if not title.strip():
        raise UsageError("--folder: it is empty; boards have to go somewhere")
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:20]
    return Folder(f"opsctl-{slug}-{hashlib.sha256(title.encode()).hexdigest()[:8]}", title)


def plan(grafana: Grafana, boards: Iterable[Board], folder: str, service: str) -> Plan:
    """
    Compare; nothing is changed.

    Args:
        grafana: What there is.
        boards: What there shall be.
        folder: Title of the folder that they go to.
        service: Name of the fleet.

    Raises:
        SourceError: Grafana does not tell.
        UsageError: There are several folders of that title.
    """
    wanted = folder_of(folder)
    there = _existing(grafana.folders(), wanted)
    place = there or wanted
    changes = tuple(_change(one, grafana.board(one.uid), place) for one in boards)
    beside = grafana.boards_in(place) if there else []
    return Plan(place, there is None, changes, tuple(_notes(beside, changes, service)))


def _existing(folders: list[Folder], wanted: Folder) -> Folder | None:
    """Ours, though somebody may have renamed it; else the one of that title."""
    for one in folders:
        if one.uid == wanted.uid:
            return one
    same = [one for one in folders if one.title == wanted.title]
    if len(same) > 1:
        raise UsageError(
            f"--folder {wanted.title}: {len(same)} folders have this title "
            f"({', '.join(one.uid for one in same)}); rename all but one, or choose another"
        )
    return same[0] if same else None


def _change(board: Board, now: Found | None, folder: Folder) -> Change:
    if now is None:
        return Change("create", board.uid, board.body)
    found = differences(now.body, board.body)
    if now.folder_uid != folder.uid:
        found.insert(0, Difference("~", "folder", now.folder_title, folder.title))
    if OWNER not in now.tags:
        found = []
        why = (
            f"it has our uid, but opsctl did not write it, for it lacks the tag {OWNER}; give it another uid "
            "or delete it, or add the tag if it may be overwritten"
        )
    elif found and now.provisioned:
        why = (
            "Grafana has it from a file (provisioning), and takes no change of it over the API; replace the "
            "file with that of opsctl dashboards build, or take it out of the provisioned folder"
        )
    else:
        return Change(
            "change" if found else "unchanged", board.uid, board.body, tuple(found), now.version
        )
    return Change("foreign", board.uid, board.body, tuple(found), now.version, why)


def _notes(beside: list[Listed], changes: tuple[Change, ...], service: str) -> Iterator[str]:
    ours = {change.uid for change in changes}
    titles = {change.title: change.uid for change in changes}
    for one in beside:
        if one.uid in ours:
            continue
        if one.title in titles:
            yield f"{one.title} ({one.uid}): somebody's board of the same title as {titles[one.title]}"
        elif {OWNER, service} <= {*one.tags}:
            yield f"{one.title} ({one.uid}): a board of {service} that the configuration has no more"


def carry_out(grafana: Grafana, found: Plan) -> Iterator[Change]:
    """
    Make every change; those of others are left alone.

    Yields:
        Each when it is made.

    Raises:
        SourceError: One failed; those before it stay.
    """
    if found.new_folder and found.to_do:
        grafana.create_folder(found.folder)
    for change in found.to_do:
        grafana.save(change.body, found.folder, over=change.over, message=MESSAGE)
        yield change
