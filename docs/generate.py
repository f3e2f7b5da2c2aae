"""
Writes the reference pages from the data they describe; `make docs` runs it, a test compares.

docs/metrics.md from the catalogue, docs/features.md from the feature registry, and
docs/failure-modes.md from the failure modes.
"""

from __future__ import annotations

from pathlib import Path

from vllm_opsctl.exporter.catalogue import Concept, Version, catalogue
from vllm_opsctl.runbooks.features import registry
from vllm_opsctl.runbooks.load import shipped_library

HERE = Path(__file__).resolve().parent
HEAD = "<!-- written by docs/generate.py; change the data, then: make docs -->\n"


def pages() -> dict[str, str]:
    """The generated pages by file name."""
    return {
        "metrics.md": _metrics(),
        "features.md": _features(),
        "failure-modes.md": _failure_modes(),
    }


def _metrics() -> str:
    lines = [
        HEAD,
        "# Metrics of engines\n",
        "What the sidecar exposes of each engine, and what it was read from. Labels: `target`,",
        "`model`, `engine` and the split label, where one is named; process-wide: `target` only.\n",
        "| on the sidecar | kind | meaning | vLLM's names (releases) |",
        "|---|---|---|---|",
    ]
    for concept in catalogue():
        if concept.kind == "info":
            continue
        name = concept.exported_name + ("_total" if concept.kind == "counter" else "")
        split = f" `{{{concept.split}}}`" if concept.split else ""
        lines.append(
            f"| `{name}`{split} | {concept.kind} | {concept.meaning} | {_names(concept)} |"
        )
    return "\n".join(lines) + "\n"


def _names(concept: Concept) -> str:
    return "<br>".join(
        f"`{name.name}` ({_version(name.since)}–{_version(name.until) if name.until else ''})"
        for name in concept.names
    )


def _version(version: Version) -> str:
    return ".".join(map(str, version))


def _features() -> str:
    lines = [
        HEAD,
        "# Features\n",
        "The numbers and facts that failure modes are judged by; `opsctl diagnose --show-features`",
        "prints them. A feature that cannot be computed is missing, never 0.\n",
        "| feature | unit | meaning |",
        "|---|---|---|",
    ]
    lines += [f"| `{f.name}` | {f.unit} | {f.meaning} |" for f in registry().values()]
    return "\n".join(lines) + "\n"


def _failure_modes() -> str:
    lines = [
        HEAD,
        "# Failure modes\n",
        "What `opsctl diagnose` knows; the files are in `runbooks/library/`.\n",
    ]
    for mode in shipped_library().modes.values():
        signature = mode.signature
        lines += [
            f"## {mode.id}\n",
            f"**{mode.title}** ({mode.severity}). Users say: {mode.users}\n",
        ]
        lines += ["Required:\n", *(f"- `{clause.when}`" for clause in signature.require)]
        if signature.support:
            lines += ["\nLikelier with:\n", *(f"- `{clause.when}`" for clause in signature.support)]
        if signature.rule_out:
            lines += ["\nRuled out by:\n", *(f"- `{clause.when}`" for clause in signature.rule_out)]
        if mode.causes:
            lines.append("\nCauses: " + ", ".join(f"`{id_}`" for id_ in mode.causes))
        if mode.look_alikes:
            lines.append("\nLooks like: " + ", ".join(f"`{id_}`" for id_ in mode.look_alikes))
        lines += ["\nDo:\n", *(f"- {action.kind}: {action.text}" for action in mode.actions)]
        lines += ["\nSources: " + "; ".join(mode.sources) + "\n"]
    return "\n".join(lines)


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")
