"""opsctl slo status: budget left and burn now, per objective and model."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from vllm_opsctl.cli.common import emit, load, note
from vllm_opsctl.cli.options import (
    output_option,
    parse_time,
    source_option,
    token_of,
    version_option,
)
from vllm_opsctl.errors import UsageError

if TYPE_CHECKING:
    from vllm_opsctl.alarms.prometheus.conventions import Source
    from vllm_opsctl.alarms.status import Status
    from vllm_opsctl.exporter.catalogue import Version
    from vllm_opsctl.exporter.config import Config

_CLOCK_SLACK_S = 60.0
"""A time given by people may be ahead of this machine's clock by so much."""

prometheus_option = click.option(
    "--prometheus", metavar="URL", help="Ask this Prometheus [default: alarms.prometheus_url]."
)
token_option = click.option(
    "--prometheus-token-env",
    "token_env",
    metavar="NAME",
    help="With --prometheus: environment variable that holds a bearer token.",
)


@click.command(
    epilog="Exit codes: 0 all within budget, 1 burning at a ticket's rate, 2 a budget exhausted or "
    "burning at a page's rate, 3 no data or unreachable, 64 usage or configuration."
)
@prometheus_option
@click.option("--sidecar", metavar="URL", help="Ask this sidecar what it counted since its start.")
@source_option
@version_option
@click.option(
    "--at",
    metavar="TIME",
    help="With --prometheus: ISO time (UTC), unix seconds, or -5m [default: now].",
)
@token_option
@output_option
@click.pass_context
def status(
    ctx: click.Context,
    prometheus: str | None,
    sidecar: str | None,
    source: Source,
    version: Version | None,
    at: str | None,
    token_env: str | None,
    output: str,
) -> int:
    """
    Tell the budget left and the burn rates now, the worst objective first.

    Budgets are of the rolling 30 days, or of as much of them as is known. Series that the rules of
    opsctl alarms build record are read where there are any, else the counters themselves.
    """
    from vllm_opsctl.cli.slo_status_view import status_json, status_markdown, status_text
    from vllm_opsctl.cli.slo_text import columns

    if prometheus is not None and sidecar is not None:
        raise UsageError("--prometheus and --sidecar are both given; choose one")
    config = load(ctx).config
    if prometheus is None and sidecar is None:
        # thirty days are better than those since the sidecar's start
        prometheus = config.alarms.prometheus_url
        sidecar = config.alarms.sidecar_url if prometheus is None else None
    if sidecar is not None:
        for name, given in (("--at", at), ("--prometheus-token-env", token_env)):
            if given is not None:
                raise UsageError(f"{name} belongs to --prometheus; a sidecar tells about now")
        from vllm_opsctl.alarms.status_sidecar import status_from_sidecar

        found = status_from_sidecar(sidecar, config)
    elif prometheus is not None:
        found = _from_prometheus(config, prometheus, source, version, at, token_env)
    else:
        raise UsageError(
            "whom to ask? give --prometheus URL or --sidecar URL, or set alarms.prometheus_url or "
            "alarms.sidecar_url in opsctl.yaml"
        )
    for text in found.notes:
        note(text)
    if output == "json":
        emit(json.dumps(status_json(found), indent=2, ensure_ascii=False))
    elif output == "markdown":
        emit("\n".join(status_markdown(found)))
    else:
        emit("\n".join(status_text(found, columns())))
    return found.exit_code


def time_of(at: str | None) -> float:
    """
    The moment that ``--at`` names; now without it.

    Raises:
        UsageError: It is no time, or in the future.
    """
    from vllm_opsctl.cli.slo_text import clock

    now = time.time()
    if at is None:
        return now
    t = parse_time(at, now)
    if t > now + _CLOCK_SLACK_S:
        raise UsageError(f"--at {at}: in the future; it is {clock(now)} UTC")
    return t


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """One line on stderr that tells which objective is asked for; silent when nobody watches."""
    is_shown = sys.stderr.isatty()

    def tell(name: str, done: int, total: int) -> None:
        if is_shown:
            text = f"\r\033[Kasking Prometheus: {name}, {done + 1} of {total}"
            click.echo(text, nl=False, err=True)

    try:
        yield tell
    finally:
        if is_shown:
            click.echo("\r\033[K", nl=False, err=True)


def _from_prometheus(
    config: Config,
    url: str,
    source: Source,
    version: Version | None,
    at: str | None,
    token_env: str | None,
) -> Status:
    from vllm_opsctl.alarms.status_prometheus import status_from_prometheus
    from vllm_opsctl.alarms.status_query import Prometheus

    if version is not None and source == "sidecar":
        raise UsageError("--vllm-version belongs to --from vllm; the sidecar reads every release")
    t = time_of(at)
    server = Prometheus(url, token=token_of(token_env, "--prometheus-token-env"))
    with progress() as tell:
        return status_from_prometheus(server, config, source, at=t, version=version, progress=tell)
