"""What the sinks have lost, on the sidecar's own page: a loss that nobody sees is found too late."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

Loss = Literal["full", "refused"]
"""Too much waited for too long; or it was refused for good."""


class Loses(Protocol):
    """A sink that counts what it has lost."""

    @property
    def sink(self) -> str:
        """What it is called: ``put``, ``emf`` or ``otlp``."""

    @property
    def lost(self) -> Mapping[Loss, int]:
        """Intervals that were lost, whole or in part, since the sidecar began."""


class LossCollector(Collector):
    """
    Collects what all sinks have lost.

    Args:
        sinks: Those that send.
    """

    def __init__(self, sinks: Sequence[Loses]) -> None:
        self._sinks = sinks

    def describe(self) -> Iterable[Metric]:
        """Nothing: without a sink that sends there is nothing to lose."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """One family, 0 included, so that an increase is seen."""
        if not self._sinks:
            return
        family = lost_family()
        for one in self._sinks:
            for reason, count in one.lost.items():
                family.add_metric([one.sink, reason], count)
        yield family


def lost_family() -> CounterMetricFamily:
    """The family without data."""
    return CounterMetricFamily(
        "opsctl_sink_lost_intervals",
        "Intervals that never reached CloudWatch or a collector, whole or in part, by sink and reason: "
        "full (they waited too long), refused (for good).",
        labels=("sink", "reason"),
    )
