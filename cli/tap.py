"""opsctl tap: look at the statistics pages that vLLM keeps with the tap."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from vllm_opsctl.cli.common import emit, load
from vllm_opsctl.cli.options import text_or_json_option
from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.folder import UnsafeFolder, check_folder
from vllm_opsctl.exporter.tap.page import BadTapPage, TapHistogram, TapPage, read_tap_page
from vllm_opsctl.exporter.units import format_duration

_STATES = {layout.LIVE: "live", layout.CLOSED: "closed in order", layout.GAVE_UP: "gave up"}
_QUANTILES = (0.5, 0.9, 0.99)
_RECENT_S = 10
_SHOWN = ("running_max", "waiting_max", "kv_cache_usage_max", "generation_tokens", "finished")


@click.group()
def tap() -> None:
    """Print the statistics pages that vLLM keeps with the tap."""


@tap.command(epilog="Exit codes: 0 printed, 64 no readable page.")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--seconds", default=_RECENT_S, show_default=True, help="Seconds of the ring to show."
)
@text_or_json_option("Format of the page on stdout.")
@click.pass_context
def dump(ctx: click.Context, file: Path, seconds: int, output: str) -> None:
    """
    Print a page: who wrote it, facts, counters, quantiles, the last seconds.

    FILE is one of the *.tap files in the folder that OPSCTL_TAP names (/dev/shm/vllm-opsctl); the
    layout is documented in docs/tap-page.md. A page is believed as the sidecar would believe it:
    of one's own, of root, of a shared group, or of exporter.tap.owner.
    """
    from vllm_opsctl.exporter.sources.tap import harmless, owner_id

    owner = owner_id(load(ctx).config.exporter.tap.owner)
    try:
        check_folder(file.parent, owner)
        page = harmless(read_tap_page(file, owner=owner))
    except UnsafeFolder as problem:
        raise InputFileError(str(problem)) from None
    except (BadTapPage, OSError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise InputFileError(f"{file}: {reason}") from None
    emit(_json(page, seconds) if output == "json" else "\n".join(_lines(page, seconds)))


def _json(page: TapPage, seconds: int) -> str:
    data: dict[str, Any] = asdict(page) | {"path": str(page.path)}
    data["header"] = {**page.header, "magic": layout.MAGIC.decode()}
    data["histograms"] = {name: _summary(h) for name, h in page.histograms.items()}
    data["slots"] = list(page.slots[-seconds:] if seconds else ())
    return json.dumps(data, indent=2)


def _summary(histogram: TapHistogram) -> dict[str, float | None]:
    quantiles = {f"p{q * 100:g}": histogram.quantile(q) for q in _QUANTILES}
    return {
        "count": histogram.count,
        "sum": histogram.sum,
        **quantiles,
        "max": histogram.largest if histogram.count else None,
    }


def _lines(page: TapPage, seconds: int) -> Iterator[str]:
    header, facts = page.header, page.facts
    rank = f", API process {header['api_rank'] + 1} of {header['api_count']}"
    yield plain(str(page.path))
    yield (
        f"  process {header['pid']} ({'lives' if page.alive else 'is gone'}), engine "
        f"{header['engine']}{rank if header['api_count'] > 1 else ''}; "
        f"{_STATES.get(page.state, page.state)}, layout {header['version']}"
    )
    yield f"  started {_time(header['started'])}, last update {_time(page.touched)}"
    if page.torn:
        yield "  it died within an update: the newest one may be incomplete"
    yield ""
    yield "Facts"
    for name, value in facts.items():
        if name != "kv_config":
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            yield f"  {name:28} {shown}"
    for name in ("num_gpu_blocks", "block_size", "kv_cache_size_tokens", "enable_prefix_caching"):
        if name in facts.get("kv_config", {}):
            yield f"  {name:28} {facts['kv_config'][name]}"
    yield ""
    yield "Now"
    for name, value in page.gauges.items():
        if name not in ("scheduled_at", "recorded_at"):
            yield f"  {name:28} {value:g}"
    for name, (running, waiting) in page.adapters.items():
        yield f"  adapter {name:20} {running} running, {waiting} waiting"
    yield ""
    yield "Since start"
    for name, count in page.counters.items():
        if count:
            yield f"  {name:28} {count}"
    yield ""
    heads = (*(f"P{q * 100:g}" for q in _QUANTILES), "max")
    yield f"  {'':16}{'count':>10}" + "".join(f"{head:>10}" for head in heads)
    for name, histogram in page.histograms.items():
        if histogram.count:
            values = [histogram.quantile(q) for q in _QUANTILES] + [histogram.largest]
            is_time = histogram.scale.unit == "seconds"
            cells = [_value(value, is_time=is_time) for value in values]
            yield f"  {name:16}{histogram.count:>10}" + "".join(f"{c:>10}" for c in cells)
    if page.slots and seconds:
        yield ""
        yield f"Last seconds (of {len(page.slots)} with any work)"
        head = f"  {'UTC':10}{'running':>9}{'waiting':>9}{'KV':>7}{'tokens':>9}{'finished':>10}"
        yield f"{head}{'TTFT':>9}{'ITL':>9}"
        for slot in page.slots[-seconds:]:
            yield _second(slot)


def _second(slot: Any) -> str:
    running, waiting, usage, tokens, finished = (slot[name] for name in _SHOWN)
    ttft = slot["ttft_sum"] / slot["ttft"] if slot["ttft"] else None
    itl = slot["itl_sum"] / slot["itl"] if slot["itl"] else None
    return (
        f"  {datetime.fromtimestamp(slot['second'], UTC):%H:%M:%S}  {running:>9}{waiting:>9}"
        f"{usage:>7.0%}{tokens:>9}{finished:>10}"
        f"{_value(ttft, is_time=True):>9}{_value(itl, is_time=True):>9}"
    )


def _value(value: float | None, *, is_time: bool) -> str:
    if value is None:
        return "-"
    return format_duration(value) if is_time else f"{value:g}"


def _time(t: float) -> str:
    return f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M:%S} UTC"
