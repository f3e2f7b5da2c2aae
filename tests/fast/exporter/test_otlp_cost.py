"""What everything weighs by OTLP is what a real page's export weighs."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from paths import PAGES

from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.identity import Identity
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.otlp_cost import export_bytes, page_shape
from vllm_opsctl.exporter.sinks.otlp import metrics_data
from vllm_opsctl.exporter.sinks.prometheus import EngineCollector
from vllm_opsctl.exporter.target_state import Snapshot, TargetState

CONFIG = Config.model_validate({"targets": ["http://chat-0:8000"], "service": {"name": "shop"}})
WITH_TAP = Config.model_validate({"exporter": {"tap": {"dir": "/run/tap"}}})


def recorded(name: str) -> str:
    return (PAGES / name).read_text()


def exported(snapshots: list[Snapshot]) -> int:
    """As AWS's user guide counts: name, labels, resource, time and value of every data point."""
    families = EngineCollector(lambda: snapshots, CONFIG.objectives).collect()
    state = metrics_data(families, identity=Identity("shop"), starts={}, began=1.0, now=1.7e9)
    request: Any = encode_metrics(state)
    return sum(
        len(metric.name) + resource.resource.ByteSize() + point.ByteSize()
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in getattr(metric, metric.WhichOneof("data")).data_points
    )


def test_the_shape_is_that_of_the_recorded_page() -> None:
    shape = page_shape()
    (sample,) = read_page(
        recorded(f"vllm-{shape.vllm_version}-v1.recorded.prom"), t=0.0, target="x"
    ).engines

    assert set(shape.gauges) == set(sample.gauges)
    assert set(shape.counters) == set(sample.counters)
    assert shape.histograms == {name: h.bounds[:-1] for name, h in sample.histograms.items()}
    assert shape.facts.items() <= sample.facts.items()


@pytest.mark.parametrize(
    ("page", "most"),
    [("vllm-0.32.0-v1.recorded.prom", 0.03), ("vllm-0.33.0-v1.logger.prom", 0.05)],
)
def test_a_replica_weighs_what_a_real_pages_export_weighs(page: str, most: float) -> None:
    (target,) = CONFIG.targets
    state = TargetState(target, CONFIG.exporter, CONFIG.objectives)
    assert state.record(Observation(1.0, target.name, "metrics", {"text": recorded(page)}))
    snapshot = state.snapshot(1.0)
    assert snapshot.page is not None
    model = snapshot.page.engines[0].key.model

    real = exported([snapshot]) - exported([])
    assert export_bytes(CONFIG, (model,)) - export_bytes(CONFIG, ()) == pytest.approx(
        real, rel=most
    )


def test_replicas_add_up() -> None:
    own, one, four = (export_bytes(CONFIG, ("tiny",) * n) for n in (0, 1, 4))

    assert four - own == 4 * (one - own)


def test_a_longer_name_of_the_model_weighs_more() -> None:
    assert export_bytes(CONFIG, ("m" * 40,)) > export_bytes(CONFIG, ("m",)) + 39 * 60


def test_finer_buckets_of_the_tap_weigh_more() -> None:
    assert export_bytes(WITH_TAP, ("tiny",)) > 1.2 * export_bytes(CONFIG, ("tiny",))
