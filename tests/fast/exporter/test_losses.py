"""What a sink has lost stands on the sidecar's own page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest

from vllm_opsctl.exporter.sinks.losses import Loss, LossCollector
from vllm_opsctl.exporter.sinks.prometheus import own_metrics


@dataclass
class Sink:
    sink: str = "put"
    lost: Mapping[Loss, int] = field(default_factory=dict)


def lines_of(*sinks: Sink) -> list[str]:
    registry = CollectorRegistry()
    registry.register(LossCollector(sinks))
    page = generate_latest(registry).decode()
    return [line for line in page.splitlines() if not line.startswith("#")]


def test_every_sink_tells_its_losses_by_reason_also_when_there_are_none() -> None:
    """A counter that appears with its first loss has no increase to alert on."""
    heartbeat, everything = Sink(lost={"full": 0, "refused": 0}), Sink("otlp", {"refused": 2})

    assert lines_of(heartbeat, everything) == [
        'opsctl_sink_lost_intervals_total{reason="full",sink="put"} 0.0',
        'opsctl_sink_lost_intervals_total{reason="refused",sink="put"} 0.0',
        'opsctl_sink_lost_intervals_total{reason="refused",sink="otlp"} 2.0',
    ]


def test_where_nothing_is_sent_nothing_is_told() -> None:
    assert lines_of() == []


def test_opsctl_explain_knows_it() -> None:
    assert "never reached CloudWatch" in own_metrics()["opsctl_sink_lost_intervals"]
