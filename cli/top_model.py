"""The numbers of `opsctl top`: what each target does now, and did over the last minutes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter.engine import EngineSample, Histogram, PageSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.window import Window, windows_by_engine
from vllm_opsctl.runbooks.examine import STALE_S
from vllm_opsctl.runbooks.verdict import WORST_FIRST, TargetVerdict

LOOK_BACK_S = 15.0
"""Rates, ratios and latencies are those of so many seconds."""

KEPT_POINTS = 300
"""Five minutes of one page a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """
    What a target, or several, did at one time; what the pages do not tell is None, never 0.

    Args:
        t: Unix seconds.
        requests_per_s: Requests that finished.
        tokens_per_s: Generated tokens.
        running: Requests in the batch.
        waiting: Requests in the queue.
        kv_usage: Share of the KV cache in use, of the fullest engine.
        hit_ratio: Prefix-cache hits over lookups, in tokens.
        ttft_s: Mean time to first token.
        itl_s: Mean inter-token latency.
    """

    t: float
    requests_per_s: float | None = None
    tokens_per_s: float | None = None
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    hit_ratio: float | None = None
    ttft_s: float | None = None
    itl_s: float | None = None


def point_of(pages: Sequence[PageSample]) -> Point:
    """
    The numbers at the newest of some pages.

    Args:
        pages: Of the last seconds, oldest first; at least one.
    """
    return _point(pages[-1].t, _windows(pages))


def fleet_point(targets: Iterable[Sequence[PageSample]]) -> Point | None:
    """The numbers of several targets together; None without any page."""
    found = [pages for pages in targets if pages]
    if not found:
        return None
    return _point(max(pages[-1].t for pages in found), [w for p in found for w in _windows(p)])


def _windows(pages: Sequence[PageSample]) -> list[Window]:
    """One window per engine of the newest page, since its last restart."""
    windows = windows_by_engine(pages)
    return [windows[engine.key].since_reset() for engine in pages[-1].engines]


def _point(t: float, windows: Sequence[Window]) -> Point:
    newest = [window.samples[-1] for window in windows]
    hits = _sum(window.delta("prefix_cache_hit_tokens") for window in windows)
    lookups = _sum(window.delta("prefix_cache_queried_tokens") for window in windows)
    usage = [u for s in newest if (u := s.gauges.get("kv_cache_usage_ratio")) is not None]
    return Point(
        t=t,
        requests_per_s=_sum(window.rate("requests_finished") for window in windows),
        tokens_per_s=_sum(window.rate("generation_tokens") for window in windows),
        running=_gauge(newest, "requests_running"),
        waiting=_gauge(newest, "requests_waiting"),
        kv_usage=max(usage, default=None),
        hit_ratio=hits / lookups if hits is not None and lookups else None,
        ttft_s=_mean(window.histogram("time_to_first_token_seconds") for window in windows),
        itl_s=_mean(window.histogram("inter_token_latency_seconds") for window in windows),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _gauge(samples: Iterable[EngineSample], key: str) -> float | None:
    return _sum(sample.gauges.get(key) for sample in samples)


def _mean(histograms: Iterable[Histogram | None]) -> float | None:
    known = [histogram for histogram in histograms if histogram is not None]
    count = sum(histogram.count for histogram in known)
    return sum(histogram.sum for histogram in known) / count if count else None


@dataclass(frozen=True, slots=True)
class Row:
    """One target as it stands now."""

    target: str
    point: Point | None = None
    past: Sequence[Point] = ()
    error: str | None = None
    """Why the newest page could not be read."""
    verdict: TargetVerdict | None = None
    is_outdated: bool = False
    """Nobody has read it for too long; ``error`` says so."""

    @property
    def health(self) -> str | None:
        """The verdict's word; None before the first verdict."""
        if self.is_outdated:
            return "unknown"
        return self.verdict.verdict if self.verdict else None

    @property
    def roots(self) -> tuple[str, ...]:
        """Ids of the root causes."""
        return tuple(cause.id for cause in self.verdict.roots) if self.verdict else ()

    def to_json(self) -> dict[str, Any]:
        """For tools."""
        return {
            "target": self.target,
            "verdict": self.health,
            "roots": list(self.roots),
            "summary": self.verdict.summary if self.verdict else None,
            "error": self.error,
            **_numbers(self.point),
        }


def _numbers(point: Point | None) -> dict[str, float | None]:
    data = asdict(point or Point(t=0.0))
    del data["t"]
    return {key: None if value is None else round(value, 6) for key, value in data.items()}


def _descending(number: str) -> Callable[[Row], tuple[float, str]]:
    def key(row: Row) -> tuple[float, str]:
        value = getattr(row.point, number) if row.point else None
        return (1.0 if value is None else -float(value) - 1.0, row.target)

    return key


def _worst(row: Row) -> tuple[int, float, str]:
    """Not judged yet stands above healthy, as unknown does."""
    rank = WORST_FIRST.index(row.verdict.verdict if row.verdict else "unknown")
    return (rank, *_descending("waiting")(row))


SORTS: dict[str, Callable[[Row], Any]] = {
    "worst": _worst,
    "target": lambda row: row.target,
    "waiting": _descending("waiting"),
    "tok/s": _descending("tokens_per_s"),
    "KV": _descending("kv_usage"),
    "TTFT": _descending("ttft_s"),
}
"""Orders of the rows, by what the header calls them."""


@dataclass(slots=True)
class _Seen:
    pages: deque[PageSample] = field(default_factory=deque)
    past: deque[Point] = field(default_factory=lambda: deque(maxlen=KEPT_POINTS))
    error: str | None = None
    verdict: TargetVerdict | None = None


class Fleet:
    """
    What was seen of all targets; written by the threads that observe, read by the one that draws.

    Args:
        names: The targets.
        now: Unix seconds, by the clock of what observes them.
    """

    def __init__(self, names: Iterable[str], now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._seen = {name: _Seen() for name in names}

    def see(self, observation: Observation) -> None:
        """Take in one observation."""
        seen = self._seen[observation.target]
        if observation.kind == "error":
            with self._lock:
                seen.error = str(observation.data.get("detail") or observation.data.get("reason"))
                seen.pages.clear()
            return
        if observation.kind != "metrics":
            return
        try:
            page = read_page(observation.text, t=observation.t, target=observation.target)
        except BadPage as problem:
            with self._lock:
                seen.error = problem.detail
                seen.pages.clear()
            return
        with self._lock:
            seen.error = None
            seen.pages.append(page)
            while page.t - seen.pages[0].t > LOOK_BACK_S:
                seen.pages.popleft()
            seen.past.append(point_of(tuple(seen.pages)))

    def judge(self, verdict: TargetVerdict) -> None:
        """Take in a verdict."""
        with self._lock:
            self._seen[verdict.target].verdict = verdict

    def judge_failed(self, why: str) -> None:
        """No verdict could be made: the last ones are not those of now."""
        with self._lock:
            for name, seen in self._seen.items():
                told = f"the diagnosis failed: {plain(why, MAX_NAME_CHARS)}"
                seen.verdict = TargetVerdict.not_known(name, told, source="", at=self._now())

    def rows(self) -> list[Row]:
        """All targets."""
        with self._lock:
            return [self._row(name, seen) for name, seen in self._seen.items()]

    def _row(self, name: str, seen: _Seen) -> Row:
        age_s = self._age_s(seen)
        if age_s is not None and age_s > STALE_S:
            problem = f"nothing was read for {age_s:.0f} s"
            return Row(name, None, tuple(seen.past), problem, seen.verdict, is_outdated=True)
        point = seen.past[-1] if seen.pages else None
        return Row(name, point, tuple(seen.past), seen.error, seen.verdict)

    def _age_s(self, seen: _Seen) -> float | None:
        return self._now() - seen.pages[-1].t if seen.pages else None

    def total(self) -> Point | None:
        """The whole fleet, as far as it was read lately."""
        with self._lock:
            pages = [
                tuple(seen.pages)
                for seen in self._seen.values()
                if (age_s := self._age_s(seen)) is not None and age_s <= STALE_S
            ]
        return fleet_point(pages)


def fleet_json(rows: Sequence[Row], total: Point | None) -> dict[str, Any]:
    """One frame for tools."""
    return {
        "schema_version": 1,
        "targets": [row.to_json() for row in rows],
        "fleet": {"targets": len(rows), **_numbers(total)},
    }
