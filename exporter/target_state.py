"""What the sidecar knows of one target right now; written by its poller, read by the server."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter.aws import has_classic_metrics
from vllm_opsctl.exporter.config import Exporter, Objective, Target
from vllm_opsctl.exporter.engine import EngineKey, EngineSample, PageSample
from vllm_opsctl.exporter.event_history import EventHistory, Reading
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.flight_recorder import FlightRecorder
from vllm_opsctl.exporter.limits import MAX_REMEMBERED
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.rolling import RollingPeak, RollingRatio
from vllm_opsctl.exporter.sli import Events, SliCounter
from vllm_opsctl.exporter.window import RECENT_PEAKS, comparable, is_reset

PEAK_SPANS_S = (15.0, 60.0)
"""Usual scrape intervals of Prometheus; a peak over the interval cannot fall between two scrapes."""

PEAK_CONCEPTS = ("requests_running", "requests_waiting", "kv_cache_usage_ratio")

HIT_RATIO_SPAN_S = 60.0

STALL_S = 10.0
"""FAILURE_MODES, engine-hung: no progress for 10 s under demand is a stall."""

STALE_READS = 3
"""Engine metrics of a target that has missed so many reads are no longer exposed."""

MIN_STALE_S = 5.0

QUEUE_SPAN_S = 5.0
"""A queue that empties within so long is no lack of room."""

STAYED_READS = 3
"""Clients that are there in so many reads running have come to stay."""

FULL_KV_RATIO = 0.95

MAX_FRESH_PAGES = 3600
"""Pages that wait for a sink: an hour of them at the usual pace."""

CROWD = 5
"""New connections that count as demand."""


@dataclass(slots=True)
class _EngineState:
    peaks: dict[tuple[str, float], RollingPeak] = field(
        default_factory=lambda: {
            (concept, span): RollingPeak(span) for concept in PEAK_CONCEPTS for span in PEAK_SPANS_S
        }
    )
    hit_ratio: RollingRatio = field(default_factory=lambda: RollingRatio(HIT_RATIO_SPAN_S))
    spare_queue: RollingPeak = field(default_factory=lambda: RollingPeak(QUEUE_SPAN_S))
    """Of the queue's length with its sign turned: its peak is the shortest queue."""
    heartbeat: float | None = None
    progressed_at: float = 0.0
    fds_at_progress: float | None = None
    crowded_reads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """
    A consistent view of a target.

    Args:
        target: Its configuration.
        now: Unix seconds of the view.
        up: The newest read gave a page, and not long ago.
        error: Why it did not.
        page: The newest page; None when there is none or it is stale.
        last_success: Unix seconds of the newest page; None when there was none.
        peaks: By engine, concept and span in seconds.
        hit_ratios: Prefix-cache hit ratio of the last minute by engine.
        events: SLI events by objective and model.
        history: What those read in the last hour, oldest first.
        left_out: How much of the newest page lies beyond a bound, by the bound's name.
        ready: Whether a load balancer should send traffic; ``not_ready`` says why not.
    """

    target: Target
    now: float
    up: bool
    error: str | None
    page: PageSample | None
    last_success: float | None
    reads: int
    failures: Counter[str]
    read_seconds: float
    restarts: int
    peaks: dict[tuple[EngineKey, str, float], float]
    hit_ratios: dict[EngineKey, float]
    events: dict[tuple[str, str], Events]
    history: tuple[Reading, ...]
    recorder_bytes: int
    recorder_span_s: float
    problems: int
    left_out: Mapping[str, int]
    not_ready: str | None

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send traffic here."""
        return self.not_ready is None


class TargetState:
    """
    The state of one target.

    Args:
        target: Its configuration.
        exporter: The sidecar's configuration.
        objectives: SLIs to count.
    """

    def __init__(self, target: Target, exporter: Exporter, objectives: Sequence[Objective]) -> None:
        self.target = target
        self._stale_after_s = max(
            MIN_STALE_S, STALE_READS * exporter.poll_interval + exporter.timeout
        )
        self.recorder = FlightRecorder(
            target.name,
            keep_s=exporter.flight_recorder.keep,
            max_bytes=exporter.flight_recorder.max_memory,
        )
        self._lock = threading.Lock()
        self._sli = SliCounter(objectives)
        self._history = EventHistory()
        self._engines: dict[EngineKey, _EngineState] = {}
        self._page: PageSample | None = None
        self._up = False
        self._error: str | None = "not read yet"
        self._reads = 0
        self._failures: Counter[str] = Counter()
        self._read_seconds = 0.0
        self._restarts = 0
        self._problems = 0
        # for a sink that wants every page; none is kept where nobody takes them
        self._fresh: deque[PageSample] | None = None
        if has_classic_metrics(exporter.cloudwatch):
            self._fresh = deque(maxlen=MAX_FRESH_PAGES)

    def take_pages(self) -> list[PageSample]:
        """The pages since this was called last, oldest first."""
        with self._lock:
            pages = list(self._fresh or ())
            if self._fresh is not None:
                self._fresh.clear()
        return pages

    def remember(self, observation: Observation) -> None:
        """Take in what happened before the sidecar looked: for the record, counted nowhere."""
        self.recorder.append(observation)

    def record(self, observation: Observation, *, seconds: float = 0.0) -> bool:
        """
        Take an observation in.

        Args:
            observation: Of any kind.
            seconds: How long reading it took.

        Returns:
            Whether it was a readable page.
        """
        self.recorder.append(observation)
        if observation.kind not in ("metrics", "error"):
            return False
        page: PageSample | None = None
        reason, detail = "", ""
        if observation.kind == "metrics":
            try:
                page = read_page(observation.text, t=observation.t, target=self.target.name)
            except BadPage as problem:
                reason, detail = problem.reason, problem.detail
        else:
            reason, detail = str(observation.data["reason"]), str(observation.data["detail"])
        with self._lock:
            self._reads += 1
            self._read_seconds = seconds
            self._up = page is not None
            if page is None:
                self._error = detail
                self._failures[reason] += 1
                return False
            self._error = None
            self._problems = len(page.problems)
            pair = comparable(self._page, page) if self._page is not None else None
            self._restarts += pair is not None and is_reset(*pair)
            self._page = page
            for sample in page.engines:
                # the newest stand last
                engine = self._engines.pop(sample.key, None) or _EngineState()
                self._engines[sample.key] = engine
                self._follow(engine, sample)
            while len(self._engines) > MAX_REMEMBERED:
                del self._engines[next(iter(self._engines))]
            self._sli.add(page)
            self._history.add(page.t, self._sli.events)
            if self._fresh is not None:
                self._fresh.append(page)
        return True

    def _follow(self, engine: _EngineState, sample: EngineSample) -> None:
        for (concept, _), peak in engine.peaks.items():
            if concept in sample.gauges:
                highest = max(sample.gauges[concept], sample.gauges.get(RECENT_PEAKS[concept], 0.0))
                peak.add(sample.t, highest)
        hits = sample.total("prefix_cache_hit_tokens")
        queried = sample.total("prefix_cache_queried_tokens")
        if hits is not None and queried is not None:
            engine.hit_ratio.add(sample.t, hits, queried)
        if "requests_waiting" in sample.gauges:
            engine.spare_queue.add(sample.t, -sample.gauges["requests_waiting"])
        fds, before = sample.gauges.get("process_open_fds"), engine.fds_at_progress
        crowded = fds is not None and before is not None and fds - before >= CROWD
        engine.crowded_reads = engine.crowded_reads + 1 if crowded else 0
        heartbeat = sample.heartbeat
        if heartbeat != engine.heartbeat or heartbeat is None:
            engine.heartbeat = heartbeat
            engine.progressed_at = sample.t
            engine.fds_at_progress = fds
            engine.crowded_reads = 0

    def snapshot(self, now: float) -> Snapshot:
        """A consistent view at a time (unix seconds)."""
        with self._lock:
            last_success = self._page.t if self._page else None
            stale = last_success is None or now - last_success > self._stale_after_s
            page = None if stale else self._page
            up = self._up and not stale
            problem = self._error
            if self._up and last_success is not None and stale:
                problem = f"nothing was read for {now - last_success:.0f} s"
            live = [sample.key for sample in page.engines] if page else []
            peaks = {
                (key, concept, span): value
                for key in live
                for (concept, span), peak in self._engines[key].peaks.items()
                if (value := peak.peak(now)) is not None
            }
            hit_ratios = {
                key: ratio
                for key in live
                if (ratio := self._engines[key].hit_ratio.ratio(now)) is not None
            }
            return Snapshot(
                target=self.target,
                now=now,
                up=up,
                error=problem,
                page=page,
                last_success=last_success,
                reads=self._reads,
                failures=Counter(self._failures),
                read_seconds=self._read_seconds,
                restarts=self._restarts,
                peaks=peaks,
                hit_ratios=hit_ratios,
                events={
                    key: Events(events.good, events.bad, events.threshold_used)
                    for key, events in self._sli.events.items()
                },
                history=self._history.readings(),
                recorder_bytes=self.recorder.size,
                recorder_span_s=self.recorder.span_s,
                problems=self._problems,
                left_out=self._page.left_out if self._page is not None else {},
                not_ready=self._why_not_ready(page, problem),
            )

    def _why_not_ready(self, page: PageSample | None, problem: str | None) -> str | None:
        """
        What speaks against sending traffic: no answer, no progress, no room.

        Source:
            DESIGN: readiness is progress and room, for /health stays 200 on a frozen engine.
        """
        if page is None or not self._up:
            return f"no page: {problem or 'not for some time'}"
        # connections belong to the page: while any engine works they may be its clients
        idle = all(s.t - self._engines[s.key].progressed_at >= STALL_S for s in page.engines)
        for sample in page.engines:
            reason = self._why_engine_not_ready(self._engines[sample.key], sample, idle)
            if reason is not None:
                return f"engine {sample.key.engine}: {reason}"
        return None

    def _why_engine_not_ready(
        self, engine: _EngineState, sample: EngineSample, page_is_idle: bool
    ) -> str | None:
        if sample.gauges.get("awake") == 0:
            return "asleep"
        running = sample.gauges.get("requests_running", 0.0)
        waiting = sample.gauges.get("requests_waiting", 0.0)
        still_s = sample.t - engine.progressed_at
        asked = page_is_idle and engine.crowded_reads >= STAYED_READS
        if still_s >= STALL_S and (running > 0 or waiting > 0 or asked):
            return f"no progress for {still_s:.0f} s under demand"
        kv = sample.gauges.get("kv_cache_usage_ratio", 0.0)
        shortest = -(engine.spare_queue.peak(sample.t) or 0.0)
        if shortest > 0 and kv >= FULL_KV_RATIO:
            return f"no room: {waiting:.0f} wait and the KV cache is {kv:.0%} full"
        if shortest > 0 and shortest >= running:
            return f"no room: {waiting:.0f} wait behind {running:.0f} running"
        return None
