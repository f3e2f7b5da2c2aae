"""Evaluates PromQL at the end of every slot, over as many days as are wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vllm_opsctl.alarms.status_timeline import SLOT_S
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.config import clean_url
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.sources.promql import PromQL

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
        self._promql = PromQL(self.url, token=token)

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
                values = found.setdefault(plain(labels.get("model", ""), MAX_NAME_CHARS), {})
                for t, value in points:
                    if math.isfinite(value):
                        values[round((t - start) / SLOT_S) - 1] = value
        return found

    def labels_at(self, query: str, name: str, at: float) -> list[str]:
        """The values of a label in what an expression gives at a time."""
        rows = self._promql.rows("query", {"query": query, "time": f"{at:.3f}"})
        return sorted({row["metric"].get(name, "") for row in rows})

    def _series(
        self, form: Mapping[str, str]
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        try:
            return [
                (dict(row["metric"]), [(float(t), float(value)) for t, value in row["values"]])
                for row in self._promql.rows("query_range", form)
            ]
        except (ValueError, KeyError, TypeError):
            raise self._promql.no_prometheus("an answer without series") from None
