"""
A /metrics page becomes engine samples.

Lines of uncatalogued families are dropped first: most of a page's cost is parsing what nobody here
reads. Series are then merged per concept and engine as the catalogue says.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter.catalogue import Catalogue, catalogue
from vllm_opsctl.exporter.engine import EngineKey, EngineSample, Histogram, PageSample, split_key
from vllm_opsctl.exporter.limits import (
    MAX_ENGINES,
    MAX_LABELS,
    MAX_NAME_CHARS,
    MAX_SERIES,
    MAX_SERIES_CHARS,
    MAX_SPLIT_VALUES,
    MAX_VALUE,
)
from vllm_opsctl.exporter.own_series import BUILD_INFO
from vllm_opsctl.exporter.series import Series, read_series, unmangled

_NAME_END = re.compile(r"[{ \t]")

_EXEMPLAR_BEGIN = " # {"
_BEFORE_EXEMPLAR = re.compile(
    r'[^{ ]+(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})? [^ ]+(?: [^ ]+)?(?= # \{)'
)
"""Source: OpenMetrics 1.0, exemplars; a proxy or an agent in front may speak that instead."""

Reading = tuple[Series, float]

MAX_PROBLEMS = 100
"""Series that are named one by one; of a page that is damaged as a whole nobody reads more."""

_OTHER_METRICS = re.compile(r"^(?:# TYPE )?(?:ray_)?vllm[:_]", re.MULTILINE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def read_page(text: str, *, t: float, target: str) -> PageSample:
    """
    Read one page of any vLLM from 0.4.3 on, V0 or V1 engine.

    Args:
        text: The body of GET /metrics, in the Prometheus text format.
        t: Unix seconds at which it was read.
        target: Name of the target, carried through.

    Raises:
        BadPage: Not a page, truncated, or without any vLLM metric; ``reason`` says which.
    """
    known = catalogue()
    lines, is_vllm = _catalogued_lines(text, known)
    if not is_vllm:
        raise _not_vllm(text)
    if not text.endswith("\n"):
        raise BadPage("truncated", "the page ends in the middle of a line; the answer was cut off")
    told = _Told()
    if len(lines) > MAX_SERIES:
        told.left_out["series"] += len(lines) - MAX_SERIES
        del lines[MAX_SERIES:]
    try:
        readings = _read_lines(lines, told)
    except ValueError as error:
        raise BadPage(
            "unparsable", f"the page breaks the Prometheus text format: {error}"
        ) from error
    return _assemble(readings, known, told, t=t, target=target)


class _Told:
    """What is wrong with a page, and what of it lies beyond a bound."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.left_out: Counter[str] = Counter()

    def problem(self, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)


def _catalogued_lines(text: str, known: Catalogue) -> tuple[list[str], bool]:
    """The page's lines of catalogued families, and whether any of vLLM's own is declared."""
    kept: list[str] = []
    is_vllm = False
    wanted = known.sample_names
    for line in text.split("\n"):
        if line.startswith("#"):
            if not is_vllm and line.startswith("# TYPE "):
                name = unmangled(line[7:].partition(" ")[0])
                is_vllm = name.startswith("vllm:") and name in known.by_family
            continue
        name = line.partition("{")[0]
        if name not in wanted:
            # without labels, by a collector's name for it, or nobody's here
            end = _NAME_END.search(line)
            name = unmangled(line[: end.start()]) if end is not None else ""
        if name in wanted:
            is_vllm = is_vllm or name.startswith("vllm:")
            kept.append(line)
    return kept, is_vllm


def _not_vllm(text: str) -> BadPage:
    head = text.lstrip()[:200].lower()
    if not head:
        return BadPage("empty", "the page is empty")
    if head.startswith(("<!doctype", "<html")):
        return BadPage("html", "the answer is an HTML page, not metrics; is the URL right?")
    if head.startswith(("{", "[")):
        return BadPage("json", "the answer is JSON, not metrics; is the URL right?")
    if _CONTROL.search(text):
        return BadPage("unparsable", "the page holds control characters; what is on it is damaged")
    if "vllm_engine_" in text or BUILD_INFO in text:
        return BadPage(
            "sidecar", "this is a sidecar's page, not vLLM's; use --sidecar URL for a sidecar"
        )
    if _OTHER_METRICS.search(text):
        return BadPage(
            "unknown-metrics",
            "metrics of vLLM, but none that this opsctl knows; is there a newer one?",
        )
    if "process_start_time_seconds" in text or "python_info" in text:
        return BadPage(
            "metrics-disabled",
            "a page of metrics without any of vLLM's: it runs with --disable-log-stats, "
            "or this is another server",
        )
    return BadPage("not-vllm", "no vLLM metric on the page; is this a vLLM server?")


def _read_lines(lines: Iterable[str], told: _Told) -> list[Reading]:
    """Series and values of the lines; what cannot be used is left out and told."""
    readings: list[Reading] = []
    seen: set[object] = set()
    for line in lines:
        if len(line) > MAX_SERIES_CHARS:
            told.left_out["series-length"] += 1
            continue
        text, value = _split_line(line)
        series = read_series(text)
        if series is None:
            continue
        bound = _bound_of(series)
        if bound is not None:
            told.left_out[bound] += 1
        elif series.identity in seen:
            told.problem(f"{series.name}: a series stands twice; the first is used")
        elif not math.isfinite(value):
            told.problem(f"{series.name}: {value} left out")
        elif abs(value) > MAX_VALUE:
            told.problem(f"{series.name}: {value:g} is beyond all that vLLM counts; left out")
        else:
            readings.append((series, value))
        seen.add(series.identity)
    return readings


def _bound_of(series: Series) -> str | None:
    """The bound that a series lies beyond."""
    if len(series.identity[1]) > MAX_LABELS:
        return "labels"
    names = series.engine.model if series.engine is not None else "", split_key(series.key)[1] or ""
    return "name-length" if max(map(len, names)) > MAX_NAME_CHARS else None


def _split_line(line: str) -> tuple[str, float]:
    """
    The series and the value of a sample line; a time stamp and an exemplar behind it are dropped.

    Raises:
        ValueError: There is no number.
    """
    if _EXEMPLAR_BEGIN in line and (found := _BEFORE_EXEMPLAR.match(line)) is not None:
        line = found[0]
    brace = line.rfind("}")
    head, rest = (line[: brace + 1], line[brace + 1 :]) if brace >= 0 else line.split(None, 1)
    words = rest.split(None, 1)
    number = words[0] if words else ""
    if "_" in number:
        raise ValueError(f"{number!r} is not a number")
    return head, float(number)


@dataclass(slots=True)
class _Parts:
    """Values of one scope (one engine, or the page), by concept key."""

    numbers: dict[str, float] = field(default_factory=dict)
    buckets: dict[str, dict[float, float]] = field(default_factory=lambda: defaultdict(dict))
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    newest: dict[str, float] = field(default_factory=dict)

    def add(self, series: Series, value: float) -> None:
        """Put one value in, merged with its siblings."""
        key = series.key
        if series.role == "bucket":
            buckets = self.buckets[key]
            buckets[series.bound] = buckets.get(series.bound, 0.0) + value
        elif series.role == "sum":
            self.sums[key] = self.sums.get(key, 0.0) + value
        elif series.role == "count":
            self.counts[key] = self.counts.get(key, 0.0) + value
        elif series.concept.kind == "info":
            if value >= self.newest.get(key, -math.inf):
                self.newest[key] = value
                self.facts.update(series.facts)
        elif key not in self.numbers or series.concept.merge == "newest":
            self.numbers[key] = value
        elif series.concept.merge == "max":
            self.numbers[key] = max(self.numbers[key], value)
        else:
            self.numbers[key] += value


def _assemble(
    readings: Iterable[Reading], known: Catalogue, told: _Told, *, t: float, target: str
) -> PageSample:
    best_rank: dict[str, int] = {}
    for series, _ in readings:
        concept = series.concept.concept
        if series.rank < best_rank.get(concept, math.inf):
            best_rank[concept] = series.rank
    engines: dict[EngineKey, _Parts] = {}
    beyond: set[EngineKey] = set()
    page = _Parts()
    unowned: list[Reading] = []
    for series, value in readings:
        if series.rank > best_rank[series.concept.concept]:
            continue
        if series.concept.scope == "page":
            page.add(series, value)
        elif series.engine is None:
            unowned.append((series, value))
        elif series.engine in engines:
            engines[series.engine].add(series, value)
        elif len(engines) < MAX_ENGINES:
            engines[series.engine] = _Parts()
            engines[series.engine].add(series, value)
        else:
            beyond.add(series.engine)
    if beyond:
        told.left_out["engines"] += len(beyond)
    if not engines:
        if told.left_out:
            raise BadPage("too-large", f"no engine could be read: {left_out_text(told.left_out)}")
        if told.problems:
            raise BadPage("unparsable", f"no engine could be read: {told.problems[0]}")
        raise BadPage("no-engine", "vLLM metrics, but none of them names a model and engine")
    for series, value in unowned:
        # cache_config_info names an engine but no model: it is that engine's of every model
        for key, parts in engines.items():
            if series.engine_label in (None, key.engine.rsplit("/", 1)[-1]):
                parts.add(series, value)
    page_gauges, page_counters, page_histograms = _finish(page, known, told)
    samples = []
    for key, parts in engines.items():
        gauges, counters, histograms = _finish(parts, known, told)
        samples.append(
            EngineSample(
                t=t,
                key=key,
                gauges=page_gauges | gauges,
                counters=page_counters | counters,
                histograms=page_histograms | histograms,
                facts=page.facts | parts.facts,
            )
        )
    return PageSample(
        t=t,
        target=target,
        engines=tuple(samples),
        problems=tuple(told.problems),
        left_out=dict(told.left_out),
    )


_BOUNDS = {
    "series": ("series", f"beyond {MAX_SERIES:,}"),
    "engines": ("engines", f"beyond {MAX_ENGINES}"),
    "labels": ("series", f"with more than {MAX_LABELS} labels"),
    "series-length": ("series", f"longer than {MAX_SERIES_CHARS >> 10} KiB"),
    "name-length": ("series", f"with a name longer than {MAX_NAME_CHARS} characters"),
    "split-values": ("series", f"beyond {MAX_SPLIT_VALUES:,} values of one label"),
}
"""What a bound's name counts, and where the bound lies."""


def left_out_text(left_out: Mapping[str, int]) -> str:
    """
    What lies beyond bounds, in words.

    >>> left_out_text({"engines": 19744})
    '19,744 engines beyond 256'
    """
    return ", ".join(f"{count:,} {' '.join(_BOUNDS[name])}" for name, count in left_out.items())


def _finish(
    parts: _Parts, known: Catalogue, told: _Told
) -> tuple[dict[str, float], dict[str, float], dict[str, Histogram]]:
    """Gauges, counters and histograms of one scope."""
    gauges: dict[str, float] = {}
    counters: dict[str, float] = {}
    split_values: Counter[str] = Counter()
    for key, value in parts.numbers.items():
        concept = known[key.partition("{")[0]]
        split_values[concept.concept] += 1
        if split_values[concept.concept] > MAX_SPLIT_VALUES:
            told.left_out["split-values"] += 1
        elif value < 0:
            # the V0 engine's way of saying that prefix caching is off
            if concept.concept != "prefix_cache_lifetime_hit_ratio":
                told.problem(f"{concept.concept}: {value} is negative; left out")
        elif concept.kind == "counter":
            counters[key] = value
        else:
            gauges[key] = value
    histograms: dict[str, Histogram] = {}
    for key in parts.sums.keys() | parts.buckets.keys():
        histogram = _histogram(parts, key)
        if isinstance(histogram, Histogram):
            histograms[key] = histogram
        else:
            told.problem(f"{key}: {histogram}; left out")
    return gauges, counters, histograms


def _histogram(parts: _Parts, key: str) -> Histogram | str:
    """A histogram from its parts, or what is wrong with them."""
    if key not in parts.sums:
        return "a histogram without a sum"
    buckets = dict(parts.buckets.get(key, {}))
    if math.inf not in buckets:
        if key not in parts.counts:
            return "a histogram without an +Inf bucket or a count"
        buckets[math.inf] = parts.counts[key]
    bounds = tuple(sorted(buckets))
    counts = tuple(buckets[bound] for bound in bounds)
    if any(later < earlier for earlier, later in pairwise(counts)):
        return "bucket counts that fall"
    return Histogram(bounds, counts, parts.sums[key])
