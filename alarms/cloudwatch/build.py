"""The template as a file: its text, and how it gets into a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vllm_opsctl.alarms.build import MARK, loaded, old_text
from vllm_opsctl.alarms.cloudwatch.template import Template
from vllm_opsctl.alarms.cloudwatch.validate import MAX_BYTES, mistakes
from vllm_opsctl.errors import ConfigError, UsageError
from vllm_opsctl.exporter.files import plain_text_of
from vllm_opsctl.exporter.yaml_text import Dumper

FILE = "cloudwatch.yaml"

INLINE_BYTES = 51_200
"""A longer template goes through a bucket; `aws cloudformation deploy` asks for it."""


_ON_ONE_LINE = 220

_DESCRIPTION = re.compile(
    r"^Description: '?(?:Alarms|Scaling) of the vLLM service (\S+?)( \(.*\))?(?: by its load)?\.'?$",
    re.MULTILINE,
)


class InvalidTemplate(Exception):
    """A template of ours that CloudWatch would refuse: a fault of opsctl."""


class _Dumper(Dumper):
    """YAML with texts of several lines as blocks, and without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Repeat what is shared: CloudFormation knows no anchors."""
        return True

    def represent_data(self, data: Any) -> yaml.Node:
        """Put what is short on one line: a template may have 51,200 bytes without a bucket."""
        node: yaml.Node = super().represent_data(data)
        if isinstance(node, yaml.CollectionNode) and len(repr(data)) <= _ON_ONE_LINE:
            node.flow_style = True
        return node


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def yaml_text(body: dict[str, Any]) -> str:
    """A template's body as YAML that people can read."""
    text: str = yaml.dump(
        body, Dumper=_Dumper, sort_keys=False, width=10**6, default_flow_style=False
    )
    return text


def template_text(template: Template) -> str:
    """
    The file's text, with what is left out in its head.

    Raises:
        ConfigError: It is too large for CloudFormation.
        InvalidTemplate: It is wrong; only a fault of opsctl can be the cause.
    """
    wrong = mistakes(template.body)
    if any(line.startswith("Resources: ") for line in wrong):
        raise ConfigError([f"objectives, targets: too many for one stack: {wrong[-1]}"])
    if wrong:
        raise InvalidTemplate("; ".join(wrong))
    lines = [f"# {MARK} --to cloudwatch", *(f"# not in here: {line}" for line in template.left_out)]
    text = "\n".join(lines) + "\n" + yaml_text(template.body)
    if len(text.encode()) > MAX_BYTES:
        raise ConfigError(
            ["objectives, targets: too many for one stack: the template is over 1 MB"]
        )
    return text


def is_current(folder: Path, text: str, file: str = FILE) -> bool:
    """
    Whether the folder has this very template.

    Raises:
        UsageError: It has another service's.
    """
    path = folder / file
    there = plain_text_of(path) or ""
    old, new = _fleet_in(there), _fleet_in(text)
    if old is not None and new is not None:
        same_labels = not old[1] or not new[1] or old[1] == new[1]
        if old[0] != new[0] or not same_labels:
            raise UsageError(
                f"{path}: it is the template of {''.join(old)}, and this one is of {''.join(new)}; give each "
                "a folder of its own"
            )
    return there == text


def _fleet_in(template: str) -> tuple[str, str] | None:
    """The service that a template's description names, and its free labels."""
    found = _DESCRIPTION.search(template)
    return (found[1], found[2] or "") if found is not None else None


_NAMES = {"AlarmName": "alarm", "DashboardName": "dashboard"}


def renamed(folder: Path, template: Template) -> list[str]:
    """
    What CloudFormation replaces when it deploys a template over the one in the folder: one line each.

    Args:
        folder: With the template of an earlier build, or without.
        template: Of this build.
    """
    old, new = _names_in(loaded(old_text(folder, FILE))), _names_in(template.body)
    return [
        f"{what} {name} -> {new[what, resource]}: CloudFormation deletes the old one when you deploy"
        for (what, resource), name in old.items()
        if new.get((what, resource), name) != name
    ]


def _names_in(body: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Names of alarms and dashboards, by what they are and the resource's logical id."""
    try:
        return {
            (what, resource): _unfolded(one["Properties"][key])
            for resource, one in dict(body["Resources"]).items()
            for key, what in _NAMES.items()
            if key in one["Properties"]
        }
    except (KeyError, TypeError, ValueError):
        # somebody edited it; it is replaced all the same
        return {}


def _unfolded(name: object) -> str:
    return str(name["Fn::Sub"]) if isinstance(name, dict) else str(name)


def write_template(folder: Path, text: str, file: str = FILE, mark: str = MARK) -> bool:
    """
    Write the template, and touch nothing else in the folder.

    Args:
        folder: Where; made if it is not there.
        text: The file's.
        file: Its name.
        mark: What the first line of a file has that a build may replace.

    Returns:
        Whether it changed.

    Raises:
        UsageError: A file in the way is not of a build or is another service's, or the folder cannot be
            written.
    """
    if is_current(folder, text, file):
        return False
    path = folder / file
    try:
        if path.exists() and mark not in (plain_text_of(path) or "").partition("\n")[0]:
            raise UsageError(
                f"{path}: not written by opsctl, it is left alone; choose a folder of its own"
            )
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"{folder}: cannot be written ({problem.strerror or problem})") from None
    return True
