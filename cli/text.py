"""How verdicts look: text for terminals, Markdown for tickets. JSON is the verdict's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import click

from vllm_opsctl.cli.paragraphs import wrapped
from vllm_opsctl.exporter.plain_text import code_span, markdown
from vllm_opsctl.exporter.units import format_duration
from vllm_opsctl.runbooks.features import registry
from vllm_opsctl.runbooks.verdict import WORST_FIRST, FoundCause, TargetVerdict, Verdict

_COLOURS = {"healthy": "green", "degraded": "yellow", "critical": "red", "unknown": "magenta"}
KINDS = {"check": "Check first", "mitigate": "Do now", "fix": "Fix later"}


def render_text(verdict: Verdict, *, show_features: bool) -> str:
    """The whole verdict as text; the first line is the answer."""
    if len(verdict.targets) == 1:
        return "\n".join(_target_text(verdict.targets[0], show_features))
    blocks = ["\n".join(_fleet_text(verdict))]
    for first, *rest in alike(verdict):
        if first.verdict == "healthy" and not show_features:
            continue
        lines = list(_target_text(first, show_features))
        if rest:
            names = ", ".join(target.target for target in rest)
            lines += ["", wrapped(f"The same on: {names}", indent="  ", first="")]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _fleet_text(verdict: Verdict) -> Iterator[str]:
    """What is to be said of all targets together."""
    yield f"{_headline(verdict.health)} {tally(verdict)}"
    view = verdict.fleet
    total = len(verdict.targets)
    for cause in view.common if view else ():
        where = f"{len(cause.targets)} of {total}"
        what = "common to" if cause.is_common else "only on"
        yield wrapped(
            f"{cause.id}: {what} {where} ({some(cause.targets)})", indent="    ", first="  "
        )
    healthy = [target.target for target in verdict.targets if target.verdict == "healthy"]
    if healthy:
        yield wrapped(f"healthy: {some(healthy)}", indent="    ", first="  ")
    if view and view.outliers:
        yield click.style("Different from their peers", bold=True)
        for outlier in view.outliers[:MOST_OUTLIERS]:
            meaning = f"{outlier.feature} {outlier.value}, the others {outlier.others}"
            yield wrapped(f"{outlier.target}: {meaning}", indent="    ", first="  - ")
    if view and view.mixed:
        yield click.style("Not the same everywhere", bold=True)
        for mixed in view.mixed:
            parts = [f"{value} on {some(names)}" for value, names in mixed.values.items()]
            yield wrapped(f"{mixed.what}: {'; '.join(parts)}", indent="    ", first="  - ")


MOST_OUTLIERS = 8
SOME = 4


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more."""
    more = len(names) - SOME
    shown = ", ".join(names[:SOME])
    return f"{shown} and {more} more" if more > 0 else shown


def alike(verdict: Verdict) -> list[list[TargetVerdict]]:
    """Targets with the same answer together, the worst first."""
    groups: dict[tuple[str, tuple[str, ...], str], list[TargetVerdict]] = {}
    for target in verdict.targets:
        ids = tuple(cause.id for cause in target.roots)
        key = (target.verdict, ids, "" if ids else target.summary)
        groups.setdefault(key, []).append(target)
    return sorted(groups.values(), key=lambda group: WORST_FIRST.index(group[0].verdict))


def tally(verdict: Verdict) -> str:
    counts = [
        f"{sum(t.verdict == health for t in verdict.targets)} {health}"
        for health in WORST_FIRST
        if any(t.verdict == health for t in verdict.targets)
    ]
    return f"{len(verdict.targets)} targets: {', '.join(counts)}"


def _headline(health: str) -> str:
    return click.style(health.upper(), fg=_COLOURS[health], bold=True)


def _target_text(target: TargetVerdict, show_features: bool) -> Iterator[str]:
    roots = target.roots
    names = ", ".join(root.id for root in roots)
    label = target.verdict.upper()
    where = f"{names} on {target.target}" if names else target.target
    first, *rest = wrapped(f"{label} {where}: {target.summary}", indent="", first="").splitlines()
    yield first.replace(label, _headline(target.verdict), 1)
    yield from (f"  {line}" for line in rest)
    yield click.style(wrapped(scope(target), indent="  "), dim=True)
    if target.platform:
        yield click.style(wrapped(target.platform, indent="  "), dim=True)
    for root in roots:
        yield ""
        yield click.style(wrapped(_title(root), indent="  ", first=""), bold=True)
        yield from _bullets([line.statement for line in root.evidence])
        if root.explains:
            yield wrapped(f"explains: {', '.join(root.explains)}", indent="  ")
        for other in root.alternatives:
            text = f"may as well be {other.id}; what tells them apart: {other.apart_by}"
            yield wrapped(text, indent="    ", first="  ")
    if target.events:
        yield ""
        yield click.style("Happened", bold=True)
        yield from _bullets([f"{_clock(event.t)} UTC {event.what}" for event in target.events])
    if target.changes:
        yield ""
        yield click.style("Changed", bold=True)
        yield from _bullets([f"{c.what}: {c.before} -> {c.now}" for c in target.changes])
    symptoms = [cause for cause in target.causes if cause.role == "symptom"]
    if symptoms:
        yield ""
        yield click.style("Symptoms", bold=True)
        yield from _bullets([f"{s.id}: {s.evidence[0].statement}" for s in symptoms])
    if target.ruled_out:
        yield ""
        yield click.style("Ruled out", bold=True)
        yield from _bullets([f"{entry.id}: {entry.because}" for entry in target.ruled_out])
    for kind, title in KINDS.items():
        actions = [a for root in roots for a in root.actions if a.kind == kind]
        if actions:
            yield ""
            yield click.style(title, bold=True)
            for action in actions:
                yield wrapped(action.text, indent="    ", first="  - ")
                if action.helps_when and action.seen_by:
                    text = f"helps when {action.helps_when}; look for: {action.seen_by}"
                    yield click.style(wrapped(text, indent="    "), dim=True)
                if action.command:
                    yield f"      $ {action.command}"
    if target.blind_spots:
        yield ""
        yield click.style("Not seen", bold=True)
        yield from _bullets(list(target.blind_spots))
    if roots:
        yield ""
        for root in roots:
            yield f"Runbook: {root.runbook}"
    if show_features:
        yield ""
        yield click.style("Features", bold=True)
        known = registry()
        for name, value in target.features.items():
            yield f"  {name:32} {known[name].format(value):>12}"


def _title(cause: FoundCause) -> str:
    where = f" on engine {cause.engine}" if cause.engine else ""
    return f"Root cause: {cause.id}{where} ({cause.severity}, confidence {cause.confidence:.0%})"


def scope(target: TargetVerdict) -> str:
    parts = [f"vLLM {target.vllm_version}" if target.vllm_version else "vLLM version unknown"]
    if target.model:
        parts.append(f"model {target.model}")
    span = format_duration(max(0.0, target.end - target.start))
    parts.append(f"{target.samples} pages in {span} to {_clock(target.end)} UTC ({target.source})")
    if target.onset is not None:
        ago = format_duration(max(0.0, target.end - target.onset))
        parts.append(f"began {_clock(target.onset)} UTC, {ago} before")
    return "; ".join(parts)


def _clock(t: float) -> str:
    return datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _bullets(lines: list[str]) -> Iterator[str]:
    for line in lines:
        yield wrapped(line, indent="    ", first="  - ")


def render_markdown(verdict: Verdict, *, show_features: bool) -> str:
    """The whole verdict as Markdown, for a ticket."""
    if len(verdict.targets) == 1:
        return "\n".join(_target_markdown(verdict.targets[0], show_features))
    lines = list(_fleet_markdown(verdict))
    for first, *rest in alike(verdict):
        lines += _target_markdown(first, show_features)
        if rest:
            lines.append(f"The same on: {markdown(', '.join(target.target for target in rest))}\n")
    return "\n".join(lines)


def _fleet_markdown(verdict: Verdict) -> Iterator[str]:
    yield f"# {verdict.health.upper()} {tally(verdict)}\n"
    view = verdict.fleet
    for cause in view.common if view else ():
        what = "common to" if cause.is_common else "only on"
        count = f"{len(cause.targets)} of {len(verdict.targets)}"
        yield f"- `{cause.id}`: {what} {count} ({markdown(some(cause.targets))})"
    if view and view.outliers:
        yield "\n| different | in | it | the others |\n|---|---|---|---|"
        for o in view.outliers[:MOST_OUTLIERS]:
            yield f"| {markdown(o.target)} | `{o.feature}` | {o.value} | {o.others} |"
    if view and view.mixed:
        yield "\n| not the same everywhere | |\n|---|---|"
        for mixed in view.mixed:
            parts = [f"{value} on {some(names)}" for value, names in mixed.values.items()]
            yield f"| {markdown(mixed.what)} | {markdown('; '.join(parts))} |"
    yield ""


def _target_markdown(target: TargetVerdict, show_features: bool) -> Iterator[str]:
    names = ", ".join(f"`{root.id}`" for root in target.roots)
    name, summary = markdown(target.target), markdown(target.summary)
    where = f"{names} on {name}" if names else f"{name}: {summary}"
    yield f"## {target.verdict.upper()} {where}"
    yield ""
    yield f"{summary}. {markdown(scope(target))}." if names else f"{markdown(scope(target))}."
    if target.platform:
        yield f"{markdown(target.platform)}."
    for root in target.roots:
        yield f"\n### {markdown(_title(root))}\n"
        yield from (f"- {markdown(line.statement)}" for line in root.evidence)
        if root.explains:
            yield f"\nExplains: {', '.join(f'`{id_}`' for id_ in root.explains)}"
        for other in root.alternatives:
            yield f"\nMay as well be `{other.id}`; what tells them apart: {markdown(other.apart_by)}."
    if target.events:
        yield "\n### Happened\n"
        yield from (f"- {_clock(event.t)} UTC {markdown(event.what)}" for event in target.events)
    if target.changes:
        yield "\n### Changed\n"
        yield from (f"- {markdown(f'{c.what}: {c.before} → {c.now}')}" for c in target.changes)
    symptoms = [cause for cause in target.causes if cause.role == "symptom"]
    if symptoms:
        yield "\n### Symptoms\n"
        yield from (f"- `{s.id}`: {markdown(s.evidence[0].statement)}" for s in symptoms)
    if target.ruled_out:
        yield "\n### Ruled out\n"
        yield from (f"- `{entry.id}`: {markdown(entry.because)}" for entry in target.ruled_out)
    for kind, title in KINDS.items():
        actions = [a for root in target.roots for a in root.actions if a.kind == kind]
        if actions:
            yield f"\n### {title}\n"
            for action in actions:
                command = f" {code_span(action.command)}" if action.command else ""
                yield f"- [ ] {markdown(action.text)}{command}"
                if action.helps_when and action.seen_by:
                    yield f"      Helps when {action.helps_when}; look for: {action.seen_by}."
    if target.blind_spots:
        yield "\n### Not seen\n"
        yield from (f"- {markdown(spot)}" for spot in target.blind_spots)
    if show_features:
        known = registry()
        yield "\n| feature | value |\n|---|---|"
        yield from (
            f"| `{n}` | {markdown(known[n].format(v))} |" for n, v in target.features.items()
        )
    yield ""
