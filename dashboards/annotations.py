"""A verdict as annotations: what was found, where on the time axis, once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_opsctl.dashboards.grafana_api import GrafanaApi

VERDICT_TAG = "opsctl-verdict"
"""What boards ask for, with the service."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """
    One root cause of one target.

    Args:
        text: What is shown.
        tags: What boards ask for it by.
        start: When it began, Unix seconds.
        end: Until when it was seen, Unix seconds.
    """

    text: str
    tags: tuple[str, ...]
    start: float
    end: float


def annotations_of(verdict: Mapping[str, Any], service: str) -> Iterator[Annotation]:
    """
    The root causes of a verdict.

    Args:
        verdict: As ``opsctl diagnose -o json`` prints it.
        service: Name of the fleet.

    Raises:
        KeyError, TypeError: It is no verdict.
    """
    for target in verdict["targets"]:
        window = target["window"]
        for cause in target["causes"]:
            if cause["role"] == "root":
                start = window.get("onset") or window["start"]
                yield Annotation(
                    f"{cause['id']} on {target['target']} ({cause['severity']}, "
                    f"{cause['confidence']:.0%}): {cause['title']}",
                    (VERDICT_TAG, service, cause["id"]),
                    float(start),
                    float(window["end"]),
                )


def annotate(grafana: GrafanaApi, one: Annotation) -> bool:
    """
    Write an annotation, unless it is there: the same cause on the same target, at that time.

    Returns:
        Whether it was written.

    Raises:
        SourceError: Grafana refuses.
    """
    subject = one.text.partition(" (")[0]
    for there in grafana.annotations(one.tags, one.start, one.end):
        if str(there.get("text", "")).startswith(f"{subject} ("):
            return False
    grafana.annotate(one.text, one.tags, one.start, one.end)
    return True
