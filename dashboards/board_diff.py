"""
How a board that a Grafana has differs from the board it shall be, in words.

What Grafana adds by itself is no difference: its own numbers, defaults of fields, and keys that say nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Mark = Literal["+", "~", "-"]


@dataclass(frozen=True, slots=True)
class Difference:
    """
    One thing of a board that is not as it shall be.

    Args:
        mark: ``+`` it shall be there, ``-`` it shall go, ``~`` it shall be another.
        path: What it is, in words, such as ``panel "TTFT", unit``.
        is_: What it is; None when there is none.
        shall: What it shall be; None when it shall go.
    """

    mark: Mark
    path: str
    is_: Any
    shall: Any


_OF_THE_BOARD = {"id", "uid", "version", "iteration", "gnetId"}
"""Numbers that Grafana gives."""

_PLACED = {"id", "gridPos", "panels", "title"}
"""Of a panel: where it is, and what it is known by."""

_NOTED = {"pluginVersion", "editorMode"}
"""What Grafana's editors note for themselves, wherever it stands."""

_CACHED = {"options", "selected"}
"""Of variables: what the query gave when somebody last looked."""

_DEFAULTS: Mapping[str, Any] = {
    "fiscalYearStartMonth": 0,
    "hide": 0,
    "builtIn": 0,
    "repeatDirection": "h",
    "allowCustomValue": True,
    "auto_count": 30,
    "auto_min": "10s",
    "regexApplyTo": "value",
    "custom.axisColorMode": "text",
    "custom.axisPlacement": "auto",
    "custom.barAlignment": 0,
    "custom.barWidthFactor": 0.6,
    "custom.drawStyle": "line",
    "custom.fillOpacity": 0,
    "custom.gradientMode": "none",
    "custom.lineInterpolation": "linear",
    "custom.lineWidth": 1,
    "custom.pointSize": 5,
    "custom.showPoints": "auto",
    "scaleDistribution.type": "linear",
    "stacking.group": "A",
    "stacking.mode": "none",
    "thresholdsStyle.mode": "off",
    "tooltip.hoverProximity": 30,
    "tooltip.mode": "single",
    "tooltip.sort": "none",
    "options.percentChangeColorMode": "standard",
    "options.perPage": 20,
    "options.frameIndex": 0,
    "options.maxVizHeight": 300,
    "options.namePlacement": "auto",
    "options.selectionMode": "x",
    "options.showValue": "auto",
    "options.sizing": "auto",
    "legend.displayMode": "list",
    "legend.placement": "bottom",
    "reduceOptions.calcs": ["lastNotNull"],
    "options.justifyMode": "auto",
    "options.orientation": "auto",
    "options.wideLayout": True,
}
"""
What Grafana's schema says of fields that nobody set, by key, or by the key above it and its own.

Source:
    packages/grafana-schema and the panels' panelcfg.cue of Grafana 10 to 12; grafana-foundation-sdk, whose
    models fill in most of them.
"""

_NAMED: Mapping[str, str] = {
    "targets": "refId",
    "links": "title",
    "list": "name",
    "overrides": "matcher",
    "properties": "id",
}
"""Lists whose elements are told apart by a key, not by their place."""

_WORDS: Mapping[str, str] = {
    "expr": "query",
    "legendFormat": "legend",
    "datasource": "data source",
    "timeFrom": "time range",
    "graphTooltip": "shared crosshair",
}

_LAYERS = frozenset(("fieldConfig", "defaults", "custom", "options", "templating", "annotations"))
"""Keys that hold others and mean nothing to people."""

_ELEMENTS: Mapping[str, str] = {
    "targets": "query",
    "links": "link",
    "overrides": "override of",
    "properties": "",
    "templating": "variable",
    "annotations": "annotation",
}

Path = tuple[str, ...]


def differences(is_: Mapping[str, Any], shall: Mapping[str, Any]) -> list[Difference]:
    """
    Compare two boards.

    Args:
        is_: As Grafana has it.
        shall: As it shall be.

    Returns:
        The board's own first, then its panels' in their order, then panels that shall go.
    """
    root = _OF_THE_BOARD | {"panels", "schemaVersion", "refresh"}
    found = list(_walk(_without(is_, root), _without(shall, root), ()))
    # Grafana reads old models for ever, and writes the newest when somebody saves in it
    if _number(is_.get("schemaVersion")) < _number(shall.get("schemaVersion")):
        found += _one(is_.get("schemaVersion"), shall["schemaVersion"], ("schema version",))
    # min_refresh_interval of a Grafana makes it slower than asked for
    if _seconds(is_.get("refresh")) < _seconds(shall.get("refresh")):
        found += _one(is_.get("refresh"), shall["refresh"], ("refresh",))
    return [*found, *_panels(_by_title(is_), _by_title(shall))]


def _panels(is_: Mapping[str, Any], shall: Mapping[str, Any]) -> Iterator[Difference]:
    moved = 0
    for title, panel in shall.items():
        now = is_.get(title)
        if now is None:
            yield Difference("+", title, None, _in_short(panel))
            continue
        yield from _walk(_without(now, _PLACED), _without(panel, _PLACED), (title,))
        moved += now.get("gridPos") != panel.get("gridPos")
    for title, panel in is_.items():
        if title not in shall:
            yield Difference("-", title, _in_short(panel), None)
    if moved:
        # one panel more moves all below it
        yield Difference("~", "layout", f"{moved} elsewhere or of another size", "in their places")


def _by_title(board: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Panels by a name that outlives renumbering; those that a collapsed row holds are among them."""
    found: dict[str, Mapping[str, Any]] = {}
    for panel in _objects(board.get("panels")):
        for one in (panel, *_objects(panel.get("panels"))):
            kind = "row" if one.get("type") == "row" else "panel"
            name = f'{kind} "{one.get("title", "")}"'
            again = 2
            while name in found:
                name = f'{kind} "{one.get("title", "")}" ({again})'
                again += 1
            found[name] = one
    return found


def _in_short(panel: Mapping[str, Any]) -> str:
    queries = len(_objects(panel.get("targets")))
    if not queries:
        return str(panel.get("type", "panel"))
    return f"{panel.get('type')} of {queries} {'query' if queries == 1 else 'queries'}"


def _walk(is_: Any, shall: Any, path: Path) -> Iterator[Difference]:
    if isinstance(is_, dict | None) and isinstance(shall, dict | None) and (is_ or shall):
        mine, theirs = shall or {}, is_ or {}
        if path and path[-1] == "thresholds":
            yield from _one(_steps(theirs), _steps(mine), path)
            return
        ignored = _NOTED | _CACHED if "templating" in path else _NOTED
        for key in (*mine, *(key for key in theirs if key not in mine)):
            if key not in ignored:
                yield from _walk(theirs.get(key), mine.get(key), (*path, key))
    elif path and path[-1] in _NAMED:
        # a built-in annotation has no key of ours to be told apart by, and is no difference
        yield from _elements(_named(is_, path[-1]), _named(shall, path[-1]), path)
    else:
        yield from _one(is_, shall, path)


def _elements(is_: Mapping[str, Any], shall: Mapping[str, Any], path: Path) -> Iterator[Difference]:
    for name in (*shall, *(name for name in is_ if name not in shall)):
        where = (*path, f"={name}")
        if name not in is_:
            yield Difference("+", _in_words(where), None, _essence(shall[name]))
        elif name not in shall:
            yield Difference("-", _in_words(where), _essence(is_[name]), None)
        else:
            yield from _walk(is_[name], shall[name], where)


def _named(elements: Any, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, one in enumerate(_objects(elements), 1):
        name = one.get(_NAMED[kind], number)
        if isinstance(name, dict):
            # a matcher of an override
            name = name.get("options", name)
        if one.get("builtIn") != 1:
            found[name if isinstance(name, str) else json.dumps(name)] = one
    return found


def _one(is_: Any, shall: Any, path: Path) -> Iterator[Difference]:
    if _plain(is_) == _plain(shall):
        return
    if is_ is None and _is_default(path, shall):
        return
    if shall is None and _is_default(path, is_):
        return
    yield Difference("~", _in_words(path), is_, shall)


def _is_default(path: Path, value: Any) -> bool:
    keys = (path[-1], ".".join(path[-2:]))
    return any(key in _DEFAULTS and _plain(_DEFAULTS[key]) == _plain(value) for key in keys)


def _plain(value: Any) -> Any:
    """Without what says nothing: a key that is null, false or empty is as good as none."""
    if isinstance(value, dict):
        found = {key: _plain(one) for key, one in value.items()}
        return {key: one for key, one in found.items() if one is not None} or None
    if isinstance(value, list):
        return [_plain(one) for one in value] or None
    return None if value is False or value == "" else value


def _essence(element: Any) -> Any:
    """What tells most of a query, a link or a variable."""
    for key in ("expr", "url", "definition", "query", "value"):
        if isinstance(element.get(key), str) and element[key]:
            return element[key]
    return None


def _steps(thresholds: Mapping[str, Any]) -> str | None:
    """Thresholds as people say them."""
    said = [
        f"{step.get('color')}" + ("" if step.get("value") is None else f" from {step['value']}")
        for step in _objects(thresholds.get("steps"))
    ]
    share = " (percent)" if thresholds.get("mode") == "percentage" else ""
    return ", ".join(said) + share if said else None


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; what a hand wrote into a board's JSON may be anything."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0


def _without(value: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: one for key, one in value.items() if key not in keys}


def _in_words(path: Path) -> str:
    words: list[str] = []
    for index, part in enumerate(path):
        if part.startswith("="):
            above = path[index - 2] if path[index - 1] == "list" else path[index - 1]
            name = part[1:] if above == "targets" else f'"{part[1:]}"'
            words.append(f"{_ELEMENTS.get(above, '')} {name}".strip())
        elif part in _NAMED or part in _LAYERS:
            continue
        elif part == "expr":
            # "query A" says it already
            continue
        elif _WORDS.get(part, part) not in words[-1:]:
            words.append(_WORDS.get(part, part))
    return ", ".join(words)


_LENGTHS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(duration: Any) -> float:
    """Of Grafana's durations, also as Go writes them; infinite for none: a board that is never read anew."""
    found = re.findall(r"(\d+)(ms|[smhd])", duration) if isinstance(duration, str) else []
    return sum(int(number) * _LENGTHS[unit] for number, unit in found) or float("inf")
