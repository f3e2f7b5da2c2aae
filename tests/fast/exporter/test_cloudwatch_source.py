"""Our metrics in CloudWatch become pages again: of an average replica, at any interval, of any fleet."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
from parts.emulated_aws import REGION
from parts.fake_sagemaker import FakeSageMaker

from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.sources.aws_reading import AwsReader
from vllm_opsctl.exporter.sources.cloudwatch_pages import (
    SILENT,
    Ours,
    Published,
    read_events,
    read_pages,
)
from vllm_opsctl.exporter.window import windows_by_engine

SERVICE = {"Service": "shop"}


@pytest.fixture
def fake() -> FakeSageMaker:
    return FakeSageMaker(now=time.time() // 60 * 60)


def put(
    fake: FakeSageMaker, minute: int, metric: str, value: float, times: float, **named: str
) -> None:
    """One datum, so many minutes ago."""
    dimensions = [{"Name": k, "Value": v} for k, v in (SERVICE | named).items()]
    datum = {"MetricName": metric, "Dimensions": dimensions, "Timestamp": fake.now - 60 * minute}
    fake.put("vLLM", [datum | {"Values": [value], "Counts": [times]}])


def published(fake: FakeSageMaker, interval_s: float = 60.0) -> Published:
    reader = AwsReader(REGION, fake.client)
    ours = Ours(namespace="vLLM", service="shop", interval_s=interval_s)
    return read_pages(reader, ours, "chat", fake.now - 3600, fake.now)


def deltas(found: Published, concept: str) -> Mapping[str, float | None]:
    pages = [read_page(o.text, t=o.t, target="chat") for o in found.pages if o.kind == "metrics"]
    return {key.model: window.delta(concept) for key, window in windows_by_engine(pages).items()}


@pytest.mark.parametrize(
    ("interval_s", "beats", "replicas"), [(60, 1, 1), (60, 4, 4), (10, 12, 2), (300, 3, 3)]
)
def test_what_was_counted_is_divided_by_the_replicas_that_published(
    fake: FakeSageMaker, interval_s: float, beats: int, replicas: int
) -> None:
    for minute in (2, 1):
        put(fake, minute, "Heartbeat", 1.0, beats)
        put(fake, minute, "RequestsRunning", 3.0, 60, Model="a")
        put(fake, minute, "Preemptions", 24.0, 1, Model="a")

    assert deltas(published(fake, interval_s), "preemptions") == {"a": 24.0 / replicas}


def test_models_of_one_service_have_their_own_replicas(fake: FakeSageMaker) -> None:
    for minute in (2, 1):
        put(fake, minute, "Heartbeat", 1.0, 4)
        for model, reads in (("a", 180), ("b", 60)):
            put(fake, minute, "RequestsRunning", 3.0, reads, Model=model)
            put(fake, minute, "Preemptions", 12.0, 1, Model=model)

    assert deltas(published(fake), "preemptions") == {"a": 4.0, "b": 12.0}


def test_a_minute_without_a_datum_counted_nothing_and_peaks_survive(fake: FakeSageMaker) -> None:
    for minute in (3, 2, 1):
        put(fake, minute, "Heartbeat", 1.0, 1)
        put(fake, minute, "KVCacheUsage", 40.0, 59, Model="a")
    put(fake, 1, "KVCacheUsage", 98.0, 1, Model="a")
    put(fake, 3, "TimeToFirstToken", 0.5, 10, Model="a")
    put(fake, 1, "TimeToFirstToken", 0.5, 6, Model="a")
    put(fake, 1, "RequestsRunning", 1.0, 60, Model="a")
    found = published(fake)
    pages = [read_page(o.text, t=o.t, target="chat") for o in found.pages]
    (window,) = windows_by_engine(pages).values()
    started = window.histogram("time_to_first_token_seconds")

    assert [page.t for page in pages] == [fake.now - 120, fake.now - 60, fake.now]
    assert started is not None
    assert started.count == 6.0
    assert started.mean == pytest.approx(0.5)
    assert started.quantile(0.5) is None
    assert window.gauge_max("kv_cache_usage_ratio") == pytest.approx(0.98)
    assert max(window.gauge("kv_cache_usage_ratio")) == pytest.approx((59 * 40 + 98) / 6000)


def test_heartbeats_that_stop_and_that_paused_are_told(fake: FakeSageMaker) -> None:
    for minute in (*range(30, 25, -1), *range(20, 10, -1)):
        put(fake, minute, "Heartbeat", 1.0, 1)
        put(fake, minute, "RequestsRunning", 1.0, 60, Model="a")
    found = published(fake)

    assert (found.pages[-1].kind, found.pages[-1].data["reason"]) == ("error", SILENT)
    assert found.gaps == ((fake.now - 25 * 60, fake.now - 20 * 60),)


def test_events_of_objectives_are_summed_over_models(fake: FakeSageMaker) -> None:
    for model in ("a", "b"):
        put(fake, 1, "GoodEvents", 90.0, 1, Model=model, Objective="ttft")
        put(fake, 1, "BadEvents", 10.0, 1, Model=model, Objective="ttft")
    reader = AwsReader(REGION, fake.client)
    ours = Ours(namespace="vLLM", service="shop", interval_s=60.0)

    assert read_events(reader, ours, fake.now - 600, fake.now) == {"ttft": (180.0, 20.0)}


def test_the_fleet_is_found_among_many_metrics_of_single_replicas(fake: FakeSageMaker) -> None:
    fake.page_size = 5
    for minute in (2, 1):
        put(fake, minute, "Heartbeat", 1.0, 1)
        put(fake, minute, "RequestsRunning", 1.0, 60, Model="z")
        for target in range(20):
            put(fake, minute, "RequestsRunning", 1.0, 60, Model="z", Target=f"a-{target}")

    assert len(published(fake).pages) == 2
