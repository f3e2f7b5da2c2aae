"""A sidecar's whole page reaches a collector."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Opsctl
from fake_collector import FakeCollector, fake_collector
from loopback import http_get, wait_for
from paths import RECORDINGS
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def collector() -> Iterator[FakeCollector]:
    with fake_collector() as fake:
        yield fake


def number(attribute: Any) -> str:
    return str(attribute.value.string_value)


def labels_of(point: Any) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((a.key, number(a)) for a in point.attributes))


def test_all_that_the_page_says_reaches_the_collector(
    collector: FakeCollector, opsctl: Opsctl, tmp_path: Path
) -> None:
    target = opsctl.start_replay(RECORDINGS / "kv-preemption-thrash.jsonl.gz")
    (tmp_path / "opsctl.yaml").write_text(
        "service: {name: shop}\n"
        f"exporter: {{cloudwatch: {{sink: otlp, endpoint_url: '{collector.url}', interval: 2s}}}}\n"
    )
    sidecar = opsctl.start_sidecar(target, cwd=tmp_path)
    wait_for(lambda: len(collector.received) >= 3, timeout_s=60, what="three requests")
    text = http_get(f"{sidecar}/metrics")[1]
    families = text_string_to_metric_families(text)
    page = {family.name: family for family in families if family.samples}
    sent = collector.metrics()

    # families that the page may have gained since the request was made are few
    assert set(sent) <= set(page)
    assert len(set(page) - set(sent)) <= 2, set(page) - set(sent)
    told = {
        labels_of(point): point.count
        for point in sent["vllm_engine_time_to_first_token_seconds"].histogram.data_points
    }
    shown = {
        # the resource says whose it is
        tuple(sorted((k, v) for k, v in sample.labels.items() if k != "service")): sample.value
        for sample in page["vllm_engine_time_to_first_token_seconds"].samples
        if sample.name.endswith("_count")
    }
    assert told.keys() == shown.keys()
    assert all(told[labels] <= shown[labels] for labels in told)
    resource = collector.received[-1].resource_metrics[0].resource
    assert {a.key: number(a) for a in resource.attributes}["service.name"] == "shop"
