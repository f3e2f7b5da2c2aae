"""Reads a sidecar's flight recorder over HTTP."""

from __future__ import annotations

from urllib.parse import urlencode

import requests

from vllm_opsctl.errors import BadPage, InputFileError
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.json_text import read_user_json
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.recording import parse_line
from vllm_opsctl.exporter.sources.http import get, new_session

_TIMEOUT_S = 30.0
_MAX_BYTES = 2**30
_SAID = 200


class SidecarSource:
    """
    Asks one sidecar.

    Args:
        url: The sidecar's base URL.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = new_session()

    def targets(self) -> list[Target]:
        """
        The targets that it watches.

        Raises:
            Unreachable: It does not answer.
            BadPage: What answers is no sidecar.
        """
        return _targets(self._session, self._url)

    def observations(
        self, target: str, *, end: float, start: float, full_from: float, step_s: float
    ) -> list[Observation]:
        """
        What it recorded of a target.

        Args:
            target: The target's name.
            end: Nothing newer is wanted (unix seconds).
            start: Nothing older is wanted.
            full_from: From here on every page is wanted.
            step_s: Before that, pages at least so many seconds apart.

        Raises:
            Unreachable: It does not answer.
            BadPage: What answers is no sidecar.
        """
        wanted = {
            "target": target,
            "end": end,
            "start": start,
            "full_from": full_from,
            "step_s": step_s,
        }
        answer = get(
            self._session,
            f"{self._url}/api/v1/recording?{urlencode(wanted)}",
            timeout_s=_TIMEOUT_S,
            max_bytes=_MAX_BYTES,
        )
        if answer.status != 200:
            raise BadPage(
                f"http-{answer.status}",
                f"{self._url}: HTTP {answer.status}: "
                f"{plain(answer.body[:_SAID].decode(errors='replace'))}",
            )
        found = []
        for number, line in enumerate(answer.body.decode(errors="replace").split("\n"), start=1):
            if not line:
                continue
            try:
                observation = parse_line(line, where=f"{self._url}:{number}", stem="")
            except InputFileError as problem:
                raise BadPage("not-a-sidecar", str(problem)) from problem
            if observation is not None and observation.kind != "header":
                found.append(observation)
        return found


def _targets(session: requests.Session, url: str) -> list[Target]:
    answer = get(session, f"{url}/api/v1/status", timeout_s=_TIMEOUT_S, max_bytes=2**24)
    try:
        if answer.status != 200:
            raise ValueError
        data = read_user_json(answer.body)
        return [Target(name=t["target"], url=t["url"]) for t in data["targets"]]
    except (ValueError, KeyError, TypeError) as problem:
        # what a validation would say has several lines, and repeats what was answered
        why = f"HTTP {answer.status}" if answer.status != 200 else "its status is not a sidecar's"
        raise BadPage(
            "not-a-sidecar", f"{url}: no sidecar answers there ({why}); its port is 9836"
        ) from problem
