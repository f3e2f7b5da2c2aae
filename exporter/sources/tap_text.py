"""
A tap page's numbers as a metrics page: what vLLM would have served, with finer buckets.

Everything behind the sources reads metrics pages, so a recording made from the tap replays as any
other does. Where vLLM's own page is at hand too, :func:`merged` puts both together: the engine's
statistics of the tap, and the rest (HTTP, process, connectors) of the page.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from prometheus_client.utils import floatToGoString

from vllm_opsctl.exporter.catalogue import catalogue, parse_version
from vllm_opsctl.exporter.config import SLI_CONCEPTS, Objective
from vllm_opsctl.exporter.series import labels_text
from vllm_opsctl.exporter.sources.tap_engine import EngineTotals
from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.page import TapHistogram

_HISTOGRAMS: Mapping[str, str] = {
    "ttft": "time_to_first_token_seconds",
    "ttft_hit": "time_to_first_token_cached_seconds",
    "ttft_miss": "time_to_first_token_uncached_seconds",
    "itl": "inter_token_latency_seconds",
    "tpot": "request_time_per_output_token_seconds",
    "e2e": "request_e2e_seconds",
    "queue": "request_queue_seconds",
    "prefill": "request_prefill_seconds",
    "decode": "request_decode_seconds",
    "prompt_length": "request_prompt_tokens",
    "output_length": "request_generation_tokens",
    "max_tokens": "request_max_tokens",
}
"""The page's histogram and the concept that it is."""

_COUNTERS: Mapping[str, str] = {
    "preemptions": "preemptions",
    "prompt_tokens": "prompt_tokens",
    "generation_tokens": "generation_tokens",
    "corrupted_requests": "corrupted_requests",
    "prefix_queries": "prefix_cache_queried_tokens",
    "prefix_hits": "prefix_cache_hit_tokens",
    "external_prefix_queries": "external_prefix_cache_queried_tokens",
    "external_prefix_hits": "external_prefix_cache_hit_tokens",
    "mm_queries": "mm_cache_queried_items",
    "mm_hits": "mm_cache_hit_items",
    "spec_drafts": "spec_decode_drafts",
    "spec_draft_tokens": "spec_decode_draft_tokens",
    "spec_accepted_tokens": "spec_decode_accepted_tokens",
}

_BY_SOURCE = frozenset(
    ("generation_tokens", "step_tokens", "cached_prompt_tokens", "external_prompt_tokens")
)
"""What prompt tokens by their source are made of."""

_PEAKS: Mapping[str, str] = {
    "running_max": "requests_running_recent_peak",
    "waiting_max": "requests_waiting_recent_peak",
    "kv_cache_usage_max": "kv_cache_usage_recent_peak",
}

_FINE_BOUNDS = tuple(2.0**octave * (1 + part / 4) for octave in range(-10, 6) for part in range(4))
"""1 ms to 56 s in steps of at most 25 %: a quantile between two of them is off by a few per cent."""

_TOKEN_BOUNDS = tuple(m * 10.0**power for power in range(6) for m in (1, 2, 5))
"""vllm/v1/metrics/loggers.py, build_1_2_5_buckets, 0.33.0."""

_ENGINE = re.compile(r'\bengine="([^"]*)"')
_NAME_END = re.compile(r"[{ ]")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineText:
    """
    What one engine's part of a page is made of.

    Args:
        model: Served name.
        engine: Engine index.
        totals: Its numbers.
        facts: Its configuration, as the tap page tells it.
    """

    model: str
    engine: int
    totals: EngineTotals
    facts: Mapping[str, Any]


class Bounds:
    """
    The bucket bounds of every concept: vLLM's own, finer ones, and the objectives' thresholds.

    Args:
        objectives: Whose thresholds become bounds.
    """

    def __init__(self, objectives: Iterable[Objective] = ()) -> None:
        self._thresholds: dict[str, set[float]] = {}
        for objective in objectives:
            concept = SLI_CONCEPTS.get(objective.sli)
            if concept is not None and objective.threshold is not None:
                self._thresholds.setdefault(concept, set()).add(objective.threshold)

    def of(self, concept: str, version: str, scale: layout.Scale) -> tuple[_Bound, ...]:
        """
        Bounds of a concept, ascending, without +Inf.

        Args:
            concept: The histogram.
            version: vLLM's.
            scale: Buckets of the tap's histogram.
        """
        return self._computed(concept, version, scale)

    @functools.cache  # noqa: B019 - one or two of these live as long as the process
    def _computed(self, concept: str, version: str, scale: layout.Scale) -> tuple[_Bound, ...]:
        if scale.unit == "tokens":
            values = set(_TOKEN_BOUNDS)
        else:
            own = catalogue()[concept].bounds_of(parse_version(version) or None)
            values = {*own, *_FINE_BOUNDS, *self._thresholds.get(concept, ())}
        return tuple(_Bound.at(value, scale) for value in sorted(values))


class EveryBound(Bounds):
    """Every bound that the tap's histograms have: for whoever wants percentiles as exact as the page."""

    def of(self, concept: str, version: str, scale: layout.Scale) -> tuple[_Bound, ...]:
        """All of them, ascending, without +Inf."""
        return _every_bound(scale)


@functools.cache
def _every_bound(scale: layout.Scale) -> tuple[_Bound, ...]:
    return tuple(
        _Bound(str(floatToGoString(scale.upper(index))), index + 1)  # type: ignore[no-untyped-call]
        for index in range(scale.buckets - 1)
    )


@dataclass(frozen=True, slots=True)
class _Bound:
    """
    One bound.

    Args:
        text: As Prometheus writes it.
        buckets: So many of the tap's buckets lie at or below it as a whole: what is in the one that
            it divides counts as above, so that no objective is flattered.
    """

    text: str
    buckets: int

    @classmethod
    def at(cls, value: float, scale: layout.Scale) -> _Bound:
        index = scale.index(value)
        # whole numbers below 64 have a bucket each, and so does the bound itself
        alone = scale.unit == "tokens" and scale.upper(index) - scale.lower(index) <= 1
        return cls(str(floatToGoString(value)), index + 1 if alone else index)  # type: ignore[no-untyped-call]


def page_text(engines: Sequence[EngineText], started: float, bounds: Bounds) -> str:
    """
    A whole page.

    Args:
        engines: Of one server.
        started: Start of its process, Unix seconds.
        bounds: Of the histograms.
    """
    lines = [f"process_start_time_seconds {started!r}"]
    for engine in engines:
        lines += _engine_lines(engine, bounds)
    lines += _server_lines(engines)
    first = catalogue()["requests_running"].names[0].name
    return "\n".join([f"# TYPE {first} gauge", *lines, ""])


def merged(tap_text: str, served: str) -> str:
    """
    The tap's page and vLLM's own of the same server.

    Args:
        tap_text: What :func:`page_text` made.
        served: The body of GET /metrics.
    """
    own: dict[str | None, set[str]] = {}
    kept = []
    for line in tap_text.split("\n"):
        own.setdefault(_engine_of(line), set()).add(_name_of(line))
    told = {_name_of(line) for line in served.split("\n") if _engine_of(line) is None}
    for line in tap_text.split("\n"):
        # of the server as a whole, its own page knows best
        if line and (_engine_of(line) is not None or _name_of(line) not in told):
            kept.append(line)
    for line in served.split("\n"):
        engine = _engine_of(line)
        if engine is None or _name_of(line) not in own.get(engine, ()):
            kept.append(line)
    return "\n".join(kept)


def _engine_of(line: str) -> str | None:
    if line.startswith("#"):
        return None
    found = _ENGINE.search(line)
    return found[1] if found else None


def _name_of(line: str) -> str:
    end = _NAME_END.search(line)
    return line[: end.start()] if end and not line.startswith("#") else line


def _engine_lines(engine: EngineText, bounds: Bounds) -> Iterator[str]:
    totals, labels = engine.totals, _labels(engine)
    version = str(engine.facts.get("vllm_version", ""))
    gauges, counters = totals.gauges, totals.counters
    if "running" in gauges:
        yield _line("requests_running", labels, gauges["running"])
    if "waiting" in gauges:
        deferred = gauges.get("deferred")
        yield _line("requests_waiting", labels, gauges["waiting"] + (deferred or 0.0))
        if deferred is not None:
            by_reason = (("capacity", gauges["waiting"]), ("deferred", deferred))
            for reason, value in by_reason:
                yield _line("requests_waiting_by_reason", {**labels, "reason": reason}, value)
    if "kv_cache_usage" in gauges:
        yield _line("kv_cache_usage_ratio", labels, gauges["kv_cache_usage"])
    if "awake" in gauges:
        yield _line("awake", {**labels, "sleep_state": "awake"}, gauges["awake"])
    for field, concept in _PEAKS.items():
        if field in totals.peaks:
            yield _line(concept, labels, totals.peaks[field])
    yield _line("requests_hung_up_estimate", labels, totals.hung_up)
    for name, concept in _COUNTERS.items():
        if name in counters:
            yield _line(concept, labels, counters[name])
    since = catalogue()["prompt_tokens_by_source"].names[0].since
    if parse_version(version) >= since and counters.keys() >= _BY_SOURCE:
        cached, external = counters["cached_prompt_tokens"], counters["external_prompt_tokens"]
        sources = {
            # not the rest of the prompt: 0.16.0 to 0.19.0 count a recomputed token as cached too
            "local_compute": counters["step_tokens"] - counters["generation_tokens"],
            "local_cache_hit": cached,
            "external_kv_transfer": external,
        }
        for source, value in sources.items():
            yield _line("prompt_tokens_by_source", {**labels, "source": source}, value)
    for name, value in counters.items():
        if name.startswith("finished_"):
            reason = name.removeprefix("finished_")
            yield _line("requests_finished", {**labels, "finished_reason": reason}, value)
    for name, (running, waiting) in totals.adapters.items():
        own = {**labels, "adapter": name}
        yield _line("requests_running_by_adapter", own, running)
        yield _line("requests_waiting_by_adapter", own, waiting)
    for name, concept in _HISTOGRAMS.items():
        histogram = totals.histograms.get(name)
        if histogram is not None:
            used = bounds.of(concept, version, histogram.scale)
            yield from _histogram_lines(concept, labels, histogram, used)
    yield from _sum_lines(
        "step_tokens", labels, counters.get("steps", 0), counters.get("step_tokens", 0)
    )
    if "computed_at_finish" in counters:
        ended = sum(v for n, v in counters.items() if n.startswith("finished_"))
        yield from _sum_lines(
            "request_computed_tokens", labels, ended, counters["computed_at_finish"]
        )
    phases = [totals.histograms.get(name) for name in ("prefill", "decode")]
    if phases[0] is not None and phases[1] is not None:
        total = phases[0].sum + phases[1].sum
        yield from _sum_lines("request_inference_seconds", labels, phases[0].count, total)
    if counters.get("fanout_requests") and "fanout_choices" in counters:
        yield from _sum_lines(
            "request_fanout", labels, counters["fanout_requests"], counters["fanout_choices"]
        )
    facts = {name: str(value) for name, value in engine.facts.get("kv_config", {}).items()}
    if facts:
        yield _line("kv_config", {"engine": labels["engine"], **facts}, 1)


def _server_lines(engines: Sequence[EngineText]) -> Iterator[str]:
    """Series that name no engine."""
    for reason in layout.REJECTIONS:
        total = sum(e.totals.counters.get(f"rejected_{reason}", 0) for e in engines)
        if total or reason != "other":
            yield _line("admission_rejections", {"reason": reason}, total)
    limits = [e.facts["max_loras"] for e in engines if "max_loras" in e.facts]
    if limits:
        adapters = [item for e in engines for item in e.totals.adapters.items()]
        running = sorted({name for name, counts in adapters if counts[0]})
        waiting = sorted({name for name, counts in adapters if counts[1]})
        labels = {
            "max_lora": str(limits[0]),
            "running_lora_adapters": ",".join(running),
            "waiting_lora_adapters": ",".join(waiting),
        }
        yield _line("lora", labels, max(e.totals.gauges.get("scheduled_at", 0.0) for e in engines))


def _labels(engine: EngineText) -> dict[str, str]:
    return {"engine": str(engine.engine), "model_name": engine.model}


def _line(concept: str, labels: Mapping[str, str], value: float, suffix: str = "") -> str:
    name = catalogue()[concept].names[0].name + suffix
    return f"{name}{{{labels_text(labels)}}} {value!r}"


def _histogram_lines(
    concept: str, labels: Mapping[str, str], histogram: TapHistogram, bounds: Sequence[_Bound]
) -> Iterator[str]:
    name, text = catalogue()[concept].names[0].name, labels_text(labels)
    upto = list(accumulate(histogram.counts, initial=0))
    for bound in bounds:
        yield f'{name}_bucket{{{text},le="{bound.text}"}} {upto[bound.buckets]}'
    yield f'{name}_bucket{{{text},le="+Inf"}} {upto[-1]}'
    yield f"{name}_count{{{text}}} {upto[-1]}"
    yield f"{name}_sum{{{text}}} {histogram.sum!r}"


def _sum_lines(
    concept: str, labels: Mapping[str, str], count: float, total: float
) -> Iterator[str]:
    """A histogram of which only count and sum are known."""
    yield _line(concept, {**labels, "le": "+Inf"}, count, "_bucket")
    yield _line(concept, labels, count, "_count")
    yield _line(concept, labels, total, "_sum")
