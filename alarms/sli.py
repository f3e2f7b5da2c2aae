"""
The events of an objective in PromQL: all of them and the bad ones, per second and model.

One definition for both sources, the one that the sidecar counts by (exporter/sli.py): latencies are
those of vLLM's histograms; availability is 2xx against 5xx on the inference routes, finishes by reason
in releases that count no HTTP.

Source:
    SLO rules for rolling deploys: a series that had the threshold's bucket for a part of the window
    only would count as all bad in the rest of it, so it is left out of both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vllm_opsctl.alarms.burn import duration_text
from vllm_opsctl.alarms.prometheus.conventions import Recorded, recorded_name
from vllm_opsctl.alarms.vocabulary import NeedsTap, NotMeasured, Vocabulary
from vllm_opsctl.exporter.catalogue import catalogue
from vllm_opsctl.exporter.config import BUCKET_FAMILIES, SLI_CONCEPTS, Config, Objective
from vllm_opsctl.exporter.config_load import surrounding_bounds
from vllm_opsctl.exporter.own_series import SLI_EVENTS, SLI_THRESHOLD
from vllm_opsctl.exporter.series import labels_text
from vllm_opsctl.exporter.units import format_duration

_GOOD_OR_ERROR = 'finished_reason=~"stop|length|repetition|error"'


class NoBound(Exception):
    """A threshold that is no bucket bound, under the policy ``exact``."""


@dataclass(frozen=True, slots=True)
class Indicator:
    """
    One objective as one source measures it.

    Args:
        objective: What is promised.
        names: The source's names.
        bound: Bucket bound that stands for the threshold, seconds; None where none is needed.
    """

    objective: Objective
    names: Vocabulary
    bound: float | None

    @property
    def moved(self) -> str | None:
        """What it does that another bound than the threshold is counted at; None where it is not."""
        threshold = self.objective.threshold
        if self.bound is None or threshold is None or self.bound == threshold:
            return None
        lower, upper = (format_duration(s) for s in sorted((self.bound, threshold)))
        return (
            f"counted at the bucket bound {format_duration(self.bound)} (bucket_policy: "
            f"{self.objective.bucket_policy}): what takes between {lower} and {upper} is "
            f"{'good' if self.bound > threshold else 'bad'}"
        )

    def total(self, nominal_s: float) -> str:
        """All events per second by model over a window (nominal seconds)."""
        window = self.names.clock.text(nominal_s)
        if self.names.source == "sidecar":
            return f"sum by (model) (rate({self._own(SLI_EVENTS)}[{window}]))"
        if self.objective.sli == "availability":
            return self._availability("2xx|5xx", _GOOD_OR_ERROR, window)
        return self._latency("_count", window)

    def bad(self, nominal_s: float) -> str:
        """
        Bad events per second by model over a window (nominal seconds).

        On vLLM's page it reads the recording of all events, which must come before it.
        """
        window = self.names.clock.text(nominal_s)
        if self.names.source == "sidecar":
            events = self._own(SLI_EVENTS, outcome="bad")
            return f"sum by (model) (rate({events}[{window}]))"
        if self.objective.sli == "availability":
            # the 5xx series is born with the first 5xx; until then it must not delete the sum
            bad = self._availability("5xx", 'finished_reason="error"', window)
            return f"{bad}\nor 0 * {self._recorded_total(nominal_s)}"
        # counters born apart are extrapolated apart: a hair below zero is zero
        good = self._latency("_bucket", window)
        return f"clamp_min(\n  {self._recorded_total(nominal_s)}\n  - {good},\n  0)"

    def series(self, suffix: str = "_bucket") -> str:
        """
        Selector of the histogram's threshold bucket, or of another of its series, on vLLM's page.

        Raises:
            NotMeasured: This vLLM does not have it.
        """
        matchers = [f'le=~"{le_pattern(self.bound)}"'] if suffix == "_bucket" and self.bound else []
        if self.objective.model is not None:
            matchers.append(labels_text({"model_name": self.objective.model}))
        concept = SLI_CONCEPTS[self.objective.sli]
        return self.names.selector(concept, suffix, ", ".join(matchers))

    def _recorded_total(self, nominal_s: float) -> str:
        # the rule before it in its group: computing it again would cost as much once more
        return self.recorded("total", duration_text(nominal_s))

    def recorded(self, what: Recorded, window: str, *, ever: bool = False) -> str:
        """
        What is recorded of the objective over a window, by model.

        Args:
            what: All events, the bad ones, or their share.
            window: Nominal, such as ``5m``.
            ever: Also what was recorded before a free label was added.
        """
        name = recorded_name(what, window)
        return self.names.scope.recorded(name, self.objective.name, ever=ever)

    def threshold(self, kind: Literal["asked", "used"]) -> str:
        """The threshold that a sidecar was given for the objective, or the bound it counts at."""
        return self._own(SLI_THRESHOLD, kind=kind)

    def _own(self, series: str, **matchers: str) -> str:
        of_objective = labels_text({"objective": self.objective.name, **matchers})
        return self.names.scope.exported(series, of_objective)

    def _latency(self, suffix: str, window: str) -> str:
        # series by series, with all their labels: a pod that was replaced behind the same instance is in
        # the window too, and each half of an HA pair
        always = (
            f"sum without (le) (count_over_time({self.series()}[{window}])) "
            f">= count_over_time({self.series('_count')}[{window}])"
        )
        return _by_model(f"rate({self.series(suffix)}[{window}]) and ignoring (le) ({always})")

    def _availability(self, status: str, finishes: str, window: str) -> str:
        model = self.objective.model
        served = labels_text({"model_name": model}) if model is not None else ""
        if not self.names.has("http_requests"):
            matchers = f"{finishes}, {served}" if served else finishes
            return _by_model(
                f"rate({self.names.selector('requests_finished', '', matchers)}[{window}])"
            )
        http = self.names.selector("http_requests", "", f'status=~"{status}"')
        running = self.names.selector("requests_running", "", served)
        on = self.names.labels("replica")
        # HTTP counters have no model: a server's requests are those of the model that it serves
        return _by_model(
            f"sum by ({on}) (rate({http}[{window}])) * on ({on}) group_right () "
            f"group by ({on}, model_name) (last_over_time({running}[{window}]))"
        )


def _by_model(expression: str) -> str:
    return f'sum by (model) (label_replace({expression}, "model", "$1", "model_name", "(.*)"))'


def le_pattern(bound: float | None) -> str:
    """
    A bound as clients spell it: Python says 1.0, others and Prometheus 3 have their own way.

    >>> le_pattern(1.0), le_pattern(0.18)
    ('1(\\\\\\\\.0)?', '0\\\\\\\\.18')
    """
    text = f"{bound:g}" if bound is not None else ""
    escaped = text.replace(".", "\\\\.")
    return escaped if "." in text else f"{escaped}(\\\\.0)?"


def indicator(objective: Objective, names: Vocabulary, config: Config) -> Indicator:
    """
    How a source measures an objective.

    Raises:
        NotMeasured: It does not; the message says what would.
        NoBound: The threshold is no bucket bound and may not be moved.
    """
    if objective.target >= 1:
        raise NotMeasured("a target of 100 % has no error budget; write 99.9% or less")
    if objective.sli == "availability":
        return Indicator(objective, names, None)
    concept = SLI_CONCEPTS[objective.sli]
    has_tap = config.exporter.tap.dir is not None
    if objective.sli == "time_to_first_token_cached" and not (
        names.source == "sidecar" and has_tap
    ):
        raise NeedsTap(
            "the TTFT of returning users is measured by the sidecar with the tap alone; "
            "set exporter.tap.dir and build with --from sidecar (docs/tap.md)"
        )
    assert objective.threshold is not None
    if names.source == "sidecar" and has_tap:
        return Indicator(objective, names, objective.threshold)
    names.selector(concept)
    return Indicator(objective, names, _bound(objective, concept, names, config))


def bounds_of(concept: str, names: Vocabulary, config: Config) -> tuple[float, ...]:
    """The finite bucket bounds of a histogram: those given to vLLM, else the release's own."""
    given = config.alarms.histogram_buckets or {}
    family = family_of(concept)
    return given[family] if family in given else catalogue()[concept].bounds_of(names.version)


def family_of(concept: str) -> str:
    """The family of --custom-histogram-buckets that a concept's histogram belongs to."""
    return next(family for family, members in BUCKET_FAMILIES.items() if concept in members)


def _bound(objective: Objective, concept: str, names: Vocabulary, config: Config) -> float:
    threshold = objective.threshold
    assert threshold is not None
    lower, upper = surrounding_bounds(threshold, bounds_of(concept, names, config))
    if lower == threshold:
        return threshold
    around = " and ".join(f"{bound:g} s" for bound in (lower, upper) if bound is not None)
    if objective.bucket_policy == "exact":
        raise NoBound(f"{threshold:g} s is no bucket bound; the nearest are {around}")
    if objective.bucket_policy == "stricter":
        if lower is None:
            raise NoBound(f"{threshold:g} s lies below the first bound, {upper:g} s")
        return lower
    if names.source == "sidecar":
        raise NoBound(
            f"the sidecar counts at the bound below ({around} are the nearest); bucket_policy: looser "
            "is for --from vllm"
        )
    if upper is None:
        raise NoBound(f"{threshold:g} s lies above the last bound, {lower:g} s")
    return upper


def buckets_flag(objectives: Sequence[Objective], names: Vocabulary, config: Config) -> str | None:
    """
    The flag that gives vLLM every missing threshold as a bucket bound, all objectives merged.

    A family's list replaces vLLM's own, so each is whole.

    Returns:
        None when no bound is missing.
    """
    families: dict[str, set[float]] = {}
    for objective in objectives:
        concept = SLI_CONCEPTS.get(objective.sli)
        if concept is None or objective.threshold is None:
            continue
        if objective.sli == "time_to_first_token_cached":
            continue
        bounds = bounds_of(concept, names, config)
        if surrounding_bounds(objective.threshold, bounds)[0] != objective.threshold:
            families.setdefault(family_of(concept), set(bounds)).add(objective.threshold)
    if not families:
        return None
    given = {k: set(v) for k, v in (config.alarms.histogram_buckets or {}).items()}
    merged = {
        family: "[" + ",".join(f"{bound:g}" for bound in sorted(bounds)) + "]"
        for family, bounds in sorted({**given, **families}.items())
    }
    text = ",".join(f'"{family}":{bounds}' for family, bounds in merged.items())
    return f"--custom-histogram-buckets '{{{text}}}'"
