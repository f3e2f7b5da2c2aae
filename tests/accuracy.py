"""
How often the diagnosis is right: every recording, at every moment; prints tables.

``make accuracy`` runs it and writes build/bench/accuracy.json. Nothing here is asserted; the tests
in tests/runbooks/test_diagnosis.py are.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import yaml
from bench.table import ROOT, Row, report
from truth import Case, cases

from vllm_opsctl.runbooks.calibration import bin_of, fit

CALIBRATION = ROOT / "runbooks" / "calibration.yaml"

FIRST_LOOK_S = 10.0
"""A verdict needs pages; nobody looks earlier."""

STEP_S = 2.0
SHORT_LOOKS_S = (5.0, 10.0, 20.0, 30.0)


@dataclass
class Score:
    """What was said of one recording."""

    case: Case
    answer: tuple[str, ...] = ()
    """Roots at the end of the incident, surest first."""
    false_alarms: int = 0
    healthy_looks: int = 0
    wrong_looks: Counter[str] = field(default_factory=Counter)
    incident_looks: int = 0
    seconds_to_verdict: float | None = None
    enough_alone: dict[float, bool] = field(default_factory=dict)
    """Seconds of data, nothing known of before: right or not."""
    confidences: list[tuple[float, bool]] = field(default_factory=list)
    """Of every root at every look: what was stated, and whether it was right."""
    trials: dict[tuple[str, str, int], tuple[float, bool]] = field(default_factory=dict)
    """Kind of look, root and bin of its score to score and right or not: one trial each."""

    @property
    def right(self) -> bool:
        """The surest root is the truth, and nothing wrong stands beside it."""
        return set(self.answer) <= self.case.accepted and bool(self.answer) == bool(self.case.truth)

    @property
    def complete(self) -> bool:
        """Every root of the truth is named."""
        named = set(self.answer)
        wanted = self.case.by_phase.get("incident", self.case.truth)
        return self.right and all(id_ in named or named & {*self.case.also} for id_ in wanted)


def score(case: Case) -> Score:
    """Judge one recording."""
    found = Score(case)
    observed = case.observations
    first, last = observed[0].t, max(o.t for o in observed)
    start, end = case.incident or (last + 1.0, last)
    # what is being computed when an incident begins belongs to it
    moment = first + FIRST_LOOK_S
    while moment <= last:
        roots = case.diagnose(moment).roots
        if moment <= start:
            found.healthy_looks += 1
            found.false_alarms += bool(roots)
        elif case.truth:
            found.incident_looks += 1
            for cause in roots:
                is_right = cause.id in case.tolerated
                found.confidences.append((cause.confidence, is_right))
                found.trials["compared", cause.id, bin_of(cause.score)] = (cause.score, is_right)
                if not is_right:
                    found.wrong_looks[cause.id] += 1
            top = roots[0].id if roots else None
            if top in case.accepted and found.seconds_to_verdict is None:
                found.seconds_to_verdict = moment - start
        moment += STEP_S
    if case.truth:
        found.answer = tuple(cause.id for cause in case.diagnose(end).roots)
        for seconds in SHORT_LOOKS_S:
            # somebody begins to watch in the middle of the incident
            until = min(end, start + (end - start) / 2 + seconds)
            alone = case.diagnose(until, since=until - seconds).roots
            found.enough_alone[seconds] = bool(alone) and alone[0].id in case.accepted
            for cause in alone:
                is_right = cause.id in case.tolerated
                found.trials["alone", cause.id, bin_of(cause.score)] = (cause.score, is_right)
    return found


def main() -> None:
    """Judge every recording, or those whose name contains an argument."""
    wanted = [argument for argument in sys.argv[1:] if argument != "--calibrate"]
    scores = [
        score(case)
        for name, case in cases().items()
        if not wanted or any(part in name for part in wanted)
    ]
    incidents = [s for s in scores if s.case.truth]
    print(f"{'recording':42} {'truth':30} {'answer':34} {'after':>6}  wrong looks")
    for s in scores:
        truth, answer = ", ".join(s.case.truth) or "healthy", ", ".join(s.answer) or "-"
        if not s.case.truth:
            answer = "-" if not s.false_alarms else "FALSE ALARM"
        after = f"{s.seconds_to_verdict:.0f} s" if s.seconds_to_verdict is not None else "-"
        mark = "" if s.right else "  <-- wrong" if s.case.truth else ""
        mistakes = ", ".join(f"{id_} x{n}" for id_, n in s.wrong_looks.items())
        print(f"{s.case.name:42} {truth[:30]:30} {answer[:34]:34} {after:>6}  {mistakes}{mark}")
    _confusion(incidents)
    _short_looks(incidents)
    bins = _reliability(incidents)
    looks = sum(s.healthy_looks for s in scores)
    alarms = sum(s.false_alarms for s in scores)
    wrong = sum(sum(s.wrong_looks.values()) for s in incidents)
    times = sorted(s.seconds_to_verdict for s in incidents if s.seconds_to_verdict is not None)
    right = sum(s.right for s in incidents)
    rows = [
        Row("surest root is right at the end", right, "inc.", "all incidents", len(incidents)),
        Row(
            "every root is named at the end",
            sum(s.complete for s in incidents),
            "inc.",
            "all incidents",
            len(incidents),
        ),
        Row("false alarms while nothing is wrong", alarms, "look", "all such looks", looks),
        Row(
            "wrong roots while an incident lasts",
            wrong,
            "root",
            "all looks at incidents",
            sum(s.incident_looks for s in incidents),
        ),
    ]
    rows += [
        Row(f"right where confidence is {low:.0%} or more", hits, "root", "all such", total)
        for low, hits, total in bins
        if total
    ]
    report("accuracy", f"{len(scores)} recordings, a look every {STEP_S:g} s", rows)
    if "--calibrate" in sys.argv:
        _calibrate(incidents)
    if times:
        print(f"  median time from the onset to the right root: {times[len(times) // 2]:.0f} s")


def _calibrate(incidents: list[Score]) -> None:
    table = {
        kind: fit(
            trial
            for s in incidents
            for (of_kind, _, _), trial in s.trials.items()
            if of_kind == kind
        )
        for kind in ("alone", "compared")
    }
    head = "# Confidence by bin of scores (calibration.py). Written by: make accuracy ARGS=--calibrate\n"
    CALIBRATION.write_text(head + yaml.safe_dump(table, default_flow_style=None))
    print(f"\ncalibration.yaml: {table}")


def _confusion(incidents: list[Score]) -> None:
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for s in incidents:
        table[" + ".join(s.case.truth)][" + ".join(s.answer) or "nothing"] += 1
    print("\ntruth -> answers at the end of the incident")
    for truth, answers in sorted(table.items()):
        print(f"  {truth:48} {', '.join(f'{a} x{n}' for a, n in answers.most_common())}")


def _short_looks(incidents: list[Score]) -> None:
    print("\nonly the last seconds known, nothing of before: surest root right")
    for seconds in SHORT_LOOKS_S:
        hits = sum(s.enough_alone.get(seconds, False) for s in incidents)
        print(f"  {seconds:3.0f} s  {hits} of {len(incidents)}")


def _reliability(incidents: list[Score]) -> list[tuple[float, int, int]]:
    """Stated confidence against what was right: (lower bound, right, all) per bin."""
    edges = (0.6, 0.7, 0.8, 0.9)
    found = []
    for low, high in zip(edges, (*edges[1:], 1.01), strict=True):
        inside = [
            ok for s in incidents for confidence, ok in s.confidences if low <= confidence < high
        ]
        found.append((low, sum(inside), len(inside)))
    return found


if __name__ == "__main__":
    main()
