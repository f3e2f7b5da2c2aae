"""
A fleet on paper: what replicas would export minute by minute, for the generated unit tests of rules.

One description gives the series of either source, so that both are tested by the same incidents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from vllm_opsctl.alarms.prometheus.conventions import Scope
from vllm_opsctl.alarms.sli import Indicator
from vllm_opsctl.alarms.vocabulary import Vocabulary
from vllm_opsctl.exporter.config import SLI_CONCEPTS
from vllm_opsctl.exporter.own_series import BUILD_INFO, SLI_EVENTS, SLI_THRESHOLD, TARGET_UP
from vllm_opsctl.exporter.series import labels_text

MODEL = "org/chat-8b"
REPLICAS = ("chat-0:8000", "chat-1:8000")

_ABSENT = "_"
_STALE = "stale"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """
    What a replica does in one minute.

    Args:
        up: It can be read.
        sidecar: So can the sidecar that reads it.
        requests: Requests that finish, per minute.
        bad_share: Share of them that is bad, in every objective.
        errors_once: 5xx in the first minute of the state.
        steps: Engine steps per minute.
        hit_ratio: Prefix-cache hits of the queried tokens.
        acceptance: Accepted tokens of those that speculative decoding drafted.
        has_bound: The histograms have the objectives' bounds.
        restart_every: Minutes between restarts; 0 for none.
    """

    up: float = 1
    sidecar: float = 1
    requests: float = 120
    bad_share: float = 0.0
    errors_once: float = 0
    requests_running: float | str = 30
    requests_waiting: float | str = 0
    kv_cache_usage_ratio: float | str = 0.6
    steps: float = 1800
    preemptions: float = 0
    hit_ratio: float = 0.5
    acceptance: float = 0.8
    rejections: float = 0
    corrupted: float = 0
    transfer_failures: float = 0
    process_open_fds: float = 80
    has_bound: float = 1
    restart_every: float = 0

    def changed(self, changes: Mapping[str, float | str]) -> State:
        """The same, but for some fields."""
        return replace(self, **changes)  # type: ignore[arg-type]


HEALTHY = State()
IDLE = State(requests=0, requests_running=0, kv_cache_usage_ratio=0.0, steps=0, acceptance=0)


@dataclass(frozen=True, slots=True)
class Phase:
    """
    A state for some minutes.

    Args:
        minutes: How many.
        state: What the replica does in each.
        is_new: Its process was started anew before.
        is_sidecar_new: So was the sidecar, whose counters are its own.
    """

    minutes: int
    state: State
    is_new: bool = False
    is_sidecar_new: bool = False


_Counters = dict[str, float]


@dataclass(slots=True)
class _Replica:
    """Counters of one replica as they add up."""

    totals: _Counters = field(default_factory=dict)
    counted: _Counters = field(default_factory=dict)
    """By the sidecar; they outlive the process that they are of."""
    started: float = 1000.0
    has_failed: bool = False

    def restart(self, minute: int) -> None:
        self.totals = {}
        self.started = 1000.0 + 60 * minute
        self.has_failed = False


def _add(counters: _Counters, name: str, value: float) -> float:
    counters[name] = counters.get(name, 0.0) + value
    return counters[name]


def series_of(
    phases: Mapping[str, Sequence[Phase]],
    names: Vocabulary,
    indicators: Sequence[Indicator],
    model: str = MODEL,
    labels: Mapping[str, str] | None = None,
) -> list[dict[str, str]]:
    """
    The series of a fleet, in promtool's notation, one sample a minute from minute 0 on.

    Args:
        phases: By replica; every replica as many minutes.
        names: Of the source whose series are wanted.
        indicators: The objectives that are measured.
        model: What every replica serves.
        labels: What every series carries beside the labels of its replica.
    """
    # a series has labels, not matchers
    names = replace(names, scope=Scope())
    found: dict[str, list[str]] = {}
    for name, course in phases.items():
        page = _Page(name, names, model, indicators, labels or {})
        mine: set[str] = set()
        minute = 0
        for phase in course:
            if phase.is_new:
                page.replica.restart(minute)
            if phase.is_sidecar_new:
                page.replica.counted = {}
            for index in range(phase.minutes):
                if phase.state.restart_every and index % phase.state.restart_every == 0:
                    page.replica.restart(minute)
                values = dict(page.read(phase.state, index))
                mine |= {key for key in values if key not in found}
                for key in mine:
                    _put(found.setdefault(key, []), minute, values.get(key))
                minute += 1
    return [{"series": key, "values": compressed(values)} for key, values in sorted(found.items())]


def _put(values: list[str], minute: int, value: float | None) -> None:
    values.extend([_ABSENT] * (minute - len(values)))
    if value is not None:
        values.append(f"{value:.10g}")
    else:
        # what was there is marked stale once, as Prometheus does when a target or series is gone
        values.append(_STALE if values and values[-1] not in (_ABSENT, _STALE) else _ABSENT)


_PAGE_SCOPED = {
    "http_requests",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
    "admission_rejections",
}


_EXAMPLE = {
    'handler=~"/(v1|v2|inference|cohere|invocations).*", method="POST"': (
        'handler="/v1/chat/completions",method="POST"'
    )
}
"""What a matcher of the catalogue matches."""

_Key = tuple[str, str, str]
"""Concept, suffix and further labels."""


@dataclass(frozen=True)
class _Page:
    """What Prometheus scrapes of one replica, from the sidecar or from vLLM itself."""

    name: str
    names: Vocabulary
    model: str
    indicators: Sequence[Indicator]
    labels: Mapping[str, str]
    replica: _Replica = field(default_factory=_Replica)
    keys: dict[_Key, str | None] = field(default_factory=dict)
    """Series of concepts that were read; None for what the source does not have."""

    @cached_property
    def _labels(self) -> str:
        if self.names.source == "sidecar":
            return labels_text({**self.labels, "target": self.name})
        return labels_text({"job": "vllm", **self.labels, "instance": self.name})

    @cached_property
    def _served(self) -> str:
        label = "model" if self.names.source == "sidecar" else "model_name"
        return labels_text({label: self.model})

    @cached_property
    def _engine(self) -> str:
        return f'{self._labels},{self._served},engine="0"'

    def read(self, state: State, index: int) -> Iterator[tuple[str, float]]:
        """Every series in one minute, with its value; ``index`` counts the state's minutes."""
        is_vllm = self.names.source == "vllm"
        if not is_vllm:
            if not state.sidecar:
                return
            yield f"{BUILD_INFO}{{{labels_text(self.labels)}}}", 1
        yield f"{'up' if is_vllm else TARGET_UP}{{{self._labels}}}", float(state.up > 0)
        for one in self.indicators:
            if one.objective.model in (None, self.model):
                yield from self._vllm_events(one, state) if is_vllm else self._events(one, state)
        if not state.up:
            return
        for key, value in self._concepts(state, index).items():
            if key not in self.keys:
                self.keys[key] = self._series(*key)
            series = self.keys[key]
            if series is not None:
                yield series, value

    def _series(self, concept: str, suffix: str, extra: str) -> str | None:
        """A concept's series: its own equality matchers are labels of it."""
        if not self.names.has(concept):
            return None
        labels = self._labels if concept in _PAGE_SCOPED else self._engine
        name, _, matchers = self.names.selector(concept, suffix).partition("{")
        own = _EXAMPLE.get(matchers.rstrip("}"), matchers.rstrip("}"))
        return f"{name}{{{','.join(part for part in (labels, own, extra) if part)}}}"

    def _concepts(self, state: State, index: int) -> dict[_Key, float]:
        """Engine statistics."""
        bad = state.requests * state.bad_share
        tokens = state.requests * 500
        served = f"{self._served}," if self.names.source == "vllm" else ""
        found: dict[_Key, float] = {
            ("requests_running", "", ""): _level(state.requests_running, index),
            ("requests_waiting", "", ""): _level(state.requests_waiting, index),
            ("kv_cache_usage_ratio", "", ""): _level(state.kv_cache_usage_ratio, index),
            ("awake", "", ""): 1,
            ("process_open_fds", "", ""): state.process_open_fds,
            ("process_max_fds", "", ""): 1000,
            ("process_start_time_seconds", "", ""): self.replica.started,
        }
        grows: dict[_Key, float] = {
            ("step_tokens", "_count", ""): state.steps,
            ("time_to_first_token_seconds", "_count", ""): state.requests,
            ("preemptions", "", ""): state.preemptions,
            ("prefix_cache_queried_tokens", "", ""): tokens,
            ("prefix_cache_hit_tokens", "", ""): tokens * state.hit_ratio,
            ("corrupted_requests", "", ""): state.corrupted,
            ("kv_transfer_failures", "", ""): state.transfer_failures,
            ("spec_decode_draft_tokens", "", ""): state.requests * 100,
            ("spec_decode_accepted_tokens", "", ""): state.requests * 100 * state.acceptance,
            ("admission_rejections", "", f'{served}reason="max_num_queued_reqs"'): state.rejections,
            ("requests_finished", "", 'finished_reason="stop"'): state.requests - bad,
            ("requests_finished", "", 'finished_reason="error"'): bad,
            ("http_requests", "", 'status="2xx"'): state.requests - bad,
        }
        errors = bad + (state.errors_once if index == 0 else 0)
        if errors or self.replica.has_failed:
            # born with the first error, as vLLM's is
            self.replica.has_failed = True
            grows["http_requests", "", 'status="5xx"'] = errors
        for key, value in grows.items():
            found[key] = _add(self.replica.totals, "/".join(key), value)
        return found

    def _events(self, one: Indicator, state: State) -> Iterator[tuple[str, float]]:
        """What the sidecar counts of an objective; a dead target's events stand still."""
        objective, counted = one.objective, self.replica.counted
        count = state.requests if state.up else 0.0
        bad = count * state.bad_share
        labels = f'{self._labels},{self._served},objective="{objective.name}"'
        for outcome, value in (("good", count - bad), ("bad", bad)):
            total = _add(counted, f"{objective.name}/{outcome}", value)
            yield f'{SLI_EVENTS}{{{labels},outcome="{outcome}"}}', total
        if objective.threshold is not None and one.bound is not None:
            used = one.bound if state.has_bound else one.bound / 2
            yield f'{SLI_THRESHOLD}{{{labels},kind="asked"}}', objective.threshold
            yield f'{SLI_THRESHOLD}{{{labels},kind="used"}}', used

    def _vllm_events(self, one: Indicator, state: State) -> Iterator[tuple[str, float]]:
        """The histogram of an objective on vLLM's page; availability's counters are concepts."""
        objective, totals = one.objective, self.replica.totals
        if objective.sli == "availability" or not state.up or one.bound is None:
            return
        name = self.names.selector(SLI_CONCEPTS[objective.sli])
        total = _add(totals, f"{objective.name}/count", state.requests)
        good = _add(totals, f"{objective.name}/good", state.requests * (1 - state.bad_share))
        yield f"{name}_count{{{self._engine}}}", total
        if state.has_bound:
            yield f'{name}_bucket{{{self._engine},le="{float(one.bound)!r}"}}', good


def _level(value: float | str, index: int) -> float:
    """
    A gauge's value; ``64 + 2`` is 64 at first and grows by 2 a minute.

    >>> _level("64 + 2", 3), _level(7, 3)
    (70.0, 7.0)
    """
    if isinstance(value, str):
        start, _, step = value.partition("+")
        return float(start) + float(step) * index
    return float(value)


def compressed(values: Sequence[str]) -> str:
    """
    Samples in promtool's notation, runs of equal steps as one.

    >>> compressed(["0", "2", "4", "6", "stale", "_", "_", "_", "5", "5", "5"])
    '0+2x3 stale _x3 5x2'
    """
    parts: list[str] = []
    index = 0
    while index < len(values):
        value = values[index]
        end = index + 1
        if value == _STALE:
            parts.append(value)
        elif value == _ABSENT:
            while end < len(values) and values[end] == _ABSENT:
                end += 1
            parts.append(f"_x{end - index}" if end - index > 1 else _ABSENT)
        else:
            end = _run(values, index)
            steps = end - index - 1
            step = f"{float(values[index + 1]) - float(value):.10g}" if steps else "0"
            if not steps:
                parts.append(value)
            elif step == "0":
                parts.append(f"{value}x{steps}")
            else:
                parts.append(f"{value}{'' if step.startswith('-') else '+'}{step}x{steps}")
        index = end
    return " ".join(parts)


def _run(values: Sequence[str], start: int) -> int:
    """Where a run of equal steps ends."""
    end = start + 1
    step: float | None = None
    while end < len(values) and values[end] not in (_ABSENT, _STALE):
        now = float(values[end]) - float(values[end - 1])
        if step is not None and abs(now - step) > 1e-9 * max(1.0, abs(now)):
            break
        step, end = now, end + 1
    return end
