"""
The tap reads every vLLM release that can load it to the numbers which that release serves itself.

`tests/pages/records` holds what `record()` of each release got while its page in `tests/pages` was
made: the attributes that its real statistics objects have, and no others.
"""

from __future__ import annotations

import ast
import gzip
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from paths import PAGES

from vllm_opsctl.exporter.catalogue import catalogue, parse_version
from vllm_opsctl.exporter.engine import EngineSample, split_key
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.sources.tap import TapFolder
from vllm_opsctl.exporter.sources.tap_text import Bounds
from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.identity import Identity
from vllm_opsctl.exporter.tap.page import TapPage, read_tap_page
from vllm_opsctl.exporter.tap.writer import PageWriter

RECORDS = sorted((PAGES / "records").glob("*.records.json.gz"))
FIRST_WITH_THE_ENTRY_POINT = (0, 11, 1)

BUCKET = 1 / layout.SUBDIVISIONS
"""Relative width of the tap's widest bucket, 2.2 %."""

FINEST_S = layout.SECONDS.lower(1)
"""Shorter times, 0.12 ms, share one bucket."""

STARTED = 1_800_000_000.0
STEP_S = 0.05

NOT_HELD: Mapping[str, str] = {
    "http_requests": "the API server's middleware counts them, no stat logger does",
    "http_request_bytes": "the API server's middleware counts them, no stat logger does",
    "process_cpu_seconds": "of the process, not of the statistics; merged from vLLM's own page",
    "process_resident_memory_bytes": "of the process, not of the statistics; merged as the others",
    "process_open_fds": "of the process, not of the statistics; merged from vLLM's own page",
    "process_max_fds": "of the process, not of the statistics; merged from vLLM's own page",
    "request_preemptions": "no runbook asks for it; the number of preemptions is held",
}
"""Concepts on vLLM's pages that the tap does not have, and why."""

ONLY_OF_THE_TAP: Mapping[str, str] = {
    "requests_running_recent_peak": "between two reads of a page nobody sees a peak",
    "requests_waiting_recent_peak": "between two reads of a page nobody sees a peak",
    "kv_cache_usage_recent_peak": "between two reads of a page nobody sees a peak",
    "requests_hung_up_estimate": "vLLM counts clients that hang up nowhere",
    "time_to_first_token_cached_seconds": "vLLM has one TTFT for hits and misses",
    "time_to_first_token_uncached_seconds": "vLLM has one TTFT for hits and misses",
    "requests_running_by_adapter": "vLLM tells adapters' names, not their numbers",
    "requests_waiting_by_adapter": "vLLM tells adapters' names, not their numbers",
    "corrupted_requests": "vLLM shows it with VLLM_COMPUTE_NANS_IN_LOGITS=1 only",
    "request_computed_tokens": "statistics have it before 0.13.0 has a metric for it",
}
"""Concepts that the tap has and the release's page may lack, and why."""

DIFFER: Mapping[str, str] = {
    "process_start_time_seconds": "the page's is the process that made the page",
}
"""Values that are not compared, and why."""

HISTOGRAMS: Mapping[str, str] = {
    "ttft": "time_to_first_token_seconds",
    "itl": "inter_token_latency_seconds",
    "e2e": "request_e2e_seconds",
    "queue": "request_queue_seconds",
    "prefill": "request_prefill_seconds",
    "decode": "request_decode_seconds",
    "tpot": "request_time_per_output_token_seconds",
    "prompt_length": "request_prompt_tokens",
    "output_length": "request_generation_tokens",
    "max_tokens": "request_max_tokens",
}
"""Histograms of the tap whose values the records have, and the concept."""


def objects(value: Any) -> Any:
    """A release's objects again: what it has no attribute for raises AttributeError."""
    if isinstance(value, list):
        return [objects(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"class", "attributes"}:
            return SimpleNamespace(**objects(value["attributes"]))
        return {name: objects(item) for name, item in value.items()}
    return value


@dataclass
class Release:
    """
    One release: what it was fed, what it served, and what the tap made of the same.

    Args:
        file: Of the records.
        folder: For the tap's pages.
    """

    file: Path
    folder: Path
    version: str = field(init=False)
    base: Mapping[str, Any] = field(init=False)
    calls: list[Any] = field(init=False)
    served: Mapping[str, EngineSample] = field(init=False)

    def __post_init__(self) -> None:
        body = json.loads(gzip.decompress(self.file.read_bytes()))
        self.version, self.base = body["version"], body["base"]
        self.calls = [objects(call) for call in body["calls"]]
        self.served = samples((PAGES / body["page"]).read_text())

    def write(self) -> list[PageWriter]:
        """Feed the tap."""
        clock = SimpleNamespace(t=STARTED + 60.0)
        facts = {
            "vllm_version": self.version,
            "models": [next(iter(self.served.values())).key.model],
        }
        writers = {
            engine: PageWriter(
                self.folder,
                identity(int(engine)),
                facts,
                now=lambda: clock.t,
                monotonic=lambda: clock.t,
            )
            for engine in self.served
        }
        for call in self.calls:
            clock.t += STEP_S
            writers[str(call["engine_idx"])].record(
                call["scheduler_stats"], call["iteration_stats"], call.get("mm_cache_stats")
            )
        return list(writers.values())

    def tap(self) -> Mapping[str, EngineSample]:
        """What a sidecar reads from the tap's pages, by engine."""
        self.write()
        folder = TapFolder(self.folder, Bounds())
        (server,) = folder.servers()
        return samples(server.text(folder.bounds, since=0.0))

    def pages(self) -> Mapping[str, TapPage]:
        """The tap's pages, by engine."""
        found = [read_tap_page(writer.path) for writer in self.write()]
        return {str(page.header["engine"]): page for page in found}

    def values(self, engine: str) -> dict[str, list[float]]:
        """What each of the tap's histograms was fed with, ascending."""
        found: dict[str, list[float]] = {name: [] for name in HISTOGRAMS}
        for call in self.calls:
            iteration = call["iteration_stats"]
            if str(call["engine_idx"]) != engine or iteration is None:
                continue
            found["ttft"] += iteration.time_to_first_tokens_iter
            found["itl"] += iteration.inter_token_latencies_iter
            for request in iteration.finished_requests:
                found["e2e"].append(request.e2e_latency)
                found["queue"].append(request.queued_time)
                found["prefill"].append(request.prefill_time)
                found["decode"].append(request.decode_time)
                found["tpot"].append(request.mean_time_per_output_token)
                found["prompt_length"].append(request.num_prompt_tokens)
                found["output_length"].append(request.num_generation_tokens)
                found["max_tokens"].append(request.max_tokens_param)
        return {name: sorted(values) for name, values in found.items()}


def identity(engine: int) -> Identity:
    """A process that is an hour old when the first step comes."""
    return Identity(
        pid=101,
        started_ticks=1010,
        started=STARTED - 3600.0,
        engine=engine,
        api_rank=0,
        api_count=1,
        server_pid=101,
        server_ticks=1010,
    )


def samples(text: str) -> dict[str, EngineSample]:
    """A page, by engine."""
    page = read_page(text, t=0.0, target="replica")
    assert page.problems == ()
    return {sample.key.engine: sample for sample in page.engines}


def concepts_of(sample: EngineSample) -> set[str]:
    keys = [*sample.gauges, *sample.counters, *sample.histograms]
    return {split_key(key)[0] for key in keys}


def zero_counters(sample: EngineSample) -> set[str]:
    return {key for key, value in sample.counters.items() if value == 0}


@pytest.fixture(params=RECORDS, ids=lambda file: file.name.removesuffix(".records.json.gz"))
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Release:
    """Each release in turn."""
    return Release(request.param, tmp_path)


def compared(release: Release) -> Iterator[tuple[EngineSample, EngineSample]]:
    """Served and tapped, of each engine."""
    tapped = release.tap()
    assert tapped.keys() == release.served.keys()
    for engine, served in release.served.items():
        yield served, tapped[engine]


def test_every_release_with_the_entry_point_that_has_a_page_has_records() -> None:
    versions = {file.name.split("-")[1] for file in PAGES.glob("vllm-*-v1.logger.prom")}
    able = {version for version in versions if parse_version(version) >= FIRST_WITH_THE_ENTRY_POINT}
    stored = {file.name.removeprefix("vllm-").removesuffix(".records.json.gz") for file in RECORDS}

    assert able <= stored
    assert len(able) >= 16


def test_counters_are_the_ones_that_the_release_serves(release: Release) -> None:
    for served, tapped in compared(release):
        held = {k: v for k, v in served.counters.items() if split_key(k)[0] not in NOT_HELD}

        assert {key: tapped.counters.get(key) for key in held} == held


def test_a_counter_that_the_release_does_not_serve_stands_at_zero_or_is_listed(
    release: Release,
) -> None:
    for served, tapped in compared(release):
        more = tapped.counters.keys() - served.counters.keys() - zero_counters(tapped)

        assert {split_key(key)[0] for key in more} <= ONLY_OF_THE_TAP.keys()


def test_gauges_are_the_ones_that_the_release_serves(release: Release) -> None:
    left_out = {*NOT_HELD, *DIFFER}
    for served, tapped in compared(release):
        held = {k: v for k, v in served.gauges.items() if split_key(k)[0] not in left_out}

        assert {key: tapped.gauges.get(key) for key in held} == held
        more = {split_key(key)[0] for key in tapped.gauges.keys() - served.gauges.keys()}
        assert more <= ONLY_OF_THE_TAP.keys()


def test_histograms_count_and_sum_what_the_release_does(release: Release) -> None:
    for served, tapped in compared(release):
        for concept, histogram in served.histograms.items():
            if concept in NOT_HELD:
                continue
            total = histogram.sum
            if concept == "step_tokens":
                total -= not_computed(release, served)
            assert tapped.histograms[concept].count == histogram.count, concept
            assert tapped.histograms[concept].sum == pytest.approx(total, rel=1e-9), concept
        more = tapped.histograms.keys() - served.histograms.keys()
        assert more <= ONLY_OF_THE_TAP.keys()


def not_computed(release: Release, served: EngineSample) -> float:
    """
    Tokens that a release counts among those of a step though they came out of the cache.

    From 0.16.0 on the statistics tell them apart, and the tap counts what was computed; vLLM's own
    histogram does so from 0.25.0 on (vllm/v1/metrics/loggers.py, histogram_iteration_tokens).
    """
    apart = (0, 16) <= parse_version(release.version) < (0, 25)
    return served.counters["prompt_tokens_by_source{local_cache_hit}"] if apart else 0.0


def test_nothing_on_the_releases_page_is_missing_silently(release: Release) -> None:
    for served, tapped in compared(release):
        assert concepts_of(served) - concepts_of(tapped) <= NOT_HELD.keys()


def test_what_is_listed_as_not_held_is_a_concept_that_the_tap_lacks(tmp_path: Path) -> None:
    newest = max(RECORDS, key=lambda file: parse_version(file.name.split("-")[1]))
    (tapped,) = Release(newest, tmp_path).tap().values()

    served = set[str]()
    for file in RECORDS:
        for sample in Release(file, tmp_path).served.values():
            served |= concepts_of(sample)

    assert NOT_HELD.keys().isdisjoint(concepts_of(tapped))
    assert NOT_HELD.keys() <= served, "on no page: it need not be listed"
    assert {*NOT_HELD, *ONLY_OF_THE_TAP, *DIFFER} <= {c.concept for c in catalogue()}


def test_quantiles_lie_within_a_buckets_width_of_the_exact_ones(release: Release) -> None:
    for engine, page in release.pages().items():
        for name, values in release.values(engine).items():
            assert page.histograms[name].count == len(values), name
            for q in (0.01, 0.25, 0.5, 0.9, 0.99, 1.0):
                exact = values[max(0, math.ceil(q * len(values)) - 1)]
                found = page.histograms[name].quantile(q)
                if exact < FINEST_S:
                    assert found is not None, name
                    assert found < FINEST_S, name
                else:
                    assert found == pytest.approx(exact, rel=BUCKET), name


def test_no_bound_of_the_release_flatters(release: Release) -> None:
    """At vLLM's own bounds the tap counts no more than vLLM, and misses a bucket's width at most."""
    tapped = release.tap()
    for engine, served in release.served.items():
        fed = release.values(engine)
        for name, concept in HISTOGRAMS.items():
            histogram = served.histograms[concept]
            for bound, count in zip(histogram.bounds, histogram.counts, strict=True):
                ours = tapped[engine].histograms[concept].at_or_below(bound)
                surely = sum(value <= bound * (1 - BUCKET) for value in fed[name])
                if ours is not None:
                    assert surely <= ours <= count, (concept, bound)
        assert tapped[engine].histograms["time_to_first_token_seconds"].at_or_below(0.5) is not None


def test_a_prompt_that_is_wholly_cached_is_told_as_the_release_tells_it(tmp_path: Path) -> None:
    """
    Of such a prompt the last token is computed again, and 0.16.0 to 0.19.0 count it twice.

    Its sources then add up to more than the prompt (vllm/v1/metrics/stats.py, PromptTokenStats of
    0.18.0: computed + local_cache_hit + external_kv_transfer - recomputed_tokens = total).
    """
    (file,) = [file for file in RECORDS if file.name.startswith("vllm-0.18.0.")]
    release = Release(file, tmp_path)
    before = release.served["0"].counters
    newest = release.calls[-1]["iteration_stats"]
    newest.num_prompt_tokens += 64
    sources = newest.prompt_token_stats
    sources.computed += 1
    sources.local_cache_hit += 64
    sources.cached_tokens += 63
    sources.recomputed_tokens += 1
    sources.total += 64

    tapped = release.tap()["0"].counters

    for source, more in (("local_compute", 1), ("local_cache_hit", 64)):
        key = f"prompt_tokens_by_source{{{source}}}"
        assert tapped[key] == before[key] + more


def test_hits_and_misses_are_told_apart_from_the_release_on_that_tells_cached_tokens(
    release: Release,
) -> None:
    known = parse_version(release.version) >= (0, 13)
    for engine, page in release.pages().items():
        finished = [
            request
            for call in release.calls
            if str(call["engine_idx"]) == engine
            for request in call["iteration_stats"].finished_requests
        ]
        hits = [request for request in finished if known and request.num_cached_tokens > 0]

        assert page.histograms["ttft_hit"].count == len(hits)
        assert page.histograms["ttft_miss"].count == (len(finished) - len(hits)) * known
        assert page.histograms["cached_length"].count == len(finished) * known


def test_no_time_is_taken_for_impossible(release: Release) -> None:
    for page in release.pages().values():
        assert page.counters["corrected_times"] == 0
        assert page.counters["finished_other"] == 0


def test_adapters_are_those_of_the_newest_step(release: Release) -> None:
    for engine, page in release.pages().items():
        newest = [c for c in release.calls if str(c["engine_idx"]) == engine][-1]["scheduler_stats"]
        waiting = newest.waiting_lora_adapters

        assert page.adapters == {
            name: (running, waiting[name]) for name, running in newest.running_lora_adapters.items()
        }


# -- the plugin's interface ----------------------------------------------------------------------

PLUGIN = Path(layout.__file__).with_name("plugin.py")


def own_methods() -> dict[str, ast.arguments]:
    """The methods of our plugin; read, not imported, for it imports vLLM."""
    (tap,) = [
        node
        for node in ast.parse(PLUGIN.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "Tap"
    ]
    assert [ast.unparse(base) for base in tap.bases] == ["AggregateStatLoggerBase"]
    return {node.name: node.args for node in tap.body if isinstance(node, ast.FunctionDef)}


def test_the_plugin_has_every_method_that_the_release_demands(release: Release) -> None:
    assert set(release.base["abstract"]) <= own_methods().keys()


def test_the_plugin_overrides_every_method_that_the_release_may_call(release: Release) -> None:
    assert release.base["parameters"].keys() <= own_methods().keys()


@pytest.mark.parametrize("method", ["__init__", "record", "log", "log_engine_initialized"])
def test_the_plugin_takes_the_arguments_that_the_release_passes(
    release: Release, method: str
) -> None:
    """By position and by name: StatLoggerManager uses both."""
    ours, theirs = own_methods()[method], release.base["parameters"][method]
    names = [argument.arg for argument in ours.args]

    assert names[: len(theirs)] == [parameter["name"] for parameter in theirs]
    first_default = len(names) - len(ours.defaults)
    optional = set(names[first_default:])
    assert {p["name"] for p in theirs if not p["required"]} <= optional
    assert set(names[len(theirs) :]) <= optional


@pytest.mark.parametrize("method", ["record_sleep_state", "record_admission_rejection"])
def test_the_plugin_takes_as_many_positions_as_the_release_passes(
    release: Release, method: str
) -> None:
    """StatLoggerManager passes these by position; the base class and its own loggers name them apart."""
    theirs = release.base["parameters"].get(method)
    if theirs is None:
        assert method == "record_admission_rejection"
        assert parse_version(release.version) < (0, 32)
        return

    assert len(own_methods()[method].args) == len(theirs)
