"""The scrape source: GET /metrics of a vLLM server, as an observation."""

from __future__ import annotations

import time
from collections.abc import Callable

from vllm_opsctl.errors import BadPage, SourceError
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.limits import MAX_PAGE_BYTES
from vllm_opsctl.exporter.observation import Observation, error, metrics
from vllm_opsctl.exporter.redaction import (
    secrets_of_url,
    shown_url,
    without_literally,
    without_secrets,
)
from vllm_opsctl.exporter.sources.http import Answer, get, new_session

_REFUSED = (401, 403)


class Scraper:
    """
    Reads the metrics page of one target.

    Args:
        target: What to read.
        timeout_s: Longest time that one read may take.
        api_key: The target's, if it wants one.
        renewed_key: Asked for the key of now where the target refuses the one that was sent.
        clock: Unix seconds.
    """

    def __init__(
        self,
        target: Target,
        *,
        timeout_s: float,
        api_key: str | None = None,
        renewed_key: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self._clock = clock
        self._url = target.url + target.metrics_path
        self._shown = target.url + shown_url(target.metrics_path)
        self._secrets = [*secrets_of_url(target.metrics_path), *([api_key] if api_key else [])]
        self._api_key = api_key
        self._renewed_key = renewed_key
        self._session = new_session(api_key, target.ca_file)

    def read(self) -> Observation:
        """One observation, of kind ``metrics`` or ``error``; never raises for what a server does."""
        try:
            answer = self._get()
            if answer.status in _REFUSED and self._has_renewed_key():
                answer = self._get()
            if answer.status != 200:
                raise BadPage(
                    f"http-{answer.status}",
                    f"{self._url}: HTTP {answer.status}{self._hint(answer.status)}",
                )
        except SourceError as problem:
            detail = without_secrets(problem.detail.replace(self._url, self._shown), self._secrets)
            return error(self._clock(), self.target.name, problem.reason, detail)
        text = without_literally(answer.body, self._secrets).decode("utf-8", errors="replace")
        return metrics(self._clock(), self.target.name, text, answer.seconds)

    def _get(self) -> Answer:
        return get(self._session, self._url, timeout_s=self.timeout_s, max_bytes=MAX_PAGE_BYTES)

    def _has_renewed_key(self) -> bool:
        """Whether the key is another one by now, as after a rotation; it is sent from here on."""
        key = self._renewed_key()
        if key is None or key == self._api_key:
            return False
        self._api_key = key
        self._secrets.append(key)
        self._session.close()
        self._session = new_session(key, self.target.ca_file)
        return True

    def _hint(self, status: int) -> str:
        """What to do about a status."""
        if status in _REFUSED:
            if self._api_key is not None:
                return "; it refuses the API key"
            return "; it wants an API key: name it with api_key_env or api_key_file"
        if 300 <= status < 400:
            return "; a redirect is not followed: give the URL that it leads to"
        return "; is metrics_path right?" if status == 404 else ""

    def close(self) -> None:
        """Drop the connection."""
        self._session.close()
