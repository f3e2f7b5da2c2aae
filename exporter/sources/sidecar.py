"""Reads a sidecar's flight recorder over HTTP."""

from __future__ import annotations

import io
import logging
import time
from urllib.parse import urlencode

import requests

from vllm_opsctl.errors import BadPage, InputFileError
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.json_text import read_json
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.recording import LATEST_T, bounded_lines, parse_lines
from vllm_opsctl.exporter.sources.http import get, new_session
from vllm_opsctl.exporter.units import format_duration

CLOCK_SLACK_S = 30.0
"""A sidecar's clock may differ so far from this machine's."""

_TIMEOUT_S = 30.0
_MAX_BYTES = 2**28
"""A target's window and half an hour before it are some 30 MiB; those of the largest pages are cut off."""

_MAX_STATUS_BYTES = 2**24
_SAID = 200

log = logging.getLogger(__name__)


class SidecarSource:
    """
    Asks one sidecar.

    Args:
        url: The sidecar's base URL.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = new_session()
        self._ahead_s = 0.0

    def now(self) -> float:
        """Unix seconds by the sidecar's clock, as far as it has told."""
        return time.time() + self._ahead_s

    def targets(self) -> list[Target]:
        """
        The targets that it watches.

        Raises:
            Unreachable: It does not answer.
            BadPage: What answers is no sidecar.
        """
        targets, now = _status(self._session, self._url)
        self._ahead_s = now - time.time() if now is not None else 0.0
        if abs(self._ahead_s) > CLOCK_SLACK_S:
            log.warning(
                "%s: its clock is %s %s this machine's; what it says of now is by its own",
                self._url,
                format_duration(round(abs(self._ahead_s))),
                "ahead of" if self._ahead_s > 0 else "behind",
            )
        return targets

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
        lines = bounded_lines(io.BytesIO(answer.body), self._url)
        try:
            found = parse_lines(lines, where=self._url, stem=target)
        except InputFileError as problem:
            raise BadPage("not-a-sidecar", str(problem)) from problem
        asked = plain(target, MAX_NAME_CHARS)
        other = next((o.target for o in found if o.target != asked), None)
        if other is not None:
            raise BadPage(
                "not-a-sidecar", f"{self._url}: asked for {asked}, it answers with {other}"
            )
        return found


def _status(session: requests.Session, url: str) -> tuple[list[Target], float | None]:
    """What a sidecar watches, and its clock; one of 0.2 or before does not tell its clock."""
    answer = get(session, f"{url}/api/v1/status", timeout_s=_TIMEOUT_S, max_bytes=_MAX_STATUS_BYTES)
    try:
        if answer.status != 200:
            raise ValueError
        data = read_json(answer.body)
        targets = [Target(name=t["target"], url=t["url"]) for t in data["targets"]]
        now = data.get("now")
        known = isinstance(now, int | float) and 0 < now < LATEST_T
        return targets, float(now) if known else None
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        # what a validation would say has several lines, and repeats what was answered
        why = f"HTTP {answer.status}" if answer.status != 200 else "its status is not a sidecar's"
        raise BadPage(
            "not-a-sidecar", f"{url}: no sidecar answers there ({why}); its port is 9836"
        ) from problem
