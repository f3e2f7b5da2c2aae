"""
Runbook pages: one Markdown page a failure mode and an index, what an alert's ``runbook_url`` opens.

`opsctl runbook build --out DIR` writes them; the shipped ones are committed under docs/runbooks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from vllm_opsctl.runbooks.features import registry
from vllm_opsctl.runbooks.load import Library
from vllm_opsctl.runbooks.model import Action, FailureMode

HEAD = "<!-- written by: opsctl runbook build; change runbooks/library, then build again -->\n"

AREAS: Mapping[str, str] = {
    "capacity": "Capacity and traffic",
    "kv-cache": "KV cache",
    "prefix-cache": "Prefix cache",
    "step-time": "Step time",
    "front-end": "Front end",
    "liveness": "Liveness",
    "api": "API",
    "distributed": "LoRA, data parallel, fleet",
    "observability": "Observability",
    "sagemaker": "Amazon SageMaker",
}

_KINDS = {"check": "Check first", "mitigate": "Do now", "fix": "Fix later"}
_NEEDS = {
    "probe": "an active check",
    "log": "a log",
    "fleet": "the whole fleet",
    "history": "history",
    "config": "configuration",
    "host": "access to the host",
    "sagemaker": "a SageMaker endpoint (`--sagemaker`)",
}
_PLACEHOLDER = re.compile(r"\{([a-z_0-9.]+)\}")


def build_pages(
    library: Library, panels: Mapping[str, Sequence[str]] | None = None
) -> dict[str, str]:
    """
    Build all pages.

    Args:
        library: The failure modes.
        panels: Where boards show each, by its id.

    Returns:
        File name to text: ``<id>.md`` for each failure mode, and ``index.md``.
    """
    shown = panels or {}
    pages = {
        f"{mode.id}.md": "\n".join(_page(mode, library, shown.get(mode.id, ())))
        for mode in library.modes.values()
    }
    return pages | {"index.md": "\n".join(_index(library))}


def plain(sentence: str) -> str:
    """A sentence without a diagnosis: its numbers stand as their names."""
    return _PLACEHOLDER.sub(r"`\1`", sentence)


def _index(library: Library) -> Iterator[str]:
    yield HEAD
    yield "# Runbooks\n"
    yield "What `opsctl diagnose` knows, by subject. On call: `opsctl diagnose` names the page to open.\n"
    for area, title in AREAS.items():
        modes = [mode for mode in library.modes.values() if mode.area == area]
        if modes:
            yield f"## {title}\n"
            yield "| failure mode | severity | what happened | needs |"
            yield "|---|---|---|---|"
            for mode in modes:
                needs = ", ".join(dict.fromkeys(_NEEDS[need.kind] for need in mode.needs))
                yield f"| [{mode.id}]({mode.id}.md) | {mode.severity} | {mode.title} | {needs} |"
            yield ""


def _page(mode: FailureMode, library: Library, panels: Sequence[str]) -> Iterator[str]:
    yield HEAD
    yield f"# {mode.id}\n"
    yield f"**{mode.title}.** Severity: {mode.severity}. Subject: {AREAS[mode.area]}.\n"
    yield f"Users say: {mode.users}\n"
    if mode.needs:
        yield "One page of metrics cannot show it alone; it needs:\n"
        yield from (f"- {_NEEDS[need.kind]}: {need.what}" for need in mode.needs)
        yield ""
    yield "```"
    yield "opsctl diagnose http://HOST:8000"
    yield "```\n"
    for kind, title in _KINDS.items():
        actions = [action for action in mode.actions if action.kind == kind]
        if actions:
            yield f"## {title}\n"
            for action in actions:
                yield from _action(action)
            yield ""
    flags = dict.fromkeys(flag for action in mode.actions for flag in library.flags_of(action))
    if flags:
        yield "vLLM's flags named here, and the releases that have them: " + ", ".join(
            f"`--{flag}` ({_releases(flag, library)})" for flag in flags
        )
        yield ""
    if panels:
        yield "## On the boards\n"
        yield from (f"- {panel}" for panel in panels)
        yield ""
    yield "## How it shows\n"
    yield "All of these hold:\n"
    for clause in mode.signature.require:
        yield f"- {plain(clause.say)}  \n  `{clause.when}`"
    if mode.signature.support:
        yield "\nThese make it surer:\n"
        for support in mode.signature.support:
            yield f"- {plain(support.say)}  \n  `{support.when}` (weight {support.weight:g})"
    if mode.signature.rule_out:
        yield "\nEach of these rules it out:\n"
        for exclusion in mode.signature.rule_out:
            yield f"- {plain(exclusion.because)}  \n  `{exclusion.when}`"
    yield "\n## What it is taken for\n"
    for id_, difference in mode.discriminators.items():
        yield f"- [{id_}]({id_}.md): {difference}"
    for twin in mode.twins:
        yield f"- [{twin.id}]({twin.id}.md) looks the same in metrics. What tells them apart: {twin.apart_by}"
    if mode.causes:
        yield "\n## What it causes\n"
        yield ", ".join(
            f"[{id_}]({id_}.md)" if id_ in library.modes else id_ for id_ in mode.causes
        )
    causes = [other.id for other in library.modes.values() if mode.id in other.causes]
    if causes:
        yield "\nIt is itself caused by: " + ", ".join(f"[{id_}]({id_}.md)" for id_ in causes)
    if mode.mechanisms:
        yield "\n## How this part of vLLM works\n"
        for id_ in mode.mechanisms:
            mechanism = library.mechanisms[id_]
            yield f"**[{mechanism.title}]({mechanism.link}).** {mechanism.text}\n"
    yield "\n## Numbers it is judged by\n"
    yield "| feature | unit | meaning |"
    yield "|---|---|---|"
    for name in _features(mode, library):
        entry = registry()[name]
        yield f"| `{name}` | {entry.unit} | {entry.meaning} |"
    yield "\n## Sources\n"
    yield from (f"- {source}" for source in mode.sources)
    yield ""


def _action(action: Action) -> Iterator[str]:
    yield f"- {plain(action.text)}"
    if action.helps_when and action.seen_by:
        yield f"  Helps when {plain(action.helps_when)}; look for: {plain(action.seen_by)}."
    if action.only_if:
        yield f"  Only where `{action.only_if}`."
    if action.command:
        yield f"  `{action.command}`"


def _releases(flag: str, library: Library) -> str:
    since, until = (
        ".".join(map(str, version)) if version else "" for version in library.flags[flag]
    )
    return f"{since} to {until}" if until else f"since {since}"


def _features(mode: FailureMode, library: Library) -> list[str]:
    signature = mode.signature
    conditions = [clause.when for clause in (*signature.require, *signature.support)]
    conditions += [exclusion.when for exclusion in signature.rule_out]
    names = [name for when in conditions for name in library.conditions[when].features]
    return list(dict.fromkeys(names))
