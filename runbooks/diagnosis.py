"""
Diagnosis: observations in, verdict out.

Features are computed once per engine, every signature is evaluated, and what another active failure
mode causes is explained away: it is a symptom of that one, not a root.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.runbooks.evidence import PageReader
from vllm_opsctl.runbooks.examine import Examined, examine
from vllm_opsctl.runbooks.judge import Judge
from vllm_opsctl.runbooks.load import Library
from vllm_opsctl.runbooks.verdict import (
    WORST_FIRST,
    EvidenceLine,
    FoundCause,
    Health,
    RuledOut,
    TargetVerdict,
)

_SEVERITY_ORDER = ("critical", "high", "medium", "low")


def diagnose_target(
    target: str,
    observations: Sequence[Observation],
    library: Library,
    *,
    source: str,
    at: float | None = None,
    window_s: float = 60.0,
    now: float | None = None,
    runbook_url: str | None = None,
    read: PageReader = read_page,
) -> TargetVerdict:
    """
    Diagnose one target from what was observed of it; :func:`examine` explains the arguments.

    Args:
        target: The target's name.
        observations: Its observations, in order; also those before the window, as reference.
        library: Failure modes.
        source: How the observations were had (``scrape``, ``sidecar``, ``recording``, …).
        at: End of the window (unix seconds); None for the newest observation.
        window_s: Length of the window in seconds.
        now: Unix seconds, where the question is how the target is now.
        runbook_url: Base of the links to runbook pages.
        read: Reads a page.
    """
    examined = examine(
        target, observations, source=source, at=at, window_s=window_s, now=now, read=read
    )
    return conclude(examined, library, runbook_url=runbook_url)


def conclude(
    examined: Examined, library: Library, *, runbook_url: str | None = None
) -> TargetVerdict:
    """
    Judge what was examined.

    Args:
        examined: One target.
        library: Failure modes.
        runbook_url: Base of the links to runbook pages.
    """
    if not examined.engines or examined.outdated is not None:
        # what was true when it was read last is not said of now
        return TargetVerdict(
            target=examined.target,
            verdict="unknown",
            source=examined.source,
            start=examined.start,
            end=examined.end,
            samples=examined.samples,
            summary=examined.outdated or "nothing was observed of this target",
            vllm_version=examined.vllm_version,
            model=examined.engines[0].model if examined.engines else None,
        )
    judges = [Judge(library, findings, runbook_url) for findings in examined.engines]
    active: dict[str, FoundCause] = {}
    owner: dict[str, Judge] = {}
    for judge in judges:
        for mode in library.modes.values():
            if judge.is_active(mode) is True:
                found = replace(judge.cause(mode), engine=judge.findings.label)
                if mode.id not in active or found.score > active[mode.id].score:
                    active[mode.id] = found
                    owner[mode.id] = judge
    symptoms = {
        id_: judge
        for id_, symptom in library.symptoms.items()
        for judge in judges
        if judge.holds(symptom.when)
    }
    causes = _explain_away(active, symptoms, library)
    if any(judge.findings.several_servers for judge in judges):
        causes = ()
    health, summary, main = _health(causes, judges, owner)
    findings = main.findings
    return TargetVerdict(
        target=examined.target,
        verdict=health,
        summary=summary,
        source=examined.source,
        start=examined.start,
        end=examined.end,
        samples=examined.samples,
        onset=_onset(causes, main, library),
        changes=findings.changes if causes else (),
        platform=findings.platform,
        events=findings.events,
        vllm_version=examined.vllm_version,
        model=findings.model,
        causes=causes,
        ruled_out=_ruled_out(causes, active, owner, library),
        blind_spots=(
            *findings.blind_spots,
            *(findings.troubled_blind_spots if health != "healthy" else ()),
            *_not_judged(causes, owner, library),
        ),
        features=findings.features,
    )


def _onset(causes: Sequence[FoundCause], judge: Judge, library: Library) -> float | None:
    """When it began: the last sign of life for what concerns liveness, else the change point."""
    if not causes:
        return None
    since = judge.findings.trouble_since
    is_liveness = causes[0].role == "root" and library.modes[causes[0].id].liveness
    return since if is_liveness and since is not None else judge.findings.onset


def _explain_away(
    active: Mapping[str, FoundCause], symptoms: Mapping[str, Judge], library: Library
) -> tuple[FoundCause, ...]:
    """Give every active node its role; roots first, by confidence, then symptoms."""
    parents: dict[str, set[str]] = {id_: set() for id_ in (*active, *symptoms)}
    for id_ in active:
        for effect in library.modes[id_].causes:
            if effect in parents:
                parents[effect].add(id_)
    # nothing performs on an engine that is not alive
    lifeless = [id_ for id_ in active if library.modes[id_].liveness]
    for id_ in active:
        if not library.modes[id_].liveness:
            parents[id_].update(lifeless)
    for id_ in active:
        # of two that cause each other the surer one is the entry point of the loop
        for other in [p for p in parents[id_] if p in active and id_ in parents[p]]:
            weaker = id_ if active[id_].score < active[other].score else other
            parents[other if weaker == id_ else id_].discard(weaker)
    if active and all(parents[id_] for id_ in active):
        # a longer loop: the surest of it is its entry point
        parents[max(active, key=lambda id_: active[id_].score)].clear()
    explained: dict[str, list[str]] = {id_: [] for id_ in active}
    for id_, above in parents.items():
        for parent in above:
            explained[parent].append(id_)
    found = [
        replace(
            cause,
            role="symptom" if parents[id_] else "root",
            explains=tuple(sorted(explained[id_])),
        )
        for id_, cause in active.items()
    ]
    for id_, judge in symptoms.items():
        symptom = library.symptoms[id_]
        found.append(
            FoundCause(
                id=id_,
                title=symptom.title,
                role="symptom",
                severity="high",
                confidence=1.0,
                score=1.0,
                evidence=(
                    EvidenceLine(
                        judge.say(symptom.say),
                        library.conditions[symptom.when].features[0],
                        judge.features.get(library.conditions[symptom.when].features[0]),
                        symptom.when,
                    ),
                ),
            )
        )
    found.sort(
        key=lambda c: (
            c.role != "root",
            c.severity == "low",
            -c.confidence,
            -c.score,
            _SEVERITY_ORDER.index(c.severity),
        )
    )
    return tuple(found)


def _ruled_out(
    causes: Sequence[FoundCause],
    active: Mapping[str, FoundCause],
    owner: Mapping[str, Judge],
    library: Library,
) -> tuple[RuledOut, ...]:
    return tuple(
        RuledOut(id_, judge.why_not(library.modes[id_]))
        for id_, judge in _look_alikes(causes, owner, library).items()
        if id_ not in active and judge.is_active(library.modes[id_]) is False
    )


def _not_judged(
    causes: Sequence[FoundCause], owner: Mapping[str, Judge], library: Library
) -> list[str]:
    """Look-alikes that missing features leave open, and advice that could not be checked."""
    open_ = [
        f"{id_} {judge.why_not(library.modes[id_])}"
        for id_, judge in _look_alikes(causes, owner, library).items()
        if judge.is_active(library.modes[id_]) is None
    ]
    roots = [cause.id for cause in causes if cause.role == "root"]
    actions = [action for id_ in roots for action in library.modes[id_].actions]
    unversioned = any("config.version" not in owner[id_].features for id_ in roots)
    if unversioned and any(library.flags_of(action) for action in actions):
        open_.append("the vLLM version, so flags in the advice are not checked against it")
    return open_


def _look_alikes(
    causes: Sequence[FoundCause], owner: Mapping[str, Judge], library: Library
) -> dict[str, Judge]:
    """What the roots are easily taken for, and who judges it."""
    found: dict[str, Judge] = {}
    for cause in causes:
        if cause.role == "root":
            for id_ in library.modes[cause.id].discriminators:
                found.setdefault(id_, owner[cause.id])
    return found


def _health(
    causes: Sequence[FoundCause],
    judges: Sequence[Judge],
    owner: Mapping[str, Judge],
) -> tuple[Health, str, Judge]:
    """The verdict, its sentence, and the engine it is about."""
    roots = [cause for cause in causes if cause.role == "root" and cause.severity != "low"]
    if roots:
        critical = any(cause.severity == "critical" for cause in roots)
        titles = "; ".join(cause.title for cause in roots)
        return "critical" if critical else "degraded", titles, owner[roots[0].id]
    felt = [cause for cause in causes if cause.role == "symptom"]
    if felt:
        titles = "; ".join(cause.title for cause in felt)
        return "degraded", f"{titles}; no known failure mode fits", judges[0]
    found = [(*judge.findings.fallback, judge) for judge in judges]
    health, summary, main = min(found, key=lambda entry: WORST_FIRST.index(entry[0]))
    if causes:
        # what harms nobody is told, and wakes nobody
        summary = "; ".join([summary, *(f"note: {cause.title}" for cause in causes)])
    return health, summary, main
