"""The boards as files: JSON for Grafana, and what makes it load them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from vllm_opsctl.alarms.prometheus.conventions import Source
from vllm_opsctl.alarms.vocabulary import Vocabulary
from vllm_opsctl.dashboards.boards import load_boards
from vllm_opsctl.dashboards.grafana import Drawn, draw
from vllm_opsctl.dashboards.slo_board import slo_board
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.catalogue import Version
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.sli import measured

MARK = "opsctl dashboards build"
PROVISIONING = "provisioning.yaml"
CONFIG_MAPS = "configmaps.yaml"

LOADER_LABEL = {"grafana_dashboard": "1"}
"""What the sidecar of Grafana's Helm chart looks for (grafana/helm-charts, sidecar.dashboards.label)."""

FOLDER = "vLLM"


def draw_boards(config: Config, source: Source, version: Version | None = None) -> list[Drawn]:
    """
    Every board of a configuration.

    Args:
        config: The whole of it.
        source: Whose metrics there are.
        version: Release of vLLM, with ``vllm``; None for the newest known.
    """
    names = Vocabulary(source, version)
    objectives = measured(config)
    if source == "vllm":
        objectives = [one for one in objectives if one.sli != "time_to_first_token_cached"]
    service = config.service.name
    boards = (slo_board(service, objectives), *load_boards(objectives, source))
    return [draw(board, service, names, config.alarms.runbook_url) for board in boards]


def board_files(config: Config, drawn: list[Drawn]) -> dict[str, str]:
    """
    The files, by name: a JSON for each board, a provider for provisioning, ConfigMaps.

    Args:
        config: For names.
        drawn: The boards.
    """
    files = {f"{one.uid}.json": _json(one) for one in drawn}
    provider = {
        "apiVersion": 1,
        "providers": [
            {
                "name": f"{MARK}: {config.service.name}",
                "folder": FOLDER,
                "type": "file",
                "disableDeletion": True,
                "allowUiUpdates": False,
                "options": {"path": f"/var/lib/grafana/dashboards/{config.service.name}"},
            }
        ],
    }
    files[PROVISIONING] = f"# written by {MARK}\n{yaml.safe_dump(provider, sort_keys=False)}"
    maps = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": one.uid,
                "labels": {**LOADER_LABEL, "app.kubernetes.io/managed-by": "opsctl"},
                "annotations": {"grafana_folder": FOLDER},
            },
            # without spaces: kubectl keeps a copy in an annotation, and these end at 256 KiB
            "data": {f"{one.uid}.json": _json(one, indent=None)},
        }
        for one in drawn
    ]
    files[CONFIG_MAPS] = f"# written by {MARK}\n{yaml.safe_dump_all(maps, sort_keys=False)}"
    return files


def _json(one: Drawn, indent: int | None = 2) -> str:
    separators = (",", ":") if indent is None else None
    return json.dumps(one.body, indent=indent, separators=separators, ensure_ascii=False) + "\n"


def changed_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Names of files that are not there as they shall be."""
    return [name for name, text in files.items() if _read(folder / name) != text]


def write_boards(folder: Path, files: Mapping[str, str]) -> list[str]:
    """
    Write what changed, and touch nothing else in the folder.

    Returns:
        Names of what changed.

    Raises:
        UsageError: A file in the way is not of a build, or the folder cannot be written.
    """
    changed = changed_files(folder, files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in changed:
            there = _read(folder / name)
            if there is not None and not _is_ours(name, there):
                raise UsageError(
                    f"{folder / name}: not written by opsctl, it is left alone; choose a folder of its own"
                )
        for name in changed:
            (folder / name).write_text(files[name], encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"{folder}: cannot be written ({problem})") from None
    return changed


def _is_ours(name: str, text: str) -> bool:
    """JSON has no comments: a board of ours has its file's name for its identity."""
    if not name.endswith(".json"):
        return MARK in text.partition("\n")[0]
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and f"{found.get('uid')}.json" == name


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
