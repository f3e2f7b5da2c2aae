"""
Confidence: what a score has meant on recordings, the data of ``calibration.yaml``.

Looks at one recording are no independent trials, so a recording counts once for every root and bin
that it ever showed; (right + 1) / (all + 2) keeps few trials from sounding certain (Laplace's rule
of succession).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files

from vllm_opsctl.exporter.yaml_text import read_yaml

EDGES = (0.6, 0.7, 0.8, 0.9)
"""Lower bounds of the bins of scores."""

Table = Mapping[str, Sequence[float]]
"""``compared`` and ``alone`` (nothing known of before) to one confidence a bin."""


@functools.cache
def shipped_table() -> Table:
    """The table that comes with the package."""
    text = files("vllm_opsctl.runbooks").joinpath("calibration.yaml").read_text(encoding="utf-8")
    table: Table = read_yaml(text)
    return table


def calibrated(score: float, *, is_compared: bool) -> float:
    """
    The confidence of a score.

    Args:
        score: 0.6 to 0.99.
        is_compared: An earlier window was there to compare with, or none is needed.
    """
    return shipped_table()["compared" if is_compared else "alone"][bin_of(score)]


def bin_of(score: float) -> int:
    """Which bin a score falls into."""
    return max(index for index, edge in enumerate(EDGES) if index == 0 or score >= edge)


def fit(trials: Iterable[tuple[float, bool]]) -> list[float]:
    """
    Confidences from trials.

    Args:
        trials: Score and whether it was right, one for each recording, root and bin.

    Returns:
        One confidence a bin; a higher score never gets a lower one.
    """
    right, total = [0] * len(EDGES), [0] * len(EDGES)
    for score, is_right in trials:
        right[bin_of(score)] += is_right
        total[bin_of(score)] += 1
    found: list[float] = []
    for hits, count in zip(right, total, strict=True):
        found.append(max([(hits + 1) / (count + 2), *found[-1:]]))
    return [round(value, 2) for value in found]
