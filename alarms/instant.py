"""One instant query to a Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_opsctl.alarms.ask import ask_json, not_a
from vllm_opsctl.errors import UsageError


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
    data = ask_json(
        url, "/api/v1/query", option="--prometheus", what="Prometheus", form={"query": query}
    )
    try:
        if data["status"] == "error":
            raise UsageError(f"--prometheus {url}: {data['error']}")
        return [(row["metric"], float(row["value"][1])) for row in data["data"]["result"]]
    except (ValueError, KeyError, TypeError, IndexError):
        raise not_a("Prometheus", url, 200) from None
