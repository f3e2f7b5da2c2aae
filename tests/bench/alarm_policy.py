"""
How good the alarm policy is, over synthetic months, beside static thresholds on the same series.

``make bench-alarms`` runs it; docs/alarms.md has its table and the method in short.
"""

from __future__ import annotations

import json
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.alarm_faults import FAULTS, LEVELS, Floats
from bench.alarm_months import month
from bench.alarm_peers import shipped, static, train, tuned
from bench.alarm_rules import Policy, View, ours
from bench.alarm_score import TRUTHS, Episode, Score, notes
from bench.table import ROOT

SEED = 20
MONTHS = 12
"""By level of traffic, of the seeds from ``SEED`` on."""

TRAINING = (1, 2, 3, 4, 5, 6)
"""Seeds of the months that static thresholds are tuned on."""

MAIN = "spends budget"


@dataclass
class Results:
    """All scores: by policy and truth, over all months; and of tickets."""

    policies: list[Policy]
    scores: dict[tuple[str, str], Score] = field(default_factory=lambda: defaultdict(Score))
    tickets: list[bool] = field(default_factory=list)
    """Of every episode that costs a tenth of a budget and is worth no page: was it told at all?"""

    def of(self, policy: str, truth: str = MAIN) -> Score:
        """One score."""
        return self.scores[policy, truth]


def tuned_policies(ours_: Policy) -> list[Policy]:
    """The best static thresholds for each level of traffic: one, a set, and a set that is as quiet."""
    single, several, quiet = {}, {}, {}
    for level in LEVELS:
        views = [View(month(level, seed)) for seed in TRAINING]
        trained = train(views, TRUTHS[MAIN])
        several[level.name] = tuned(trained, lambda score: score.f1, most=6)
        single[level.name] = several[level.name][:1]
        allowed = sum(_false_pages(ours_, view) for view in views)
        quiet[level.name] = tuned(
            trained,
            lambda score, allowed=allowed: score.recall * (score.false_pages <= allowed),  # type: ignore[misc]
            most=6,
        )
    return [
        static("static, one", "highest F1", single),
        static("static, set", "highest F1", several),
        static("static, as quiet", "highest recall with no more false pages than ours", quiet),
    ]


def _false_pages(policy: Policy, view: View) -> int:
    score = Score()
    episodes = [Episode(view.month, event) for event in view.month.events]
    score.add(episodes, notes(policy.evaluate(view)), [TRUTHS[MAIN](one) for one in episodes])
    return score.false_pages


def simulate(policies: list[Policy], months: int) -> Results:
    """Run every policy over every month."""
    results = Results(policies)
    ticket = ours("ticket")
    for level in LEVELS:
        for seed in range(SEED, SEED + months):
            view = View(month(level, seed))
            episodes = [Episode(view.month, event) for event in view.month.events]
            truths = {name: [worth(one) for one in episodes] for name, worth in TRUTHS.items()}
            for policy in policies:
                told = notes(policy.evaluate(view))
                for truth, worth in truths.items():
                    results.scores[policy.name, truth].add(episodes, told, worth)
            told = notes([*ticket.evaluate(view), *policies[0].evaluate(view)])
            results.tickets += _tickets(episodes, truths[MAIN], told.told)
    return results


def _tickets(
    episodes: Sequence[Episode], worth_a_page: Sequence[bool], told: Sequence[int]
) -> list[bool]:
    found = []
    for episode, pages in zip(episodes, worth_a_page, strict=True):
        if pages or episode.spent(episode.costliest) < 0.1:
            continue
        first, last = episode.minutes
        # a ticket may come late: it must come while the longest window still holds the episode
        found.append(any(first <= minute <= last + 12 * 60 for minute in told))
    return found


def _minutes(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.0f} min"


def _median_and_p90(minutes: Floats) -> str:
    if not len(minutes):
        return "-"
    return f"{np.median(minutes):.0f}, {np.percentile(minutes, 90):.0f} min"


def _percent(value: float, digits: int = 0) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.{digits}f} %"


def main_table(results: Results) -> list[str]:
    """The table of all policies."""
    lines = [
        "| policy | recall | precision | pages | false | no fault | median | P90 | budget | mean |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for policy in results.policies:
        score = results.of(policy.name)
        pages = (score.true_pages + score.false_pages) / score.months
        lines.append(
            f"| {policy.name} | {_percent(score.recall)} | {_percent(score.precision)} "
            f"| {pages:.1f} | {score.false_pages / score.months:.1f} "
            f"| {score.idle_pages / score.months:.1f} | {_minutes(score.delay(50))} "
            f"| {_minutes(score.delay(90))} | {_percent(score.median_spent, 1)} "
            f"| {_percent(score.mean_spent)} |"
        )
    return lines


def both_found(ours_: Score, other: Score) -> list[tuple[float, float]]:
    """Minutes until each told, of the episodes that both found."""
    return [
        (mine, theirs)
        for mine, theirs in zip(ours_.delays_min, other.delays_min, strict=True)
        if mine is not None and theirs is not None
    ]


def pair_table(results: Results) -> list[str]:
    """Detection where both detect, and recall and precision by the other rules of what is worth it."""
    lines = [
        "| policy | both | ours | theirs | > 5 % bad | by its name |",
        "|---|---|---|---|---|---|",
    ]
    first = results.of(results.policies[0].name)
    for policy in results.policies:
        pairs = np.array(both_found(first, results.of(policy.name))).reshape(-1, 2)
        mine, theirs = (_median_and_p90(column) for column in pairs.T)
        if policy is results.policies[0]:
            mine = theirs = "-"
        others = [results.of(policy.name, truth) for truth in TRUTHS if truth != MAIN]
        texts = [f"{_percent(score.recall)}, {_percent(score.precision)}" for score in others]
        lines.append(
            f"| {policy.name} | {len(pairs)} | {mine} | {theirs} | {texts[0]} | {texts[1]} |"
        )
    return lines


def kind_table(results: Results, names: Sequence[str]) -> list[str]:
    """Who finds which kind, and when."""
    lines = [
        f"| kind | worth a page | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    kinds = Counter(episode.event.kind for episode in results.of(names[0]).worth)
    for kind in [*FAULTS, *sorted(set(kinds) - set(FAULTS))]:
        if not kinds[kind]:
            continue
        cells = []
        for name in names:
            score = results.of(name)
            delays = [
                delay
                for episode, delay in zip(score.worth, score.delays_min, strict=True)
                if episode.event.kind == kind
            ]
            found = [delay for delay in delays if delay is not None]
            median = _minutes(float(np.median(found))) if found else "-"
            cells.append(f"{len(found)}, {median}")
        lines.append(f"| {kind} | {kinds[kind]} | {' | '.join(cells)} |")
    return lines


def as_data(results: Results) -> list[dict[str, Any]]:
    """Rows as every benchmark writes them; the reference is our policy's value in the same run."""
    rows = []
    first = results.policies[0].name
    measures: dict[str, tuple[str, Callable[[Score], float]]] = {
        "recall": ("ratio", lambda s: s.recall),
        "precision": ("ratio", lambda s: s.precision),
        "pages a month": ("1", lambda s: (s.true_pages + s.false_pages) / s.months),
        "false pages a month": ("1", lambda s: s.false_pages / s.months),
        "pages a month without a fault": ("1", lambda s: s.idle_pages / s.months),
        "median detection": ("min", lambda s: s.delay(50)),
        "P90 detection": ("min", lambda s: s.delay(90)),
        "median budget at page": ("ratio", lambda s: s.median_spent),
        "mean budget at page": ("ratio", lambda s: s.mean_spent),
    }
    for policy in results.policies:
        for truth in TRUTHS:
            score, reference = results.of(policy.name, truth), results.of(first, truth)
            for name, (unit, measure) in measures.items():
                value, other = measure(score), measure(reference)
                rows.append(
                    {
                        "metric": f"{policy.name}: {name}",
                        "truth": truth,
                        "value": _number(value),
                        "unit": unit,
                        "reference": first,
                        "reference_value": _number(other),
                        "ratio": _number(value / other if other else float("nan")),
                        "episodes": len(score.worth),
                        "months": score.months,
                        "source": policy.source,
                    }
                )
    return rows


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)


def false_pages(results: Results) -> Mapping[str, Counter[str]]:
    """What the false pages were about."""
    return {p.name: Counter(results.of(p.name).false_kinds) for p in results.policies}


def main() -> None:
    """Simulate, print and write."""
    started = time.monotonic()
    ours_ = ours()
    policies = [ours_, *shipped(), *tuned_policies(ours_)]
    results = simulate(policies, MONTHS)
    episodes = len(results.of(policies[0].name).worth)
    print(
        f"alarm_policy: {MONTHS} months each of {' and '.join(level.name for level in LEVELS)} traffic, "
        f"seeds {SEED} to {SEED + MONTHS - 1};"
    )
    print(
        f"{episodes} episodes are worth a page. Pages, false ones and those of them without any fault"
    )
    print(
        "are per month; detection is median and P90 of those found; budget is what is spent at the"
    )
    print("page, median and mean, all of it where nobody is told. Then: detection where both found")
    print(
        "it, median and P90; recall and precision by two other rules of what is worth a page; and"
    )
    print("kind by kind, how many are found and the median.\n")
    for table in (
        main_table(results),
        pair_table(results),
        kind_table(
            results,
            [policies[0].name, "hand-written set", "static, set", "static, as quiet"],
        ),
    ):
        print("\n".join(table) + "\n")
    print(
        f"Of {len(results.tickets)} episodes that cost a tenth of a budget and are worth no page, we "
        f"told of {sum(results.tickets)},\nby a ticket at least.\n"
    )
    for policy in policies:
        print(textwrap.fill(f"{policy.name}: {policy.source}", 98, subsequent_indent="  "))
        common = false_pages(results)[policy.name].most_common(6)
        print(f"  false pages: {', '.join(f'{count} {kind}' for kind, count in common) or 'none'}")
    folder = ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alarm_policy.json").write_text(json.dumps(as_data(results), indent=1) + "\n")
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
