"""
What is wrong with objectives: those that cannot be measured, cannot page, or ask too much of the traffic.

Each finding says what is wrong and what to do. A server that runs is asked through its Prometheus;
without one, a number of requests per day is enough for the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

from vllm_opsctl.alarms.burn import (
    PERIOD_S,
    ROWS,
    budget_of,
    duration_text,
    time_to_page,
    unreachable,
)
from vllm_opsctl.alarms.instant import instant
from vllm_opsctl.alarms.lint_finding import Finding
from vllm_opsctl.alarms.lint_identity import identity_findings
from vllm_opsctl.alarms.prometheus.conventions import Source
from vllm_opsctl.alarms.rules import how_to_get_bounds
from vllm_opsctl.alarms.sli import Indicator, NoBound, indicator
from vllm_opsctl.alarms.vocabulary import NeedsTap, NotMeasured, vocabulary_of
from vllm_opsctl.exporter.catalogue import Version
from vllm_opsctl.exporter.config import Config, Objective
from vllm_opsctl.exporter.own_series import SLI_EVENTS
from vllm_opsctl.exporter.units import format_number, format_percent

DAY_S = 86400.0

_PAGING = [row for row in ROWS if row.notify == "page"]


def lint(
    config: Config,
    source: Source,
    *,
    version: Version | None = None,
    requests_per_day: float | None = None,
    prometheus: str | None = None,
) -> list[Finding]:
    """
    Look for objectives that do not do what they promise.

    Args:
        config: The objectives.
        source: Where the rules would read.
        version: Release of vLLM with the source ``vllm``; None for the newest known.
        requests_per_day: Traffic of the smallest model, if it is known.
        prometheus: Base URL of the Prometheus that would evaluate the rules.

    Raises:
        SourceError: The Prometheus does not answer.
    """
    names = vocabulary_of(config, source, version)
    found = list(identity_findings(config, names, prometheus))
    is_bound_missing = False
    for index, objective in enumerate(config.objectives):
        where = f"objectives[{index}] ({objective.name})"
        try:
            one = indicator(objective, names, config)
        except NeedsTap as problem:
            found.append(Finding(where, str(problem), is_error=False, is_measured=False))
            continue
        except NotMeasured as problem:
            found.append(Finding(where, str(problem)))
            continue
        except NoBound as problem:
            is_bound_missing = True
            found.append(Finding(f"{where}.threshold", str(problem)))
            continue
        if one.moved is not None:
            found.append(Finding(f"{where}.threshold", one.moved, is_error=False))
        found += _rows(where, objective)
        if prometheus is not None:
            found += _measured(where, one, prometheus)
        elif requests_per_day is not None:
            found += _traffic(where, objective, requests_per_day)
    if is_bound_missing:
        found += [
            Finding("alarms", line.removeprefix("alarms: "))
            for line in how_to_get_bounds(config, names)
        ]
    return found


def _rows(where: str, objective: Objective) -> Iterator[Finding]:
    for row in ROWS:
        reason = unreachable(row, objective.target)
        if reason is not None:
            windows = f"{duration_text(row.short_s)}/{duration_text(row.long_s)}"
            yield Finding(
                f"{where}.target", f"no {row.burn:g}x row ({windows}): {reason}", is_error=False
            )


def _traffic(where: str, objective: Objective, per_day: float, of: str = "") -> Iterator[Finding]:
    """What so few events cannot show; one gap between tokens is no request, those are many more."""
    if objective.sli == "inter_token_latency":
        return
    budget = budget_of(objective.target)
    shown = f"{format_number(per_day)} events a day{of}"
    pages = time_to_page(objective.target, 1.0, requests_per_s=per_day / DAY_S)
    if objective.notify == "page" and pages is None:
        need = min(row.min_bad * DAY_S / row.long_s for row in _PAGING)
        yield Finding(
            where,
            f"{shown} are too few: not even a total outage pages, for {_PAGING[-1].min_bad} bad events "
            f"must come within {duration_text(_PAGING[-1].long_s)}; it takes {need:g} a day. Send a "
            "synthetic request every minute, or set notify: ticket",
        )
    allowed = per_day * PERIOD_S / DAY_S * budget
    if allowed < 1:
        honest = 1 - 1 / max(per_day * PERIOD_S / DAY_S, 1)
        yield Finding(
            f"{where}.target",
            f"{shown} are too few for {format_percent(objective.target)}: 30 days allow "
            f"{allowed:.2g} bad events, so one failure spends more than the whole budget; "
            f"{format_percent(honest)} is the most that so many can show",
        )


def _measured(where: str, one: Indicator, prometheus: str) -> Iterator[Finding]:
    """What the series say that there are."""
    rows = instant(prometheus, one.total(DAY_S))
    if not rows:
        yield Finding(where, _nothing(one, prometheus))
        return
    for labels, per_s in rows:
        yield from _traffic(
            where, one.objective, per_s * DAY_S, f" of {labels.get('model', 'a model')}"
        )


def _served(one: Indicator, prometheus: str) -> list[str]:
    """Every model that runs there."""
    label = one.names.labels("model")
    query = f"group by ({label}) ({one.names.selector('requests_running', '', '')})"
    return sorted(labels[label] for labels, _ in instant(prometheus, query) if label in labels)


def _nothing(one: Indicator, prometheus: str) -> str:
    model = one.objective.model
    if model is not None and (served := _served(one, prometheus)):
        return (
            f"{prometheus} knows nothing of {model}, but of {', '.join(served)}: vLLM counts requests to "
            "LoRA adapters and aliases under its first served name, so an objective of their own cannot "
            "be measured; name one of these, or none"
        )
    if one.names.source == "sidecar":
        return (
            f"{prometheus} has no {SLI_EVENTS} of it within a day; scrape the sidecar, and give "
            "it the same objectives"
        )
    if one.objective.sli == "availability":
        return f"{prometheus} has seen no request to an inference route within a day"
    counts = instant(prometheus, f"count({one.series('_count')})")
    if not counts:
        return f"{prometheus} has no {one.series('_count')}; scrape vLLM's /metrics"
    return (
        f"{prometheus} has {counts[0][1]:g} histograms, but none with the bound {one.bound:g} s in all "
        "that was scraped within a day; give vLLM the bound with --custom-histogram-buckets"
    )
