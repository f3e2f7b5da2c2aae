"""
Loads the failure modes: reads the files and checks every reference.

A user's conditions are checked on load. The shipped ones are compiled when they are first asked: a test has
checked them, and a verdict asks a third of them.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from vllm_opsctl.errors import InputFileError, RunbookError
from vllm_opsctl.exporter.catalogue import Version, parse_version
from vllm_opsctl.exporter.files import read_plain_text
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS, MAX_RUNBOOK_BYTES, MAX_RUNBOOK_FILES
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.yaml_text import YamlMistake, read_user_yaml, read_yaml
from vllm_opsctl.runbooks.conditions import Condition, check_template
from vllm_opsctl.runbooks.model import Action, FailureMode, Flag, Mechanism, Symptom
from vllm_opsctl.runbooks.names import nearest

_Model = TypeVar("_Model", bound=BaseModel)

_FLAG = re.compile(r"--(?:no-)?([a-z][a-z0-9-]+)")


@dataclass(frozen=True, slots=True)
class Library:
    """
    All that diagnosis knows, checked and compiled.

    Args:
        modes: Failure modes by id.
        symptoms: Symptoms by id.
        conditions: Conditions by their CEL source.
        flags: Releases (first, last) of every vLLM flag that advice names.
        mechanisms: How the parts of vLLM work that failure modes refer to.
    """

    modes: Mapping[str, FailureMode]
    symptoms: Mapping[str, Symptom]
    conditions: Mapping[str, Condition]
    flags: Mapping[str, tuple[Version, Version | None]]
    mechanisms: Mapping[str, Mechanism]

    def flags_of(self, action: Action) -> tuple[str, ...]:
        """The vLLM flags that an action names, without the leading dashes."""
        return tuple(dict.fromkeys(_vllm_flags(action)))


@functools.cache
def shipped_library() -> Library:
    """The library that comes with the package."""
    return load_library(())


def load_library(directories: Iterable[Path]) -> Library:
    """
    Load the shipped failure modes and those of user directories; a user's id replaces a shipped one.

    Raises:
        RunbookError: A file breaks the schema; names file and key.
    """
    root = files("vllm_opsctl.runbooks")
    shipped = {
        entry.name: entry.read_text(encoding="utf-8")
        for entry in sorted(root.joinpath("library").iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    }
    symptoms = _mapping(root.joinpath("symptoms.yaml").read_text("utf-8"), "symptoms.yaml")
    flag_data = _mapping(root.joinpath("flags.yaml").read_text("utf-8"), "flags.yaml")
    mechanisms = {
        id_: _validated(Mechanism, data, f"mechanisms.yaml: {id_}")
        for id_, data in _mapping(
            root.joinpath("mechanisms.yaml").read_text("utf-8"), "mechanisms.yaml"
        ).items()
    }
    modes: dict[str, FailureMode] = {}
    origin: dict[str, str] = {}
    for name, text in shipped.items():
        _add_mode(text, name, modes, origin, is_ours=True)
    ours = dict(modes)
    for directory in directories:
        for path in _user_files(directory):
            _add_mode(_text_of(path), plain(str(path)), modes, origin, is_ours=False)
    symptom_models = {
        id_: _validated(Symptom, {"id": id_, **data}, f"symptoms.yaml: {id_}")
        for id_, data in symptoms.items()
    }
    flags = {}
    for name, data in flag_data.items():
        flag = _validated(Flag, data, f"flags.yaml: {name}")
        flags[name] = (parse_version(flag.since), parse_version(flag.until) if flag.until else None)
    conditions: dict[str, Condition] = {}
    for mode in modes.values():
        _check_mode(mode, origin[mode.id], modes, symptom_models, flags)
        found = [Condition(source, origin[mode.id]) for source in _conditions_of(mode)]
        conditions.update((condition.source, condition) for condition in found)
        if mode is not ours.get(mode.id):
            for condition in found:
                condition.check()
        for id_ in mode.mechanisms:
            if id_ not in mechanisms:
                raise RunbookError(f"{origin[mode.id]}: mechanisms: no {id_!r} in mechanisms.yaml")
    for symptom in symptom_models.values():
        where = f"symptoms.yaml: {symptom.id}"
        conditions[symptom.when] = Condition(symptom.when, where)
        check_template(symptom.say, where=where)
    return Library(modes, symptom_models, conditions, flags, mechanisms)


def _user_files(directory: Path) -> list[Path]:
    """
    The failure modes of a folder, by name.

    Raises:
        RunbookError: It is none, cannot be looked into, or has more of them than anybody writes.
    """
    shown = plain(str(directory))
    # os.path: what can be no name of a folder is none
    if not os.path.isdir(directory):
        raise RunbookError(f"{shown}: no such directory; --runbooks wants a folder of YAML")
    try:
        found = list(islice(directory.glob("*.yaml"), MAX_RUNBOOK_FILES + 1))
    except OSError as problem:
        raise RunbookError(f"{shown}: cannot be read ({problem.strerror})") from None
    if len(found) > MAX_RUNBOOK_FILES:
        raise RunbookError(f"{shown}: more than {MAX_RUNBOOK_FILES} files")
    return sorted(found)


def _text_of(path: Path) -> str:
    try:
        return read_plain_text(path, MAX_RUNBOOK_BYTES, "file of YAML")
    except InputFileError as problem:
        raise RunbookError(plain(str(problem))) from None


def _add_mode(
    text: str, name: str, modes: dict[str, FailureMode], origin: dict[str, str], *, is_ours: bool
) -> None:
    data = _mapping(text, name) if is_ours else _user_mapping(text, name)
    mode = _validated(FailureMode, data, name)
    modes[mode.id] = mode
    origin[mode.id] = name


def _mapping(text: str, name: str) -> dict[str, dict[str, object]]:
    data = read_yaml(text)
    assert isinstance(data, dict), name
    return data


def _user_mapping(text: str, name: str) -> dict[str, object]:
    try:
        data = read_user_yaml(text)
    except YamlMistake as problem:
        raise RunbookError(f"{name}{problem.place}: not YAML ({problem.reason})") from None
    if not isinstance(data, dict):
        raise RunbookError(f"{name}: expected a mapping")
    return data


def _validated(model: type[_Model], data: object, where: str) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = plain(".".join(str(part) for part in first["loc"]) or "(top)", MAX_NAME_CHARS)
        hint = ""
        if first["type"] == "extra_forbidden":
            near = nearest(str(first["loc"][-1])[:MAX_NAME_CHARS], model.model_fields, cutoff=0.6)
            hint = f"; {near}" if near else ""
        raise RunbookError(f"{where}: {key}: {plain(first['msg'])}{hint}") from None


def _check_mode(
    mode: FailureMode,
    where: str,
    modes: Mapping[str, FailureMode],
    symptoms: Mapping[str, Symptom],
    flags: Mapping[str, tuple[Version, Version | None]],
) -> None:
    signature = mode.signature
    sentences = [clause.say for clause in (*signature.require, *signature.support)]
    sentences += [clause.otherwise for clause in signature.require if clause.otherwise]
    sentences += [exclusion.because for exclusion in signature.rule_out]
    sentences += [action.text for action in mode.actions]
    sentences += [action.helps_when for action in mode.actions if action.helps_when]
    sentences += [action.seen_by for action in mode.actions if action.seen_by]
    for sentence in sentences:
        check_template(sentence, where=where)
    for effect in mode.causes:
        if effect not in modes and effect not in symptoms:
            raise RunbookError(f"{where}: causes: no failure mode or symptom {effect!r}")
    for other in mode.discriminators:
        if other not in modes:
            raise RunbookError(f"{where}: discriminators: no failure mode {other!r}")
    for twin in mode.twins:
        if twin.id not in modes:
            raise RunbookError(f"{where}: twins: no failure mode {twin.id!r}")
    for action in mode.actions:
        for flag in _vllm_flags(action):
            if flag not in flags:
                raise RunbookError(f"{where}: --{flag}: not in flags.yaml; which vLLM has it?")


def _conditions_of(mode: FailureMode) -> list[str]:
    signature = mode.signature
    sources = [clause.when for clause in (*signature.require, *signature.support)]
    sources += [exclusion.when for exclusion in signature.rule_out]
    sources += [action.only_if for action in mode.actions if action.only_if]
    return sources + [twin.only_if for twin in mode.twins if twin.only_if]


def _vllm_flags(action: Action) -> list[str]:
    """Flags in the text; flags in a command belong to the command's own program."""
    return _FLAG.findall(action.text)
