"""
A recording as CloudWatch would hold it: each second of it is told as a minute of the same.

Counts grow sixtyfold with the time, gauges and latencies stay, so every rate is the recording's. The data
are the sidecar's own: :func:`data_of` and :func:`as_metric_datum` make them, as when they are published.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from truth import parsed

from parts.fake_sagemaker import FakeSageMaker
from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter.config import DEFAULT_OBJECTIVES
from vllm_opsctl.exporter.engine import PageSample
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.sinks.cloudwatch.datum import Datum
from vllm_opsctl.exporter.sinks.cloudwatch.interval import HEARTBEAT, Labels, data_of

MINUTE_S = 60


def slow_motion(
    observations: Sequence[Observation], end: float, labels: Labels, *, times: float = MINUTE_S
) -> Iterator[tuple[int, list[Datum]]]:
    """
    The minutes of a recording.

    Args:
        observations: Of one target, in order.
        end: Unix seconds at which the last minute ends.
        labels: The data's dimensions.
        times: How often a second is told; fewer are told where an emulator keeps every single value.

    Yields:
        The minute's start and its data; minutes without a page are left out.
    """
    pages: dict[int, list[PageSample]] = {}
    last = int(observations[-1].t)
    for observation in observations:
        try:
            page = parsed(observation.text, t=observation.t, target=observation.target)
        except (BadPage, KeyError):
            continue
        pages.setdefault(int(observation.t), []).append(page)
    before: PageSample | None = None
    for second in sorted(pages):
        t = int(end) // MINUTE_S * MINUTE_S - (last - second + 1) * MINUTE_S
        data = data_of(before, pages[second], t=t, labels=labels, objectives=DEFAULT_OBJECTIVES)
        before = pages[second][-1]
        yield t, [_slowed(datum, times) for datum in data]


def invocations(fake: FakeSageMaker, observations: Sequence[Observation]) -> None:
    """
    What SageMaker would have counted of the same requests, by the answers of the server's own routes.

    Args:
        fake: Gets AWS's metrics, the newest minute last.
        observations: Of one target, in order.
    """
    counted: dict[int, dict[str, float]] = {}
    for observation in observations:
        try:
            page = parsed(observation.text, t=observation.t, target=observation.target)
        except (BadPage, KeyError):
            continue
        counters = page.engines[0].counters
        counted[int(observation.t)] = {
            status: counters.get(f"http_requests{{{status}}}", 0.0)
            for status in ("2xx", "4xx", "5xx")
        }
    seconds = range(int(observations[0].t), int(observations[-1].t) + 1)
    rows: dict[str, list[float]] = {"4xx": [], "5xx": [], "all": []}
    if not counted:
        return
    before = counted[min(counted)]
    for second in seconds:
        now = counted.get(second, before)
        # a new process counts from 0
        grown = {status: max(0.0, now[status] - before[status]) for status in now}
        for status in ("4xx", "5xx"):
            rows[status].append(grown[status] * MINUTE_S)
        rows["all"].append(sum(grown.values()) * MINUTE_S)
        before = now
    fake.aws("Invocations", *rows["all"])
    fake.aws("Invocation4XXErrors", *rows["4xx"])
    fake.aws("Invocation5XXErrors", *rows["5xx"])


def _slowed(datum: Datum, times: float) -> Datum:
    if datum.statistics is not None or datum.metric == HEARTBEAT:
        return datum
    if datum.metric in ("Preemptions", "RequestsGaveUp", "GoodEvents", "BadEvents"):
        return replace(datum, values=tuple(value * times for value in datum.values))
    return replace(datum, counts=tuple(count * times for count in datum.counts))
