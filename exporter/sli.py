"""
SLIs: good and bad events of the configured objectives, counted from pages.

Counters start at 0 when the sidecar starts and only grow; what an engine counted before is not
claimed. A threshold that is none of the histogram's bounds is counted at the next lower bound, so an
objective is never flattered; the threshold used is reported beside the one asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_opsctl.exporter.config import SLI_CONCEPTS, Config, Objective
from vllm_opsctl.exporter.config_load import surrounding_bounds
from vllm_opsctl.exporter.engine import EngineKey, EngineSample, Histogram, PageSample
from vllm_opsctl.exporter.limits import MAX_REMEMBERED
from vllm_opsctl.exporter.window import is_other_server, is_reset

_BAD_FINISHES = ("requests_finished{error}",)
_GOOD_FINISHES = tuple(f"requests_finished{{{r}}}" for r in ("stop", "length", "repetition"))


@dataclass(slots=True)
class Events:
    """Events of one objective on one target so far."""

    good: float = 0.0
    bad: float = 0.0
    threshold_used: float | None = None


@dataclass(slots=True)
class SliCounter:
    """
    Counts the events of one target.

    Args:
        objectives: What to count.
    """

    objectives: Sequence[Objective]
    events: dict[tuple[str, str], Events] = field(default_factory=dict)
    """By objective's name and model."""
    _last: dict[EngineKey, EngineSample] = field(default_factory=dict)
    """The newest stand last, here and in the next."""
    _models: dict[str, None] = field(default_factory=dict)

    def add(self, page: PageSample) -> None:
        """Count what happened since the page before."""
        page_counted: set[str] = set()
        for sample in page.engines:
            before = self._last.get(sample.key)
            if before is not None and is_other_server(before, sample):
                # several servers behind one URL: their difference is nobody's events
                continue
            restarted = before is None or is_reset(before, sample)
            for objective in self.objectives:
                if objective.model not in (None, sample.key.model):
                    continue
                if not _is_measured(objective, sample):
                    continue
                events = self.events.setdefault((objective.name, sample.key.model), Events())
                if objective.sli == "availability":
                    # HTTP counters belong to the page: count them with its first engine only
                    first = objective.name not in page_counted
                    page_counted.add(objective.name)
                    self._availability(events, None if restarted else before, sample, first=first)
                else:
                    self._latency(events, objective, None if restarted else before, sample)
        for sample in page.engines:
            self._last.pop(sample.key, None)
            self._last[sample.key] = sample
            self._models.pop(sample.key.model, None)
            self._models[sample.key.model] = None
        self._forget()

    def _forget(self) -> None:
        """Drop what was seen longest ago: whoever invents names must not fill our memory with them."""
        while len(self._last) > MAX_REMEMBERED:
            del self._last[next(iter(self._last))]
        while len(self._models) > MAX_REMEMBERED:
            oldest = next(iter(self._models))
            del self._models[oldest]
            for objective in self.objectives:
                self.events.pop((objective.name, oldest), None)

    def _latency(
        self,
        events: Events,
        objective: Objective,
        before: EngineSample | None,
        sample: EngineSample,
    ) -> None:
        concept = SLI_CONCEPTS[objective.sli]
        now = sample.histograms.get(concept)
        if now is None or objective.threshold is None:
            return
        used, _ = surrounding_bounds(objective.threshold, now.bounds[:-1])
        events.threshold_used = used
        increase = self._since(sample, concept, before, now)
        if increase is None:
            return
        good = increase.at_or_below(used) if used is not None else 0.0
        events.good += good or 0.0
        events.bad += increase.count - (good or 0.0)

    def _since(
        self, sample: EngineSample, concept: str, before: EngineSample | None, now: Histogram
    ) -> Histogram | None:
        if before is None:
            # first sight of an engine claims nothing; a restarted one counts from its start
            return now if sample.key in self._last else None
        old = before.histograms.get(concept)
        return now.minus(old) if old is not None else now

    def _availability(
        self, events: Events, before: EngineSample | None, sample: EngineSample, *, first: bool
    ) -> None:
        if before is None and sample.key not in self._last:
            return
        if sample.total("http_requests") is not None:
            if first:
                events.bad += _grew(before, sample, ("http_requests{5xx}",))
                events.good += _grew(before, sample, ("http_requests{2xx}",))
            return
        events.bad += _grew(before, sample, _BAD_FINISHES)
        events.good += _grew(before, sample, _GOOD_FINISHES)


def _is_measured(objective: Objective, sample: EngineSample) -> bool:
    """Whether the page can tell; an objective that it cannot has no events, which is not none of them."""
    return objective.sli == "availability" or SLI_CONCEPTS[objective.sli] in sample.histograms


def _grew(before: EngineSample | None, sample: EngineSample, keys: Sequence[str]) -> float:
    old = before.counters if before is not None else {}
    return sum(max(0.0, sample.counters.get(key, 0.0) - old.get(key, 0.0)) for key in keys)


def measured(config: Config) -> list[Objective]:
    """
    The objectives whose events the sidecar counts.

    TTFT of returning users is the tap's alone.
    """
    has_tap = config.exporter.tap.dir is not None
    return [one for one in config.objectives if has_tap or one.sli != "time_to_first_token_cached"]
