"""opsctl diagnose --bundle: what is packed for a ticket besides the observations."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from vllm_opsctl import __version__
from vllm_opsctl.cli.config import in_force
from vllm_opsctl.cli.doctor import rendered
from vllm_opsctl.exporter.bundle import Asked, Scrubber, write_bundle
from vllm_opsctl.exporter.config_load import LoadedConfig
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.runbooks.verdict import Verdict


def pack(
    path: Path,
    observations: Sequence[Observation],
    asked: Asked,
    verdict: Verdict,
    loaded: LoadedConfig,
    scrubber: Scrubber,
) -> None:
    """
    Write a bundle of one diagnosis.

    Args:
        path: The file.
        observations: As packed; what the verdict rests on.
        asked: What was asked.
        verdict: The answer.
        loaded: The configuration in force.
        scrubber: Knows the secrets.

    Raises:
        InputFileError: Something lies there, or it cannot be written.
    """
    now = time.time()
    texts = {
        f"verdict.{suffix}": click.unstyle(rendered(verdict, output, show_features=False)) + "\n"
        for suffix, output in (("txt", "text"), ("md", "markdown"), ("json", "json"))
    }
    texts["config.yaml"] = in_force(loaded)
    command = shlex.join(["opsctl", *sys.argv[1:]])
    made = {
        "opsctl": __version__,
        "made_at": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        "command": scrubber.text(command),
    }
    scrubbed = {name: scrubber.text(text) for name, text in texts.items()}
    write_bundle(path, observations, asked, texts=scrubbed, made=made, t=now)
