"""One instant query to a Prometheus."""

from __future__ import annotations

import json
from collections.abc import Mapping

from vllm_opsctl.errors import BadPage, UsageError
from vllm_opsctl.exporter.sources.http import get, new_session

_TIMEOUT_S = 30.0
_MAX_BYTES = 2**24


def instant(url: str, query: str) -> list[tuple[Mapping[str, str], float]]:
    """
    Evaluate PromQL now.

    Args:
        url: Base URL of the Prometheus.
        query: An expression that gives an instant vector.

    Returns:
        Labels and value of each sample.

    Raises:
        UsageError: The URL is none, or the server refuses the query.
        Unreachable: Nothing answers.
        BadPage: What answers is no Prometheus.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--prometheus {url}: not a URL; write http://host:9090")
    answer = get(
        new_session(),
        f"{url.rstrip('/')}/api/v1/query",
        timeout_s=_TIMEOUT_S,
        max_bytes=_MAX_BYTES,
        method="POST",
        form={"query": query},
    )
    try:
        data = json.loads(answer.body)
        if data["status"] == "error":
            raise UsageError(f"--prometheus {url}: {data['error']}")
        return [(row["metric"], float(row["value"][1])) for row in data["data"]["result"]]
    except (ValueError, KeyError, TypeError, IndexError):
        raise BadPage(
            "not-prometheus", f"{url}: HTTP {answer.status}, but not what a Prometheus answers"
        ) from None
