"""What a Grafana has against the boards of a configuration, and the way from one to the other."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from vllm_opsctl.alarms.differences import Action
from vllm_opsctl.alarms.resource_names import FLEET_FOLDER
from vllm_opsctl.dashboards.board_diff import Difference, differences
from vllm_opsctl.dashboards.grafana_api import Folder, Found, Listed
from vllm_opsctl.errors import BadPage, UsageError

OWNER = "opsctl"
"""The tag of boards that opsctl writes."""

NO_FLEET = "--no-fleet"
"""The option that leaves out the board of all services."""

MESSAGE = "opsctl dashboards push"


class Board(Protocol):
    """A board as it shall be."""

    @property
    def uid(self) -> str: ...

    @property
    def body(self) -> dict[str, Any]: ...

    @property
    def of_all_services(self) -> bool: ...


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
        folder: Where it goes.
        of_all_services: It is of no service in particular.
        differences: Of a change, or of what cannot be changed.
        over: The version that was compared; None for a new board.
        why: Of something foreign.
    """

    action: Action
    uid: str
    body: dict[str, Any]
    folder: Folder
    of_all_services: bool = False
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
        folder: Where the service's boards go.
        missing: Folders that are not there yet.
        changes: Of every board; unchanged ones are among them.
        notes: What stands beside them and is left alone, one line each.
    """

    folder: Folder
    missing: frozenset[Folder]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def to_do(self) -> tuple[Change, ...]:
        """Those that change something."""
        return tuple(one for one in self.changes if one.action in ("create", "change"))

    @property
    def new_folders(self) -> tuple[Folder, ...]:
        """Folders that are made, for something goes there."""
        wanted = dict.fromkeys(one.folder for one in self.to_do)
        return tuple(one for one in wanted if one in self.missing)

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
        folder: Title of the folder that the service's boards go to.
        service: Name of the fleet.

    Raises:
        SourceError: Grafana does not tell.
        UsageError: There are several folders of that title.
    """
    folders = grafana.folders()
    place = _place(folders, folder_of(folder), "or choose another with --folder")
    changes = tuple(
        _fleet_change(grafana, one, folders)
        if one.of_all_services
        else _change(one, grafana.board(one.uid), place, service)
        for one in boards
    )
    created = {one.folder for one in changes if one.action == "create"}
    # 0.1 had the boards of every service in the folder of the other board
    beside = {
        one: grafana.boards_in(one) for one in folders if one == place or one.title == FLEET_FOLDER
    }
    return Plan(
        place,
        frozenset({place, *created} - {*folders}),
        changes,
        tuple(_notes(beside, changes, service)),
    )


def _place(folders: list[Folder], wanted: Folder, otherwise: str) -> Folder:
    """Ours, though somebody may have renamed it; else the one of that title; else a new one."""
    for one in folders:
        if one.uid == wanted.uid:
            return one
    same = [one for one in folders if one.title == wanted.title]
    if len(same) > 1:
        raise UsageError(
            f"folder {wanted.title}: {len(same)} have this title ({', '.join(one.uid for one in same)}); "
            f"rename all but one, {otherwise}"
        )
    return same[0] if same else wanted


def _change(board: Board, now: Found | None, folder: Folder, service: str | None) -> Change:
    if now is None:
        return Change("create", board.uid, board.body, folder, board.of_all_services)
    found = differences(now.body, board.body)
    if now.folder_uid != folder.uid:
        found.insert(0, Difference("~", "folder", now.folder_title, folder.title))
    others = [] if service is None or service in now.tags else _services(now.tags)
    why = ""
    if OWNER not in now.tags:
        found = []
        why = (
            f"it has our uid, but opsctl did not write it, for it lacks the tag {OWNER}; give it another uid "
            "or delete it, or add the tag if it may be overwritten"
        )
    elif others:
        found = []
        why = (
            f"it has our uid, but by its tags it is a board of {', '.join(others)} and not of {service}; "
            f"delete it, or add the tag {service} if it may be overwritten"
        )
    elif found and now.provisioned:
        why = (
            "Grafana has it from a file (provisioning), and takes no change of it over the API; replace the "
            "file with that of opsctl dashboards build, or take it out of the provisioned folder"
        )
    action: Action = "foreign" if why else "change" if found else "unchanged"
    return Change(
        action,
        board.uid,
        board.body,
        folder,
        board.of_all_services,
        tuple(found),
        now.version,
        why,
    )


def _fleet_change(grafana: Grafana, board: Board, folders: list[Folder]) -> Change:
    """Of the board of all services, which stays wherever somebody has put it."""
    with _may_be_left_out():
        now = grafana.board(board.uid)
    if now is not None:
        return _change(board, now, Folder(now.folder_uid, now.folder_title), None)
    new = _place(folders, folder_of(FLEET_FOLDER), f"or leave it out with {NO_FLEET}")
    return _change(board, None, new, None)


@contextmanager
def _may_be_left_out() -> Iterator[None]:
    """
    Say of a refusal about the board of all services how to do without it.

    Raises:
        SourceError: Grafana refuses.
    """
    try:
        yield
    except BadPage as problem:
        if problem.reason not in ("forbidden", "conflict", "refused", "not-found"):
            raise
        raise BadPage(
            problem.reason,
            f"{problem}; {NO_FLEET} leaves out the board of all services",
        ) from None


def _services(tags: Sequence[str]) -> list[str]:
    """The services that a board of ours is of."""
    return [tag for tag in tags if tag != OWNER] if OWNER in tags else []


def _notes(
    beside: Mapping[Folder, list[Listed]], changes: tuple[Change, ...], service: str
) -> Iterator[str]:
    ours = {change.uid for change in changes}
    titles = {(change.folder.uid, change.title): change.uid for change in changes}
    for folder, boards in beside.items():
        for one in boards:
            if one.uid in ours:
                continue
            same = titles.get((folder.uid, one.title))
            if {OWNER, service} <= {*one.tags}:
                yield f"{one.title} ({one.uid}): a board of {service} that the configuration no longer has"
            elif same is not None:
                others = " and ".join(_services(one.tags))
                whose = f"a board of {others}" if others else "somebody's board"
                yield f"{one.title} ({one.uid}): {whose} of the same title as {same}"


def carry_out(grafana: Grafana, found: Plan) -> Iterator[Change]:
    """
    Make every change; those of others are left alone.

    Yields:
        Each when it is made.

    Raises:
        SourceError: One failed; those before it stay.
    """
    new = {*found.new_folders}
    for change in found.to_do:
        with _may_be_left_out() if change.of_all_services else nullcontext():
            if change.folder in new:
                grafana.create_folder(change.folder)
                new.remove(change.folder)
            grafana.save(change.body, change.folder, over=change.over, message=MESSAGE)
        yield change
