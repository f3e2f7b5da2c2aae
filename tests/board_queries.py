"""What boards ask: every query with where it stands, filled in as Grafana would, and the series it reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import promql_parser

from vllm_opsctl.dashboards.grafana import panels_of

_VALUES = re.compile(r"label_values\((.*), (\w+)\)")
_WINDOW = re.compile(r"\$__\w+")
_VARIABLE = re.compile(r"\$(\w*[a-z_]\w*)")


def queries_of(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where each query stands, and the query: of panels, annotations and variables."""
    for panel in panels_of(body):
        for target in panel["targets"]:
            yield f"{panel['title']}, {target['legendFormat']}", target["expr"]
    for one in body["annotations"]["list"]:
        if "expr" in one:
            yield f"annotation {one['name']}", one["expr"]
    for name, series, _ in values_of(body):
        yield f"variable {name}", series


def values_of(body: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Each variable that has values of a label: its name, the series, the label."""
    for variable in body["templating"]["list"]:
        match = _VALUES.fullmatch(variable.get("definition", ""))
        if match is not None:
            yield variable["name"], match[1], match[2]


def filled_in(query: str, window: str = "5m", chosen: Mapping[str, str] | None = None) -> str:
    """
    A query with what Grafana puts for its variables.

    Args:
        query: PromQL.
        window: For rates, and for the board's range.
        chosen: Values of variables; all of everything for others.
    """
    values = {"__rate_interval": window, "__range": window, **(chosen or {})}
    return _VARIABLE.sub(lambda match: values.get(match[1], ".*"), query)


def selectors_of(query: str) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """The name of every series that a query reads, and its matchers by label, such as ``=~".*"``."""
    signs = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}
    found: list[Any] = []
    _collect(promql_parser.parse(_WINDOW.sub("5m", query)), found)
    for one in found:
        matchers: dict[str, list[str]] = {}
        for matcher in one.matchers.matchers:
            sign = signs[str(matcher.op).rpartition(".")[2]]
            matchers.setdefault(matcher.name, []).append(f'{sign}"{matcher.value}"')
        yield str(one.name), matchers


def _collect(node: Any, into: list[Any]) -> None:
    if isinstance(node, promql_parser.VectorSelector):
        into.append(node)
    elif isinstance(node, promql_parser.MatrixSelector):
        into.append(node.vector_selector)
    else:
        inside = (getattr(node, name, None) for name in ("expr", "lhs", "rhs", "param", "args"))
        for one in inside:
            for child in one if isinstance(one, list) else [one]:
                if isinstance(child, promql_parser.Expr):
                    _collect(child, into)
