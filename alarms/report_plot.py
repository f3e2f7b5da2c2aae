"""
The budgets of a report as a picture: one panel an objective and model, PNG or SVG, for A4.

matplotlib is imported by these functions alone; it comes with ``vllm-opsctl[report]``.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from bisect import bisect_left
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_opsctl.alarms.report import Account, Report
from vllm_opsctl.alarms.status_timeline import SLOT_S
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.units import format_duration, format_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")

MOST_PANELS = 8
"""As many as an A4 page holds legibly; those with the least budget left."""

_BLUE, _VERMILLION, _GREY = "#0072B2", "#D55E00", "#E4E4E4"
"""
Told apart by people with any colour vision, and by lightness.

Source:
    Okabe and Ito, Color Universal Design (https://jfly.uni-koeln.de/color/).
"""

_A4_IN = (8.27, 11.69)
_DPI = 200
_TITLE_PT = 13
_TITLE_LETTERS = 70
"""A title of so many letters fills the page's width; a longer one gets smaller."""

_MOST_POINTS = 1500
"""As many as a panel is wide in dots."""

_NAMED = 3
_WORTH_NAMING = 0.05
"""Episodes that are named in a panel: the dearest few, and none that is hardly to be seen."""

_ROOM_UNTIL = 0.75
"""Share of a panel's width after which an episode's name has no room to its right."""

_FLOOR = -1.0
"""A budget that is overspent more than this is drawn at the edge, with its number."""


def check_plot(path: Path, option: str = "--plot") -> None:
    """
    Find out that a plot can be written before anybody is asked for data.

    Args:
        path: Where it goes.
        option: That named it.

    Raises:
        UsageError: No suffix of a picture, no such folder, no right to write, or no matplotlib.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{option} {path}: {path.suffix or 'no suffix'} is no picture; name it .png or .svg"
        )
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"{option} {path}: {folder} is no folder; create it first")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UsageError(f"{option} {path}: Permission denied")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(
            f"{option} {path}: matplotlib is missing; pip install 'vllm-opsctl[report]'"
        ) from None


def write_plot(report: Report, path: Path) -> None:
    """
    Draw a report; the file is there as a whole or not at all.

    Args:
        report: What to draw.
        path: Where; its suffix is the format.

    Raises:
        UsageError: It cannot be written.
    """
    save_figure(lambda: _figure(report), path)


def save_figure(draw: Callable[[], Figure], path: Path, option: str = "--plot") -> None:
    """
    Write a figure; the file is there as a whole or not at all, and the same figure gives the same bytes.

    Args:
        draw: Makes it, with our settings in force.
        path: Where; its suffix is the format.
        option: That named the file.

    Raises:
        UsageError: It cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    kind = path.suffix.lower().removeprefix(".")
    with (
        mpl.rc_context(
            {
                "svg.hashsalt": "vllm-opsctl",
                "font.size": 9,
                "hatch.linewidth": 0.5,
                # a dollar in a model's name is a dollar
                "text.parse_math": False,
            }
        ),
        warnings.catch_warnings(),
    ):
        # a letter that the font lacks is drawn as a box
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure = draw()
        FigureCanvasAgg(figure)
        temporary: str | None = None
        try:
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
            os.close(handle)
            figure.savefig(
                temporary,
                format=kind,
                dpi=_DPI,
                metadata={"Date": None} if kind == "svg" else {"Software": None},
            )
            # mkstemp's own mode is for secrets
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except OSError as problem:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise UsageError(f"{option} {path}: {problem.strerror}") from None


def _figure(report: Report) -> Figure:
    from matplotlib.figure import Figure

    shown = [one for one in report.accounts if one.remaining][:MOST_PANELS]
    rows = max(1, len(shown))
    # up to four panels read best at this height; more share the page
    height = min(_A4_IN[1] - 1.0, 1.5 + 2.1 * rows)
    figure = Figure(figsize=(_A4_IN[0], height), layout="constrained")
    grid = figure.subplots(rows, 1, sharex=True, squeeze=False)
    title = f"Error budget left: {report.service}, {_span(report)}"
    size = _TITLE_PT * min(1.0, _TITLE_LETTERS / len(title))
    figure.suptitle(title, fontsize=size, fontweight="bold")
    for axes, one in zip(grid[:, 0], shown, strict=False):
        _panel(axes, one, report)
    hidden = len(report.accounts) - len(shown)
    more = f" {hidden} more are not drawn." if hidden else ""
    _dates(grid[-1, 0], f"Times in UTC; hatched: not known.{more} From {report.source}")
    return figure


def _panel(axes: Axes, one: Account, report: Report) -> None:
    period = report.period
    left = 0.0 if one.left is None else one.left
    lowest = min(0.0, max(_FLOOR, min(value for _, value in one.remaining)))
    axes.set_xlim(_moment(period.start), _moment(period.end))
    axes.set_ylim(min(-0.06, lowest * 1.08), 1.08)
    for start, end in _unknown(one, period.start, period.end):
        axes.axvspan(
            _moment(start), _moment(end), facecolor=_GREY, edgecolor="#9A9A9A", hatch="///", lw=0
        )
    for points in map(_thinned, _stretches(one)):
        times = [_moment(t) for t, _ in points]
        values = [max(_FLOOR, value) for _, value in points]
        gone = [value if value <= 0 else float("nan") for value in values]
        axes.fill_between(
            times, values, 0, where=[v > 0 for v in values], color=_BLUE, alpha=0.18, lw=0
        )
        axes.fill_between(times, gone, 0, color=_VERMILLION, alpha=0.35, lw=0)
        axes.plot(times, values, color=_BLUE, lw=1.6)
        axes.plot(times, gone, color=_VERMILLION, lw=2.4)
    _name_episodes(axes, one)
    axes.axhline(0, color="black", lw=0.9)
    axes.grid(axis="both", color="#D0D0D0", lw=0.5)
    axes.set_axisbelow(True)
    ticks = [0.0, 0.5, 1.0] if lowest > -0.25 else [lowest, 0.0, 1.0]
    labels = [format_percent(tick) for tick in ticks]
    if ticks[0] == _FLOOR:
        labels[0] = f"≤ {labels[0]}"
    axes.set_yticks(ticks, labels)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(_title(one), loc="left", fontsize=10)
    axes.set_title(
        f"met, {format_percent(left)} left"
        if one.is_kept
        else f"MISSED, overspent by {format_percent(-left)}",
        loc="right",
        fontsize=10,
        fontweight="bold",
        color=_BLUE if one.is_kept else _VERMILLION,
    )


def _name_episodes(axes: Axes, one: Account) -> None:
    """When the dearest ones began, and what they cost: above the curve after it, late ones below it."""
    ends = [t for t, _ in one.remaining]
    first, last = axes.get_xlim()
    for episode in one.episodes[:_NAMED]:
        if episode.spent < _WORTH_NAMING:
            continue
        until = episode.start + episode.length_s
        at = bisect_left(ends, until - SLOT_S / 2)
        after = one.remaining[min(at, len(ends) - 1)][1]
        is_late = _moment(until) > first + _ROOM_UNTIL * (last - first)
        level = after + episode.spent if is_late else after
        when = datetime.fromtimestamp(episode.start, UTC)
        axes.annotate(
            f"{when:%d %b %H:%M}, {format_duration(episode.length_s)}: {format_percent(episode.spent)}",
            (_moment(episode.start if is_late else until), max(_FLOOR, level)),
            xytext=(-5, -5) if is_late else (5, 5),
            textcoords="offset points",
            ha="right" if is_late else "left",
            va="top" if is_late else "bottom",
            fontsize=8,
        )


def _span(report: Report) -> str:
    period = report.period
    if " day" not in period.label:
        return period.label
    return f"{period.label} to {datetime.fromtimestamp(period.end, UTC):%Y-%m-%d}"


def _title(one: Account) -> str:
    objective = one.objective
    limit = f" within {format_duration(objective.threshold)}" if objective.threshold else ""
    model = f" · {one.model}" if one.model else ""
    good = "" if one.sli is None else f", {format_percent(one.sli)} good"
    return f"{objective.name}{model}\n{format_percent(objective.target)}{limit} promised{good}"


def _stretches(one: Account) -> list[list[tuple[float, float]]]:
    """The curve, cut where nothing is known; each part begins at its first slot's beginning."""
    found: list[list[tuple[float, float]]] = []
    before, last_t = 1.0, float("-inf")
    for t, left in one.remaining:
        if t - SLOT_S > last_t + SLOT_S / 2:
            found.append([(t - SLOT_S, before)])
        found[-1].append((t, left))
        before, last_t = left, t
    return found


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """As many points as can be seen, the first and the last among them."""
    step = max(1, len(points) // _MOST_POINTS)
    return [*points[:-1:step], points[-1]]


def _unknown(one: Account, start: float, end: float) -> list[tuple[float, float]]:
    edges = [start, *(t for t, _ in one.remaining), end + SLOT_S]
    gaps = [(a, b - SLOT_S) for a, b in pairwise(edges)]
    # narrower than the eye would see on a page
    return [(a, b) for a, b in gaps if b - a > max(SLOT_S, (end - start) / 500)]


def _dates(axes: Axes, label: str) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(tz=UTC, minticks=4, maxticks=10)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    formatter = ConciseDateFormatter(locator, tz=UTC)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(formatter)
    axes.set_xlabel(label, fontsize=8)


def _moment(t: float) -> float:
    """Unix seconds as matplotlib counts time: days since 1970."""
    return t / 86400
