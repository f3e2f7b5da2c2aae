"""
Evaluates PromQL at the end of every slot, over as many days as are wanted.

Any server with Prometheus's HTTP API will do (Thanos, Mimir, VictoriaMetrics).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from vllm_opsctl.alarms.status_timeline import SLOT_S
from vllm_opsctl.errors import BadPage, UsageError
from vllm_opsctl.exporter.config import clean_url
from vllm_opsctl.exporter.sources.http import get, new_session

_TIMEOUT_S = 120.0
"""Prometheus's own default for a query."""

_MAX_BYTES = 2**28

_CHUNK_SLOTS = 864
"""Three days a query: a server allows 11,000 points a series, and a fleet's raw counters are many samples."""


class Prometheus:
    """
    Evaluates PromQL over time.

    Args:
        url: Base URL.
        token: Bearer token, or None.

    Raises:
        UsageError: No URL.
    """

    def __init__(self, url: str, *, token: str | None = None) -> None:
        try:
            self.url = clean_url(url)
        except ValueError as problem:
            raise UsageError(f"--prometheus: {problem}") from None
        self._session = new_session(token)

    def over_slots(self, query: str, start: float, end: float) -> dict[str, dict[int, float]]:
        """
        Evaluate an expression at the end of every slot.

        Args:
            query: Gives one series a model.
            start: Unix seconds at which the first slot begins.
            end: Unix seconds at which the last one ends.

        Returns:
            By model, then by number of the slot.

        Raises:
            Unreachable: Nothing answers.
            BadPage: What answers is no Prometheus, or it cannot evaluate this.
        """
        found: dict[str, dict[int, float]] = {}
        slots = round((end - start) / SLOT_S)
        for first in range(0, slots, _CHUNK_SLOTS):
            last = min(first + _CHUNK_SLOTS, slots) - 1
            form = {
                "query": query,
                "start": f"{start + (first + 1) * SLOT_S:.3f}",
                "end": f"{start + (last + 1) * SLOT_S:.3f}",
                "step": f"{SLOT_S:g}",
            }
            for labels, points in self._series(form):
                values = found.setdefault(labels.get("model", ""), {})
                for t, value in points:
                    if math.isfinite(value):
                        values[round((t - start) / SLOT_S) - 1] = value
        return found

    def labels_at(self, query: str, name: str, at: float) -> list[str]:
        """The values of a label in what an expression gives at a time."""
        rows = self._rows("query", {"query": query, "time": f"{at:.3f}"})
        return sorted({row["metric"].get(name, "") for row in rows})

    def _series(
        self, form: Mapping[str, str]
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        try:
            return [
                (dict(row["metric"]), [(float(t), float(value)) for t, value in row["values"]])
                for row in self._rows("query_range", form)
            ]
        except (ValueError, KeyError, TypeError):
            raise self._no_prometheus("an answer without series") from None

    def _no_prometheus(self, what: str) -> BadPage:
        return BadPage(
            "not-a-prometheus",
            f"--prometheus {self.url}: {what}, not Prometheus's API; give the base URL "
            "(http://HOST:9090)",
        )

    def _rows(self, endpoint: str, form: Mapping[str, str]) -> list[dict[str, Any]]:
        answer = get(
            self._session,
            f"{self.url}/api/v1/{endpoint}",
            timeout_s=_TIMEOUT_S,
            max_bytes=_MAX_BYTES,
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
            data = json.loads(answer.body)
            if data["status"] == "success":
                rows = data["data"]["result"]
                assert isinstance(rows, list)
                return rows
            reason = " ".join(f"{data['errorType']}: {data['error']}".split())
        except (ValueError, KeyError, TypeError, AssertionError):
            raise self._no_prometheus(f"HTTP {answer.status}") from None
        raise BadPage("query-failed", f"--prometheus {self.url}: {reason}")
