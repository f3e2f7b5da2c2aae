"""
Loads the configuration: file, then environment, then validation; one line per mistake.

An environment variable overrides a key by its path: ``OPSCTL_EXPORTER__LISTEN`` is
``exporter.listen``; its value is read as YAML, a list replaces the whole list. ``OPSCTL_TARGETS``
may be a comma-separated list of URLs. The file is ``--config FILE``, else ``OPSCTL_CONFIG``, else
``opsctl.yaml`` if it is there.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from vllm_opsctl.errors import ConfigError, InputFileError
from vllm_opsctl.exporter import credentials
from vllm_opsctl.exporter.catalogue import Version, catalogue
from vllm_opsctl.exporter.config import SLI_CONCEPTS, Config, Objective, Target
from vllm_opsctl.exporter.files import read_plain_text
from vllm_opsctl.exporter.limits import MAX_CONFIG_BYTES, MAX_MISTAKES
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.redaction import secrets_of_url, without_secrets
from vllm_opsctl.exporter.yaml_text import YamlMistake, read_user_yaml

log = logging.getLogger(__name__)

DEFAULT_FILE = "opsctl.yaml"
_PREFIX = "OPSCTL_"
_NOT_KEYS = {"OPSCTL_CONFIG"}

_LINE_CHARS = 600
_SHOWN_CHARS = 60

_MAY_HOLD_SECRETS = re.compile(r"url|key|path|hook|token|secret|pass|auth|cred|_to$|_topic$")
"""Keys whose values are not repeated: they are secrets, name them, or may have them typed in."""

_WRONG_SECTIONS = ("dict_type", "list_type", "model_type", "tuple_type")
"""Mistakes of what should be a section or a list, and may be whatever was put there instead."""

_IPV6_LIST = re.compile(r"\s*\[[0-9A-Fa-f:.]+\]")
"""How a list of servers begins whose first address is IPv6; to YAML it is a broken list."""

_LONG_ENOUGH = 16
"""A part of a webhook's path that is longer is rather its secret than a word."""


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """
    A configuration and where its keys came from.

    Args:
        config: Validated.
        path: The file; None when there was none.
        origins: Key path to ``environment NAME``, for keys that the environment set.
    """

    config: Config
    path: Path | None
    origins: Mapping[str, str] = field(default_factory=dict)


def load_config(path: Path | None, environment: Mapping[str, str]) -> LoadedConfig:
    """
    Load and validate.

    Args:
        path: The file that a flag names; None to look at the usual places.
        environment: Environment variables.

    Raises:
        ConfigError: All mistakes, one line each.
    """
    chosen = path or (
        Path(environment["OPSCTL_CONFIG"]) if environment.get("OPSCTL_CONFIG") else None
    )
    if chosen is None and os.path.lexists(DEFAULT_FILE):
        chosen = Path(DEFAULT_FILE)
    log.info("configuration: %s", chosen or "defaults")
    data: dict[str, Any] = _read(chosen) if chosen is not None else {}
    origins = _override(data, environment)
    try:
        config = Config.model_validate(data)
    except ValidationError as problem:
        found = problem.errors(include_url=False)
        lines = [
            _line(error, str(chosen or "(defaults)"), origins) for error in found[:MAX_MISTAKES]
        ]
        if len(found) > MAX_MISTAKES:
            lines.append(f"{chosen or '(defaults)'}: {len(found) - MAX_MISTAKES} more mistakes")
        raise ConfigError(lines) from None
    _refuse_unusable_keys(config, environment, str(chosen or "(defaults)"))
    return LoadedConfig(config, chosen, origins)


def _refuse_unusable_keys(config: Config, environment: Mapping[str, str], origin: str) -> None:
    """
    Refuse keys that are there and cannot be sent.

    One that is not there yet is refused by whoever needs it: many commands ask no target.
    """
    problems: dict[str, None] = {}
    for index, target in enumerate(config.targets):
        try:
            if target.api_key_env:
                credentials.from_variable(target.api_key_env, environment)
            elif target.api_key_file and credentials.is_readable(Path(target.api_key_file)):
                credentials.from_file(Path(target.api_key_file))
        except (ValueError, InputFileError) as problem:
            key = "api_key_env" if target.api_key_env else "api_key_file"
            problems[plain(f"{origin}: targets[{index}].{key}: {problem}")] = None
    if problems:
        raise ConfigError(list(problems)[:MAX_MISTAKES])


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_plain_text(path, MAX_CONFIG_BYTES, "YAML file")
    except InputFileError as problem:
        hint = "; opsctl config init writes one" if str(problem).endswith("no such file") else ""
        raise ConfigError([plain(f"{problem}{hint}")]) from None
    try:
        data = read_user_yaml(text)
    except YamlMistake as problem:
        raise ConfigError(
            [f"{path}{problem.place}: not YAML: {problem.reason}; check indentation and quotes"]
        ) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError([f"{path}: expected keys such as targets:, got {type(data).__name__}"])
    odd = [key for key in data if not isinstance(key, str)]
    if odd:
        raise ConfigError([f"{path}: expected keys such as targets:, got {_shown(odd[0])}"])
    # a key with nothing below it, "targets:", is as good as absent
    return {key: value for key, value in data.items() if value is not None}


def _override(data: dict[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    origins: dict[str, str] = {}
    for name in sorted(environment):
        if not name.startswith(_PREFIX) or name in _NOT_KEYS:
            continue
        keys = name.removeprefix(_PREFIX).lower().split("__")
        if keys[0] not in Config.model_fields:
            # OPSCTL_PORT and the like are what Kubernetes sets for a service of that name
            if len(keys) > 1:
                near = difflib.get_close_matches(keys[0], Config.model_fields, n=1)
                hint = f"; did you mean {_PREFIX}{near[0].upper()}__…?" if near else ""
                raise ConfigError([f"environment {name}: no such key{hint}"])
            continue
        where = data
        for key in keys[:-1]:
            below = where.get(key)
            if not isinstance(below, dict):
                below = where[key] = {}
            where = below
        where[keys[-1]] = _value(keys, environment[name], name)
        origins[".".join(keys)] = f"environment {name}"
    return origins


def _value(keys: list[str], text: str, name: str) -> Any:
    try:
        value = read_user_yaml(text)
    except YamlMistake:
        if keys != ["targets"] or not _IPV6_LIST.match(text):
            # not repeated here: it may be a secret
            raise ConfigError([f"environment {name}: not YAML; quote the value"]) from None
        value = text
    if value is not None and not isinstance(value, str) and _is_text(keys):
        # 010 is a name, and {cluster="eu"} are matchers
        return text
    if keys == ["targets"] and isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _is_text(keys: list[str]) -> bool:
    """Whether a key's value is a text, or one of a table of texts."""
    *above, last = keys
    model = _model_at(above)
    if model is not None and last in model.model_fields:
        annotation = model.model_fields[last].annotation
        return annotation is str or str in get_args(annotation)
    *further, table = above or [""]
    owner = _model_at(further)
    return (
        owner is not None
        and table in owner.model_fields
        and owner.model_fields[table].annotation == dict[str, str]
    )


def _line(error: Any, origin: str, origins: Mapping[str, str]) -> str:
    """One mistake in one line: origin, key path, what is wrong, what would be right."""
    parts = [part for part in error["loc"] if not _is_noise(part)]
    key = _dotted(parts)
    origin = next(
        (o for path, o in origins.items() if key == path or key.startswith(path + ".")), origin
    )
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = _keys_at(parts[:-1])
        near = difflib.get_close_matches(str(parts[-1])[:_SHOWN_CHARS], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        message = f"unknown key; {hint}"
    elif error["type"] == "missing":
        message = "missing; add it"
    elif error["type"] == "literal_error":
        expected = [str(value) for value in _literals(parts)]
        given = _shown(error["input"])
        asked = str(error["input"])[:_SHOWN_CHARS]
        near = difflib.get_close_matches(asked, expected, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        message = f"{given} is not one of {', '.join(expected)}{hint}"
    elif error["type"] != "value_error":
        is_text = isinstance(error["input"], str)
        may_show = not (is_text and error["type"] in _WRONG_SECTIONS) and not any(
            _MAY_HOLD_SECRETS.search(str(part)) for part in parts[-2:]
        )
        message = f"{message[0].lower()}{message[1:]}, got {_shown(error['input'], may_show)}"
    # a key may be anything too, a URL with a password say
    return plain(without_secrets(f"{origin}: {key or '(top)'}: {message}"), _LINE_CHARS)


def _shown(value: object, may_show: bool = True) -> str:
    """A value that is not what it should be; of what may hold a secret, its kind alone."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if not may_show:
        return "a text" if isinstance(value, str) else "a number or a boolean"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


def _is_noise(part: object) -> bool:
    return isinstance(part, str) and part.startswith("function-")


def _dotted(parts: list[Any]) -> str:
    text = ""
    for part in parts:
        shown = str(part)[:_SHOWN_CHARS]
        text += f"[{part}]" if isinstance(part, int) else f".{shown}" if text else shown
    return text


def _model_at(parts: list[Any]) -> type[BaseModel] | None:
    model: type[BaseModel] = Config
    for part in parts:
        if isinstance(part, int):
            continue
        if part not in model.model_fields:
            return None
        inner: Any = model.model_fields[part].annotation
        candidates = [inner, *get_args(inner)]
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not found:
            return None
        model = found[0]
    return model


def _keys_at(parts: list[Any]) -> list[str]:
    model = _model_at(parts)
    return list(model.model_fields) if model else []


def _literals(parts: list[Any]) -> tuple[Any, ...]:
    model = _model_at(parts[:-1])
    return get_args(model.model_fields[parts[-1]].annotation) if model else ()


def api_key(target: Target, environment: Mapping[str, str]) -> str | None:
    """
    Read a target's API key from where the configuration says it is.

    Raises:
        ConfigError: It is not there.
    """
    where = f"targets.{target.name}.api_key_"
    try:
        if target.api_key_env:
            key = credentials.from_variable(target.api_key_env, environment)
            if key is None:
                raise ValueError(f"{credentials.called(target.api_key_env)} is not set")
            return key
        if target.api_key_file:
            return credentials.from_file(Path(target.api_key_file))
    except (ValueError, InputFileError) as problem:
        kind = "env" if target.api_key_env else "file"
        raise ConfigError([plain(f"{where}{kind}: {problem}")]) from None
    return None


def known_secrets(config: Config, environment: Mapping[str, str]) -> list[str]:
    """
    The API keys of all targets, as far as they can be read, and secrets that stand in URLs.

    A webhook's or a dead-man's switch's whole path may be one.
    """
    found: list[str] = []
    for target in config.targets:
        found += secrets_of_url(target.metrics_path)
        try:
            found.append(api_key(target, environment) or "")
        except ConfigError:
            continue
    for url in (config.alarms.webhook, config.alarms.deadman_url):
        if url is not None:
            path = urlsplit(url).path
            found += [url] if path.strip("/") else []
            found += [part for part in path.split("/") if len(part) >= _LONG_ENOUGH]
            found += secrets_of_url(url)
    return list(dict.fromkeys(secret for secret in found if secret))


def threshold_warnings(config: Config, version: Version | None = None) -> list[str]:
    """
    Objectives whose threshold is none of vLLM's default bucket bounds, and the error that causes.

    None with a folder of tap pages: their histograms have every threshold as a bound.

    Args:
        config: The configuration.
        version: The vLLM release; None for the newest known.
    """
    if config.exporter.tap.dir is not None:
        return []
    return [
        warning
        for index, objective in enumerate(config.objectives)
        if (warning := _threshold_warning(index, objective, version)) is not None
    ]


def _threshold_warning(index: int, objective: Objective, version: Version | None) -> str | None:
    concept = SLI_CONCEPTS.get(objective.sli)
    if concept is None or objective.threshold is None:
        return None
    bounds = catalogue()[concept].bounds_of(version)
    if not bounds:
        # only the tap measures it, and that has every threshold as a bound
        return None
    used, upper = surrounding_bounds(objective.threshold, bounds)
    if used == objective.threshold:
        return None
    key = f"objectives[{index}] ({objective.name}).threshold"
    if objective.bucket_policy == "looser" and upper is not None:
        bad = "all of them" if used is None else f"those beyond {used:g} s"
        return (
            f"{key}: {objective.threshold:g} s is no bucket bound of vLLM. With bucket_policy: looser, "
            f"rules --from vllm count events up to {upper:g} s as good, but the sidecar {bad} as bad; "
            f"use {upper:g}s for both, or give vLLM 0.32 or newer the bound with "
            "--custom-histogram-buckets"
        )
    if used is None:
        return (
            f"{key}: {objective.threshold:g} s lies below vLLM's first bucket bound "
            f"({bounds[0]:g} s): every event would count as bad; use {bounds[0]:g}s"
        )
    choice = f"{used:g}s" if upper is None else f"{used:g}s or {upper:g}s"
    beyond = "" if upper is None else f" and {upper:g} s"
    return (
        f"{key}: {objective.threshold:g} s is no bucket bound of vLLM; it lies between {used:g} s"
        f"{beyond}. Events between {used:g} s and {objective.threshold:g} s will be counted as bad; "
        f"use {choice}, or give vLLM 0.32 or newer the bound with --custom-histogram-buckets"
    )


def surrounding_bounds(
    threshold: float, bounds: tuple[float, ...]
) -> tuple[float | None, float | None]:
    """
    The bound at or next below a threshold (the one that is counted at), and the next above.

    >>> surrounding_bounds(0.18, (0.1, 0.25))
    (0.1, 0.25)
    """
    at_or_below = [bound for bound in bounds if bound <= threshold * (1 + 1e-9)]
    above = [bound for bound in bounds if bound > threshold * (1 + 1e-9)]
    lower = at_or_below[-1] if at_or_below else None
    if lower is not None and abs(lower - threshold) <= 1e-9 * threshold:
        lower = threshold
    return lower, above[0] if above else None
