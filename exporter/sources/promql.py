"""
Evaluates PromQL through Prometheus's HTTP API.

Any server that speaks it will do (Thanos, Mimir, VictoriaMetrics).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter.json_text import read_json
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.redaction import without_secrets
from vllm_opsctl.exporter.sources.http import get, new_session

TIMEOUT_S = 120.0
"""Prometheus's own default for a query."""

_MAX_BYTES = 2**29


class QueryFailed(BadPage):
    """
    The server understood, and could not evaluate.

    Args:
        url: Of the server.
        kind: Its own word, such as ``bad_data``.
        why: Its own text, one line.
    """

    def __init__(self, url: str, kind: str, why: str) -> None:
        super().__init__("query-failed", f"--prometheus {url}: {kind}: {why}")
        self.kind = kind
        self.why = why


class PromQL:
    """
    One server.

    Args:
        url: Base URL.
        token: Bearer token, or None.
    """

    def __init__(self, url: str, *, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._secrets = (token,) if token else ()
        self._session = new_session(token)

    def rows(self, endpoint: str, form: Mapping[str, str]) -> list[dict[str, Any]]:
        """
        Evaluate once.

        Args:
            endpoint: ``query`` or ``query_range``.
            form: The endpoint's parameters.

        Returns:
            The result's rows, as the API has them.

        Raises:
            Unreachable: Nothing answers.
            BadPage: What answers is no Prometheus, or wants a token.
            QueryFailed: It cannot evaluate this.
        """
        answer = get(
            self._session,
            f"{self.url}/api/v1/{endpoint}",
            timeout_s=TIMEOUT_S,
            max_bytes=_MAX_BYTES,
            # by POST, for the names of a page do not fit the URLs that proxies take
            method="POST",
            form=form,
        )
        if answer.status in (401, 403):
            raise BadPage(
                "unauthorized",
                f"--prometheus {self.url}: HTTP {answer.status}; it wants a token, "
                "see --prometheus-token-env",
            )
        try:
            data = read_json(answer.body)
            if data["status"] == "success":
                rows = data["data"]["result"]
                assert isinstance(rows, list)
                return rows
            kind, why = (self._said(data[key]) for key in ("errorType", "error"))
        except (ValueError, KeyError, TypeError, AssertionError) as problem:
            raise self.no_prometheus(f"HTTP {answer.status}") from problem
        raise QueryFailed(self.url, kind, why)

    def _said(self, value: object) -> str:
        """What a server says, in one line; it may repeat the headers that it was sent."""
        return plain(without_secrets(" ".join(str(value).split()), self._secrets))

    def no_prometheus(self, what: str) -> BadPage:
        """
        The error of an answer that a Prometheus does not give.

        Args:
            what: What came instead.
        """
        return BadPage(
            "not-a-prometheus",
            f"--prometheus {self.url}: {what}, not Prometheus's API; give the base URL "
            "(http://HOST:9090)",
        )
