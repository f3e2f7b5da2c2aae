"""The scrape source: GET /metrics of a vLLM server, as an observation."""

from __future__ import annotations

import time
from collections.abc import Callable

from vllm_opsctl.errors import BadPage, SourceError
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.exposition import MAX_PAGE_BYTES
from vllm_opsctl.exporter.observation import Observation, error, metrics
from vllm_opsctl.exporter.redaction import (
    secrets_of_url,
    shown_url,
    without_literally,
    without_secrets,
)
from vllm_opsctl.exporter.sources.http import get, new_session


class Scraper:
    """Reads the metrics page of one target."""

    def __init__(
        self,
        target: Target,
        *,
        timeout_s: float,
        api_key: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self._clock = clock
        self._url = target.url + target.metrics_path
        self._shown = target.url + shown_url(target.metrics_path)
        self._secrets = [*secrets_of_url(target.metrics_path), *([api_key] if api_key else [])]
        self._session = new_session(api_key)

    def read(self) -> Observation:
        """One observation, of kind ``metrics`` or ``error``; never raises for what a server does."""
        try:
            answer = get(
                self._session, self._url, timeout_s=self.timeout_s, max_bytes=MAX_PAGE_BYTES
            )
            if answer.status != 200:
                raise BadPage(f"http-{answer.status}", f"{self._url}: HTTP {answer.status}")
        except SourceError as problem:
            detail = without_secrets(problem.detail.replace(self._url, self._shown), self._secrets)
            return error(self._clock(), self.target.name, problem.reason, detail)
        text = without_literally(answer.body, self._secrets).decode("utf-8", errors="replace")
        return metrics(self._clock(), self.target.name, text, answer.seconds)

    def close(self) -> None:
        """Drop the connection."""
        self._session.close()
