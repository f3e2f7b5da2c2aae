"""SLI events: counted once, across restarts, at a bound that the histogram really has."""

from __future__ import annotations

import math

from paths import RECORDINGS

from vllm_opsctl.exporter.config import DEFAULT_OBJECTIVES, Objective
from vllm_opsctl.exporter.engine import EngineKey, EngineSample, Histogram, PageSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.recording import read_recording
from vllm_opsctl.exporter.sli import SliCounter

TTFT = Objective(name="ttft", sli="time_to_first_token", threshold=0.18, target=0.95)
UP = Objective(name="up", sli="availability", target=0.999)
BOUNDS = (0.1, 0.25, math.inf)


def page(*ttfts: float, **counters: float) -> PageSample:
    histogram = Histogram(
        BOUNDS, tuple(float(sum(v <= b for v in ttfts)) for b in BOUNDS), sum(ttfts)
    )
    named = {key.replace("__", "{") + "}" * ("__" in key): value for key, value in counters.items()}
    return PageSample(
        t=0.0,
        target="chat-0",
        engines=(
            EngineSample(
                t=0.0,
                key=EngineKey("model", "0"),
                gauges={},
                counters={"generation_tokens": len(ttfts), **named},
                histograms={"time_to_first_token_seconds": histogram},
            ),
        ),
    )


def counted(objective: Objective, *pages: PageSample) -> tuple[float, float]:
    counter = SliCounter([objective])
    for one in pages:
        counter.add(one)
    events = counter.events[(objective.name, "model")]
    return events.good, events.bad


def test_what_happened_before_the_sidecar_started_is_not_claimed() -> None:
    assert counted(TTFT, page(0.05, 0.05, 3.0)) == (0, 0)


def test_a_threshold_between_bounds_never_flatters() -> None:
    """0.18 s is counted at 0.1 s: an event of 0.15 s was good, but nobody can tell."""
    assert counted(TTFT, page(), page(0.05, 0.15, 0.2, 1.0)) == (1, 3)


def test_a_restarted_engine_counts_from_its_start() -> None:
    assert counted(TTFT, page(0.05), page(0.05, 0.05, 0.05), page(0.05, 5.0)) == (3, 1)


def test_availability_counts_http_answers_where_vllm_has_them() -> None:
    before = page(http_requests__2xx=10, http_requests__5xx=1, requests_finished__stop=9)
    after = page(http_requests__2xx=15, http_requests__5xx=4, requests_finished__stop=14)

    assert counted(UP, before, after) == (5, 3)


def test_availability_counts_finishes_on_older_versions() -> None:
    before = page(requests_finished__stop=9, requests_finished__error=0)
    after = page(requests_finished__stop=14, requests_finished__error=2)

    assert counted(UP, before, after) == (5, 2)


def test_every_first_token_of_a_real_incident_is_an_event() -> None:
    pages = [
        read_page(o.text, t=o.t, target=o.target)
        for o in read_recording(RECORDINGS / "queue-overload.jsonl.gz")
    ]
    counter = SliCounter(DEFAULT_OBJECTIVES)
    for one in pages:
        counter.add(one)
    events = counter.events[("ttft", "tiny")]
    histograms = [p.engines[0].histograms["time_to_first_token_seconds"] for p in pages]

    assert events.good + events.bad == histograms[-1].count - histograms[0].count
    assert events.bad > events.good


def test_two_servers_behind_one_url_count_nothing() -> None:
    """Their pages alternate; the difference between them is nobody's events."""

    def of(server: int, done: int) -> PageSample:
        one = page(*[0.05] * done)
        sample = one.engines[0]
        gauges = {"process_start_time_seconds": 1000.0 * server}
        engine = EngineSample(
            t=100_000.0,
            key=sample.key,
            gauges=gauges,
            counters=sample.counters,
            histograms=sample.histograms,
        )
        return PageSample(t=100_000.0, target="chat-0", engines=(engine,))

    assert counted(TTFT, *[of(1, 10), of(2, 70)] * 5) == (0, 0)
