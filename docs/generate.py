"""
Writes the reference pages from the data they describe; `make docs` runs it, a test compares.

docs/metrics.md from the catalogue, docs/features.md from the feature registry, and docs/runbooks from
the failure modes (as `opsctl runbook build` does).
"""

from __future__ import annotations

from pathlib import Path

from vllm_opsctl.exporter.catalogue import Concept, Version, catalogue
from vllm_opsctl.runbooks.features import feature_groups, registry
from vllm_opsctl.runbooks.load import shipped_library
from vllm_opsctl.runbooks.pages import build_pages

HERE = Path(__file__).resolve().parent
HEAD = "<!-- written by docs/generate.py; change the data, then: make docs -->\n"


def pages() -> dict[str, str]:
    """The generated pages by file name."""
    return {
        "metrics.md": _metrics(),
        "features.md": _features(),
        **{f"runbooks/{name}": text for name, text in build_pages(shipped_library()).items()},
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
        "prints them, `opsctl explain NAME` explains one. A feature that cannot be computed is",
        "missing, never 0.\n",
    ]
    for group, about in feature_groups().items():
        lines += [
            f"## {group}: {about.title}\n",
            f"From: {about.source}. Missing when: {about.missing}.\n",
            "| feature | unit | meaning |",
            "|---|---|---|",
            *(
                f"| `{f.name}` | {f.unit} | {f.meaning} |"
                for f in registry().values()
                if f.name.startswith(f"{group}.")
            ),
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")
