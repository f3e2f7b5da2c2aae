"""opsctl config: init, check, show, schema."""

from __future__ import annotations

import json
import os
import stat
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vllm_opsctl.cli.common import (
    load,
    say,
)
from vllm_opsctl.errors import UsageError

if TYPE_CHECKING:
    from vllm_opsctl.exporter.config_load import LoadedConfig


@click.group()
def config() -> None:
    """Write, check and show the configuration."""


@config.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def init(path: Path | None, force: bool) -> None:
    """Write a commented starter file [default: opsctl.yaml]."""
    from vllm_opsctl.exporter.config_load import DEFAULT_FILE
    from vllm_opsctl.exporter.files import written_whole

    path = path or Path(DEFAULT_FILE)
    if path.exists() and not force:
        raise UsageError(f"{path} exists; it is left alone (--force replaces it)")
    if path.exists() and not path.is_file():
        # to write to a FIFO would wait for its reader
        raise UsageError(f"{path} is not a plain file; choose another name")
    text = files("vllm_opsctl.cli").joinpath("templates/opsctl.yaml").read_bytes()
    # a link stays one: what it leads to is replaced, and as private as it was
    place = path.resolve() if path.is_symlink() else path
    with written_whole(place) as stream:
        if place.exists():
            os.fchmod(stream.fileno(), stat.S_IMODE(place.stat().st_mode))
        stream.write(text)
    say(f"{path} written; set targets, then: opsctl config check")


@config.command()
@click.pass_context
def check(ctx: click.Context) -> None:
    """Say what is wrong with the configuration, one line a mistake."""
    from vllm_opsctl.exporter.config_load import threshold_warnings

    loaded = load(ctx)
    origin = loaded.path or "(defaults)"
    for warning in threshold_warnings(loaded.config):
        say(f"{click.style('Warning:', fg='yellow', bold=True)} {origin}: {warning}", err=True)
    if not loaded.config.targets:
        say(f"Warning: {origin}: targets: none; the sidecar needs at least one", err=True)
    counts = f"{len(loaded.config.targets)} targets, {len(loaded.config.objectives)} objectives"
    say(f"{origin}: valid, {counts}")


@config.command()
@click.pass_context
def show(ctx: click.Context) -> None:
    """Print what is in force, and which keys the environment set."""
    say(in_force(load(ctx)), nl=False)


def in_force(loaded: LoadedConfig) -> str:
    """A configuration as YAML, and where its keys came from; secrets are only named in it."""
    import yaml

    lines = [f"# file: {loaded.path or 'none, defaults'}"]
    lines += [f"# {key}: from {origin}" for key, origin in loaded.origins.items()]
    data = _without_secrets(loaded.config.model_dump(mode="json", exclude_none=True))
    return "\n".join([*lines, yaml.safe_dump(data, sort_keys=False, allow_unicode=True)])


def _without_secrets(data: dict[str, Any]) -> dict[str, Any]:
    """What may be shown: query values hidden, of webhooks the host alone, for their paths may be secrets."""
    from vllm_opsctl.exporter.redaction import host_alone, shown_url

    for target in data["targets"]:
        target["metrics_path"] = shown_url(target["metrics_path"])
    alarms = data["alarms"]
    for key, text in alarms.items():
        if key in ("webhook", "deadman_url"):
            alarms[key] = host_alone(text)
        elif key.endswith("_url"):
            alarms[key] = shown_url(text)
    cloudwatch = data["exporter"]["cloudwatch"]
    if "endpoint_url" in cloudwatch:
        cloudwatch["endpoint_url"] = shown_url(cloudwatch["endpoint_url"])
    return data


@config.command()
def schema() -> None:
    """Print the JSON schema."""
    from vllm_opsctl.exporter.config import Config

    say(json.dumps(Config.model_json_schema(), indent=2))
