"""opsctl explain: what a name means and why it matters."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_opsctl.cli.common import emit, load
from vllm_opsctl.cli.options import output_option, runbooks_option
from vllm_opsctl.cli.paragraphs import wrapped

if TYPE_CHECKING:
    from vllm_opsctl.runbooks.explain import Explanation


@click.command("explain")
@click.argument("name")
@runbooks_option
@output_option
@click.pass_context
def explain_command(
    ctx: click.Context, name: str, runbook_dirs: tuple[Path, ...], output: str
) -> None:
    """
    Explain a name.

    NAME is a feature (queue.waiting_avg), a metric of vLLM or of the sidecar, a failure mode, a
    symptom, a part of vLLM (paged-attention), an alert, or an objective of the configuration.
    """
    from vllm_opsctl.alarms.explain_alerts import alert_explanations
    from vllm_opsctl.runbooks.explain import explain
    from vllm_opsctl.runbooks.load import load_library

    objectives = {objective.name: objective for objective in load(ctx).config.objectives}
    found = explain(name, load_library(runbook_dirs), objectives, alert_explanations())
    if output == "json":
        emit(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    elif output == "markdown":
        emit(_markdown(found))
    else:
        emit(_text(found))


def _text(found: Explanation) -> str:
    lines = [
        click.style(f"{found.name}, {found.kind}", bold=True),
        wrapped(found.meaning, indent=""),
    ]
    if found.facts:
        lines.append("")
        lines += [
            wrapped(f"{title}: {text}", indent="    ", first="  ")
            for title, text in found.facts.items()
        ]
    if found.why:
        lines += ["", click.style("Why it matters", bold=True)]
        lines += [wrapped(text, indent="  ") for text in found.why]
    if found.links:
        lines += ["", click.style("More", bold=True)]
        lines += [f"  {link}" for link in dict.fromkeys(found.links)]
    return "\n".join(lines)


def _markdown(found: Explanation) -> str:
    lines = [f"## `{found.name}` ({found.kind})", "", found.meaning, ""]
    lines += [f"- {title}: {text}" for title, text in found.facts.items()]
    lines += [f"\n{text}" for text in found.why]
    lines += [f"\n<{link}>" for link in dict.fromkeys(found.links)]
    return "\n".join(lines)
