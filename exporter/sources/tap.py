"""
The tap source: the servers whose statistics pages lie in a folder, living and dead.

Pages are grouped by the server that wrote them: a server is one process, or several API processes
with one parent, and has one or more engines.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.engine import PageSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.observation import Observation, error, metrics, thinned_times
from vllm_opsctl.exporter.sources.tap_engine import EngineTotals, TapEngine
from vllm_opsctl.exporter.sources.tap_text import Bounds, EngineText, page_text
from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.page import BadTapPage, TapPage, read_tap_page

log = logging.getLogger(__name__)

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

_LOCAL_HOSTS = frozenset(("localhost", "127.0.0.1", "::1", "0.0.0.0"))  # noqa: S104 - no bind


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
        return str(models[0])

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


class TapFolder:
    """
    A folder of pages.

    Args:
        path: The folder; it need not exist yet.
        bounds: Of the histograms of the pages' text.
    """

    def __init__(self, path: Path, bounds: Bounds) -> None:
        self.path = path
        self.bounds = bounds
        self._complained: set[Path] = set()

    def servers(self) -> list[TapServer]:
        """All servers, oldest first; what is no readable page is logged once and left out."""
        groups: dict[tuple[int, int], list[TapPage]] = {}
        for file in sorted(self.path.glob(f"*{layout.SUFFIX}")):
            try:
                page = read_tap_page(file)
            except FileNotFoundError:
                continue
            except (BadTapPage, OSError) as problem:
                if file not in self._complained:
                    log.warning("%s: %s; left out", file, problem)
                self._complained.add(file)
                continue
            key = int(page.header["server_pid"]), int(page.header["server_ticks"])
            groups.setdefault(key, []).append(page)
        servers = [TapServer(tuple(pages)) for pages in groups.values()]
        return sorted(servers, key=lambda server: server.started)

    def remove_unfinished(self, before: float) -> None:
        """Delete what writers left that died while they created a page before a time (Unix seconds)."""
        for file in self.path.glob(f".*{layout.SUFFIX}.new"):
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_mtime < before:
                    file.unlink()

    def remove_read(
        self, servers: Sequence[TapServer], read: Mapping[tuple[int, int], float], before: float
    ) -> None:
        """
        Delete the pages of dead servers that were read before a time.

        How old a page is does not count: what ended before the reader began is older than all that a
        flight recorder keeps, so the page alone tells of it.

        Args:
            servers: Those that have pages.
            read: When each was read to its end, by its key (Unix seconds).
            before: Unix seconds.
        """
        for server in servers:
            if not server.alive and read.get(server.key, math.inf) < before:
                log.warning("%s: its tap page was read long ago; deleted", server.name)
                for page in server.pages:
                    page.path.unlink(missing_ok=True)


def assigned(servers: Sequence[TapServer], targets: Sequence[Target]) -> dict[str, list[TapServer]]:
    """
    Which target each server is, oldest server first.

    A target on this machine is the server of its port. Where there is one target and one kind of
    server, as in a pod, they belong together whatever the address. Other servers are called by
    their model and port.
    """
    names = {server.name for server in servers}
    found: dict[str, list[TapServer]] = {}
    for server in servers:
        target = next((t.name for t in targets if _is_at(server, t)), None)
        if target is None and len(targets) == 1 and len(names) == 1:
            target = targets[0].name
        found.setdefault(target or server.name, []).append(server)
    return found


def pages_now(
    folder: TapFolder, targets: Sequence[Target], *, clock: Callable[[], float] = time.time
) -> dict[str, PageSample]:
    """
    One page of every living server, by target.

    Args:
        folder: Where they lie; its bounds are the pages'.
        targets: Configured ones, for their names.
        clock: Unix seconds.
    """
    now, found = clock(), {}
    for name, own in assigned(folder.servers(), targets).items():
        newest = own[-1]
        if newest.alive and newest.usable:
            found[name] = read_page(newest.text(folder.bounds, since=now), t=now, target=name)
    return found


def _is_at(server: TapServer, target: Target) -> bool:
    parts = urlsplit(target.url)
    return parts.hostname in _LOCAL_HOSTS and server.port is not None and parts.port == server.port


def read_folder(
    folder: TapFolder,
    targets: Sequence[Target],
    *,
    full_s: float,
    step_s: float,
    clock: Callable[[], float] = time.time,
) -> list[Observation]:
    """
    Everything that the pages of a folder still tell.

    Args:
        folder: Where they lie.
        targets: Configured ones, for their names.
        full_s: So many seconds of each server's end are wanted one by one.
        step_s: Before that, seconds at least so far apart.
        clock: Unix seconds.

    Raises:
        UsageError: There is no page.
    """
    servers = folder.servers()
    if not servers:
        why = "no such folder" if not folder.path.is_dir() else "no tap page in it"
        raise UsageError(
            f"{folder.path}: {why}; vLLM writes them when vllm-opsctl is installed beside it, "
            "where OPSCTL_TAP says (see docs/tap.md)"
        )
    found: list[Observation] = []
    for name, own in assigned(servers, targets).items():
        for server in own:
            found += server.history(
                name, folder.bounds, start=0.0, full_from=server.touched - full_s, step_s=step_s
            )
            if server.alive:
                now = clock()
                found.append(metrics(now, name, server.text(folder.bounds, since=now - 2.0)))
    return sorted(found, key=lambda observation: observation.t)
