"""
Reads the past from a Prometheus: raw samples at their own times, put together to pages again.

An instant query with a range selector gives what was scraped, not what was interpolated, so a page
of the past is the page that the server gave then, less what nobody asks for. Any server with
Prometheus's HTTP API will do (Thanos, Mimir, VictoriaMetrics).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from vllm_opsctl.errors import BadPage, UsageError
from vllm_opsctl.exporter.catalogue import catalogue
from vllm_opsctl.exporter.observation import Observation, error, metrics
from vllm_opsctl.exporter.sources.http import get, new_session

_TIMEOUT_S = 60.0
_MAX_BYTES = 2**29

_NAMES_A_QUERY = 40
"""Keeps the query string within 4 KiB."""

_OWN_LABELS = ("__name__", "job", "instance")
"""What Prometheus adds to every series; the rest is the page's own."""

DOWN = "down"
"""Reason of a scrape that failed; Prometheus does not keep why."""


class PrometheusSource:
    """
    Asks one Prometheus.

    Args:
        url: Its base URL.
        match: Label matchers of the targets, e.g. ``{job="vllm"}``; all vLLM servers when empty.
        token: Bearer token, or None.
    """

    def __init__(self, url: str, match: str = "", *, token: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._match = match.strip().removeprefix("{").removesuffix("}").strip().rstrip(",")
        self._session = new_session(token)

    def observations(self, *, start: float, end: float) -> list[Observation]:
        """
        What was scraped of every target.

        Args:
            start: Nothing older is wanted (unix seconds).
            end: Nothing newer is wanted.

        Returns:
            Pages and failed scrapes, ordered by time; each target is called by its instance.

        Raises:
            Unreachable: Prometheus does not answer.
            BadPage: What answers is no Prometheus.
            UsageError: It refuses the matchers.
        """
        found: list[Observation] = []
        for labels in self._targets(start, end):
            found += self._of_target(labels, start, end)
        return sorted(found, key=lambda observation: observation.t)

    def _targets(self, start: float, end: float) -> list[Mapping[str, str]]:
        """Job and instance of every server that exposed a vLLM engine at some time."""
        running = _names_pattern(["vllm:num_requests_running"])
        seconds = f"{max(end - start, 1):.0f}s"
        rows = self._query(
            f"count by (job, instance) (last_over_time({self._selector(running)}[{seconds}]))", end
        )
        return [row["metric"] for row in rows]

    def _of_target(
        self, labels: Mapping[str, str], start: float, end: float
    ) -> Iterator[Observation]:
        name = labels.get("instance") or labels.get("job") or "vllm"
        own = [f'{key}="{_escaped(value)}"' for key, value in labels.items()]
        seconds = f"{max(end - start, 1):.0f}s"
        pages: dict[float, list[str]] = {}
        names = sorted(catalogue().sample_names)
        for index in range(0, len(names), _NAMES_A_QUERY):
            pattern = _names_pattern(names[index : index + _NAMES_A_QUERY])
            for row in self._query(f"{self._selector(pattern, own)}[{seconds}]", end):
                series = _series(row["metric"])
                for t, value in row["values"]:
                    pages.setdefault(float(t), []).append(f"{series} {value}")
        for t, lines in pages.items():
            yield metrics(t, name, "\n".join(lines) + "\n")
        for row in self._query(f"up{{{','.join(own)}}}[{seconds}]", end):
            for t, value in row["values"]:
                if float(value) == 0:
                    yield error(float(t), name, DOWN, "the scrape failed (up is 0)")

    def _selector(self, name_pattern: str, more: Sequence[str] = ()) -> str:
        parts = [f'__name__=~"{name_pattern}"', *more]
        return "{" + ",".join([*parts, self._match] if self._match else parts) + "}"

    def _query(self, query: str, at: float) -> list[dict[str, Any]]:
        parameters = urlencode({"query": query, "time": f"{at:.3f}"})
        answer = get(
            self._session,
            f"{self._url}/api/v1/query?{parameters}",
            timeout_s=_TIMEOUT_S,
            max_bytes=_MAX_BYTES,
        )
        try:
            data = json.loads(answer.body)
            if data["status"] == "success":
                rows = data["data"]["result"]
                assert isinstance(rows, list)
                return rows
            reason = f"{data['errorType']}: {data['error']}"
        except (ValueError, KeyError, TypeError, AssertionError) as problem:
            raise BadPage(
                "not-a-prometheus",
                f"{self._url}: HTTP {answer.status}, not Prometheus's API; give the base URL "
                "(http://HOST:9090)",
            ) from problem
        if answer.status in (400, 422):
            raise UsageError(f'--match: Prometheus says {reason}; write it like {{job="vllm"}}')
        raise BadPage("not-a-prometheus", f"{self._url}: {reason}")


def _names_pattern(names: Sequence[str]) -> str:
    """A regular expression for metric names, as vLLM and as collectors spell them."""
    spelt = [re.escape(n).replace("vllm:", "(ray_)?vllm[:_]") for n in names]
    return "|".join(spelt).replace("\\", "\\\\")


def _series(labels: Mapping[str, str]) -> str:
    own = [f'{k}="{_escaped(v)}"' for k, v in labels.items() if k not in _OWN_LABELS]
    return f"{labels['__name__']}{{{','.join(own)}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
