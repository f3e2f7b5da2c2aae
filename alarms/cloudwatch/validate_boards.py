"""
What is wrong with a dashboard that neither cfn-lint nor CloudFormation sees: CloudWatch draws nothing then.

Source:
    Dashboard body structure and syntax, CloudWatch API reference; quotas of CloudWatch dashboards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm_opsctl.alarms.cloudwatch.metric_math import MathError, parse
from vllm_opsctl.alarms.cloudwatch.statistics import is_statistic

MAX_WIDGETS = 500
MAX_METRICS = 500
"""Of a widget."""

MAX_METRICS_OF_ALL = 2500
COLUMNS = 24

_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")
_REQUIRED = {"text": ("markdown",), "metric": ("metrics", "region"), "alarm": ("alarms",)}
_VIEWS = ("timeSeries", "singleValue", "gauge", "bar", "pie", "table")
_RANGE = re.compile(r"-P(T?\d+[MHDW])+")


def board_mistakes(name: str, text: str, alarm_arns: Sequence[str]) -> Iterator[str]:
    """
    Everything that is wrong, one line each.

    Args:
        name: The dashboard's.
        text: Its body.
        alarm_arns: Of the alarms that there are.
    """
    if not _NAME.fullmatch(name):
        yield f"DashboardName: {name!r}; up to 255 of A-Z a-z 0-9 - _ are allowed"
    try:
        body = json.loads(text)
    except ValueError as problem:
        yield f"DashboardBody: no JSON ({problem})"
        return
    widgets = body.get("widgets", [])
    if len(widgets) > MAX_WIDGETS:
        yield f"DashboardBody: {len(widgets)} widgets; {MAX_WIDGETS} are allowed"
    total = sum(len(one.get("properties", {}).get("metrics", ())) for one in widgets)
    if total > MAX_METRICS_OF_ALL:
        yield f"DashboardBody: {total} metrics; {MAX_METRICS_OF_ALL} are allowed"
    taken: dict[tuple[int, int], str] = {}
    for index, widget in enumerate(widgets):
        title = widget.get("properties", {}).get("title", f"widget {index}")
        for what in (*_place(widget, title, taken), *_content(widget, alarm_arns)):
            yield f"{title}: {what}"


def _place(
    widget: Mapping[str, Any], title: str, taken: dict[tuple[int, int], str]
) -> Iterator[str]:
    sides = [widget.get(key) for key in ("x", "y", "width", "height")]
    if not all(isinstance(side, int) for side in sides):
        yield "x, y, width and height must be whole numbers"
        return
    x, y, width, height = (int(side) for side in sides if side is not None)
    if min(x, y) < 0 or min(width, height) < 1 or x + width > COLUMNS:
        yield f"x {x} and width {width}: a row has {COLUMNS} columns"
        return
    cells = [(x + right, y + down) for right in range(width) for down in range(height)]
    over = next((taken[cell] for cell in cells if cell in taken), None)
    if over is not None:
        yield f"it lies over {over}"
    taken.update(dict.fromkeys(cells, title))


def _content(widget: Mapping[str, Any], alarm_arns: Sequence[str]) -> Iterator[str]:
    kind, properties = widget.get("type"), widget.get("properties", {})
    if kind not in _REQUIRED:
        yield f"type: {kind!r} is none of {', '.join(_REQUIRED)}"
        return
    for key in _REQUIRED[str(kind)]:
        if not properties.get(key):
            yield f"{key} is missing"
    for arn in properties.get("alarms", ()):
        if arn not in alarm_arns:
            yield f"alarms: {arn} is no alarm of the template"
    if kind == "metric":
        yield from _metric(properties)


def _metric(properties: Mapping[str, Any]) -> Iterator[str]:
    if properties.get("view", "timeSeries") not in _VIEWS:
        yield f"view: {properties['view']!r} is none of {', '.join(_VIEWS)}"
    period = properties.get("period", 300)
    if not isinstance(period, int) or period < 1 or (period >= 60 and period % 60):
        yield f"period: {period!r}; whole minutes are allowed"
    start, end = properties.get("start"), properties.get("end")
    if (start is None) != (end is None):
        yield "start and end go together"
    elif start is not None and not _RANGE.fullmatch(start):
        yield f"start: {start!r}; write it like -PT3H or -P30D"
    metrics = properties.get("metrics", [])
    if len(metrics) > MAX_METRICS:
        yield f"metrics: {len(metrics)}; {MAX_METRICS} are allowed"
    options = [one[-1] if isinstance(one[-1], dict) else {} for one in metrics]
    ids = [one["id"] for one in options if "id" in one]
    if len(set(ids)) < len(ids):
        yield "metrics: an id stands twice"
    if metrics and not any(one.get("visible", True) for one in options):
        yield "metrics: all are hidden"
    for one, option in zip(metrics, options, strict=True):
        yield from _series(one, option, ids)
    for line in properties.get("annotations", {}).get("horizontal", ()):
        if not isinstance(line.get("value"), int | float):
            yield f"annotations: {line!r} has no number"


def _series(one: Sequence[Any], option: Mapping[str, Any], ids: Sequence[str]) -> Iterator[str]:
    if "expression" in option:
        try:
            referred = list(parse(option["expression"]).ids())
        except MathError as problem:
            yield f"{option.get('id')}: {problem}"
            return
        for name in dict.fromkeys(referred):
            if name not in ids:
                yield f"{option.get('id')}: {name!r} is no id of the widget"
        return
    parts = [part for part in one if isinstance(part, str)]
    if len(parts) < 2 or len(parts) % 2:
        yield f"metrics: {parts}: namespace, name, then pairs of dimensions"
    if not is_statistic(option.get("stat", "Average")):
        yield f"{option.get('id')}: {option['stat']!r} is no statistic; write p99, Sum, Average"
