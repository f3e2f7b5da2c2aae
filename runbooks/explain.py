"""What a name means: of a feature, metric, failure mode, symptom, mechanism, alert or objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.catalogue import Concept, catalogue
from vllm_opsctl.exporter.config import SLI_CONCEPTS, Objective
from vllm_opsctl.exporter.own_series import SLI_EVENTS
from vllm_opsctl.exporter.sinks.prometheus import own_metrics
from vllm_opsctl.exporter.units import format_duration, format_percent
from vllm_opsctl.runbooks.features import Feature, feature_groups, registry
from vllm_opsctl.runbooks.load import Library
from vllm_opsctl.runbooks.names import nearest
from vllm_opsctl.runbooks.pages import plain

_SUFFIXES = ("_total", "_bucket", "_sum", "_count")


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    What is known of a name.

    Args:
        name: As it is spelt.
        kind: What it is.
        meaning: One sentence or two.
        facts: Title to text, in order.
        why: Why it matters: how the part of vLLM behind it works.
        links: Where more stands.
    """

    name: str
    kind: str
    meaning: str
    facts: Mapping[str, str] = field(default_factory=dict)
    why: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


def explain(
    name: str,
    library: Library,
    objectives: Mapping[str, Objective],
    alerts: Mapping[str, Explanation],
) -> Explanation:
    """
    Explain a name.

    Args:
        name: Of a feature (``queue.waiting_avg``), a metric (vLLM's, the sidecar's, or the bare
            concept), a failure mode, a symptom, a mechanism, an alert, or an objective of the
            configuration.
        library: Failure modes.
        objectives: The configuration's, by name.
        alerts: Those that a build writes, by name.

    Raises:
        UsageError: Nothing has that name; names the nearest.
    """
    concepts, own = _concepts(), own_metrics()
    ways: list[tuple[Mapping[str, object], Callable[[str], Explanation]]] = [
        (registry(), lambda n: _feature(registry()[n], library)),
        (library.modes, lambda n: _mode(n, library)),
        (library.symptoms, lambda n: _symptom(n, library)),
        (library.mechanisms, lambda n: _mechanism(n, library)),
        (alerts, lambda n: alerts[n]),
        (objectives, lambda n: _objective(objectives[n])),
        (concepts, lambda n: _concept(n, concepts[n], library)),
        (own, lambda n: Explanation(n, "metric of the sidecar", own[n])),
    ]
    bare = next((name.removesuffix(s) for s in _SUFFIXES if name.endswith(s)), name)
    for known, how in ways:
        for candidate in (name, bare):
            if candidate in known:
                return how(candidate)
    everything = [candidate for known, _ in ways for candidate in known]
    hint = nearest(name, everything) or "see docs/features.md, docs/metrics.md, opsctl runbook list"
    raise UsageError(f"nothing is called {name!r}; {hint}")


def _concepts() -> dict[str, Concept]:
    """Concepts under every name that somebody may paste."""
    found: dict[str, Concept] = {}
    for concept in catalogue():
        found[concept.concept] = concept
        found[concept.exported_name] = concept
        for vllm in concept.names:
            found[vllm.name] = concept
            found[vllm.name.removesuffix("_total")] = concept
    return found


def _why(mechanisms: tuple[str, ...], library: Library) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = [library.mechanisms[id_] for id_ in mechanisms]
    return tuple(f"{m.title}: {m.text}" for m in found), tuple(m.link for m in found)


def _feature(entry: Feature, library: Library) -> Explanation:
    group = feature_groups()[entry.name.partition(".")[0]]
    users = [
        mode.id
        for mode in library.modes.values()
        if any(
            entry.name in library.conditions[when].features
            for when in _conditions(mode.id, library)
        )
    ]
    why, links = _why(group.mechanisms, library)
    facts = {
        "unit": entry.unit,
        "from": group.source,
        "missing when": group.missing,
        "judges": ", ".join(users) or "no failure mode; it is shown only",
    }
    return Explanation(entry.name, f"feature ({group.title})", entry.meaning, facts, why, links)


def _conditions(id_: str, library: Library) -> list[str]:
    signature = library.modes[id_].signature
    clauses = [clause.when for clause in (*signature.require, *signature.support)]
    return clauses + [exclusion.when for exclusion in signature.rule_out]


def _mode(id_: str, library: Library) -> Explanation:
    mode = library.modes[id_]
    why, links = _why(mode.mechanisms, library)
    facts = {"severity": mode.severity, "users say": mode.users}
    facts |= {f"needs ({need.kind})": need.what for need in mode.needs}
    facts["shows as"] = "; ".join(plain(clause.say) for clause in mode.signature.require)
    facts |= {f"not {other}": text for other, text in mode.discriminators.items()}
    facts["causes"] = ", ".join(mode.causes) or "nothing else"
    facts["more"] = f"opsctl runbook show {id_}"
    return Explanation(id_, "failure mode", mode.title, facts, why, (*links, *mode.sources))


def _symptom(id_: str, library: Library) -> Explanation:
    symptom = library.symptoms[id_]
    roots = [mode.id for mode in library.modes.values() if id_ in mode.causes]
    facts = {"shows as": symptom.when, "may come from": ", ".join(roots)}
    return Explanation(id_, "symptom", f"{symptom.title}; never a root cause.", facts)


def _mechanism(id_: str, library: Library) -> Explanation:
    mechanism = library.mechanisms[id_]
    modes = [mode.id for mode in library.modes.values() if id_ in mode.mechanisms]
    facts = {"fails as": ", ".join(modes)}
    return Explanation(id_, mechanism.title, mechanism.text, facts, links=(mechanism.link,))


def _objective(objective: Objective) -> Explanation:
    facts = {"target": f"{format_percent(objective.target)} of the events over 30 days are good"}
    if objective.threshold is None:
        meaning = "Good events are requests that finished without an error."
    else:
        meaning = f"Good events took at most {format_duration(objective.threshold)}."
        facts["counted from"] = SLI_CONCEPTS[objective.sli]
    facts["on the sidecar"] = f'{SLI_EVENTS}{{objective="{objective.name}"}}'
    return Explanation(objective.name, f"objective ({objective.sli})", meaning, facts)


def _concept(name: str, concept: Concept, library: Library) -> Explanation:
    names = [
        f"{n.name} (since {'.'.join(map(str, n.since))}"
        + (f" to {'.'.join(map(str, n.until))})" if n.until else ")")
        for n in concept.names
    ]
    facts = {
        "kind and unit": f"{concept.kind}, {concept.unit}",
        "vLLM's names": "; ".join(names),
    }
    if concept.kind != "info":
        facts["on the sidecar"] = concept.exported_name
    if concept.split:
        facts["kept apart by"] = concept.split
    groups = {
        group: about
        for group, about in feature_groups().items()
        if any(n.name.removesuffix("_total") in about.source for n in concept.names)
    }
    facts["features"] = ", ".join(f"{group}.*" for group in groups) or "none reads it alone"
    mechanisms = tuple(dict.fromkeys(m for about in groups.values() for m in about.mechanisms))
    why, links = _why(mechanisms, library)
    return Explanation(name, "metric", concept.meaning, facts, why, links)
