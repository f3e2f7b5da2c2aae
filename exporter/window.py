"""
A window: the samples of one engine over time, and the numbers that only time gives.

Increases are split at counter resets as Prometheus does it; scrapes that failed, clock steps and
engines that come and go change nothing but the window's resolution. A number that cannot be
computed is None, never 0.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_opsctl.exporter.engine import EngineKey, EngineSample, Histogram, PageSample

RECENT_PEAKS: Mapping[str, str] = {
    "requests_running": "requests_running_recent_peak",
    "requests_waiting": "requests_waiting_recent_peak",
    "kv_cache_usage_ratio": "kv_cache_usage_recent_peak",
}
"""Gauge and the one that holds its highest value since the read before."""


@dataclass(frozen=True, slots=True)
class Window:
    """
    An ordered run of samples of one engine.

    Args:
        samples: In the order in which they were taken.
    """

    samples: tuple[EngineSample, ...]
    _histograms: dict[str, Histogram | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    # -- time --------------------------------------------------------------------------------------

    @property
    def steps_s(self) -> tuple[float, ...]:
        """
        Seconds between neighbours, shape (n-1,).

        A clock step backwards leaves an interval of unknown length: the median stands for it.
        """
        raw = [b.t - a.t for a, b in zip(self.samples, self.samples[1:], strict=False)]
        good = [seconds for seconds in raw if seconds > 0]
        typical = statistics.median(good) if good else 0.0
        return tuple(seconds if seconds > 0 else typical for seconds in raw)

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return sum(self.steps_s)

    @property
    def clock_steps(self) -> int:
        """How often the clock went backwards."""
        pairs = zip(self.samples, self.samples[1:], strict=False)
        return sum(1 for a, b in pairs if b.t < a.t)

    def slice(self, start: int, stop: int | None = None) -> Window:
        """The samples from one index to another."""
        return Window(self.samples[start:stop])

    def between(self, start: float, end: float) -> Window:
        """The samples within two times, both included (unix seconds)."""
        return Window(tuple(s for s in self.samples if start <= s.t <= end))

    # -- resets ------------------------------------------------------------------------------------

    @property
    def resets(self) -> tuple[int, ...]:
        """Indices of the first sample after each counter reset (a process restart)."""
        pairs = zip(self.samples, self.samples[1:], strict=False)
        return tuple(i for i, (a, b) in enumerate(pairs, start=1) if is_reset(a, b))

    def since_reset(self) -> Window:
        """The part after the last reset; the whole window when there is none."""
        resets = self.resets
        return self.slice(resets[-1]) if resets else self

    # -- counters ----------------------------------------------------------------------------------

    def delta(self, concept: str) -> float | None:
        """Increase of a counter over all values of its split label; None when it was never there twice."""
        return self._increase(lambda sample: sample.total(concept))

    def rate(self, concept: str) -> float | None:
        """Increase of a counter per second."""
        increase, seconds = self.delta(concept), self.seconds
        return increase / seconds if increase is not None and seconds > 0 else None

    def _increase(self, read: Callable[[EngineSample], float | None]) -> float | None:
        values = [value for value in map(read, self.samples) if value is not None]
        if len(values) < 2:
            return None
        return sum(new - old if new >= old else new for old, new in itertools.pairwise(values))

    # -- histograms --------------------------------------------------------------------------------

    def histogram(self, concept: str) -> Histogram | None:
        """What a histogram observed within the window; None when it was never there twice."""
        if concept not in self._histograms:
            self._histograms[concept] = self._observed(concept)
        return self._histograms[concept]

    def _observed(self, concept: str) -> Histogram | None:
        found = [s.histograms[concept] for s in self.samples if concept in s.histograms]
        if len(found) < 2:
            return None
        first = found[0]
        if all(old.count <= new.count for old, new in itertools.pairwise(found)):
            # no restart: the ends say it all
            increase = found[-1].minus(first)
            if increase is not None:
                return increase
        total = Histogram(first.bounds, (0.0,) * len(first.bounds), 0.0)
        for old, new in itertools.pairwise(found):
            increase = new.minus(old) or new
            summed = total.plus(increase)
            # other bounds after a restart: what came before cannot be added to them
            total = summed if summed is not None else increase
        return total

    def mean(self, concept: str) -> float | None:
        """Mean of a histogram's observations within the window."""
        histogram = self.histogram(concept)
        return histogram.mean if histogram else None

    # -- gauges ------------------------------------------------------------------------------------

    def gauge(self, key: str) -> tuple[float, ...]:
        """The values of a gauge, oldest first; samples without it are left out."""
        return tuple(s.gauges[key] for s in self.samples if key in s.gauges)

    def gauge_mean(self, key: str) -> float | None:
        """Mean over the samples; None without any."""
        values = self.gauge(key)
        return statistics.fmean(values) if values else None

    def gauge_max(self, key: str) -> float | None:
        """Largest value; None without any sample. The tap has also seen what lies between them."""
        between = self.gauge(RECENT_PEAKS[key]) if key in RECENT_PEAKS else ()
        return max((*self.gauge(key), *between), default=None)

    def gauge_last(self, key: str) -> float | None:
        """The newest sample that has it."""
        values = self.gauge(key)
        return values[-1] if values else None


def windows_by_engine(pages: Iterable[PageSample]) -> Mapping[EngineKey, Window]:
    """One window per engine that any of the pages shows; engines may come and go."""
    samples: dict[EngineKey, list[EngineSample]] = {}
    for page in pages:
        for engine in page.engines:
            samples.setdefault(engine.key, []).append(engine)
    return {key: Window(tuple(found)) for key, found in samples.items()}


_RESET_WITNESSES = (
    "generation_tokens",
    "prompt_tokens",
    "process_cpu_seconds",
    "requests_finished",
)

_SAME_START_S = 0.5
"""Two start times closer than this are one process's."""

_START_SLACK_S = 5.0
"""A process may have started this long before its predecessor was last seen: clocks differ."""


def comparable(old: PageSample, new: PageSample) -> tuple[EngineSample, EngineSample] | None:
    """An engine on both of two pages; when the model changed, the first of each."""
    before = {engine.key: engine for engine in old.engines}
    for engine in new.engines:
        if engine.key in before:
            return before[engine.key], engine
    return (old.engines[0], new.engines[0]) if old.engines and new.engines else None


def is_other_server(old: EngineSample, new: EngineSample) -> bool:
    """
    Whether two samples come from two processes that live at the same time.

    A restarted process started after its predecessor, and after that was last seen; any other one
    is another server behind the same URL (a load balancer, several replicas).
    """
    before, after = _started(old), _started(new)
    if before is None or after is None or abs(after - before) <= _SAME_START_S:
        return False
    return after < before or after < old.t - _START_SLACK_S


def is_reset(old: EngineSample, new: EngineSample) -> bool:
    """Whether the process restarted between two samples: its counters began again."""
    if is_other_server(old, new):
        return False
    before, after = _started(old), _started(new)
    if before is not None and after is not None and after > before + _SAME_START_S:
        return True
    return counters_fell(old, new)


def counters_fell(old: EngineSample, new: EngineSample) -> bool:
    """Whether a counter that only grows in one process is smaller than it was."""
    return any(_fell(old.total(name), new.total(name)) for name in _RESET_WITNESSES)


def _started(sample: EngineSample) -> float | None:
    return sample.gauges.get("process_start_time_seconds")


def _fell(old: float | None, new: float | None) -> bool:
    return old is not None and new is not None and new < old


def longest_flat(
    values: Sequence[float | None], steps_s: Sequence[float]
) -> tuple[int, int, float]:
    """
    The longest run over which a heartbeat did not move.

    Args:
        values: Heartbeat readings, shape (n,); None where it could not be read.
        steps_s: Seconds between neighbours, shape (n-1,).

    Returns:
        First and last index of the run, and its length in seconds; (0, 0, 0.0) when it always moved.
    """
    best = (0, 0, 0.0)
    start, length = 0, 0.0
    for index in range(1, len(values)):
        if values[index] is not None and values[index] == values[index - 1]:
            length += steps_s[index - 1]
            if length > best[2]:
                best = (start, index, length)
        else:
            start, length = index, 0.0
    return best
