"""
A /metrics page becomes engine samples.

Lines of uncatalogued families are dropped before prometheus-client's parser sees them: most of a
page's cost is parsing histograms that nobody here reads. Series are then merged per concept and
engine as the catalogue says.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter.catalogue import Catalogue, Concept, catalogue
from vllm_opsctl.exporter.engine import EngineKey, EngineSample, Histogram, PageSample

MAX_PAGE_BYTES = 16 * 2**20
"""A larger page is no vLLM: 32 engines' pages with every connector stay below 4 MiB."""

_IDENTITY_LABELS = ("ReplicaId",)
"""Labels that tell engines apart besides ``engine``: Ray Serve adds ``ReplicaId`` (vLLM 0.33)."""

_MANGLED = re.compile(r"^(?:ray_)?vllm_")
_NAME_END = re.compile(r"[{ \t]")
_TYPE_LINE = re.compile(r"# TYPE (\S+) (\S+)")


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
    kept, families_seen = _keep_catalogued(text, known)
    if not any(name.startswith("vllm:") for name in families_seen):
        raise _not_vllm(text)
    if not text.endswith("\n"):
        raise BadPage("truncated", "the page ends in the middle of a line; the answer was cut off")
    try:
        parsed = [
            sample for family in text_string_to_metric_families(kept) for sample in family.samples
        ]
    except ValueError as error:
        raise BadPage(
            "unparsable", f"the page breaks the Prometheus text format: {error}"
        ) from error
    return _assemble(parsed, known, t=t, target=target)


def _keep_catalogued(text: str, known: Catalogue) -> tuple[str, set[str]]:
    """The page's lines of catalogued families under vLLM's own names, and the names found."""
    kept: list[str] = []
    seen: set[str] = set()
    wanted = known.sample_names
    families = known.by_family
    for line in text.splitlines():
        if line.startswith("#"):
            match = _TYPE_LINE.match(line)
            if match is None:
                continue
            name = _unmangled(match[1])
            if name in families:
                seen.add(name)
                kept.append(f"# TYPE {name} {match[2]}")
            continue
        end = _NAME_END.search(line)
        if end is None:
            continue
        raw = line[: end.start()]
        name = _unmangled(raw)
        if name in wanted:
            seen.add(name)
            kept.append(line if name == raw else name + line[len(raw) :])
    return "\n".join(kept) + "\n", seen


def _unmangled(name: str) -> str:
    """vLLM's own name behind a collector's: Ray and others turn ``vllm:x`` into ``vllm_x``."""
    if name.startswith(("vllm_", "ray_vllm_")):
        return _MANGLED.sub("vllm:", name)
    return name


def _not_vllm(text: str) -> BadPage:
    head = text.lstrip()[:200].lower()
    if not head:
        return BadPage("empty", "the page is empty")
    if head.startswith(("<!doctype", "<html")):
        return BadPage("html", "the answer is an HTML page, not metrics; is the URL right?")
    if head.startswith(("{", "[")):
        return BadPage("json", "the answer is JSON, not metrics; is the URL right?")
    if "vllm_engine_" in text or "opsctl_build_info" in text:
        return BadPage(
            "sidecar", "this is a sidecar's page, not vLLM's; use --sidecar URL for a sidecar"
        )
    if "process_start_time_seconds" in text or "python_info" in text:
        return BadPage(
            "metrics-disabled",
            "a page of metrics without any of vLLM's: it runs with --disable-log-stats, "
            "or this is another server",
        )
    return BadPage("not-vllm", "no vLLM metric on the page; is this a vLLM server?")


@dataclass(slots=True)
class _Parts:
    """Series of one scope (one engine, or the page), by concept key."""

    numbers: dict[str, float] = field(default_factory=dict)
    buckets: dict[str, dict[float, float]] = field(default_factory=lambda: defaultdict(dict))
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    newest: dict[str, float] = field(default_factory=dict)


def _assemble(samples: Iterable[Sample], known: Catalogue, *, t: float, target: str) -> PageSample:
    problems: list[str] = []
    engines: dict[EngineKey, _Parts] = {}
    page = _Parts()
    unowned = _Parts()
    best_rank: dict[str, int] = {}
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    readable: list[tuple[Sample, Concept, int]] = []
    for sample in samples:
        found = _concept_of(sample.name, known)
        if found is None:
            continue
        concept, rank = found
        if not all(p.fullmatch(sample.labels.get(k, "")) for k, p in concept.where.items()):
            continue
        identity = (sample.name, tuple(sorted(sample.labels.items())))
        if identity in seen:
            problems.append(f"{sample.name}: a series stands twice; the first is used")
            continue
        seen.add(identity)
        if not math.isfinite(sample.value):
            problems.append(f"{sample.name}: {sample.value} left out")
            continue
        best_rank[concept.concept] = min(rank, best_rank.get(concept.concept, rank))
        readable.append((sample, concept, rank))

    for sample, concept, rank in readable:
        if rank > best_rank[concept.concept]:
            continue
        if concept.scope == "page":
            parts = page
        elif "model_name" in sample.labels:
            parts = engines.setdefault(_engine_key(sample.labels), _Parts())
        else:
            parts = unowned
        _add(parts, sample, concept)

    _share_unowned(unowned, samples=readable, engines=engines)
    page_gauges, page_counters, page_histograms = _finish(page, known, problems)
    result = []
    for key, parts in engines.items():
        gauges, counters, histograms = _finish(parts, known, problems)
        result.append(
            EngineSample(
                t=t,
                key=key,
                gauges=page_gauges | gauges,
                counters=page_counters | counters,
                histograms=page_histograms | histograms,
                facts=page.facts | parts.facts,
            )
        )
    if not result:
        raise BadPage("no-engine", "vLLM metrics, but none of them names a model and engine")
    return PageSample(t=t, target=target, engines=tuple(result), problems=tuple(problems))


def _concept_of(sample_name: str, known: Catalogue) -> tuple[Concept, int] | None:
    found = known.by_family.get(sample_name)
    if found is not None:
        return found
    for suffix in ("_bucket", "_sum", "_count"):
        if sample_name.endswith(suffix):
            found = known.by_family.get(sample_name[: -len(suffix)])
            if found is not None and found[0].kind in ("histogram", "summary"):
                return found
    return None


def _engine_key(labels: Mapping[str, str]) -> EngineKey:
    parts = [labels[name] for name in _IDENTITY_LABELS if labels.get(name)]
    return EngineKey(labels["model_name"], "/".join([*parts, labels.get("engine") or "0"]))


def _add(parts: _Parts, sample: Sample, concept: Concept) -> None:
    """Put one series into its scope, merged with its siblings."""
    key = concept.concept
    if concept.kind == "info":
        if sample.value >= parts.newest.get(key, -math.inf):
            parts.newest[key] = sample.value
            prefix = "" if concept.scope == "engine" else f"{key}."
            skip = {"model_name", "engine"}
            parts.facts |= {prefix + k: v for k, v in sample.labels.items() if k not in skip}
        return
    if sample.name.endswith("_bucket"):
        bound = float(sample.labels["le"])
        parts.buckets[key][bound] = parts.buckets[key].get(bound, 0.0) + sample.value
    elif concept.kind in ("histogram", "summary") and sample.name.endswith("_sum"):
        parts.sums[key] = parts.sums.get(key, 0.0) + sample.value
    elif concept.kind in ("histogram", "summary") and sample.name.endswith("_count"):
        parts.counts[key] = parts.counts.get(key, 0.0) + sample.value
    else:
        if concept.split is not None:
            key = f"{key}{{{sample.labels.get(concept.split, '')}}}"
        if key not in parts.numbers or concept.merge == "newest":
            parts.numbers[key] = sample.value
        elif concept.merge == "max":
            parts.numbers[key] = max(parts.numbers[key], sample.value)
        else:
            parts.numbers[key] += sample.value


def _share_unowned(
    unowned: _Parts,
    *,
    samples: Iterable[tuple[Sample, Concept, int]],
    engines: dict[EngineKey, _Parts],
) -> None:
    """Give facts that name no model (cache_config_info) to the engine they name, else to all."""
    if not unowned.facts:
        return
    for sample, concept, _ in samples:
        if concept.kind != "info" or concept.scope != "engine" or "model_name" in sample.labels:
            continue
        engine = sample.labels.get("engine")
        for key, parts in engines.items():
            if engine is None or key.engine.rsplit("/", 1)[-1] == engine:
                _add(parts, sample, concept)


def _finish(
    parts: _Parts, known: Catalogue, problems: list[str]
) -> tuple[dict[str, float], dict[str, float], dict[str, Histogram]]:
    gauges: dict[str, float] = {}
    counters: dict[str, float] = {}
    for key, value in parts.numbers.items():
        concept = known[key.partition("{")[0]]
        if value < 0:
            if concept.concept != "prefix_cache_lifetime_hit_ratio":
                problems.append(f"{concept.concept}: {value} is negative; left out")
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
            problems.append(f"{key}: {histogram}; left out")
    return gauges, counters, histograms


def _histogram(parts: _Parts, key: str) -> Histogram | str:
    if key not in parts.sums:
        return "a histogram without a sum"
    buckets = dict(parts.buckets.get(key, {}))
    if math.inf not in buckets:
        if key not in parts.counts:
            return "a histogram without an +Inf bucket or a count"
        buckets[math.inf] = parts.counts[key]
    bounds = tuple(sorted(buckets))
    counts = tuple(buckets[bound] for bound in bounds)
    if any(later < earlier for earlier, later in itertools.pairwise(counts)):
        return "bucket counts that fall"
    return Histogram(bounds, counts, parts.sums[key])
