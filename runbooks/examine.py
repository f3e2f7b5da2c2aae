"""
What one target showed: features, and what a verdict needs beside them. No failure mode is known here.

What :func:`examine` returns is small and can be sent to another process; pages are left behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from vllm_opsctl.exporter.exposition import left_out_text, read_page
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.units import format_duration
from vllm_opsctl.runbooks.changes import changes
from vllm_opsctl.runbooks.evidence import Evidence, PageReader, gather
from vllm_opsctl.runbooks.features import Value, compute_features
from vllm_opsctl.runbooks.features_endpoint import has_progress, trouble_since
from vllm_opsctl.runbooks.features_probe import NO_CANARY_REASONS, canary_of, not_sent
from vllm_opsctl.runbooks.onset import MIN_SAMPLES
from vllm_opsctl.runbooks.platform import (
    NOT_IN_SERVICE,
    blind_spots_of,
    events_of,
    of_stall,
    platform_of,
    without_engine,
)
from vllm_opsctl.runbooks.verdict import Change, Event, Health

STALE_S = 15.0
"""A live source that has read nothing for so long says nothing of now; a look a second is the usual pace."""

STALE_STEPS = 4
"""The same where a target is scraped more rarely: so many times the usual distance of two reads."""

_RECENT_LOOKS = 20

_NAMED_ENGINES = 4
"""Engines that have gone are named one by one up to so many."""

_FAILED_SHARE = 0.2
"""Above this share of failed reads the verdict says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFindings:
    """
    One engine of a target.

    Args:
        label: ``model/engine`` where the target has several; None for a single one.
        model: Served model; None when no page was readable.
        features: Every feature that could be computed.
        is_long_enough: The window under test has enough pages for performance to be judged.
        onset: Unix seconds at which the behaviour changed; None without a clear change.
        trouble_since: Unix seconds of the last sign of life before an outage, stall or restart.
        changes: What changed at the onset.
        fallback: Verdict and sentence where no failure mode is active.
        blind_spots: What could not be seen.
        troubled_blind_spots: What could not be seen and matters only where something is wrong.
        several_servers: Pages of several processes alternate behind the URL.
        facts: Configuration labels of the newest page.
        platform: What the platform says of the target, in a line; None where none was asked.
        events: What the platform did in the window, oldest first.
    """

    label: str | None
    model: str | None
    features: Mapping[str, Value]
    is_long_enough: bool
    onset: float | None
    trouble_since: float | None
    changes: tuple[Change, ...]
    fallback: tuple[Health, str]
    blind_spots: tuple[str, ...]
    troubled_blind_spots: tuple[str, ...]
    several_servers: bool
    facts: Mapping[str, str] = field(default_factory=dict)
    platform: str | None = None
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """
    One target.

    Args:
        target: Its name.
        source: How the observations were had.
        start: Unix seconds at which the window begins; no earlier than anything was seen.
        end: Unix seconds at which it ends.
        samples: Pages in it.
        vllm_version: As /version says; None when nobody asked or it did not answer.
        engines: At least one, where anything was observed at all.
        outdated: Why nothing can be said of now; None where there is no such reason.
    """

    target: str
    source: str
    start: float
    end: float
    samples: int
    vllm_version: str | None
    engines: tuple[EngineFindings, ...]
    outdated: str | None = None


def examine(
    target: str,
    observations: Sequence[Observation],
    *,
    source: str,
    at: float | None = None,
    window_s: float = 60.0,
    now: float | None = None,
    read: PageReader = read_page,
) -> Examined:
    """
    Look at what was observed of one target.

    Args:
        target: The target's name.
        observations: Its observations, in order; also those before the window, as reference.
        source: How the observations were had (``scrape``, ``sidecar``, ``recording``, …).
        at: End of the window (unix seconds); None for the newest observation.
        window_s: Length of the window in seconds.
        now: Unix seconds, where the question is how the target is now; None where it is about the past.
        read: Reads a page; whoever diagnoses many moments of one recording keeps what was read.
    """
    if not observations:
        return Examined(
            target=target,
            source=source,
            start=0.0,
            end=0.0,
            samples=0,
            vllm_version=None,
            engines=(),
        )
    pieces, recent = gather(target, observations, at=at, window_s=window_s, read=read)
    end = at if at is not None else max(o.t for o in observations)
    version = pieces[0].api_facts.get("version")
    return Examined(
        target=target,
        source=source,
        start=max(end - window_s, min((o.t for o in recent), default=end)),
        end=end,
        samples=sum(o.kind == "metrics" for o in recent),
        vllm_version=version if isinstance(version, str) else None,
        engines=tuple(_findings(e, recent, is_one_of_several=len(pieces) > 1) for e in pieces),
        outdated=_outdated(observations, now) if now is not None else None,
    )


def _outdated(observations: Sequence[Observation], now: float) -> str | None:
    """Why what was observed says nothing of now: nobody has looked for too long."""
    looks = [o.t for o in observations if o.kind in ("metrics", "error", "sagemaker")]
    if not looks:
        return None
    steps = [later - earlier for earlier, later in pairwise(looks[-_RECENT_LOOKS:])]
    limit_s = max(STALE_S, STALE_STEPS * median(steps) if steps else 0.0)
    age_s = now - max(looks)
    if age_s < -limit_s:
        return (
            f"what was read last is {format_duration(round(-age_s))} later than now by the same "
            "clock, so how it is now is unknown"
        )
    if age_s <= limit_s:
        return None
    return (
        f"nothing was read for {format_duration(round(age_s))}, so how it is now is unknown "
        f"(after {format_duration(round(limit_s))} without a read)"
    )


def _findings(
    evidence: Evidence, recent: Sequence[Observation], *, is_one_of_several: bool
) -> EngineFindings:
    features = compute_features(evidence)
    key, newest = evidence.key, evidence.newest
    troubled: tuple[str, ...] = ()
    if key is not None and evidence.reference is None:
        troubled = ("nothing is known of before, so comparisons with before are missing",)
    elif key is not None and evidence.reference is not None and evidence.reference.window is None:
        troubled = (
            "of before only the process's whole life is known, so whether requests became more "
            "or heavier cannot be told",
        )
    return EngineFindings(
        label=f"{key.model}/{key.engine}" if key is not None and is_one_of_several else None,
        model=newest.key.model if newest else None,
        features=features,
        is_long_enough=len(evidence.window.samples) >= MIN_SAMPLES,
        onset=evidence.onset,
        trouble_since=trouble_since(evidence),
        changes=changes(evidence, features),
        fallback=_without_cause(evidence, features, recent),
        blind_spots=_blind_spots(evidence, recent),
        troubled_blind_spots=troubled,
        several_servers=evidence.several_servers,
        facts=newest.facts if newest else {},
        platform=platform_of(evidence),
        events=events_of(evidence),
    )


def _without_cause(
    evidence: Evidence, features: Mapping[str, Value], recent: Sequence[Observation]
) -> tuple[Health, str]:
    """Nothing was found: healthy only if enough was seen, else unknown."""
    attempts = [o for o in recent if o.kind in ("metrics", "error")]
    if not attempts:
        return "unknown", without_engine(evidence) or "nothing was observed in this window"
    if evidence.several_servers:
        return "unknown", "several servers answer behind this URL in turn; name each replica itself"
    if attempts[-1].kind == "error":
        data = attempts[-1].data
        detail = data.get("detail") or data.get("reason") or "no reason recorded"
        when = "now" if evidence.earlier_answer else "in this observation"
        return "unknown", f"no metrics {when}: {detail}"
    if len(evidence.window.samples) < MIN_SAMPLES:
        return "unknown", (
            f"only {len(evidence.window.samples)} pages were read since the last change; "
            f"{MIN_SAMPLES} are needed"
        )
    if features.get("engine.awake") is False:
        return "unknown", "the engine is asleep (sleep mode); it serves nothing until woken"
    if features.get("probe.ok") is False:
        probe = canary_of(evidence)
        assert probe is not None
        return "degraded", f"the canary completion failed: {probe.data.get('detail')}"
    on_platform = of_stall(evidence, features)
    if on_platform is not None:
        return on_platform
    if features.get("progress.stall_ongoing") and features.get("traffic.started", 0) == 0:
        if features.get("probe.ok") is True:
            return "healthy", "idle; the canary completion answered"
        if features.get("progress.stall_running"):
            stalled = format_duration(float(features["progress.stalled_seconds"]))
            return "unknown", f"no progress for {stalled} with requests in the batch; watch longer"
        if any(has_progress(sibling) for sibling in evidence.siblings):
            return "healthy", "no failure mode is active"
        return "unknown", (
            "idle, and no canary was sent: an idle engine and a frozen one look the same"
        )
    return "healthy", "no failure mode is active"


def _blind_spots(evidence: Evidence, recent: Sequence[Observation]) -> tuple[str, ...]:
    """What could not be seen, whether anything is wrong or not."""
    spots = []
    attempts = [o for o in recent if o.kind in ("metrics", "error")]
    failed = [o for o in attempts if o.kind == "error" and o.data.get("reason") != NOT_IN_SERVICE]
    if failed and len(failed) >= _FAILED_SHARE * len(attempts):
        reasons = ", ".join(sorted({str(o.data.get("reason")) for o in failed}))
        spots.append(f"{len(failed)} of {len(attempts)} reads failed ({reasons})")
    probe = canary_of(evidence)
    if probe is not None and probe.data.get("reason") in NO_CANARY_REASONS:
        spots.append(f"the canary completion could not be sent ({probe.data.get('detail')})")
    why = not_sent(evidence)
    if why is not None:
        spots.append(f"no canary: {why}")
    gone = [f"{key.model}/{key.engine}" for key in evidence.vanished]
    if len(gone) > _NAMED_ENGINES:
        spots.append(f"{len(gone)} engines vanished, {', '.join(gone[:_NAMED_ENGINES])} among them")
    else:
        spots += [f"engine {name} vanished" for name in gone]
    if evidence.left_out:
        spots.append(f"of the metrics page was left out: {left_out_text(evidence.left_out)}")
    spots += blind_spots_of(evidence)
    if evidence.asked.clock_steps:
        spots.append("the clock went back within the window; durations are estimates")
    return tuple(spots)
