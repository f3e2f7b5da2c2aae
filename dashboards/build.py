"""
The boards as files: JSON for Grafana, and what makes it load them.

A service's boards stand in a folder of its own, the board of all services in a folder within it: each service
writes that one, and a Grafana may have it once only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vllm_opsctl.alarms.prometheus.conventions import Source, board_scope
from vllm_opsctl.alarms.resource_names import (
    FLEET_BOARD,
    FLEET_FOLDER,
    FLEET_PATH,
    board_folder,
    board_object_name,
    board_path,
    board_prefix,
)
from vllm_opsctl.alarms.vocabulary import Vocabulary
from vllm_opsctl.dashboards.boards import fleet_board, load_boards
from vllm_opsctl.dashboards.grafana import TAG, Drawn, draw, draw_fleet
from vllm_opsctl.dashboards.promql import Promql
from vllm_opsctl.dashboards.slo_board import slo_board
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.catalogue import Version
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.files import plain_text_of
from vllm_opsctl.exporter.sli import measured

MARK = "opsctl dashboards build"
PROVISIONING = "provisioning.yaml"
CONFIG_MAPS = "configmaps.yaml"

FLEET = "fleet"
"""The folder of the board of all services, within a service's."""

FLEET_CONFIG_MAP = f"{FLEET}/configmap.yaml"

_ALL_SERVICES = "all services"
"""Whose files these are, and no service's name: it has a space."""

LOADER_LABEL = {"grafana_dashboard": "1"}
"""What the sidecar of Grafana's Helm chart looks for (grafana/helm-charts, sidecar.dashboards.label)."""


def draw_boards(config: Config, source: Source, version: Version | None = None) -> list[Drawn]:
    """
    Every board of a configuration's service, and last the board of all services.

    Args:
        config: The whole of it.
        source: Whose metrics there are.
        version: Release of vLLM, with ``vllm``; None for the newest known.
    """
    names = Vocabulary(source, version, scope=board_scope(config))
    says = Promql(names, tuple(sorted(config.exporter.labels)))
    objectives = measured(config)
    if source == "vllm":
        objectives = [one for one in objectives if one.sli != "time_to_first_token_cached"]
    service = config.service.name
    boards = (slo_board(service, objectives), *load_boards(service, objectives, source))
    return [
        *(draw(board, says, service, config.alarms.runbook_url) for board in boards),
        draw_fleet(fleet_board()),
    ]


# -- what is written -------------------------------------------------------------------------------


def board_files(config: Config, drawn: Sequence[Drawn]) -> dict[str, str]:
    """
    The files, by name: a JSON for each board, providers for provisioning, ConfigMaps.

    Args:
        config: For names.
        drawn: The boards.
    """
    service = config.service.name
    own = [one for one in drawn if not one.of_all_services]
    files = {f"{one.uid}.json": _json(one) for one in own}
    files[PROVISIONING] = _provisioning(service, board_folder(service), board_path(service))
    prefix = f"{board_prefix(service)}-"
    files[CONFIG_MAPS] = _config_maps(
        service,
        board_folder(service),
        {board_object_name(service, one.uid.removeprefix(prefix)): one for one in own},
    )
    for one in drawn:
        if one.of_all_services:
            files[f"{FLEET}/{one.uid}.json"] = _json(one)
            files[f"{FLEET}/{PROVISIONING}"] = _provisioning(
                _ALL_SERVICES, FLEET_FOLDER, FLEET_PATH
            )
            files[FLEET_CONFIG_MAP] = _config_maps(_ALL_SERVICES, FLEET_FOLDER, {one.uid: one})
    return files


def _head(owner: str) -> str:
    return f"# written by {MARK} for {owner}\n"


def _provisioning(owner: str, folder: str, path: str) -> str:
    provider = {
        "name": f"{MARK}: {owner}",
        "folder": folder,
        "type": "file",
        "disableDeletion": True,
        "allowUiUpdates": False,
        "options": {"path": path},
    }
    return _head(owner) + yaml.safe_dump(
        {"apiVersion": 1, "providers": [provider]}, sort_keys=False
    )


def _config_maps(owner: str, folder: str, drawn: Mapping[str, Drawn]) -> str:
    maps = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "labels": {**LOADER_LABEL, "app.kubernetes.io/managed-by": "opsctl"},
                "annotations": {"grafana_folder": folder},
            },
            # without spaces: kubectl keeps a copy in an annotation, and these end at 256 KiB
            "data": {f"{one.uid}.json": _json(one, indent=None)},
        }
        for name, one in drawn.items()
    ]
    return _head(owner) + yaml.safe_dump_all(maps, sort_keys=False)


def _json(one: Drawn, indent: int | None = 2) -> str:
    separators = (",", ":") if indent is None else None
    return json.dumps(one.body, indent=indent, separators=separators, ensure_ascii=False) + "\n"


# -- what is there ---------------------------------------------------------------------------------


def _refuse_folder_of_another(folder: Path, service: str) -> None:
    for name in (PROVISIONING, CONFIG_MAPS):
        owner = _owner(_read(folder / name) or "")
        if owner not in (None, service):
            raise UsageError(
                f"{folder / name}: it has the boards of {owner}, and these are of {service}; give each "
                f"service a folder of its own, or remove those of {owner} first if it is {service} now"
            )


def _owner(text: str) -> str | None:
    """Whose boards a file loads; 0.1 wrote no name into the first line."""
    head, _, rest = text.partition("\n")
    if MARK not in head:
        return None
    for pattern, where in (
        (rf"{MARK} for (\S.*)", head),
        (rf"name: '?{MARK}: ([^\s']+)", rest),
        (rf'"tags":\["{TAG}","([^"]+)"\]', rest),
    ):
        found = re.search(pattern, where)
        if found is not None:
            return found[1]
    return None


def outdated(folder: Path, files: Mapping[str, str], service: str) -> dict[str, str | None]:
    """
    Boards of the service that an earlier build wrote and this one does not.

    Args:
        folder: Of the build.
        files: Those of this build.
        service: Name of the fleet.

    Returns:
        The file that takes the place of each; None where there is none.
    """
    found: dict[str, str | None] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name in files:
            continue
        tags = _tags_of_ours(path.name, _read(path))
        if tags == {TAG} and path.stem == FLEET_BOARD:
            # 0.1 had it beside the service's
            found[path.name] = f"{FLEET}/{path.name}"
        elif tags is not None and {TAG, service} <= tags and path.stem.startswith(f"{TAG}-"):
            board = path.stem.rpartition("-")[2]
            new = f"{board_prefix(service)}-{board}.json"
            found[path.name] = new if new in files else None
    return found


def changed_files(folder: Path, files: Mapping[str, str], service: str) -> list[str]:
    """
    Names of files that are not as a build would leave them.

    Raises:
        UsageError: The folder has another service's boards.
    """
    _refuse_folder_of_another(folder, service)
    changed = [name for name, text in files.items() if _read(folder / name) != text]
    return [*changed, *outdated(folder, files, service)]


def write_boards(folder: Path, files: Mapping[str, str], service: str) -> list[str]:
    """
    Write what changed, remove the service's boards that are no more, and touch nothing else in the folder.

    Args:
        folder: Where they go.
        files: Their texts by name.
        service: Name of the fleet.

    Returns:
        Names of what changed.

    Raises:
        UsageError: A file in the way is not of a build or is another service's, or the folder cannot be
            written.
    """
    changed = changed_files(folder, files, service)
    for name in changed:
        there = _read(folder / name)
        if there is not None and not _is_ours(name, there):
            raise UsageError(
                f"{folder / name}: not written by opsctl, it is left alone; choose a folder of its own"
            )
    try:
        for name in changed:
            path = folder / name
            if name in files:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(files[name], encoding="utf-8")
            else:
                path.unlink()
    except OSError as problem:
        raise UsageError(f"{folder}: cannot be written ({problem.strerror or problem})") from None
    return changed


def _is_ours(name: str, text: str) -> bool:
    """JSON has no comments: a board of ours has its file's name for its identity."""
    if not name.endswith(".json"):
        return MARK in text.partition("\n")[0]
    return _uid(_object(text)) == Path(name).stem


def _tags_of_ours(name: str, text: str | None) -> set[str] | None:
    """The tags of a board whose file is called like its uid; None for anything else."""
    found = _object(text or "")
    if _uid(found) != Path(name).stem:
        return None
    tags = found.get("tags")
    return {*map(str, tags)} if isinstance(tags, list) else set()


def _uid(found: Mapping[str, Any]) -> str | None:
    uid = found.get("uid")
    return uid if isinstance(uid, str) else None


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> str | None:
    return plain_text_of(path)


def renamed(folder: Path, files: Mapping[str, str], service: str) -> list[str]:
    """What a build moves or removes of an earlier one, one line each."""
    return [
        f"{old} -> {new}"
        if new is not None
        else f"{old} is removed: the configuration has no such board"
        for old, new in outdated(folder, files, service).items()
    ]
