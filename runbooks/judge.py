"""One engine against the library: which signatures hold, how sure, and which advice fits."""

from __future__ import annotations

from vllm_opsctl.exporter.catalogue import parse_version
from vllm_opsctl.runbooks.calibration import calibrated
from vllm_opsctl.runbooks.conditions import Condition, activation_of, fill_template
from vllm_opsctl.runbooks.examine import EngineFindings
from vllm_opsctl.runbooks.load import Library
from vllm_opsctl.runbooks.model import Action, Clause, FailureMode
from vllm_opsctl.runbooks.verdict import Alternative, EvidenceLine, FoundCause, PrintedAction

_ACTION_ORDER = ("check", "mitigate", "fix")


class Judge:
    """
    One engine's features against the library.

    Args:
        library: Failure modes.
        findings: What the engine showed.
        runbook_url: Base of the links to runbook pages; None for the command that shows one.
    """

    def __init__(self, library: Library, findings: EngineFindings, runbook_url: str | None) -> None:
        self.library = library
        self.findings = findings
        self.runbook_url = runbook_url
        self.features = findings.features
        self._activation = activation_of(self.features)
        self._held: dict[str, bool | None] = {}

    def _condition(self, source: str) -> Condition:
        return self.library.conditions[source]

    def holds(self, source: str) -> bool | None:
        """Whether a condition holds; None when a missing feature decides."""
        if source not in self._held:
            self._held[source] = self._condition(source).holds(self._activation)
        return self._held[source]

    def is_active(self, mode: FailureMode) -> bool | None:
        """Whether a failure mode's signature holds; None when a missing feature decides."""
        if not _rests_on_no_pages(mode) and not self.findings.is_long_enough:
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
        """How often a failure mode with such a score was right on recordings (:mod:`.calibration`)."""
        compared = self.features.get("reference.kind") == "earlier window"
        return calibrated(self.score(mode), is_compared=compared or _rests_on_no_pages(mode))

    def score(self, mode: FailureMode) -> float:
        """0.6 for the required facts, the rest by weight of the supporting ones that hold."""
        weights = [(clause.weight, self.holds(clause.when)) for clause in mode.signature.support]
        if not weights:
            return 0.9
        held = sum(weight * {True: 1.0, None: 0.3, False: 0.0}[holds] for weight, holds in weights)
        return 0.6 + 0.39 * held / sum(weight for weight, _ in weights)

    def evidence_lines(self, mode: FailureMode) -> tuple[EvidenceLine, ...]:
        """The facts that speak for a failure mode, with their numbers."""
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
        """A sentence with this engine's numbers."""
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
        """An active failure mode as the verdict reports it; its role is not known yet."""
        base = self.runbook_url
        return FoundCause(
            id=mode.id,
            title=mode.title,
            role="root",
            severity=mode.severity,
            confidence=self.confidence(mode),
            score=self.score(mode),
            evidence=self.evidence_lines(mode),
            actions=self.actions(mode),
            alternatives=tuple(
                Alternative(twin.id, twin.apart_by)
                for twin in mode.twins
                if (twin.only_if is None or self.holds(twin.only_if) is True)
                and self.is_active(self.library.modes[twin.id]) is not True
            ),
            runbook=f"{base.rstrip('/')}/{mode.id}" if base else f"opsctl runbook show {mode.id}",
        )


def _rests_on_no_pages(mode: FailureMode) -> bool:
    """What is seen at once, or said by the platform, needs no window to compare with."""
    return mode.liveness or mode.area == "sagemaker"
