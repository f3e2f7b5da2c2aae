"""All files of a build, as text, and how they get into a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from vllm_opsctl.alarms import alertmanager, operator
from vllm_opsctl.alarms.made_up import own_service, second_service
from vllm_opsctl.alarms.rule_tests import RULES, SECOND_RULES, unit_tests
from vllm_opsctl.alarms.rules import Rulebook
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.files import plain_text_of
from vllm_opsctl.exporter.identity import RESERVED_LABELS, SERVICE, Identity, identity_of
from vllm_opsctl.exporter.yaml_text import Dumper, YamlMistake, read_user_yaml

MARK = "written by opsctl alarms build"
"""In the first line of every file; a file without it is not ours to replace."""

OPERATOR_RULES = "prometheusrule.yaml"
OPERATOR_ALERTMANAGER = "alertmanagerconfig.yaml"

_WITH_WEBHOOKS = ("alertmanager.yaml", OPERATOR_ALERTMANAGER)

_DO_NOT_LOAD = (
    "# Do not load this file: it has the rules of a made-up second service, for the unit tests."
)


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
    identity = identity_of(config)
    found = alertmanager.pager(config.alarms, rulebook.names.clock, identity)
    head = _head(rulebook)
    resource = operator.prometheus_rule(identity, rulebook.groups)
    files = {
        RULES: _yaml({"groups": rulebook.groups}, head, rulebook.left_out),
        OPERATOR_RULES: _yaml(resource, head, ()),
    }
    own, second = own_service(rulebook), second_service(rulebook)
    if own is not None:
        files["rules_test.yaml"] = _yaml(unit_tests(own, second), head, ())
    if own is not None and second is not None:
        first, _, rest = _yaml({"groups": second.book.groups}, head, ()).partition("\n")
        files[SECOND_RULES] = f"{first}\n{_DO_NOT_LOAD}\n{rest}"
    if found is not None:
        files["alertmanager.yaml"] = _yaml(alertmanager.configuration(found), head, ())
        files[OPERATOR_ALERTMANAGER] = _yaml(
            operator.alertmanager_config(identity, found),
            head,
            (
                "namespaces: by default the operator lets it see only alerts with its own namespace label",
            ),
        )
        files[alertmanager.TEMPLATE_FILE] = f"{{{{/* {MARK}{head} */}}}}\n{found.template()}"
    return files


def identity_notes(config: Config, rulebook: Rulebook, files: Mapping[str, str]) -> Iterator[str]:
    """What the rules cannot tell apart as configured, one line each."""
    if rulebook.names.source == "sidecar":
        if config.alarms.match is not None:
            yield (
                "alarms.match is for --from vllm; the sidecar's series are chosen by service and "
                "exporter.labels"
            )
        if config.alarms.read_unlabelled:
            yield (
                "alarms.read_unlabelled: series without a service count as this service's too; remove it "
                "three days after the last sidecar was upgraded"
            )
        return
    if config.alarms.match is None:
        yield (
            "alarms.match is not set: the rules read every vLLM server that Prometheus scrapes; opsctl "
            "alarms lint --from vllm --prometheus URL says whether another fleet is among them"
        )
    elif "rules_test.yaml" not in files:
        yield (
            f"alarms.match: no labels that {{{config.alarms.match}}} accepts could be made up, so there are "
            'no unit tests; list the values as alternatives, such as namespace=~"llm|chat", and match no '
            "instance, for the tests' replicas have names of their own"
        )


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
    """
    Names of files that a build would write or remove.

    Raises:
        UsageError: The folder has another service's rules.
    """
    _refuse_folder_of_another(folder, files)
    there = {name: plain_text_of(folder / name) for name in (*files, *_stale(folder, files))}
    return sorted(name for name, text in there.items() if text != files.get(name))


def write(folder: Path, files: Mapping[str, str]) -> list[str]:
    """
    Write what differs and remove what was built before and is no more.

    Returns:
        Names of the files that changed.

    Raises:
        UsageError: A file in the way is not of a build or is another service's, or the folder cannot be
            written.
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
                _write(folder / name, files[name])
            else:
                (folder / name).unlink()
    except OSError as problem:
        raise UsageError(f"{folder}: cannot be written ({problem.strerror})") from None
    return changed


def _write(path: Path, text: str) -> None:
    """Write a file; where it names webhooks, whose paths may be secrets, others may not read it."""
    with path.open("w", encoding="utf-8") as out:
        if path.name in _WITH_WEBHOOKS and _WEBHOOK.search(text):
            os.fchmod(out.fileno(), os.fstat(out.fileno()).st_mode & 0o770)
        out.write(text)


_WEBHOOK = re.compile(r"webhook_?configs:", re.IGNORECASE)

_ALL = (
    RULES,
    "rules_test.yaml",
    SECOND_RULES,
    OPERATOR_RULES,
    "alertmanager.yaml",
    OPERATOR_ALERTMANAGER,
    alertmanager.TEMPLATE_FILE,
)


def _refuse_folder_of_another(folder: Path, files: Mapping[str, str]) -> None:
    there = _identity_in(old_text(folder, RULES))
    # a build's rules are long: read them only where there is something to compare
    ours = _identity_in(files[RULES]) if there is not None else None
    if there is None or ours is None:
        return
    mine, theirs = dict(ours.free), dict(there.free)
    same = all(mine[name] == theirs[name] for name in mine.keys() & theirs.keys())
    if there.service != ours.service or not same:
        raise UsageError(
            f"{folder}: it holds the rules of {there}, and these are of {ours}; give each a folder of its own"
        )


def renamed(folder: Path, files: Mapping[str, str]) -> list[str]:
    """
    What a build renames, and what to do with the old name: one line each.

    Args:
        folder: With the files of an earlier build.
        files: Those of this build.
    """
    lines = []
    old, new = (_group_names(text) for text in (old_text(folder, RULES), files[RULES]))
    gone = [name for name in old if name not in new]
    if gone:
        lines.append(
            f"rule groups are renamed: {_arrows(gone, new)}; a ruler that was given groups one by one "
            "keeps the old ones until you delete them"
        )
    for name in (OPERATOR_RULES, OPERATOR_ALERTMANAGER):
        was, shall = (_object(text) for text in (old_text(folder, name), files.get(name, "")))
        if was is not None and shall is not None and was != shall:
            kind, before = was
            lines.append(
                f"{kind} {before} -> {shall[1]}: apply {name}, then kubectl delete {kind.lower()} "
                f"{before}, or every notification comes twice"
            )
    return lines


def _arrows(gone: list[str], new: list[str]) -> str:
    """Old and new names: what stands before the service is the same in both."""
    now = {name.partition("@")[0]: name for name in new}
    return ", ".join(f"{old} -> {now.get(old.partition('@')[0], 'none')}" for old in gone)


def old_text(folder: Path, name: str) -> str:
    """The text of a file that an earlier build wrote; empty when there is none."""
    text = plain_text_of(folder / name) or ""
    return text if MARK in text.partition("\n")[0] else ""


def loaded(text: str) -> dict[str, Any]:
    """What a file of a build holds; empty when somebody broke it: it is replaced all the same."""
    try:
        data = read_user_yaml(text)
    except YamlMistake:
        return {}
    return data if isinstance(data, dict) else {}


def _group_names(text: str) -> list[str]:
    try:
        return [str(group["name"]) for group in loaded(text).get("groups", ())]
    except (KeyError, TypeError):
        # somebody edited it; it is replaced all the same
        return []


def _object(text: str) -> tuple[str, str] | None:
    """Kind and name of a Kubernetes object."""
    data = loaded(text)
    try:
        return (str(data["kind"]), str(data["metadata"]["name"])) if "kind" in data else None
    except (KeyError, TypeError):
        return None


def _identity_in(text: str) -> Identity | None:
    """Whose rules a file has, by the labels of its first one."""
    try:
        rules = [rule for group in loaded(text).get("groups", ()) for rule in group["rules"]]
        labels = next((rule["labels"] for rule in rules if SERVICE in rule.get("labels", {})), None)
        if labels is None:
            return None
        free = {name: str(value) for name, value in labels.items() if name not in RESERVED_LABELS}
        return Identity(str(labels[SERVICE]), tuple(sorted(free.items())))
    except (AttributeError, KeyError, TypeError):
        return None


def _stale(folder: Path, files: Mapping[str, str]) -> list[str]:
    return [
        name
        for name in _ALL
        if name not in files and (folder / name).is_file() and MARK in _first_line(folder / name)
    ]


def _first_line(path: Path) -> str:
    return (plain_text_of(path) or "").partition("\n")[0]
