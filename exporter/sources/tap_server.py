"""
A server as its tap pages tell of it: one process, or several API processes with one parent.

It has one or more engines; what they did second by second, and how it ended, becomes observations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from vllm_opsctl.exporter.observation import Observation, error, metrics, thinned_times
from vllm_opsctl.exporter.sources.tap_engine import EngineTotals, TapEngine
from vllm_opsctl.exporter.sources.tap_text import Bounds, EngineText, page_text
from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.page import TapPage

DIED = "died"
"""Reason of a page whose writer is gone, where it did not say so or had work to do."""

ENDED = "ended"
"""The same where the writer ended in order and had had nothing to do for a while."""

_LATELY_S = 3.0
"""
Steps so shortly before an end in order tell that nobody took the traffic away first: vLLM's API
process ends in order too when its engine core dies, and between two requests nothing runs.
"""

_LOOKS_AFTER_DEATH_S = (1.0, 5.0)
"""Seconds after the last sign of life at which a dead process is noted as not answering."""


@dataclass(frozen=True, slots=True)
class TapServer:
    """
    One server.

    Args:
        pages: All of its pages, at least one.
    """

    pages: tuple[TapPage, ...]

    @property
    def key(self) -> tuple[int, int]:
        """Process id and start: no two servers share it."""
        header = self.pages[0].header
        return int(header["server_pid"]), int(header["server_ticks"])

    @property
    def alive(self) -> bool:
        """Any of its processes lives."""
        return any(page.alive for page in self.pages)

    @property
    def usable(self) -> bool:
        """The tap of every living process goes on."""
        return all(page.state != layout.GAVE_UP for page in self.pages)

    @property
    def started(self) -> float:
        """Unix seconds."""
        return min(float(page.header["started"]) for page in self.pages)

    @property
    def stepped(self) -> float | None:
        """The second of the newest step that its pages still hold, Unix seconds."""
        seconds = (s["second"] for page in self.pages for s in page.slots if s.get("steps"))
        return max(seconds, default=None)

    @property
    def touched(self) -> float:
        """Last sign of life, Unix seconds."""
        return max(page.touched for page in self.pages)

    @property
    def facts(self) -> Mapping[str, object]:
        """Of its first engine; the servers' engines are configured alike."""
        return self.pages[0].facts

    @property
    def model(self) -> str:
        """The first served name."""
        models = self.pages[0].facts.get("models") or ["unknown"]
        return str(models[0]) or "unknown"

    @property
    def port(self) -> int | None:
        """The port of its command line, where it is known."""
        port = self.pages[0].facts.get("port")
        return int(port) if isinstance(port, int) else None

    @property
    def name(self) -> str:
        """What it is called where the configuration does not name it."""
        model = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.model).strip("-.") or "vllm"
        return f"{model}:{self.port}" if self.port else model

    @property
    def engines(self) -> tuple[TapEngine, ...]:
        """By index."""
        indexes = sorted({int(page.header["engine"]) for page in self.pages})
        return tuple(
            TapEngine(index, [p for p in self.pages if int(p.header["engine"]) == index])
            for index in indexes
        )

    def text(self, bounds: Bounds, since: float) -> str:
        """Its metrics page now; peaks since a time."""
        return self._page([(engine, engine.now(since)) for engine in self.engines], bounds)

    def facts_observation(self, t: float, target: str) -> Observation:
        """Version and models, as the server's own endpoints would have said."""
        facts = self.facts
        models = facts.get("models")
        names = models if isinstance(models, list) else []
        length = facts.get("max_model_len")
        data: dict[str, object] = {
            "models": {"data": [{"id": name, "max_model_len": length} for name in names]}
        }
        if "vllm_version" in facts:
            data["version"] = facts["vllm_version"]
        if isinstance(facts.get("max_num_seqs"), int):
            data["max_num_seqs"] = facts["max_num_seqs"]
        return Observation(t, target, "facts", data)

    def history(
        self, target: str, bounds: Bounds, *, start: float, full_from: float, step_s: float
    ) -> list[Observation]:
        """
        The seconds that the ring still holds, as pages.

        Args:
            target: Name for the observations.
            bounds: Of the histograms.
            start: Nothing older is wanted (Unix seconds).
            full_from: From here on every second is wanted.
            step_s: Before that, seconds at least so far apart.

        Returns:
            Oldest first; of a dead server the end stands behind them.
        """
        engines = self.engines
        slots = [slot["second"] for page in self.pages for slot in page.slots]
        found: list[Observation] = []
        if slots:
            until = int(self.touched) - 1 if self.alive else int(self.touched)
            # an engine that idles since has only the state in which it was left to tell
            oldest = max(until - layout.SLOTS + 1, int(min(slots)), int(start))
            times = list(thinned_times(range(oldest, until + 1), full_from, step_s))
            by_time: dict[int, list[tuple[TapEngine, EngineTotals]]] = {}
            for engine in engines:
                for second, totals in engine.history(times):
                    by_time.setdefault(second, []).append((engine, totals))
            for second in sorted(by_time):
                text = self._page(by_time[second], bounds)
                # at the second's end, which the last one of a dead server has not seen
                found.append(metrics(min(float(second + 1), self.touched), target, text))
        if found:
            found.insert(0, self.facts_observation(found[0].t, target))
        if not self.alive:
            found += self._end(target)
        return found

    def _end(self, target: str) -> Iterator[Observation]:
        reason, detail = how_it_ended(self)
        for after in _LOOKS_AFTER_DEATH_S:
            yield error(self.touched + after, target, reason, detail)

    def _page(self, parts: Sequence[tuple[TapEngine, EngineTotals]], bounds: Bounds) -> str:
        texts = [
            EngineText(
                model=self.model, engine=engine.index, totals=totals, facts=engine.pages[0].facts
            )
            for engine, totals in parts
        ]
        return page_text(texts, self.started, bounds)


def how_it_ended(server: TapServer) -> tuple[str, str]:
    """Reason and, for people, what is known of a dead server's end."""
    pids = ", ".join(str(pid) for pid in sorted({page.header["pid"] for page in server.pages}))
    in_order = all(page.state == layout.CLOSED for page in server.pages)
    how = "ended in order" if in_order else "is gone without a word (killed, or crashed)"
    states = [page.gauges for page in server.pages]
    running = max(state.get("running", 0.0) for state in states)
    waiting = max(state.get("waiting", 0.0) + state.get("deferred", 0.0) for state in states)
    idle = not running and not waiting
    stepped = server.stepped
    lately = stepped is not None and stepped >= server.touched - _LATELY_S
    state = f" with {running:.0f} requests running and {waiting:.0f} waiting"
    if idle:
        state = ", within seconds of its last step" if lately else ", idle"
    last = datetime.fromtimestamp(server.touched, UTC)
    detail = (
        f"process {pids} {how}{state}; the last sign of life is of {last:%Y-%m-%d %H:%M:%S} UTC"
    )
    return ENDED if in_order and idle and not lately else DIED, detail
