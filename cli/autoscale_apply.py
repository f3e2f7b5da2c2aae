"""opsctl autoscale plan, apply and destroy: scaling in an account, without CloudFormation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vllm_opsctl.cli.common import (
    EXIT_FINDINGS,
    emit,
    load,
    mistakes_of,
    note,
    say,
)
from vllm_opsctl.cli.options import text_or_json_option
from vllm_opsctl.cli.plan_view import (
    DONE,
    Planned,
    confirm,
    differences_json,
    plan_text,
    refuse_foreign,
    renamed,
    yes_option,
)
from vllm_opsctl.errors import UsageError

if TYPE_CHECKING:
    from vllm_opsctl.alarms.autoscale.account import ScalingAccount
    from vllm_opsctl.alarms.autoscale.changes import ScalingPlan
    from vllm_opsctl.exporter.config import Config

_Function = TypeVar("_Function", bound=Callable[..., Any])

_CODES = "3 AWS refuses or does not answer, 64 usage or configuration."


def model_option(function: _Function) -> _Function:
    """``--model``."""
    return click.option(
        "--model", metavar="NAME", help="Served name of the model, when targets name none."
    )(function)


@click.command(epilog=f"Exit codes: 0 compared, 1 with --check when something differs, {_CODES}")
@model_option
@click.option("--check", is_flag=True, help="Exit with 1 when something would change.")
@text_or_json_option("Format of the answer on stdout.")
@click.pass_context
def plan(ctx: click.Context, model: str | None, check: bool, output: str) -> int:
    """Say what apply would change in the AWS account; nothing is."""
    _, found = _planned(ctx, model)
    if output == "json":
        emit(json.dumps(_as_json(found), indent=2, ensure_ascii=False))
    else:
        emit(_as_text(found))
    return EXIT_FINDINGS if check and (found.to_do or found.foreign) else 0


@click.command(epilog=f"Exit codes: 0 done, 1 something of somebody else is in the way, {_CODES}")
@model_option
@yes_option
@click.pass_context
def apply(ctx: click.Context, model: str | None, yes: bool) -> int:
    """
    Make scaling in the AWS account as the configuration says, after showing what changes.

    Does what the template of build does, for who cannot use CloudFormation. What opsctl made for this
    service and is no longer wanted goes; nothing else is touched. Three requests a second at most. When it
    is interrupted, run it again.
    """
    account, found = _planned(ctx, model)
    emit(_as_text(found))
    if found.foreign:
        refuse_foreign()
        return EXIT_FINDINGS
    return _carried_out(account, found, yes, "Apply?")


@click.command(epilog=f"Exit codes: 0 done, {_CODES}")
@yes_option
@click.pass_context
def destroy(ctx: click.Context, yes: bool) -> int:
    """
    Delete the policies and alarms that opsctl made for this service, and deregister its targets.

    Replicas stay as many as they are, and nothing changes their number any more.
    """
    from vllm_opsctl.alarms.autoscale.changes import removal
    from vllm_opsctl.exporter.identity import identity_of

    config = load(ctx).config
    account = _account(config)
    found = removal(account, identity_of(config))
    emit(_as_text(found))
    return _carried_out(account, found, yes, f"Delete them, and scale {found.service} no more?")


def _planned(ctx: click.Context, model: str | None) -> tuple[ScalingAccount, ScalingPlan]:
    from vllm_opsctl.alarms.autoscale.changes import plan as compare
    from vllm_opsctl.alarms.autoscale.template import scaling_of

    loaded = load(ctx)
    with mistakes_of(loaded):
        scaling = scaling_of(loaded.config)
    for line in scaling.notes:
        note(line)
    if model is not None and scaling.has_model:
        raise UsageError("--model is for when neither targets nor resources name their model")
    account = _account(loaded.config)
    return account, compare(account, scaling, model)


def _account(config: Config) -> ScalingAccount:
    from vllm_opsctl.alarms.autoscale.account import ScalingAccount
    from vllm_opsctl.exporter.aws import required_region

    settings = config.exporter.cloudwatch
    return ScalingAccount(required_region(settings, os.environ), settings.endpoint_url)


def _carried_out(account: ScalingAccount, found: ScalingPlan, yes: bool, question: str) -> int:
    from vllm_opsctl.alarms.autoscale.changes import carry_out

    if not found.to_do:
        return 0
    confirm(yes, question)
    total = len(found.to_do)
    for number, change in enumerate(carry_out(account, found), start=1):
        thing = change.thing
        say(
            f"{DONE[change.action]} {thing.kind} {_named(thing.name, thing.where)} ({number} of {total})"
        )
    return 0


# -- what is shown ---------------------------------------------------------------------------------


def _named(name: str, where: str) -> str:
    return name if where in ("", name) else f"{name} of {where}"


def _as_text(found: ScalingPlan) -> str:
    things = [
        Planned(
            change.action,
            f"{change.thing.kind} {_named(change.thing.name, change.thing.where)}",
            [*renamed(change.was, change.thing.name), *change.differences],
            change.why,
        )
        for change in found.changes
    ]
    return plan_text(things, found.notes)


def _as_json(found: ScalingPlan) -> dict[str, Any]:
    return {
        "service": found.service,
        "changes": [
            {
                "action": change.action,
                "kind": change.thing.kind,
                "name": change.thing.name,
                "resource": change.thing.where or None,
                "was": change.was or None,
                "why": change.why or None,
                "differences": differences_json(change.differences),
            }
            for change in found.changes
            if change.action != "unchanged"
        ],
        "unchanged": found.count("unchanged"),
        "notes": list(found.notes),
    }
