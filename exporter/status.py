"""The sidecar's status: as JSON for tools, and as one page for people without Grafana."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from vllm_opsctl import __version__
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.identity import identity_of
from vllm_opsctl.exporter.target_state import Snapshot
from vllm_opsctl.exporter.units import format_duration, format_number, format_percent


def status_json(config: Config, snapshots: Sequence[Snapshot], now: float) -> dict[str, Any]:
    """The body of /api/v1/status; ``now`` in unix seconds, by the sidecar's clock."""
    return {
        "now": now,
        "service": config.service.name,
        "labels": dict(config.exporter.labels),
        "version": __version__,
        "ready": all(snapshot.ready for snapshot in snapshots),
        "targets": [_target_json(snapshot) for snapshot in snapshots],
    }


def _target_json(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "target": snapshot.target.name,
        "url": snapshot.target.url,
        "up": snapshot.up,
        "ready": snapshot.ready,
        "not_ready": snapshot.not_ready,
        "error": snapshot.error,
        "last_success": snapshot.last_success,
        "restarts": snapshot.restarts,
        "left_out": dict(snapshot.left_out),
        "recorder": {
            "seconds": round(snapshot.recorder_span_s, 1),
            "bytes": snapshot.recorder_bytes,
        },
        "engines": [
            {
                "model": sample.key.model,
                "engine": sample.key.engine,
                "requests_running": sample.gauges.get("requests_running"),
                "requests_waiting": sample.gauges.get("requests_waiting"),
                "kv_cache_usage_ratio": sample.gauges.get("kv_cache_usage_ratio"),
                "prefix_cache_hit_ratio": snapshot.hit_ratios.get(sample.key),
            }
            for sample in (snapshot.page.engines if snapshot.page else ())
        ],
        "objectives": [
            {"objective": name, "model": model, "good": events.good, "bad": events.bad}
            for (name, model), events in snapshot.events.items()
        ],
    }


@dataclass(frozen=True, slots=True)
class Column:
    """
    A column of a table on the page.

    Args:
        head: Its header.
        is_text: It is aligned left and wraps; numbers are aligned right.
        is_extra: A narrow screen does without it.
    """

    head: str
    is_text: bool = False
    is_extra: bool = False

    @property
    def classes(self) -> str:
        """The attribute of its cells."""
        names = [n for n, has in (("text", self.is_text), ("extra", self.is_extra)) if has]
        return f' class="{" ".join(names)}"' if names else ""


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """
    A table on the page.

    Args:
        caption: Plain text.
        columns: One for each cell of a row.
        rows: Cells as HTML.
    """

    def cells(values: Iterable[str], tag: str) -> str:
        return "".join(
            f"<{tag}{column.classes}>{value}</{tag}>"
            for column, value in zip(columns, values, strict=True)
        )

    head = cells((escape(column.head) for column in columns), "th")
    body = "".join(f"<tr>{cells(row, 'td')}</tr>\n" for row in rows)
    return (
        f"<table><caption>{escape(caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>\n"
    )


def shown(value: float | None, text: Callable[[float], str]) -> str:
    """A number as HTML; a dash where there is none."""
    return "–" if value is None else escape(text(value))


_TEMPLATE = (
    files("vllm_opsctl.exporter").joinpath("templates/status.html").read_text(encoding="utf-8")
)

_STYLE = _TEMPLATE[_TEMPLATE.index("<style>") + len("<style>") : _TEMPLATE.index("</style>")]

POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
        # the icon is empty and in the page: a browser would ask for one
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""
The page's Content-Security-Policy: its own style, and nothing from anywhere.

Source:
    Content Security Policy Level 3 (https://www.w3.org/TR/CSP3/), hash-source of style-src.
"""


def status_page(
    config: Config, snapshots: Sequence[Snapshot], now: float, overview: str = ""
) -> str:
    """
    The body of ``/``.

    Args:
        config: The sidecar's.
        snapshots: All targets.
        now: Unix seconds.
        overview: What stands first, as HTML.
    """
    many = len(snapshots)
    return Template(_TEMPLATE).substitute(
        service=escape(str(identity_of(config))),
        version=escape(__version__),
        count=f"{many} target{'' if many == 1 else 's'}",
        interval=format_duration(config.exporter.poll_interval),
        now=datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        overview=overview,
        engines=_engines_table(snapshots),
    )


_ENGINE_COLUMNS = (
    *(Column("Target", is_text=True), Column("State", is_text=True)),
    Column("Model", is_text=True, is_extra=True),
    *(Column("Running"), Column("Waiting"), Column("KV cache")),
    *(Column("KV peak 60 s", is_extra=True), Column("Prefix hits", is_extra=True)),
)


def _engines_table(snapshots: Sequence[Snapshot]) -> str:
    rows = []
    for snapshot in snapshots:
        state = (
            '<span class="good">ready</span>'
            if snapshot.ready
            else f'<span class="bad">{escape(snapshot.not_ready or "")}</span>'
        )
        name = escape(snapshot.target.name)
        samples = snapshot.page.engines if snapshot.page else ()
        if not samples:
            rows.append([name, state, *["–"] * 6])
        for sample in samples:
            gauges = sample.gauges
            peak = snapshot.peaks.get((sample.key, "kv_cache_usage_ratio", 60.0))
            rows.append(
                [
                    name,
                    state,
                    escape(f"{sample.key.model} / {sample.key.engine}"),
                    shown(gauges.get("requests_running"), format_number),
                    shown(gauges.get("requests_waiting"), format_number),
                    shown(gauges.get("kv_cache_usage_ratio"), format_percent),
                    shown(peak, format_percent),
                    shown(snapshot.hit_ratios.get(sample.key), format_percent),
                ]
            )
    return table("Engines", _ENGINE_COLUMNS, rows)
