"""opsctl slo report: a period's SLIs, budgets, worst days and episodes, for the monthly report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vllm_opsctl.cli.common import (
    emit,
    load,
    note,
    say,
)
from vllm_opsctl.cli.options import is_given, output_option, source_option, token_of, version_option
from vllm_opsctl.cli.slo_status import progress, prometheus_option, time_of, token_option
from vllm_opsctl.errors import UsageError

if TYPE_CHECKING:
    from vllm_opsctl.alarms.prometheus.conventions import Source
    from vllm_opsctl.alarms.report import Account, Period, Report
    from vllm_opsctl.exporter.config import Config

SCHEMA_VERSION = 1

EXIT_MISSED = 2
"""A promise was not kept; as ``opsctl slo status`` exits for a budget that is exhausted."""

_LONGEST_DAYS = 366


@click.command(
    epilog="Exit codes: 0 every objective was met, 2 a budget was exhausted, 3 unreachable, "
    "64 usage or configuration."
)
@prometheus_option
@source_option
@version_option
@click.option(
    "--days",
    type=click.IntRange(1, _LONGEST_DAYS),
    default=30,
    show_default=True,
    metavar="N",
    help="The last days, up to --at.",
)
@click.option("--month", "month_text", metavar="YYYY-MM", help="A calendar month (UTC) instead.")
@click.option(
    "--at",
    metavar="TIME",
    help="End of --days: ISO time (UTC), unix seconds, or -1d [default: now].",
)
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw the budgets as .png or .svg (needs vllm-opsctl[report]).",
)
@token_option
@output_option
@click.pass_context
def report(
    ctx: click.Context,
    prometheus: str | None,
    source: Source,
    version: tuple[int, ...] | None,
    days: int,
    month_text: str | None,
    at: str | None,
    plot: Path | None,
    token_env: str | None,
    output: str,
) -> int:
    """
    Tell how a period went: SLIs, budgets, the worst days, and the episodes that cost most.

    An episode is a stretch of time in which the budget burned faster than 1x.
    """
    from vllm_opsctl.alarms.report import report_of
    from vllm_opsctl.alarms.status_prometheus import read_history
    from vllm_opsctl.alarms.status_query import Prometheus
    from vllm_opsctl.cli.slo_report_view import report_markdown, report_text
    from vllm_opsctl.cli.slo_text import columns

    if version is not None and source == "sidecar":
        raise UsageError("--vllm-version belongs to --from vllm; the sidecar reads every release")
    period = _period(ctx, days, month_text, at)
    if plot is not None:
        from vllm_opsctl.alarms.report_plot import check_plot

        check_plot(plot)
    config = load(ctx).config
    server = Prometheus(
        _url(config, prometheus), token=token_of(token_env, "--prometheus-token-env")
    )
    with progress() as tell:
        history = read_history(
            server,
            config,
            source,
            start=period.start,
            end=period.end,
            version=version,
            progress=tell,
        )
    found = report_of(
        history, period, service=config.service.name, source=f"Prometheus {server.url}"
    )
    if plot is not None:
        from vllm_opsctl.alarms.report_plot import write_plot

        write_plot(found, plot)
        say(f"{plot} written", err=True)
    for text in found.notes:
        note(text)
    if output == "json":
        emit(json.dumps(_json(found), indent=2, ensure_ascii=False))
    elif output == "markdown":
        emit("\n".join(report_markdown(found, plot)))
    else:
        emit("\n".join(report_text(found, columns())))
    return EXIT_MISSED if any(one.is_kept is False for one in found.accounts) else 0


def _period(ctx: click.Context, days: int, month_text: str | None, at: str | None) -> Period:
    from vllm_opsctl.alarms.report import last_days, month

    if month_text is None:
        return last_days(days, time_of(at))
    for name, given in (("--days", is_given(ctx, "days")), ("--at", at is not None)):
        if given:
            raise UsageError(f"--month is a whole month; leave {name} out")
    return month(month_text, time.time())


def _url(config: Config, given: str | None) -> str:
    url = given if given is not None else config.alarms.prometheus_url
    if url is None:
        raise UsageError(
            "whom to ask? give --prometheus URL, or set alarms.prometheus_url in opsctl.yaml; a sidecar "
            "has no past to report on"
        )
    return url


def _json(found: Report) -> dict[str, Any]:
    period = found.period
    return {
        "schema_version": SCHEMA_VERSION,
        "service": found.service,
        "source": found.source,
        "period": {
            "label": period.label,
            "start": period.start,
            "end": period.end,
            "known_s": found.known_s,
        },
        "objectives": [_account_json(one) for one in found.accounts],
        "without": [{"objective": o.name, "reason": reason} for o, reason in found.without],
        "notes": list(found.notes),
    }


def _account_json(one: Account) -> dict[str, Any]:
    return {
        "objective": one.objective.name,
        "model": one.model,
        "target": one.objective.target,
        "met": one.is_kept,
        "sli": one.sli,
        "events": one.known.count.total,
        "bad": one.known.count.bad,
        "budget_used": one.used,
        "budget_left": one.left,
        "known_s": one.known.seconds,
        "days": [
            {
                "date": str(day.date),
                "events": day.known.count.total,
                "bad": day.known.count.bad,
                "known_s": day.known.seconds,
                "budget_spent": day.spent,
            }
            for day in one.days
        ],
        "episodes": [
            {
                "start": episode.start,
                "length_s": episode.length_s,
                "events": episode.count.total,
                "bad": episode.count.bad,
                "peak_burn": episode.peak,
                "budget_spent": episode.spent,
            }
            for episode in one.episodes
        ],
        "remaining": hourly(one.remaining),
    }


def hourly(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The last point of each hour."""
    return list({t // 3600: (t, left) for t, left in points}.values())
