"""What was really going on in each recording: the manifests beside them, read into one shape."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from vllm_opsctl.exporter.engine import PageSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.recording import read_recording
from vllm_opsctl.runbooks.diagnosis import diagnose_target
from vllm_opsctl.runbooks.load import shipped_library
from vllm_opsctl.runbooks.verdict import TargetVerdict

RECORDINGS = Path(__file__).resolve().parent / "recordings"

TRANSIENT: Mapping[str, frozenset[str]] = {
    # while nothing listens yet nobody can know that a new process will
    "process-restart": frozenset({"engine-dead"}),
    # a server whose engine sleeps with requests inside looks frozen until it says that it sleeps
    "engine-asleep-or-paused": frozenset({"engine-hung"}),
    # an overload is over before its backlog is
    "queue-overload": frozenset({"backlog-draining"}),
    "concurrency-cap": frozenset({"backlog-draining"}),
    # the big prompts that block the queue also stall the streams while they are computed
    "kv-head-of-line-block": frozenset({"long-prefill-interference"}),
}
"""What may be named at some moment of an incident although it is another one in the end."""


@dataclass(frozen=True)
class Case:
    """
    A recording and its truth.

    Args:
        name: Path below the folder of recordings, without suffixes.
        truth: Root causes while the incident lasts; empty when nothing was wrong.
        also: Failure modes that are as right, where metrics cannot tell.
        phases: Unix seconds at which each phase began, in order.
        by_phase: Root causes of single phases, where they differ from `truth`.
    """

    name: str
    truth: tuple[str, ...]
    also: tuple[str, ...]
    phases: Mapping[str, float]
    by_phase: Mapping[str, tuple[str, ...]]

    @property
    def accepted(self) -> frozenset[str]:
        """Every root that is right at the end of the incident."""
        named = {id_ for ids in self.by_phase.values() for id_ in ids}
        return frozenset({*self.truth, *self.also, *named})

    @property
    def tolerated(self) -> frozenset[str]:
        """Every root that is no mistake at some moment of the incident."""
        return self.accepted.union(*(TRANSIENT.get(id_, frozenset()) for id_ in self.truth))

    @property
    def incident(self) -> tuple[float, float] | None:
        """When the incident began and ended (unix seconds); None when nothing was wrong."""
        if not self.truth:
            return None
        # some were there from the start
        start = self.phases.get("incident", min(self.phases.values()))
        later = [t for name, t in self.phases.items() if t > start and name != "incident"]
        return start, min(later)

    @functools.cached_property
    def observations(self) -> tuple[Observation, ...]:
        """The recording."""
        return tuple(read_recording(RECORDINGS / f"{self.name}.jsonl.gz"))

    def diagnose(self, at: float | None = None, *, since: float | None = None) -> TargetVerdict:
        """
        The verdict at a moment.

        Args:
            at: End of the window (unix seconds); None for the end of the recording.
            since: Nothing older is known, as when somebody began to watch then.
        """
        known = [o for o in self.observations if since is None or o.t >= since]
        return diagnose_target(
            known[0].target,
            known,
            shipped_library(),
            source="recording",
            at=at,
            read=parsed,
        )


@functools.lru_cache(maxsize=4096)
def parsed(text: str, *, t: float, target: str) -> PageSample:
    """A page, read once for all tests of a process that look at it; the last recordings' are kept."""
    return read_page(text, t=t, target=target)


@functools.cache
def cases() -> Mapping[str, Case]:
    """All recordings by name."""
    found: dict[str, Case] = {}
    for manifest in sorted(RECORDINGS.rglob("manifest.yaml")):
        folder = manifest.parent.relative_to(RECORDINGS)
        for name, entry in yaml.safe_load(manifest.read_text(encoding="utf-8")).items():
            path = str(folder / name)
            found[path] = Case(
                name=path,
                truth=tuple(entry["truth"]),
                also=tuple(entry.get("also", ())),
                phases=entry["phase_starts"],
                by_phase={
                    phase: tuple(ids) for phase, ids in entry.get("truth_by_phase", {}).items()
                },
            )
    return found
