"""
How the commands get observations: from live targets, and from a sidecar's flight recorder.

Each source is imported by who asks it: a verdict on a recording needs none of them.
"""

from __future__ import annotations

import itertools
import os
import statistics
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from vllm_opsctl.cli.common import Progress, listed
from vllm_opsctl.cli.options import token_of
from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.config import Target, clean_url
from vllm_opsctl.exporter.config_load import LoadedConfig, api_key
from vllm_opsctl.exporter.descriptors import allow_open_files
from vllm_opsctl.exporter.observation import Observation, not_sent
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.redaction import shown_url
from vllm_opsctl.exporter.units import format_duration
from vllm_opsctl.runbooks.evidence import FULL_HISTORY_S, HISTORY_STEP_S, history_of
from vllm_opsctl.runbooks.host import is_local
from vllm_opsctl.runbooks.onset import MIN_SAMPLES

LIVE_INTERVAL_S = 0.5
"""Time between two reads of a target, where there are few."""

READS_PER_S = 200
"""To read and judge a page costs some 2.5 ms (make bench): so many a second are half a core."""

FILES_PER_TARGET = 4
"""One connection for pages, one for the active checks, and each one's twin with its deadline."""

FILES_OF_COMMAND = 256
"""What a command opens beside its targets."""

ENOUGH_PAGES = 2 * MIN_SAMPLES
"""As many on either side of a change as a judgement needs."""

_RECENT = 20
"""Observations whose distance tells how often a target is scraped now."""

_SLACK_S = 30.0
"""How far beyond now a sidecar is asked: its clock goes on while it is."""


def live_interval_s(targets: int, for_s: float) -> float:
    """
    Time between two reads of a target: the more targets the longer.

    Args:
        targets: How many are read at once.
        for_s: How long; enough pages to judge must come of it all the same.
    """
    return max(LIVE_INTERVAL_S, min(targets / READS_PER_S, for_s / MIN_SAMPLES))


def observe_live(targets: list[Target], for_s: float, *, probe: bool) -> list[Observation]:
    """Watch live targets for a while."""
    from vllm_opsctl.runbooks.observe import observe

    allow_open_files(FILES_OF_COMMAND + FILES_PER_TARGET * len(targets))
    interval_s = live_interval_s(len(targets), for_s)
    observations: list[Observation] = []
    what = targets[0].name if len(targets) == 1 else f"{len(targets)} targets"
    progress = Progress(f"watching {what}", for_s)
    started = time.monotonic()
    pages = itertools.count(1)

    def keep(observation: Observation) -> None:
        observations.append(observation)
        if observation.kind == "metrics":
            progress.update(time.monotonic() - started, next(pages))

    observe(
        targets,
        for_s=for_s,
        interval_s=interval_s,
        probe=probe,
        environment=os.environ,
        on_observation=keep,
        stop=threading.Event(),
        at_least=min(MIN_SAMPLES, int(for_s / interval_s)),
    )
    progress.done()
    return sorted(observations, key=lambda observation: observation.t)


class Sidecar:
    """
    A sidecar, and which of its targets are wanted.

    Args:
        url: Its base URL, as given.
        asked: Names or URLs of targets; all of them when empty.
        loaded: Which targets may be sent a canary, and their API keys.

    Raises:
        UsageError: No URL, or a target that it does not watch.
        SourceError: It does not answer, or is no sidecar.
    """

    def __init__(self, url: str, asked: Sequence[str], loaded: LoadedConfig) -> None:
        from vllm_opsctl.exporter.sources.sidecar import SidecarSource

        try:
            self.url = clean_url(url)
        except ValueError as problem:
            raise UsageError(f"--sidecar: {problem}") from None
        self._source = SidecarSource(self.url)
        known = {target.name: target for target in self._source.targets()}
        by_url = {target.url: target for target in known.values()}
        self._named_urls: set[str] = set()
        wanted: dict[str, Target] = {}
        for name in asked:
            found = known.get(name) or by_url.get(_url_in(name) or "")
            if found is None:
                has = listed([*known])
                raise UsageError(f"--sidecar {self.url}: no {plain(shown_url(name))}; it has {has}")
            wanted[found.name] = found
            if name not in known:
                self._named_urls.add(found.url)
        self.targets = list(wanted.values()) if asked else list(known.values())
        self._configured = loaded.config.targets

    def observations(
        self, *, end: float | None, window_s: float, probe: bool, quiet: bool = False
    ) -> list[Observation]:
        """
        What it recorded, and a canary of each target that can be reached from here.

        Args:
            end: Unix seconds; None for now.
            window_s: Length of the window that will be diagnosed.
            probe: Send canaries.
            quiet: Show no progress.

        Raises:
            SourceError: It does not answer, or is no sidecar.
        """
        observations: list[Observation] = []
        # canaries wait up to ten seconds; the recordings are fetched meanwhile
        probes = self._start_probes(observations) if probe else []
        progress = Progress("reading the sidecar", len(self.targets), unit="targets", quiet=quiet)
        newest = end if end is not None else self.now() + _SLACK_S
        for index, target in enumerate(self.targets):
            progress.update(index, len(observations))
            history = history_of(newest - _SLACK_S - window_s)
            observations += self._source.observations(target.name, end=newest, **history)
        for thread in probes:
            thread.join()
        progress.done()
        return sorted(observations, key=lambda observation: observation.t)

    def now(self) -> float:
        """Unix seconds by the sidecar's clock."""
        return self._source.now()

    def since(self, target: str, start: float) -> list[Observation]:
        """
        Everything that it recorded of a target since a time (unix seconds).

        Raises:
            SourceError: It does not answer, or is no sidecar.
        """
        end = self.now() + _SLACK_S
        return self._source.observations(target, end=end, start=start, full_from=start, step_s=1.0)

    def _start_probes(self, observations: list[Observation]) -> list[threading.Thread]:
        from vllm_opsctl.runbooks.observe import probe_once

        probes = []
        for target in self.targets:
            if target.is_tap_only or (is_local(target.url) and not is_local(self.url)):
                continue
            own, why = self._own(target)
            if own is None:
                observations.append(not_sent(time.time(), target.name, why))
                continue
            key = api_key(own, os.environ)
            thread = threading.Thread(
                target=probe_once, args=(own, key, observations.append), daemon=True
            )
            thread.start()
            probes.append(thread)
        return probes

    def _own(self, target: Target) -> tuple[Target | None, str]:
        """
        A target as it is configured here, under the sidecar's name for it; else why it gets no canary.

        The sidecar's word alone sends nothing anywhere, and a key to nowhere but its own target's URL.
        """
        named = [own for own in self._configured if own.name == target.name]
        if named and named[0].url == target.url:
            return named[0], ""
        if target.url in self._named_urls:
            same = next((own for own in self._configured if own.url == target.url), target)
            return same.model_copy(update={"name": target.name}), ""
        if named:
            return None, (
                f"the sidecar has {target.name} at {target.url}, this configuration at {named[0].url}"
            )
        return None, f"{target.url} is not in this configuration; list it under targets"


def _url_in(text: str) -> str | None:
    """The base URL that a text means; None where it means none."""
    if "//" not in text:
        return None
    try:
        return clean_url(text)
    except ValueError:
        return None


def from_prometheus(
    url: str, match: str, token_env: str | None, *, end: float | None, window_s: float
) -> list[Observation]:
    """
    What a Prometheus scraped of every matching target, the window and what came before it.

    Targets that were not even tried within the window are left out: replicas that went long ago.

    Raises:
        UsageError: The URL or the variable is wrong, or nothing matches.
        SourceError: It does not answer, or is no Prometheus.
    """
    from vllm_opsctl.exporter.sources.prometheus import PrometheusSource

    try:
        base = clean_url(url)
    except ValueError as problem:
        raise UsageError(f"--prometheus: {problem}") from None
    token = token_of(token_env, "--prometheus-token-env")
    until = end if end is not None else time.time()
    source = PrometheusSource(base, match, token=token)
    observations = source.observations(end=until, **history_of(until - window_s))
    present = {o.target for o in observations if o.t >= until - window_s}
    if not present:
        what = f"that matches {match}" if match else "at all"
        raise UsageError(
            f"--prometheus {base}: no vLLM target {what} in the {format_duration(window_s)} to "
            f"{datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M:%S} UTC; "
            "other --at, wider --window, or other --match '{job=\"...\"}'?"
        )
    return [o for o in observations if o.target in present]


def from_tap(folder: Path, loaded: LoadedConfig, *, window_s: float) -> list[Observation]:
    """
    What the tap pages in a folder tell, of living and of dead engines: all that they still hold.

    Raises:
        UsageError: There is no page.
    """
    from vllm_opsctl.exporter.sources.tap import TapFolder, owner_id, read_folder
    from vllm_opsctl.exporter.sources.tap_text import Bounds

    config = loaded.config
    owner = owner_id(config.exporter.tap.owner)
    pages = TapFolder(folder, Bounds(config.objectives), owner)
    return read_folder(
        pages, config.targets, full_s=window_s + FULL_HISTORY_S, step_s=HISTORY_STEP_S
    )


def wide_enough(observations: Sequence[Observation], window_s: float) -> float:
    """
    A window that holds enough pages to judge, however rarely the targets were scraped.

    Args:
        observations: Ordered by time.
        window_s: The least.
    """
    times: dict[str, list[float]] = {}
    for observation in observations:
        if observation.kind in ("metrics", "error"):
            times.setdefault(observation.target, []).append(observation.t)
    steps = [b - a for seen in times.values() for a, b in pairwise(seen[-_RECENT:])]
    return max(window_s, ENOUGH_PAGES * statistics.median(steps)) if steps else window_s


def read_log(
    path: Path, observations: Sequence[Observation], asked: Sequence[str], end: float | None
) -> list[Observation]:
    """
    The known lines at the end of a log, as an observation of the one target that it belongs to.

    Args:
        path: The log.
        observations: What else is known.
        asked: Names of targets, as given.
        end: End of the window (unix seconds); None for the newest observation.

    Raises:
        UsageError: There are several targets.
        InputFileError: It cannot be read.
    """
    from vllm_opsctl.runbooks.log_patterns import count_lines, read_tail

    targets = list(asked) or list(dict.fromkeys(o.target for o in observations))
    if len(targets) != 1:
        raise UsageError(f"--log {path}: of which target? name one of {listed(targets)}")
    counts = count_lines(read_tail(path))
    t = end if end is not None else max(o.t for o in observations)
    return [Observation(t, targets[0], "log", {"counts": counts})]
