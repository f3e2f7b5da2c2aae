"""One instant query to a Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.sources.promql import PromQL


def instant(url: str, query: str) -> list[tuple[Mapping[str, str], float]]:
    """
    Evaluate PromQL now.

    Args:
        url: Base URL of the Prometheus.
        query: An expression that gives an instant vector.

    Returns:
        Labels and value of each sample.

    Raises:
        UsageError: The URL is none.
        Unreachable: Nothing answers.
        BadPage: What answers is no Prometheus, or it cannot evaluate this.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--prometheus {url}: not a URL; write http://HOST:9090")
    promql = PromQL(url)
    try:
        return [
            (row["metric"], float(row["value"][1]))
            for row in promql.rows("query", {"query": query})
        ]
    except (ValueError, KeyError, TypeError, IndexError):
        raise promql.no_prometheus("an answer without a vector") from None
