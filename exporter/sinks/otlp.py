"""
The OTLP sink: everything that the sidecar exposes, to CloudWatch's OTLP endpoint or any collector.

The OpenTelemetry SDK's exporter encodes, compresses and repeats; here the families that the Prometheus
sink makes become its data, cumulative, with the time at which each process's counters began.

Source:
    CloudWatch's endpoint is https://monitoring.REGION.amazonaws.com/v1/metrics, signed with SigV4 for
    the service ``monitoring``; names and units are those of the Prometheus page, as the OpenTelemetry
    specification's compatibility chapter maps them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client.core import Metric as Family

from vllm_opsctl import __version__
from vllm_opsctl.errors import ConfigError, UsageError
from vllm_opsctl.exporter.aws import region_of, sends_heartbeat
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.identity import Identity, identity_of
from vllm_opsctl.exporter.sinks.losses import Loss
from vllm_opsctl.exporter.sinks.otlp_session import Failure, SigV4, WatchedSession
from vllm_opsctl.exporter.workers import Life

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics.export import Metric, MetricsData

EXPORT_S = 15.0
"""How long one attempt may take, repetitions of the SDK included."""

log = logging.getLogger(__name__)

Families = Callable[[], Iterable[Family]]
Starts = Callable[[], Mapping[str, float]]


class OtlpPublisher:
    """
    Sends everything once an interval until stopped.

    Args:
        config: Service, and ``exporter.cloudwatch``.
        exporter: The SDK's, which sends by the session.
        session: Knows why something was not taken.
        families: Gives all metric families now.
        starts: Gives, by target, when its process began, Unix seconds.
        clock: Unix seconds.
    """

    def __init__(
        self,
        config: Config,
        exporter: OTLPMetricExporter,
        session: WatchedSession,
        families: Families,
        starts: Starts,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        settings = config.exporter.cloudwatch
        self._identity = identity_of(config)
        self._interval = settings.interval
        self._exporter, self._session = exporter, session
        self._families, self._starts = families, starts
        self._clock = clock
        self._began = clock()
        self._waiting: deque[tuple[float, MetricsData]] = deque()
        self._most_waiting = max(1, int(settings.spool_keep // settings.interval))
        self._failures = 0
        self._lost: dict[Loss, int] = {"full": 0, "refused": 0}

    @property
    def sink(self) -> str:
        """What it is called where several send."""
        return "otlp"

    @property
    def lost(self) -> Mapping[Loss, int]:
        """Intervals that were lost since the sidecar began."""
        return self._lost

    unfinished = "OTLP: no answer; the last interval is lost"
    """What is to be said when the last interval could not be sent in time."""

    def run(self, life: Life) -> None:
        """One interval after the other; the last ends with the sidecar."""
        over = False
        while not over:
            over = life.wait(self._interval - self._clock() % self._interval)
            self.publish()
        self._exporter.shutdown()

    def publish(self) -> None:
        """Send the state now, and what waits; a fault of ours is not the end of all publishing."""
        try:
            now = self._clock()
            state = metrics_data(
                self._families(),
                identity=self._identity,
                starts=self._starts(),
                began=self._began,
                now=now,
            )
            self._waiting.append((now, state))
            if len(self._waiting) > self._most_waiting:
                oldest, _ = self._waiting.popleft()
                self._lost["full"] += 1
                log.error("OTLP: too much waits: the state of %d is lost", oldest)
            while self._waiting and self._is_done_with(*self._waiting[0]):
                self._waiting.popleft()
        except Exception:
            log.exception("a fault of the sidecar itself")

    def _is_done_with(self, t: float, data: MetricsData) -> bool:
        """Send a state; False when it has to wait."""
        failure = self._send(data)
        if failure is not None and not failure.is_final:
            self._failures += 1
            if self._failures == 1:
                log.error("OTLP: %s; intervals wait until it is taken", failure.why)
            return False
        if failure is not None:
            # what is behind it must not wait for what nobody will ever take
            self._lost["refused"] += 1
            log.error("OTLP: the state of %d is lost, whole or in part: %s", t, failure.why)
        elif self._failures:
            log.warning("OTLP: taken again after %d failed attempts", self._failures)
        self._failures = 0
        return True

    def _send(self, data: MetricsData) -> Failure | None:
        # without a request the SDK cannot encode it, or finds it too large: neither will change
        self._session.failure = Failure(
            "the SDK does not send it (the line above says why)", is_final=True
        )
        self._exporter.export(data)
        return self._session.failure


def metrics_data(
    families: Iterable[Family],
    *,
    identity: Identity,
    starts: Mapping[str, float],
    began: float,
    now: float,
) -> MetricsData:
    """
    Families as the SDK's exporter takes them.

    Args:
        families: Of the sidecar's page.
        identity: Attributes of the resource: ``service.name``, and the free labels as they are called.
        starts: By target, when its process began, Unix seconds: its counters' beginning.
        began: When the sidecar began, the beginning of all other counters.
        now: Unix seconds.
    """
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    def start_of(labels: Mapping[str, str], name: str) -> int:
        own = starts.get(labels.get("target", ""))
        # what the sidecar counts itself does not begin with the engine
        begins = own if own is not None and name.startswith("vllm_engine_") else began
        return int(min(begins, now) * 1e9)

    metrics = [
        metric
        for family in families
        if (metric := _metric(family, start_of, int(now * 1e9))) is not None
    ]
    scope = ScopeMetrics(InstrumentationScope("vllm_opsctl", __version__), metrics, "")
    resource = Resource({"service.name": identity.service, **dict(identity.free)})
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metric(
    family: Family, start_of: Callable[[Mapping[str, str], str], int], now: int
) -> Metric | None:
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        Gauge,
        Histogram,
        Metric,
        NumberDataPoint,
        Sum,
    )

    cumulative = AggregationTemporality.CUMULATIVE
    unit = (
        "s" if family.name.endswith("_seconds") else "By" if family.name.endswith("_bytes") else "1"
    )
    if family.type in ("histogram", "summary"):
        points = list(_histograms(family, start_of, now))
        data: Any = Histogram(points, cumulative)
    else:
        total = f"{family.name}_total"
        wanted = total if family.type == "counter" else family.name
        points = [
            NumberDataPoint(
                dict(sample.labels), start_of(sample.labels, family.name), now, float(sample.value)
            )
            for sample in family.samples
            if sample.name == wanted
        ]
        data = Sum(points, cumulative, True) if family.type == "counter" else Gauge(points)
    return Metric(family.name, family.documentation, unit, data) if points else None


def _histograms(
    family: Family, start_of: Callable[[Mapping[str, str], str], int], now: int
) -> Iterator[Any]:
    """One point for each set of labels; a summary is a histogram without bounds."""
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    counts: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in family.samples:
        labels = {name: text for name, text in sample.labels.items() if name != "le"}
        key = tuple(labels.items())
        if sample.name.endswith("_bucket"):
            buckets.setdefault(key, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            sums[key] = sample.value
        elif sample.name.endswith("_count"):
            counts[key] = sample.value
    for key, total in sums.items():
        upto = sorted(buckets.get(key, [(float("inf"), counts.get(key, 0.0))]))
        inside = [int(b - a) for (_, a), (_, b) in zip([(0.0, 0.0), *upto], upto, strict=False)]
        labels = dict(key)
        yield HistogramDataPoint(
            attributes=labels,
            start_time_unix_nano=start_of(labels, family.name),
            time_unix_nano=now,
            count=int(upto[-1][1]),
            sum=total,
            bucket_counts=inside,
            explicit_bounds=[bound for bound, _ in upto[:-1]],
            # not known; the SDK's encoder leaves out what is None
            min=None,  # type: ignore[arg-type]
            max=None,  # type: ignore[arg-type]
        )


def otlp_publisher(
    config: Config,
    environment: Mapping[str, str],
    families: Families,
    starts: Starts,
) -> OtlpPublisher:
    """
    The configured publisher.

    Args:
        config: The whole configuration.
        environment: For the region.
        families: Gives all metric families now.
        starts: Gives, by target, when its process began.

    Raises:
        ConfigError: There is no region, and no endpoint either.
        UsageError: The OpenTelemetry exporter, or boto3, is not installed.
    """
    settings = config.exporter.cloudwatch
    region = region_of(settings, environment)
    endpoint = settings.endpoint_url
    if endpoint is None and region is None:
        raise ConfigError(
            [
                "exporter.cloudwatch.region: not set, and neither is AWS_REGION; write eu-central-1, or "
                "the endpoint_url of a collector, http://HOST:4318/v1/metrics"
            ]
        )
    url = endpoint or f"https://monitoring.{region}.amazonaws.com/v1/metrics"
    try:
        from opentelemetry.exporter.otlp.proto.http import Compression
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        signer = SigV4(region or url.split(".")[1]) if sends_heartbeat(settings) else None
    except ImportError as problem:
        raise UsageError(
            f"{problem.name} is not installed; pip install 'vllm-opsctl[otlp,aws]' brings it"
        ) from None
    session = WatchedSession(signer)
    exporter = OTLPMetricExporter(
        endpoint=url, session=session, timeout=EXPORT_S, compression=Compression.Gzip
    )
    return OtlpPublisher(config, exporter, session, families, starts)
