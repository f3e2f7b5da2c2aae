"""All files of a build, as text, and how they get into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vllm_opsctl.alarms import alertmanager, operator
from vllm_opsctl.alarms.rule_tests import unit_tests
from vllm_opsctl.alarms.rules import Rulebook
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.yaml_text import Dumper

MARK = "written by opsctl alarms build"
"""In the first line of every file; a file without it is not ours to replace."""


class _Dumper(Dumper):
    """YAML with PromQL and templates as blocks, and without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Repeat what is shared: rule files are read by people."""
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def build_files(config: Config, rulebook: Rulebook) -> dict[str, str]:
    """
    Every file of a build by name.

    Raises:
        ConfigError: The receivers do not fit together.
    """
    found = alertmanager.pager(config.alarms, rulebook.names.clock)
    service = config.service.name
    head = _head(rulebook)
    files = {
        "rules.yaml": _yaml({"groups": rulebook.groups}, head, rulebook.left_out),
        "rules_test.yaml": _yaml(unit_tests(rulebook), head, ()),
        "prometheusrule.yaml": _yaml(operator.prometheus_rule(service, rulebook.groups), head, ()),
    }
    if found is not None:
        files["alertmanager.yaml"] = _yaml(alertmanager.configuration(found), head, ())
        files["alertmanagerconfig.yaml"] = _yaml(
            operator.alertmanager_config(service, found),
            head,
            (
                "namespaces: by default the operator lets it see only alerts with its own namespace label",
            ),
        )
        files[alertmanager.TEMPLATE_FILE] = f"{{{{/* {MARK}{head} */}}}}\n{alertmanager.template()}"
    return files


def _head(rulebook: Rulebook) -> str:
    names = rulebook.names
    text = f" --from {names.source}"
    if names.source == "vllm" and names.version is not None:
        text += f" --vllm-version {'.'.join(map(str, names.version))}"
    if names.clock.scale != 1:
        text += f" --scale {names.clock.scale}; FOR TESTS: every window, for and interval is so much shorter"
    return text


def _yaml(data: object, head: str, notes: tuple[str, ...] | list[str]) -> str:
    lines = [f"# {MARK}{head}", *(f"# not in here: {note}" for note in notes)]
    body = yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=10**6, allow_unicode=True)
    return "\n".join(lines) + "\n" + body


def differences(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Names of files that a build would write or remove."""
    there = {
        name: (folder / name).read_text(encoding="utf-8") if (folder / name).is_file() else None
        for name in (*files, *_stale(folder, files))
    }
    return sorted(name for name, text in there.items() if text != files.get(name))


def write(folder: Path, files: Mapping[str, str]) -> list[str]:
    """
    Write what differs and remove what was built before and is no more.

    Returns:
        Names of the files that changed.

    Raises:
        UsageError: A file in the way is not of a build, or the folder cannot be written.
    """
    changed = differences(folder, files)
    for name in changed:
        path = folder / name
        if path.exists() and MARK not in _first_line(path):
            raise UsageError(
                f"{path}: not written by opsctl, it is left alone; choose a folder of its own"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in changed:
            if name in files:
                (folder / name).write_text(files[name], encoding="utf-8")
            else:
                (folder / name).unlink()
    except OSError as problem:
        raise UsageError(f"{folder}: cannot be written ({problem.strerror})") from None
    return changed


_ALL = (
    "rules.yaml",
    "rules_test.yaml",
    "prometheusrule.yaml",
    "alertmanager.yaml",
    "alertmanagerconfig.yaml",
    alertmanager.TEMPLATE_FILE,
)


def _stale(folder: Path, files: Mapping[str, str]) -> list[str]:
    return [
        name
        for name in _ALL
        if name not in files and (folder / name).is_file() and MARK in _first_line(folder / name)
    ]


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as lines:
            return lines.readline()
    except (OSError, UnicodeDecodeError):
        return ""
