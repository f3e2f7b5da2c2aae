"""opsctl cloudwatch: the bill before it comes, and what AWS has to allow."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from vllm_opsctl.cli.cloudwatch_policy import policy
from vllm_opsctl.cli.common import emit, load, note
from vllm_opsctl.cli.options import output_option
from vllm_opsctl.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from vllm_opsctl.exporter.cloudwatch_cost import Fleet, Sink, Usage
    from vllm_opsctl.exporter.config import Config

MAX_REPLICAS = 10_000

_Count = click.IntRange(min=0)
_Positive = click.IntRange(min=1)


@click.group()
def cloudwatch() -> None:
    """Tell what CloudWatch will cost, and what it has to allow."""


cloudwatch.add_command(policy)


@cloudwatch.command()
@click.option(
    "--replicas",
    type=click.IntRange(1, MAX_REPLICAS),
    metavar="N",
    help="Replicas of the fleet [default: the configured targets].",
)
@click.option(
    "--models",
    type=_Positive,
    metavar="N",
    help="Models of the fleet [default: those that targets and objectives name].",
)
@click.option(
    "--sidecars", type=_Positive, metavar="N", help="Sidecars that send [default: one a replica]."
)
@click.option(
    "--series",
    type=_Positive,
    metavar="N",
    help="Series of one replica's page [default: counted on a real one].",
)
@click.option(
    "--alarms",
    type=_Count,
    metavar="N",
    help="Metrics that alarms read, each alarm's anew [default: as opsctl alarms build].",
)
@click.option(
    "--composites",
    type=_Count,
    metavar="N",
    help="Composite alarms [default: as opsctl alarms build].",
)
@click.option(
    "--dashboards",
    type=_Count,
    metavar="N",
    help="CloudWatch dashboards [default: as opsctl alarms build, one; with sink: otlp none].",
)
@output_option
@click.pass_context
def cost(
    ctx: click.Context,
    replicas: int | None,
    models: int | None,
    sidecars: int | None,
    series: int | None,
    alarms: int | None,
    composites: int | None,
    dashboards: int | None,
    output: str,
) -> None:
    """
    Print the monthly bill of this configuration, beside exporting every series.

    Nobody is asked: usage is counted from the configuration, prices are of a dated file.
    """
    from vllm_opsctl.cli.cloudwatch_text import Column, Quote, markdown, text
    from vllm_opsctl.exporter.cloudwatch_cost import (
        Fleet,
        bill,
        exported,
        naively_exported,
        prices,
    )

    config = load(ctx).config
    fleet = _fleet(config, replicas, models, sidecars)
    configured = config.exporter.cloudwatch.sink
    sink: Sink = "put" if configured == "off" else configured
    if dashboards is None:
        # a board's widgets read classic metrics
        dashboards = 0 if sink == "otlp" else 1
    page = prices().naive.series if series is None else series
    columns = []
    for one in dict.fromkeys((Fleet(1, fleet.models[:1], 1), fleet)):
        part = _only(config, one.models)
        used = exported(part, one, sink)
        made, problem = _alarms(part, one.models)
        if problem is not None and one == fleet and None in (alarms, composites):
            note(f"no alarms are counted (--alarms, --composites), they cannot be built: {problem}")
        usage = replace(
            used,
            alarms=made.alarms if alarms is None else alarms,
            composites=made.composites if composites is None else composites,
            dashboards=dashboards,
            keys=made.keys,
            promql=made.promql,
        )
        naive = naively_exported(config, one.replicas, page)
        columns.append(Column(one, bill(usage), bill(naive)))
    quote = Quote(config, sink, page, tuple(columns))
    if output == "json":
        emit(json.dumps(quote.as_dict(), indent=2, ensure_ascii=False))
    else:
        emit("\n".join(text(quote) if output == "text" else markdown(quote)))


def _fleet(config: Config, replicas: int | None, models: int | None, sidecars: int | None) -> Fleet:
    """
    The fleet that is asked about; what is not said, the configuration says.

    Raises:
        UsageError: More models or sidecars than replicas.
    """
    from vllm_opsctl.exporter.cloudwatch_cost import Fleet

    named = _named_models(config)
    wanted = models or max(1, len(named))
    found = replicas or max(len(config.targets), wanted)
    senders = sidecars or found
    if wanted > found:
        raise UsageError(
            f"{wanted} models on {found} replicas: a vLLM server serves one; raise --replicas"
        )
    if senders > found:
        raise UsageError(f"{senders} sidecars for {found} replicas: lower --sidecars")
    unnamed = (f"model-{i + 1}" for i in range(len(named), wanted))
    return Fleet(found, (*named[:wanted], *unnamed), senders)


def _named_models(config: Config) -> tuple[str, ...]:
    """vLLM counts adapters and aliases under a target's first model."""
    firsts = [target.models[0] for target in config.targets if target.models]
    own = [objective.model for objective in config.objectives if objective.model]
    return tuple(dict.fromkeys((*firsts, *own)))


def _only(config: Config, models: tuple[str, ...]) -> Config:
    """The configuration without objectives of other models."""
    kept = tuple(one for one in config.objectives if one.model in (None, *models))
    return config.model_copy(update={"objectives": kept})


def _alarms(config: Config, models: tuple[str, ...]) -> tuple[Usage, str | None]:
    """Alarms and keys as opsctl alarms build makes them for these models, or why it makes none."""
    from vllm_opsctl.alarms.cloudwatch.template import build_template
    from vllm_opsctl.exporter.cloudwatch_cost import Usage
    from vllm_opsctl.exporter.config import Target

    # where metrics arrive by OTLP, one alarm is of all models
    stacks = 1 if config.exporter.cloudwatch.sink == "otlp" else len(models)
    if _named_models(config):
        stacks = 1
        targets = tuple(
            Target(name=f"model-{i}", url="http://localhost", models=(model,))
            for i, model in enumerate(models)
        )
        config = config.model_copy(update={"targets": targets})
    try:
        template = build_template(config)
    except ConfigError as problem:
        return Usage(), problem.problems[0]
    usage = Usage(
        alarms=stacks * template.billed_metrics,
        composites=stacks * template.count("CompositeAlarm"),
        promql=stacks * template.promql_alarms,
        keys=stacks
        * sum(one["Type"] == "AWS::KMS::Key" for one in template.body["Resources"].values()),
    )
    return usage, None
