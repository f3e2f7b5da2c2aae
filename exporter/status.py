"""The sidecar's status: as JSON for tools, and as one page for people without Grafana."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from vllm_opsctl import __version__
from vllm_opsctl.exporter.config import Config, Objective
from vllm_opsctl.exporter.target_state import Snapshot
from vllm_opsctl.exporter.units import format_duration, format_number, format_percent


def status_json(config: Config, snapshots: Sequence[Snapshot]) -> dict[str, Any]:
    """The body of /api/v1/status."""
    return {
        "service": config.service.name,
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


def status_page(config: Config, snapshots: Sequence[Snapshot], now: float) -> str:
    """The body of ``/``."""
    template = Template(
        files("vllm_opsctl.exporter").joinpath("templates/status.html").read_text(encoding="utf-8")
    )
    many = len(snapshots)
    return template.substitute(
        service=escape(config.service.name),
        version=escape(__version__),
        count=f"{many} target{'' if many == 1 else 's'}",
        interval=format_duration(config.exporter.poll_interval),
        now=datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        tables=_engines_table(snapshots) + _objectives_table(config.objectives, snapshots),
    )


def _engines_table(snapshots: Sequence[Snapshot]) -> str:
    head = [
        "Target",
        "State",
        "Model",
        "Running",
        "Waiting",
        "KV cache",
        "KV peak 60 s",
        "Prefix hits",
    ]
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
            rows.append(
                [
                    name,
                    state,
                    escape(f"{sample.key.model} / {sample.key.engine}"),
                    _shown(gauges.get("requests_running"), format_number),
                    _shown(gauges.get("requests_waiting"), format_number),
                    _shown(gauges.get("kv_cache_usage_ratio"), format_percent),
                    _shown(
                        snapshot.peaks.get((sample.key, "kv_cache_usage_ratio", 60.0)),
                        format_percent,
                    ),
                    _shown(snapshot.hit_ratios.get(sample.key), format_percent),
                ]
            )
    return _table("Engines", head, rows, text_columns=3)


def _objectives_table(objectives: Sequence[Objective], snapshots: Sequence[Snapshot]) -> str:
    head = ["Objective", "Good", "Bad", "Good share", "Target"]
    rows = []
    for objective in objectives:
        counted = [
            events
            for snapshot in snapshots
            for (name, _), events in snapshot.events.items()
            if name == objective.name
        ]
        good, bad = sum(e.good for e in counted), sum(e.bad for e in counted)
        share = good / (good + bad) if good + bad else None
        tone = "good" if share is None or share >= objective.target else "bad"
        limit = f" ≤ {format_duration(objective.threshold)}" if objective.threshold else ""
        rows.append(
            [
                escape(objective.name + limit),
                format_number(good),
                format_number(bad),
                f'<span class="{tone}">{_shown(share, format_percent)}</span>',
                format_percent(objective.target),
            ]
        )
    return _table("Objectives, since this sidecar started", head, rows, text_columns=1)


def _shown(value: float | None, text: Any) -> str:
    return "–" if value is None else str(text(value))


def _table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int
) -> str:
    def cells(values: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=text' if index < text_columns else ''}>{value}</{tag}>"
            for index, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>\n" for row in rows)
    return (
        f"<table><caption>{escape(caption)}</caption>\n"
        f"<thead><tr>{cells(head, 'th')}</tr></thead>\n<tbody>{body}</tbody></table>\n"
    )
