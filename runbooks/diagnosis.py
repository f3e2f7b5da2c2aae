"""
Diagnosis: observations in, verdict out.

Features are computed once per engine, every signature is evaluated, and what another active failure
mode causes is explained away: it is a symptom of that one, not a root.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vllm_opsctl.exporter.catalogue import parse_version
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.units import format_duration
from vllm_opsctl.runbooks.changes import changes
from vllm_opsctl.runbooks.conditions import Condition, activation_of, fill_template
from vllm_opsctl.runbooks.evidence import Evidence, PageReader, gather
from vllm_opsctl.runbooks.features import Value, compute_features
from vllm_opsctl.runbooks.features_endpoint import has_progress, trouble_since
from vllm_opsctl.runbooks.features_probe import NO_CANARY_REASONS, canary_of
from vllm_opsctl.runbooks.load import Library
from vllm_opsctl.runbooks.model import Action, Clause, FailureMode
from vllm_opsctl.runbooks.onset import MIN_SAMPLES
from vllm_opsctl.runbooks.verdict import (
    WORST_FIRST,
    Alternative,
    EvidenceLine,
    FoundCause,
    Health,
    PrintedAction,
    RuledOut,
    TargetVerdict,
)

_SEVERITY_ORDER = ("critical", "high", "medium", "low")
_ACTION_ORDER = ("check", "mitigate", "fix")
_FAILED_SHARE = 0.2
"""Above this share of failed reads the verdict says so."""


class _Judge:
    """One engine's features against the library."""

    def __init__(self, library: Library, evidence: Evidence, runbook_url: str | None) -> None:
        self.library = library
        self.evidence = evidence
        self.runbook_url = runbook_url
        self.features = compute_features(evidence)
        self._activation: Any = activation_of(self.features)
        self._held: dict[str, bool | None] = {}

    def _condition(self, source: str) -> Condition:
        return self.library.conditions[source]

    def holds(self, source: str) -> bool | None:
        if source not in self._held:
            self._held[source] = self._condition(source).holds(self._activation)
        return self._held[source]

    def is_active(self, mode: FailureMode) -> bool | None:
        """Whether a failure mode's signature holds; None when a missing feature decides."""
        if not mode.liveness and len(self.evidence.window.samples) < MIN_SAMPLES:
            return None
        known = True
        for clause in mode.signature.require:
            holds = self.holds(clause.when)
            if holds is False:
                return False
            known = known and holds is not None
        if any(self.holds(exclusion.when) for exclusion in mode.signature.rule_out):
            return False
        return True if known else None

    def confidence(self, mode: FailureMode) -> float:
        """0.6 for the required facts, the rest by weight of the supporting ones that hold."""
        weights = [(clause.weight, self.holds(clause.when)) for clause in mode.signature.support]
        if not weights:
            return 0.9
        held = sum(weight * {True: 1.0, None: 0.3, False: 0.0}[holds] for weight, holds in weights)
        return 0.6 + 0.39 * held / sum(weight for weight, _ in weights)

    def evidence_lines(self, mode: FailureMode) -> tuple[EvidenceLine, ...]:
        clauses: list[Clause] = [*mode.signature.require]
        clauses += [c for c in mode.signature.support if self.holds(c.when)]
        lines = []
        for clause in clauses:
            names = self._condition(clause.when).features
            name = next((n for n in names if n in self.features), names[0])
            lines.append(
                EvidenceLine(self.say(clause.say), name, self.features.get(name), clause.when)
            )
        return tuple(lines)

    def say(self, template: str) -> str:
        return fill_template(template, self.features)

    def why_not(self, mode: FailureMode) -> str:
        """The fact that rules a failure mode out, or what is missing to judge it."""
        for exclusion in mode.signature.rule_out:
            if self.holds(exclusion.when):
                return self.say(exclusion.because)
        for clause in mode.signature.require:
            if self.holds(clause.when) is False:
                return self.say(clause.otherwise or f"{clause.when} does not hold")
        missing = [
            name
            for clause in mode.signature.require
            if self.holds(clause.when) is None
            for name in self._condition(clause.when).features
            if name not in self.features
        ]
        return f"cannot be judged without {', '.join(dict.fromkeys(missing))}"

    def actions(self, mode: FailureMode) -> tuple[PrintedAction, ...]:
        """The mode's actions that this engine's version and facts do not contradict."""
        fitting = [action for action in mode.actions if self._fits(action)]
        fitting.sort(key=lambda action: _ACTION_ORDER.index(action.kind))
        return tuple(
            PrintedAction(
                action.kind,
                self.say(action.text),
                action.command,
                self.say(action.helps_when) if action.helps_when else None,
                self.say(action.seen_by) if action.seen_by else None,
            )
            for action in fitting
        )

    def _fits(self, action: Action) -> bool:
        if action.only_if is not None and self.holds(action.only_if) is not True:
            return False
        text = self.features.get("config.version")
        version = parse_version(str(text)) if text is not None else ()
        for flag in self.library.flags_of(action):
            since, until = self.library.flags[flag]
            if version and (version < since or (until is not None and version > until)):
                return False
        return True

    def cause(self, mode: FailureMode) -> FoundCause:
        base = self.runbook_url
        return FoundCause(
            id=mode.id,
            title=mode.title,
            role="root",
            severity=mode.severity,
            confidence=self.confidence(mode),
            evidence=self.evidence_lines(mode),
            actions=self.actions(mode),
            alternatives=tuple(
                Alternative(twin.id, twin.apart_by)
                for twin in mode.twins
                if self.is_active(self.library.modes[twin.id]) is not True
            ),
            runbook=f"{base.rstrip('/')}/{mode.id}" if base else f"opsctl runbook show {mode.id}",
        )


def diagnose_target(
    target: str,
    observations: Sequence[Observation],
    library: Library,
    *,
    source: str,
    at: float | None = None,
    window_s: float = 60.0,
    runbook_url: str | None = None,
    read: PageReader = read_page,
) -> TargetVerdict:
    """
    Diagnose one target from what was observed of it.

    Args:
        target: The target's name.
        observations: Its observations, in order; also those before the window, as reference.
        library: Failure modes.
        source: How the observations were had (``scrape``, ``sidecar``, ``recording``).
        at: End of the window (unix seconds); None for the newest observation.
        window_s: Length of the window in seconds.
        runbook_url: Base of the links to runbook pages.
        read: Reads a page; whoever diagnoses many moments of one recording keeps what was read.
    """
    if not observations:
        return TargetVerdict(
            target=target,
            verdict="unknown",
            source=source,
            start=0.0,
            end=0.0,
            samples=0,
            summary="nothing was observed of this target",
        )
    pieces, recent = gather(target, observations, at=at, window_s=window_s, read=read)
    judges = [_Judge(library, evidence, runbook_url) for evidence in pieces]
    active: dict[str, FoundCause] = {}
    owner: dict[str, _Judge] = {}
    for judge in judges:
        key = judge.evidence.key
        label = f"{key.model}/{key.engine}" if key is not None and len(judges) > 1 else None
        for mode in library.modes.values():
            if judge.is_active(mode) is True:
                found = replace(judge.cause(mode), engine=label)
                if mode.id not in active or found.confidence > active[mode.id].confidence:
                    active[mode.id] = found
                    owner[mode.id] = judge
    symptoms = {
        id_: judge
        for id_, symptom in library.symptoms.items()
        for judge in judges
        if judge.holds(symptom.when)
    }
    causes = _explain_away(active, symptoms, library)
    if any(judge.evidence.several_servers for judge in judges):
        causes = ()
    health, summary, main = _health(causes, judges, owner, recent)
    end = at if at is not None else max(o.t for o in observations)
    newest = main.evidence.newest
    version = main.evidence.api_facts.get("version")
    return TargetVerdict(
        target=target,
        verdict=health,
        summary=summary,
        source=source,
        start=max(end - window_s, min((o.t for o in recent), default=end)),
        end=end,
        samples=sum(o.kind == "metrics" for o in recent),
        onset=_onset(causes, main, library),
        changes=changes(main.evidence, main.features) if causes else (),
        vllm_version=version if isinstance(version, str) else None,
        model=newest.key.model if newest else None,
        causes=causes,
        ruled_out=_ruled_out(causes, active, owner, library),
        blind_spots=(
            *_blind_spots(main, recent, is_healthy=health == "healthy"),
            *_not_judged(causes, owner, library),
        ),
        features=main.features,
    )


def _onset(causes: Sequence[FoundCause], judge: _Judge, library: Library) -> float | None:
    """When it began: the last sign of life for what concerns liveness, else the change point."""
    if not causes:
        return None
    if causes[0].role == "root" and library.modes[causes[0].id].liveness:
        since = trouble_since(judge.evidence)
        return judge.evidence.onset if since is None else since
    return judge.evidence.onset


def _explain_away(
    active: Mapping[str, FoundCause], symptoms: Mapping[str, _Judge], library: Library
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
            weaker = id_ if active[id_].confidence < active[other].confidence else other
            parents[other if weaker == id_ else id_].discard(weaker)
    if active and all(parents[id_] for id_ in active):
        # a longer loop: the surest of it is its entry point
        parents[max(active, key=lambda id_: active[id_].confidence)].clear()
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
            _SEVERITY_ORDER.index(c.severity),
        )
    )
    return tuple(found)


def _ruled_out(
    causes: Sequence[FoundCause],
    active: Mapping[str, FoundCause],
    owner: Mapping[str, _Judge],
    library: Library,
) -> tuple[RuledOut, ...]:
    return tuple(
        RuledOut(id_, judge.why_not(library.modes[id_]))
        for id_, judge in _look_alikes(causes, owner, library).items()
        if id_ not in active and judge.is_active(library.modes[id_]) is False
    )


def _not_judged(
    causes: Sequence[FoundCause], owner: Mapping[str, _Judge], library: Library
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
    causes: Sequence[FoundCause], owner: Mapping[str, _Judge], library: Library
) -> dict[str, _Judge]:
    """What the roots are easily taken for, and who judges it."""
    found: dict[str, _Judge] = {}
    for cause in causes:
        if cause.role == "root":
            for id_ in library.modes[cause.id].discriminators:
                found.setdefault(id_, owner[cause.id])
    return found


def _health(
    causes: Sequence[FoundCause],
    judges: Sequence[_Judge],
    owner: Mapping[str, _Judge],
    recent: Sequence[Observation],
) -> tuple[Health, str, _Judge]:
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
    found = [(*_without_cause(judge.evidence, judge.features, recent), judge) for judge in judges]
    health, summary, main = min(found, key=lambda entry: WORST_FIRST.index(entry[0]))
    if causes:
        # what harms nobody is told, and wakes nobody
        summary = "; ".join([summary, *(f"note: {cause.title}" for cause in causes)])
    return health, summary, main


def _without_cause(
    evidence: Evidence, features: Mapping[str, Value], recent: Sequence[Observation]
) -> tuple[Health, str]:
    """Nothing was found: healthy only if enough was seen, else unknown."""
    attempts = [o for o in recent if o.kind in ("metrics", "error")]
    if not attempts:
        return "unknown", "nothing was observed in this window"
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


def _blind_spots(
    judge: _Judge, recent: Sequence[Observation], *, is_healthy: bool
) -> tuple[str, ...]:
    """What could not be seen; a healthy engine needs no comparison with its past."""
    spots = []
    attempts = [o for o in recent if o.kind in ("metrics", "error")]
    failed = [o for o in attempts if o.kind == "error"]
    if failed and len(failed) >= _FAILED_SHARE * len(attempts):
        reasons = ", ".join(sorted({str(o.data.get("reason")) for o in failed}))
        spots.append(f"{len(failed)} of {len(attempts)} reads failed ({reasons})")
    if judge.evidence.key is not None and judge.evidence.reference is None and not is_healthy:
        spots.append("nothing is known of before, so comparisons with before are missing")
    probe = canary_of(judge.evidence)
    if probe is not None and probe.data.get("reason") in NO_CANARY_REASONS:
        spots.append(f"the canary completion could not be sent ({probe.data.get('detail')})")
    spots += [f"engine {key.model}/{key.engine} vanished" for key in judge.evidence.vanished]
    if judge.evidence.asked.clock_steps:
        spots.append("the clock went back within the window; durations are estimates")
    return tuple(spots)
