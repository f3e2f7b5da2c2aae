"""opsctl dashboards annotate: a verdict on the time axis of every board."""

from __future__ import annotations

import click

from vllm_opsctl.cli.common import (
    load,
    read_given,
    say,
)
from vllm_opsctl.cli.dashboards_push import token_option, url_option
from vllm_opsctl.cli.options import token_of
from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.json_text import read_json
from vllm_opsctl.exporter.limits import MAX_VERDICT_BYTES
from vllm_opsctl.exporter.plain_text import plain


@click.command()
@click.argument("verdict", metavar="FILE", type=click.Path(allow_dash=True), default="-")
@url_option
@token_option(required=True)
@click.pass_context
def annotate(ctx: click.Context, verdict: str, url: str, token_env: str) -> None:
    """
    Mark a verdict on the boards: opsctl diagnose -o json | opsctl dashboards annotate --url ...

    Each root cause becomes an annotation from its onset to the end of what was seen. What is there already
    is not written again.
    """
    from vllm_opsctl.dashboards.annotations import annotate as write
    from vllm_opsctl.dashboards.annotations import annotations_of
    from vllm_opsctl.dashboards.grafana_api import GrafanaApi

    service = load(ctx).config.service.name
    text, origin = read_given(verdict, MAX_VERDICT_BYTES, "verdict")
    try:
        found = list(annotations_of(read_json(text), service))
    except (ValueError, KeyError, TypeError) as problem:
        raise InputFileError(
            f"{origin}: no verdict ({_why(problem)}); give it what opsctl diagnose -o json prints"
        ) from None
    grafana = GrafanaApi(url, token_of(token_env, "--token-env"))
    grafana.check()
    for one in found:
        written = write(grafana, one)
        say(f"{'annotated' if written else 'there already'}: {one.text}")
    if not found:
        say("no root cause in the verdict: nothing to annotate")


def _why(problem: Exception) -> str:
    return plain(f"{type(problem).__name__}: {problem}", 200)
