"""
Reads one target from wherever it can be read: its tap pages, its metrics page, or both together.

The tap's numbers are preferred; where the target also has an address, its own page adds what the
tap does not know (HTTP, process, connectors), and tells whether it answers at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.observation import Observation, error, metrics
from vllm_opsctl.exporter.sources.scrape import Scraper
from vllm_opsctl.exporter.sources.tap import TapFolder, TapServer, assigned, how_it_ended
from vllm_opsctl.exporter.sources.tap_text import merged

NO_PAGE = "no-page"
"""Reason where a target is read by its tap pages alone and there is none."""

FACTS_EVERY_S = 600.0
"""Version and models are told again, so that the flight recorder always holds them."""


@dataclass(slots=True)
class Reading:
    """
    One read of a target.

    Args:
        past: What happened before the reader first saw a server: for the record, not to be counted.
        now: What is seen now; the last one is the target's state.
    """

    past: list[Observation] = field(default_factory=list)
    now: list[Observation] = field(default_factory=list)


class TargetReader:
    """
    Reads one target.

    Args:
        target: What to read.
        scraper: For its metrics page; None where it has no address.
        folder: Of tap pages; None without any.
        targets: All configured ones: they share the folder.
        clock: Unix seconds.
    """

    def __init__(
        self,
        target: Target,
        *,
        scraper: Scraper | None,
        folder: TapFolder | None = None,
        targets: Sequence[Target] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._target = target
        self._scraper = scraper
        self._folder = folder
        self._targets = targets
        self._clock = clock
        self._facts_due = 0.0
        self._read_until: dict[tuple[int, int], float] = {}
        #: dead servers of which everything has been read, and when that was (Unix seconds)
        self.finished: dict[tuple[int, int], float] = {}

    def read(self) -> Reading:
        """Read once; never raises for what a server does."""
        reading = Reading()
        servers = self._servers()
        server = self._living(servers, reading)
        served = self._scraper.read() if self._scraper is not None else None
        if server is None:
            reading.now.append(served if served is not None else self._nothing(servers))
            return reading
        assert self._folder is not None
        now = self._clock()
        text = server.text(self._folder.bounds, since=self._read_until.get(server.key, now))
        self._read_until[server.key] = now
        if now >= self._facts_due:
            self._facts_due = now + FACTS_EVERY_S
            reading.now.append(server.facts_observation(now, self._target.name))
        if served is None:
            reading.now.append(metrics(now, self._target.name, text))
        elif served.kind == "metrics":
            seconds = served.data.get("seconds")
            both = merged(text, served.text)
            reading.now.append(metrics(now, self._target.name, both, seconds))
        else:
            # the engine is seen, and so is that nobody can reach it
            reading.now += [metrics(now, self._target.name, text), served]
        return reading

    def close(self) -> None:
        """Drop the connection."""
        if self._scraper is not None:
            self._scraper.close()

    def read_the_dead(self) -> Reading:
        """What servers that have ended since the last read left, and how; asks nobody."""
        reading, servers = Reading(), self._servers()
        self._living(servers, reading)
        if servers and not servers[-1].alive:
            reading.now.append(self._nothing(servers))
        return reading

    def _servers(self) -> list[TapServer]:
        """The target's servers that have pages, oldest first."""
        if self._folder is None:
            return []
        return assigned(self._folder.servers(), self._targets).get(self._target.name, [])

    def _living(self, servers: Sequence[TapServer], reading: Reading) -> TapServer | None:
        """The newest server that lives; what older ones left goes to the record."""
        living: TapServer | None = None
        for server in servers:
            seen_until = self._read_until.get(server.key)
            if server.alive and server.usable:
                living = server
            if seen_until is None:
                reading.past += self._history(server, start=0.0)
                self._read_until[server.key] = server.touched
            elif not server.alive and server.key not in self.finished:
                # between the last read and its end
                rest = self._history(server, start=seen_until)
                reading.now += [o for o in rest if o.kind == "metrics"][-1:]
            if not server.alive:
                self.finished.setdefault(server.key, self._clock())
        return living

    def _history(self, server: TapServer, start: float) -> list[Observation]:
        assert self._folder is not None
        return server.history(
            self._target.name, self._folder.bounds, start=start, full_from=0.0, step_s=1.0
        )

    def _nothing(self, servers: Sequence[TapServer]) -> Observation:
        """No server lives and there is no address to ask."""
        assert self._folder is not None
        now, name = self._clock(), self._target.name
        if not servers:
            return error(now, name, NO_PAGE, f"{self._folder.path}: no tap page of {name}")
        newest = servers[-1]
        if newest.alive:
            return error(now, name, NO_PAGE, f"the tap of {name} gave up; see vLLM's log")
        return error(now, name, *how_it_ended(newest))
