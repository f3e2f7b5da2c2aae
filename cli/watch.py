"""opsctl diagnose --watch: the verdict again and again; a terminal shows the newest, a pipe changes."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from vllm_opsctl.cli.common import (
    emit,
    say,
    stopped_by_signals,
)
from vllm_opsctl.cli.doctor import Doctor
from vllm_opsctl.cli.observing import (
    FILES_OF_COMMAND,
    FILES_PER_TARGET,
    Sidecar,
    live_interval_s,
)
from vllm_opsctl.cli.text import render_text
from vllm_opsctl.errors import SourceError
from vllm_opsctl.exporter.bundle import Asked
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.descriptors import allow_open_files
from vllm_opsctl.runbooks.verdict import EXIT_CODES, TargetVerdict, Verdict
from vllm_opsctl.runbooks.watch import Watch

_TICK_S = 0.2
_SHOWN_CHANGES = 3

Rounds = Iterator[Verdict]
"""Verdicts, each computed when it is due; an iterator that blocks until then."""


def live_rounds(
    targets: Sequence[Target], doctor: Doctor, *, for_s: float, every_s: float, probe: bool
) -> Rounds:
    """
    Verdicts on live targets, which are observed without gaps all the time.

    Args:
        targets: What to look at.
        doctor: Diagnoses.
        for_s: How long to look before the first verdict.
        every_s: Time between two verdicts.
        probe: Send a canary before each verdict.

    Raises:
        ConfigError: An API key is not where the configuration says.
    """
    allow_open_files(FILES_OF_COMMAND + FILES_PER_TARGET * len(targets))
    watch = Watch(
        targets,
        interval_s=live_interval_s(len(targets), for_s),
        probe_every_s=every_s if probe else None,
        environment=os.environ,
    )
    watch.start()
    names = tuple(target.name for target in targets)
    asked = Asked(source="scrape", at=None, window_s=doctor.window_s, targets=names)
    due = time.monotonic() + for_s
    while True:
        time.sleep(max(0.0, due - time.monotonic()))
        due = time.monotonic() + every_s
        yield doctor.verdict(watch.observations(), replace(asked, now=time.time()))


def sidecar_rounds(source: Sidecar, doctor: Doctor, *, every_s: float, probe: bool) -> Rounds:
    """
    Verdicts on what a sidecar records; while it does not answer, on nothing.

    Raises:
        SourceError: It does not answer the first time.
    """
    names = tuple(target.name for target in source.targets)
    asked = Asked(source="sidecar", at=None, window_s=doctor.window_s, targets=names)
    answered = False
    while True:
        due = time.monotonic() + every_s
        try:
            observations = source.observations(
                end=None, window_s=doctor.window_s, probe=probe, quiet=True
            )
            answered = True
            yield doctor.verdict(observations, replace(asked, now=source.now()))
        except SourceError as problem:
            if not answered:
                raise
            why, at = f"the sidecar does not answer: {problem.detail}", time.time()
            yield Verdict(
                tuple(TargetVerdict.not_known(n, why, source="sidecar", at=at) for n in names)
            )
        time.sleep(max(0.0, due - time.monotonic()))


@dataclass(frozen=True, slots=True)
class Change:
    """A target's verdict or its root causes changed."""

    t: float
    target: str
    old: str | None
    new: TargetVerdict

    def line(self) -> str:
        """For people and grep: time, target, old -> new, roots."""
        at = datetime.fromtimestamp(self.t, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        roots = " ".join(cause.id for cause in self.new.roots) or "-"
        return f"{at} {self.target} {self.old or '-'} -> {self.new.verdict} {roots}"

    def to_json(self) -> dict[str, Any]:
        """For tools."""
        return {
            "t": round(self.t, 3),
            "target": self.target,
            "from": self.old,
            "to": self.new.verdict,
            "roots": [cause.id for cause in self.new.roots],
            "summary": self.new.summary,
        }


class Changes:
    """Finds what changed from one verdict to the next."""

    def __init__(self) -> None:
        self._last: dict[str, TargetVerdict] = {}

    def of(self, verdict: Verdict) -> list[Change]:
        """The changes since the verdict before; of the first one, all of it."""
        found = []
        for target in verdict.targets:
            old = self._last.get(target.target)
            if old is None or _essence(old) != _essence(target):
                before = old.verdict if old else None
                found.append(Change(target.end, target.target, before, target))
            self._last[target.target] = target
        return found


def _essence(target: TargetVerdict) -> tuple[str, frozenset[str]]:
    return target.verdict, frozenset(cause.id for cause in target.roots)


def follow(rounds: Rounds, *, output: str, show_features: bool) -> int:
    """
    Show verdicts until SIGINT or SIGTERM.

    Args:
        rounds: The verdicts; computed in a thread, so that a signal never waits for one.
        output: ``text`` or ``json``.
        show_features: On a terminal, print every number too.

    Returns:
        The exit code of the last verdict; of unknown when there was none.
    """
    results: queue.Queue[Verdict | BaseException] = queue.Queue()
    worker = threading.Thread(target=_compute, args=(rounds, results), name="verdicts", daemon=True)
    on_terminal = output == "text" and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    show = _on_terminal if on_terminal else _as_lines
    with stopped_by_signals() as stop:
        worker.start()
        last = show(_until(stop, results), output=output, show_features=show_features)
    if last is None:
        say("stopped before the first verdict", err=True)
        return EXIT_CODES["unknown"]
    return last.exit_code


def _compute(rounds: Rounds, results: queue.Queue[Verdict | BaseException]) -> None:
    try:
        for verdict in rounds:
            results.put(verdict)
    except BaseException as problem:
        results.put(problem)


def _until(
    stop: threading.Event, results: queue.Queue[Verdict | BaseException]
) -> Iterator[Verdict]:
    """The verdicts until stopped; what went wrong in the thread goes wrong here."""
    while not stop.is_set():
        try:
            result = results.get(timeout=_TICK_S)
        except queue.Empty:
            continue
        if isinstance(result, BaseException):
            raise result
        yield result


def _as_lines(verdicts: Iterator[Verdict], *, output: str, show_features: bool) -> Verdict | None:
    """One line a change; ends when its reader has gone."""
    changes = Changes()
    last = None
    for verdict in verdicts:
        last = verdict
        for change in changes.of(verdict):
            is_json = output == "json"
            text = json.dumps(change.to_json(), ensure_ascii=False) if is_json else change.line()
            if not emit(text):
                return last
    return last


def _on_terminal(
    verdicts: Iterator[Verdict], *, output: str, show_features: bool
) -> Verdict | None:
    """The newest verdict, redrawn; at the end it stays on the terminal."""
    from vllm_opsctl.cli.screen import Page, full_screen

    changes = Changes()
    lines: list[str] = []
    last: Verdict | None = None
    with full_screen() as draw:
        draw(Page("watching; the first verdict comes soon", ["Ctrl-C ends"]))
        for verdict in verdicts:
            last = verdict
            lines += [change.line() for change in changes.of(verdict)]
            foot = ["", *lines[-_SHOWN_CHANGES:], "Ctrl-C ends"]
            draw(Page(render_text(verdict, show_features=show_features), foot))
    if last is not None:
        emit(render_text(last, show_features=show_features))
    return last
