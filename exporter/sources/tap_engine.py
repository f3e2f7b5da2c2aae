"""
One engine out of the tap pages of all API processes that serve it, now and in the seconds before.

Counts are summed over the processes; states are those of the process that heard from the scheduler
last, for each step's scheduler statistics go to one process only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_opsctl.exporter.tap.page import Slot, TapHistogram, TapPage

STATES = ("running", "waiting", "deferred", "kv_cache_usage")
"""Fields of a second that say how things stood at its end."""

PEAKS = (
    *("running_max", "waiting_max", "kv_cache_usage_max"),
    *("ttft_max", "itl_max", "e2e_max", "queue_max"),
)

_COUNTERS = (
    *("steps", "step_tokens", "prompt_tokens", "generation_tokens"),
    *("prefix_queries", "prefix_hits", "preemptions"),
    *("finished_abort", "finished_error", "finished_length"),
)
"""Counters of the page that every second has its share of, under the same name."""

_TIMED: Mapping[str, tuple[str, str, str | None]] = {
    "ttft": ("ttft", "ttft_sum", "ttft_max"),
    "itl": ("itl", "itl_sum", "itl_max"),
    "e2e": ("finished", "e2e_sum", "e2e_max"),
    "queue": ("finished", "queue_sum", "queue_max"),
    "prefill": ("finished", "prefill_sum", None),
    "decode": ("finished", "decode_sum", None),
    "prompt_length": ("finished", "finished_prompt_tokens", None),
    "output_length": ("finished", "finished_output_tokens", None),
    "cached_length": ("finished", "finished_cached_tokens", None),
}
"""Histogram, and the second's fields of its count, sum and peak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTotals:
    """
    One engine at one time.

    Args:
        counters: Cumulative, by the page's names.
        gauges: How things stand: the page's gauges.
        histograms: Cumulative; those that cannot be told for that time are absent.
        peaks: Peaks of states since the time before, by the name of the second's field; those that
            this vLLM does not tell are absent.
        adapters: Name to requests running and waiting; empty when that time's are not known.
        hung_up: Requests whose client hung up after the first token, at least so many.
    """

    counters: Mapping[str, float]
    gauges: Mapping[str, float]
    histograms: Mapping[str, TapHistogram]
    peaks: Mapping[str, float]
    adapters: Mapping[str, tuple[int, int]]
    hung_up: float


@dataclass(frozen=True, slots=True)
class TapEngine:
    """
    One engine.

    Args:
        index: Engine index.
        pages: Of every API process that serves it, at least one.
    """

    index: int
    pages: Sequence[TapPage]

    def now(self, since: float) -> EngineTotals:
        """
        As the pages have it.

        Args:
            since: Peaks are taken from this time on (Unix seconds).
        """
        counters: dict[str, float] = {}
        histograms: dict[str, TapHistogram] = {}
        for page in self.pages:
            for name, count in page.counters.items():
                if all(name in other.counters for other in self.pages):
                    counters[name] = counters.get(name, 0) + count
            for name, histogram in page.histograms.items():
                known = histograms.get(name)
                histograms[name] = known.plus(histogram) if known else histogram
        newest = max(self.pages, key=lambda page: page.gauges.get("scheduled_at", 0.0))
        adapters: dict[str, tuple[int, int]] = {}
        for page in self.pages:
            for name, (running, waiting) in page.adapters.items():
                before = adapters.get(name, (0, 0))
                adapters[name] = (before[0] + running, before[1] + waiting)
        seconds = self.seconds()
        recent = [slot for slot in seconds if slot["second"] >= int(since)]
        return EngineTotals(
            counters=counters,
            gauges=newest.gauges,
            histograms=histograms,
            peaks=_peaks(_states(newest.gauges), recent),
            adapters=adapters,
            hung_up=max(_hung_up(counters, histograms, seconds).values(), default=0.0),
        )

    def seconds(self) -> list[dict[str, float]]:
        """The seconds of all pages, those of the same time merged, oldest first."""
        merged: dict[float, dict[str, float]] = {}
        for page in self.pages:
            for slot in page.slots:
                known = merged.get(slot["second"])
                merged[slot["second"]] = dict(slot) if known is None else _merged(known, slot)
        return [merged[second] for second in sorted(merged)]

    def history(self, times: Sequence[int]) -> Iterator[tuple[int, EngineTotals]]:
        """
        How things stood at the end of earlier seconds, newest first.

        A second keeps count, sum and peak of its times, so its distribution is the peak and the
        mean of the others; it is taken out of what the page holds for the seconds up to it.

        Args:
            times: Unix seconds, ascending, none before the oldest second of the ring.
        """
        seconds = {int(slot["second"]): slot for slot in self.seconds()}
        if not seconds or not times:
            return
        newest, wanted = self.now(since=0.0), set(times)
        hung_up = _hung_up(newest.counters, newest.histograms, list(seconds.values()))
        totals = _Unwound(newest)
        told = _states(newest.gauges)
        known = sorted(seconds)
        # a clock that was set back leaves seconds behind those that are wanted
        for second in sorted({*wanted, *(s for s in known if s >= times[0])}, reverse=True):
            slot = seconds.get(second)
            before = bisect_right(known, second)
            if second in wanted and before:
                # between two updates states stay as they were
                last = known[before - 1]
                state = {name: seconds[last][name] for name in STATES if name in told}
                peaks = _peaks(state, [slot] if slot is not None else [])
                yield second, totals.at(state, peaks=peaks, hung_up=hung_up[last])
            if slot is not None:
                totals.undo(slot)


def _merged(a: Mapping[str, float], b: Slot) -> dict[str, float]:
    """One second of two processes."""
    states = b if b["scheduled"] > a["scheduled"] else a
    out = {"second": a["second"]}
    for name, value in a.items():
        if name == "second" or name not in b:
            continue
        if name in STATES:
            out[name] = states[name]
        elif name in PEAKS:
            out[name] = max(value, b[name])
        else:
            out[name] = value + b[name]
    return out


def _states(gauges: Mapping[str, float]) -> dict[str, float]:
    """The page's gauges as a second has them: with the deferred among the waiting."""
    states = {name: gauges[name] for name in STATES if name in gauges}
    if "waiting" in states:
        states["waiting"] += states.get("deferred", 0.0)
    return states


def _peaks(state: Mapping[str, float], seconds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The largest in some seconds and at their end; an engine that stands still writes no seconds."""
    found = {}
    for peak in PEAKS:
        at_the_end = state.get(peak.removesuffix("_max"))
        if at_the_end is not None:
            found[peak] = max([at_the_end, *(slot[peak] for slot in seconds)])
    return found


@dataclass(slots=True)
class _Unwound:
    """Totals from which one second after the other is taken out."""

    newest: EngineTotals
    counters: dict[str, float] = field(init=False)
    counts: dict[str, list[int]] = field(init=False)
    sums: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.counters = dict(self.newest.counters)
        known = {n: h for n, h in self.newest.histograms.items() if n in _TIMED}
        self.counts = {name: list(histogram.counts) for name, histogram in known.items()}
        self.sums = {name: histogram.sum for name, histogram in known.items()}

    def at(
        self, state: Mapping[str, float], *, peaks: Mapping[str, float], hung_up: float
    ) -> EngineTotals:
        """The totals as they are now unwound to."""
        gauges = {name: value for name, value in self.newest.gauges.items() if name == "awake"}
        gauges |= state
        if "waiting" in gauges:
            # a second counts the deferred among the waiting, the page's gauge does not
            gauges["waiting"] -= gauges.get("deferred", 0.0)
        histograms = {
            name: TapHistogram(
                self.newest.histograms[name].scale, tuple(counts), self.sums[name], 0.0
            )
            for name, counts in self.counts.items()
        }
        return EngineTotals(
            counters=dict(self.counters),
            gauges=gauges,
            histograms=histograms,
            peaks=peaks,
            adapters={},
            hung_up=hung_up,
        )

    def undo(self, slot: Mapping[str, float]) -> None:
        """Take a second out."""
        for name in _COUNTERS:
            self._less(name, slot[name])
        told = slot["finished_abort"] + slot["finished_error"] + slot["finished_length"]
        self._less("finished_stop", slot["finished"] - told)
        computed = slot["finished_prompt_tokens"] - slot["finished_cached_tokens"]
        self._less("computed_at_finish", computed)
        rejected = [name for name in self.counters if name.startswith("rejected_")]
        if rejected:
            self._less(max(rejected, key=self.counters.__getitem__), slot["rejections"])
        for name, (count, total, peak) in _TIMED.items():
            if name in self.counts and slot[count]:
                self._take(name, int(slot[count]), slot[total], slot[peak] if peak else None)
                self.sums[name] = max(0.0, self.sums[name] - slot[total])

    def _less(self, name: str, count: float) -> None:
        if name in self.counters:
            self.counters[name] = max(0.0, self.counters[name] - count)

    def _take(self, name: str, count: int, total: float, peak: float | None) -> None:
        scale, counts = self.newest.histograms[name].scale, self.counts[name]
        if peak is not None:
            _remove(counts, scale.index(peak), 1)
            count, total = count - 1, total - peak
        if count > 0:
            _remove(counts, scale.index(max(0.0, total / count)), count)


def _remove(counts: list[int], index: int, count: int) -> None:
    """Take observations out of a bucket, or of the nearest ones that have any."""
    for distance in range(len(counts)):
        for near in {index - distance, index + distance}:
            if count and 0 <= near < len(counts) and counts[near]:
                taken = min(counts[near], count)
                counts[near] -= taken
                count -= taken
        if not count:
            return


def _hung_up(
    counters: Mapping[str, float],
    histograms: Mapping[str, TapHistogram],
    seconds: Sequence[Mapping[str, float]],
) -> dict[int, float]:
    """
    Requests that got a first token, are not finished, and do not run, by second: so many hung up.

    vLLM counts them nowhere (HTTP_SURFACE). Requests in prefill are among the running ones and
    make the difference too small, never too large, so the largest until then is the best one.
    Preempted requests wait with their first token behind them: once there are any, waiting ones
    count as running.
    """
    started = float(histograms["ttft"].count) if "ttft" in histograms else 0.0
    ended = sum(value for name, value in counters.items() if name.startswith("finished_"))
    preempted = counters.get("preemptions", 0.0)
    differences: list[tuple[int, float]] = []
    for slot in reversed(seconds):
        held = slot["running"] + (slot["waiting"] if preempted else 0.0)
        differences.append((int(slot["second"]), started - ended - held))
        started -= slot["ttft"]
        ended -= slot["finished"]
    most, found = 0.0, {}
    for second, difference in reversed(differences):
        most = max(most, difference)
        found[second] = most
    return found
