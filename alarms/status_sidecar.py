"""
Asks a sidecar: what it counted since its start, and how that went within its flight recorder's window.

Budgets come from its own counters; burn rates from the pages that it recorded, counted again as it
counts them (exporter/sli.py), so that nobody has to wait for a second look.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from vllm_opsctl.alarms.burn import PERIOD_S, WINDOWS_S
from vllm_opsctl.alarms.status import Standing, State, Status, standing_of, worst_first
from vllm_opsctl.alarms.status_timeline import Count, Known
from vllm_opsctl.errors import BadPage, UsageError
from vllm_opsctl.exporter.config import Config, Objective, clean_url
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.own_series import SLI_EVENTS, SLI_TARGET, SLI_THRESHOLD
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.sli import SliCounter
from vllm_opsctl.exporter.sources.http import get, new_session
from vllm_opsctl.exporter.sources.sidecar import SidecarSource

_TIMEOUT_S = 30.0
_MAX_BYTES = 2**27

_STEP_S = 15.0
"""Pages so far apart are enough for windows from five minutes on; to read one costs milliseconds."""

_RECENT_S = 60.0
"""The newest pages are all read, for a sidecar that has just started has no others."""

_CLOCK_SLACK_S = 30.0
"""The sidecar's clock may run ahead of this machine's."""

_Key = tuple[str, str]
"""Objective's name and model."""


@dataclass(frozen=True, slots=True)
class _Page:
    """What a sidecar's /metrics says of objectives."""

    since: float
    counts: Mapping[_Key, Count]
    targets: Mapping[str, float]
    thresholds: Mapping[str, float]


@dataclass(slots=True)
class _Windows:
    """Events by objective and model in each window, of all targets together."""

    counts: dict[tuple[_Key, float], Count] = field(default_factory=dict)
    known_s: dict[tuple[_Key, float], float] = field(default_factory=dict)

    def add(self, observations: Sequence[Observation], objectives: Sequence[Objective]) -> None:
        """Count the pages of one target."""
        counter = SliCounter(objectives)
        steps: list[tuple[float, float, dict[_Key, Count]]] = []
        before: dict[_Key, Count] = {}
        last_t: float | None = None
        for observation in observations:
            if observation.kind != "metrics":
                continue
            try:
                page = read_page(observation.text, t=observation.t, target=observation.target)
            except BadPage:
                continue
            counter.add(page)
            now = {key: Count(e.good + e.bad, e.bad) for key, e in counter.events.items()}
            if last_t is not None:
                steps.append((last_t, observation.t, _grown(before, now)))
            before, last_t = now, observation.t
        if last_t is not None:
            for window_s in WINDOWS_S:
                self._sum(steps, window_s, last_t)

    def _sum(
        self, steps: Sequence[tuple[float, float, dict[_Key, Count]]], window_s: float, end: float
    ) -> None:
        known: dict[_Key, float] = {}
        # half of the oldest step must lie within the window
        for start, until, grown in steps:
            if (start + until) / 2 < end - window_s:
                continue
            for key, count in grown.items():
                place = (key, window_s)
                self.counts[place] = self.counts.get(place, Count()) + count
                known[key] = known.get(key, 0.0) + until - start
        for key, seconds in known.items():
            place = (key, window_s)
            # replicas watch the same time
            self.known_s[place] = max(self.known_s.get(place, 0.0), min(seconds, window_s))

    def of(self, key: _Key) -> dict[float, Known]:
        """What is known of each window."""
        return {
            window_s: Known(
                self.counts.get((key, window_s), Count()), self.known_s.get((key, window_s), 0.0)
            )
            for window_s in WINDOWS_S
        }


def status_from_sidecar(url: str, config: Config) -> Status:
    """
    Where the objectives stand by what a sidecar counted.

    Args:
        url: The sidecar's base URL.
        config: The objectives; it should count the same.

    Raises:
        UsageError: No URL, or the sidecar counts none of the objectives.
        SourceError: It does not answer, or is no sidecar.
    """
    try:
        base = clean_url(url)
    except ValueError as problem:
        raise UsageError(f"--sidecar: {problem}") from None
    now = time.time()
    page = _read(base)
    objectives = [o for o in config.objectives if o.target < 1]
    counted = [o for o in objectives if o.name in page.targets]
    if not counted:
        has = ", ".join(page.targets) or "none"
        raise UsageError(
            f"--sidecar {base}: it counts none of the configured objectives; it has {has}: give opsctl "
            "the sidecar's configuration (--config)"
        )
    windows = _windows(base, counted, now)
    known_s = max(0.0, now - page.since)
    standings: list[Standing] = []
    for objective in config.objectives:
        found = {model: n for (name, model), n in page.counts.items() if name == objective.name}
        why = _why_not(objective, page, found)
        if why is not None:
            state, reason = why
            standings.append(Standing(objective=objective, model=None, state=state, reason=reason))
            continue
        for model, count in found.items():
            standings.append(
                standing_of(
                    objective,
                    model,
                    Known(count, known_s),
                    windows.of((objective.name, model)),
                    since=page.since,
                )
            )
    notes = list(_differences(base, counted, page))
    if known_s > PERIOD_S:
        notes.append(
            f"{base} counts since its start, which is more than the 30 days of a budget; "
            "--prometheus URL knows the last 30"
        )
    return Status(
        now, f"sidecar {base}", worst_first(standings), is_since_start=True, notes=tuple(notes)
    )


def _why_not(
    objective: Objective, page: _Page, found: Mapping[str, Count]
) -> tuple[State, str] | None:
    if objective.target >= 1:
        return "not measured", "a target of 100 % has no error budget; write 99.9% or less"
    if objective.name not in page.targets:
        return "no data", "the sidecar does not count it; give it the same configuration"
    if not found:
        return "no data", "the sidecar has seen no engine of it yet"
    if objective.threshold is not None and objective.name not in page.thresholds:
        return "not measured", "no server that it watches has its histogram (docs/tap.md)"
    return None


def _differences(base: str, objectives: Iterable[Objective], page: _Page) -> Iterator[str]:
    for objective in objectives:
        theirs = page.targets[objective.name]
        if theirs != objective.target:
            yield (
                f"{base} has {objective.name} with a target of {theirs:g}, the configuration with "
                f"{objective.target:g}; the configuration's is used"
            )
        used = page.thresholds.get(objective.name)
        if used is not None and used != objective.threshold:
            yield (
                f"{base} counts {objective.name} at {used:g} s, the configuration asks for "
                f"{objective.threshold or 0:g} s"
            )


def _read(base: str) -> _Page:
    answer = get(new_session(), f"{base}/metrics", timeout_s=_TIMEOUT_S, max_bytes=_MAX_BYTES)
    counts: dict[_Key, Count] = {}
    targets: dict[str, float] = {}
    thresholds: dict[str, float] = {}
    since: float | None = None
    try:
        if answer.status != 200:
            raise ValueError(f"HTTP {answer.status}")
        for family in text_string_to_metric_families(answer.body.decode(errors="replace")):
            for sample in family.samples:
                labels, value = sample.labels, float(sample.value)
                if sample.name == SLI_EVENTS:
                    key = (labels["objective"], plain(labels["model"], MAX_NAME_CHARS))
                    bad = value if labels["outcome"] == "bad" else 0.0
                    counts[key] = counts.get(key, Count()) + Count(value, bad)
                elif sample.name == SLI_TARGET:
                    targets[labels["objective"]] = value
                elif sample.name == SLI_THRESHOLD and labels["kind"] == "used":
                    thresholds[labels["objective"]] = value
                elif sample.name == "opsctl_process_start_time_seconds":
                    since = value
        if since is None or not targets:
            raise ValueError("no objectives on its /metrics")
    except (ValueError, KeyError) as problem:
        why = plain(str(problem), MAX_NAME_CHARS)
        raise BadPage(
            "not-a-sidecar", f"--sidecar {base}: no sidecar answers there ({why}); its port is 9836"
        ) from problem
    return _Page(since, counts, targets, thresholds)


def _windows(base: str, objectives: Sequence[Objective], now: float) -> _Windows:
    source = SidecarSource(base)
    windows = _Windows()
    end = now + _CLOCK_SLACK_S
    span = {"start": now - max(WINDOWS_S), "full_from": now - _RECENT_S, "step_s": _STEP_S}
    for target in source.targets():
        windows.add(source.observations(target.name, end=end, **span), objectives)
    return windows


def _grown(before: Mapping[_Key, Count], now: Mapping[_Key, Count]) -> dict[_Key, Count]:
    grown: dict[_Key, Count] = {}
    for key, count in now.items():
        old = before.get(key, Count())
        grown[key] = Count(count.total - old.total, count.bad - old.bad)
    return grown
