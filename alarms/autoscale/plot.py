"""
A trial as a picture: load, replicas, and who was served in time, over told time; PNG or SVG.

matplotlib is imported by these functions alone; it comes with ``vllm-opsctl[report]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllm_opsctl.alarms.autoscale.trial import Trial
from vllm_opsctl.alarms.report_plot import save_figure
from vllm_opsctl.exporter.units import format_duration, format_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _VERMILLION, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#9A9A9A"
"""
Told apart by people with any colour vision, and by lightness.

Source:
    Okabe and Ito, Color Universal Design (https://jfly.uni-koeln.de/color/).
"""

_SIZE_IN = (8.27, 7.2)
"""As wide as A4."""


def write_trial(trial: Trial, recording: str, path: Path) -> None:
    """
    Draw a trial; the file is there as a whole or not at all.

    Args:
        trial: What to draw.
        recording: Name of the recording.
        path: Where; its suffix is the format.

    Raises:
        UsageError: It cannot be written.
    """
    save_figure(lambda: _figure(trial, recording), path, "--out")


def _figure(trial: Trial, recording: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_IN, layout="constrained")
    load, replicas, shares = figure.subplots(3, 1, sharex=True)
    figure.suptitle(
        f"{trial.service}, {trial.resource.name}: {recording}", fontsize=13, fontweight="bold"
    )
    _load(load, trial)
    _replicas(replicas, trial)
    _shares(shares, trial)
    for axes in (load, replicas, shares):
        axes.grid(axis="both", color="#E0E0E0", lw=0.5)
        axes.set_axisbelow(True)
        axes.set_xlim(0, len(trial.scaled.minutes))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    per_s = format_duration(trial.scenario.told_per_s)
    told = f"; 1 s of the recording is told as {per_s}" if trial.scale != 1 else ""
    shares.set_xlabel(f"minutes{told}", fontsize=9)
    return figure


def _edges(trial: Trial) -> list[float]:
    return [float(minute) for minute in range(len(trial.scaled.minutes) + 1)]


def _load(axes: Axes, trial: Trial) -> None:
    minutes = trial.scaled.minutes
    rates = [float("nan") if one.arrivals is None else one.arrivals for one in minutes]
    axes.stairs(rates, _edges(trial), color=_BLUE, lw=1.6, label="arrivals")
    each = trial.scenario.load.server.most_per_s
    able = [one.ready * each for one in minutes]
    axes.stairs(
        able, _edges(trial), baseline=None, color=_GREEN, lw=1.2, ls="--", label="can be finished"
    )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("requests/s")
    axes.set_title("Load", loc="left", fontsize=10)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2, fontsize=8, frameon=False)


def _replicas(axes: Axes, trial: Trial) -> None:
    minutes, edges = trial.scaled.minutes, _edges(trial)
    desired = [one.desired for one in minutes]
    ready = [one.ready for one in minutes]
    axes.stairs(desired, edges, fill=True, color=_GREY, alpha=0.45, label="paid for")
    axes.stairs(ready, edges, fill=True, color=_BLUE, alpha=0.75, label="serve")
    axes.axhline(trial.policy.most, color=_VERMILLION, lw=0.9, ls=":")
    axes.set_ylim(0, trial.policy.most * 1.12)
    step = max(1, trial.policy.most // 5)
    axes.set_yticks(range(0, trial.policy.most + 1, step))
    axes.set_ylabel("replicas")
    hours = f"{trial.scaled.replica_hours:.2f} replica-hours"
    always = f"{trial.fewest.replica_hours:.2f} to {trial.most.replica_hours:.2f} at a fixed size"
    axes.set_title(f"Replicas: {hours}, {always}", loc="left", fontsize=10)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2, fontsize=8, frameon=False)


def _shares(axes: Axes, trial: Trial) -> None:
    edges = _edges(trial)
    lines = (
        (trial.fewest, _GREY, "-", 1.0, f"always {trial.fewest_replicas}"),
        (trial.most, _GREEN, "--", 1.2, f"always {trial.policy.most}"),
        (trial.scaled, _BLUE, "-", 2.0, "policy"),
    )
    for run, colour, style, width, name in lines:
        shares = [float("nan") if one.share is None else 100 * one.share for one in run.minutes]
        total = "-" if run.share is None else format_percent(run.share)
        axes.stairs(
            shares,
            edges,
            baseline=None,
            color=colour,
            ls=style,
            lw=width,
            label=f"{name}: {total}",
        )
    axes.axhline(100 * trial.objective.target, color=_VERMILLION, lw=0.9, ls=":")
    axes.set_ylim(-4, 106)
    axes.set_ylabel("percent of a minute's arrivals")
    what = "First token" if trial.objective.sli == "time_to_first_token" else "Slot"
    limit, promised = format_duration(trial.limit_s), format_percent(trial.objective.target)
    axes.set_title(f"{what} within {limit}, {promised} promised", loc="left", fontsize=10)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3, fontsize=8, frameon=False)
