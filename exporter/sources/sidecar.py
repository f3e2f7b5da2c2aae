"""Reads a sidecar's flight recorder over HTTP."""

from __future__ import annotations

import json

import requests

from vllm_opsctl.errors import BadPage, InputFileError
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.recording import parse_line
from vllm_opsctl.exporter.sources.http import get

_TIMEOUT_S = 30.0
_MAX_BYTES = 2**30


def read_sidecar(
    url: str, *, start: float | None, end: float | None
) -> tuple[list[Observation], list[Target]]:
    """
    Fetch what a sidecar recorded, and which targets it watches.

    Args:
        url: The sidecar's base URL.
        start: Unix seconds of the oldest observation wanted.
        end: Unix seconds of the newest.

    Raises:
        Unreachable: It does not answer.
        BadPage: What answers is not a sidecar.
    """
    session = requests.Session()
    session.trust_env = False
    targets = _targets(session, url)
    wanted = {"start": start, "end": end}
    query = "&".join(f"{key}={value}" for key, value in wanted.items() if value is not None)
    answer = get(
        session, f"{url}/api/v1/recording?{query}", timeout_s=_TIMEOUT_S, max_bytes=_MAX_BYTES
    )
    found = []
    for number, line in enumerate(answer.body.decode("utf-8").splitlines(), start=1):
        try:
            observation = parse_line(line, where=f"{url}:{number}", stem="")
        except InputFileError as problem:
            raise BadPage("not-a-sidecar", str(problem)) from problem
        if observation is not None and observation.kind != "header":
            found.append(observation)
    session.close()
    return found, targets


def _targets(session: requests.Session, url: str) -> list[Target]:
    answer = get(session, f"{url}/api/v1/status", timeout_s=_TIMEOUT_S, max_bytes=2**24)
    try:
        if answer.status != 200:
            raise ValueError(f"HTTP {answer.status}")
        data = json.loads(answer.body)
        return [Target(name=t["target"], url=t["url"]) for t in data["targets"]]
    except (ValueError, KeyError, TypeError) as problem:
        raise BadPage(
            "not-a-sidecar", f"{url}: no sidecar answers there ({problem}); its port is 9836"
        ) from problem
