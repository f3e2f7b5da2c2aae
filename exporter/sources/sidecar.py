"""Reads a sidecar's flight recorder over HTTP."""

from __future__ import annotations

import io
import json
from urllib.parse import urlencode

import requests

from vllm_opsctl.errors import BadPage, InputFileError
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.recording import bounded_lines, parse_lines
from vllm_opsctl.exporter.sources.http import get, new_session

_TIMEOUT_S = 30.0
_MAX_BYTES = 2**30


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
                f"{self._url}: HTTP {answer.status}: {answer.body[:200].decode(errors='replace')}",
            )
        lines = bounded_lines(io.BytesIO(answer.body), self._url)
        try:
            return parse_lines(lines, where=self._url, stem="")
        except InputFileError as problem:
            raise BadPage("not-a-sidecar", str(problem)) from problem


def _targets(session: requests.Session, url: str) -> list[Target]:
    answer = get(session, f"{url}/api/v1/status", timeout_s=_TIMEOUT_S, max_bytes=2**24)
    try:
        if answer.status != 200:
            raise ValueError(f"HTTP {answer.status}")
        data = json.loads(answer.body)
        return [Target(name=t["target"], url=t["url"]) for t in data["targets"]]
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise BadPage(
            "not-a-sidecar", f"{url}: no sidecar answers there ({problem}); its port is 9836"
        ) from problem
