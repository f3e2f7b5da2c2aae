"""opsctl alarms plan, apply and destroy: the CloudWatch alarms in an account, without CloudFormation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

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
from vllm_opsctl.errors import AwsError, UsageError

if TYPE_CHECKING:
    from vllm_opsctl.alarms.burn import Notify
    from vllm_opsctl.alarms.cloudwatch.account import Account
    from vllm_opsctl.alarms.cloudwatch.changes import Plan
    from vllm_opsctl.alarms.cloudwatch.drill import CloudWatchDrill
    from vllm_opsctl.alarms.cloudwatch.ownership import Owner
    from vllm_opsctl.alarms.cloudwatch.wanted import Item
    from vllm_opsctl.exporter.config import Config
    from vllm_opsctl.exporter.config_load import LoadedConfig

_Function = TypeVar("_Function", bound=Callable[..., Any])


def model_option(function: _Function) -> _Function:
    """``--model``, repeatable."""
    return click.option(
        "--model",
        "models",
        metavar="NAME",
        multiple=True,
        help="Whose alarms, when targets name no models; may be repeated.",
    )(function)


@click.command()
@model_option
@click.option("--check", is_flag=True, help="Exit with 1 when something would change.")
@text_or_json_option("Format of the answer on stdout.")
@click.pass_context
def plan(ctx: click.Context, models: tuple[str, ...], check: bool, output: str) -> int:
    """
    Say what apply would change in the AWS account; nothing is.

    Alarms, topics and boards are compared with the configuration, property by property.
    """
    loaded = load(ctx)
    _, found = _planned(loaded, models)
    if output == "json":
        emit(json.dumps(_as_json(found), indent=2, ensure_ascii=False))
    else:
        emit(_as_text(found))
    return EXIT_FINDINGS if check and (found.to_do or found.foreign) else 0


@click.command()
@model_option
@yes_option
@click.pass_context
def apply(ctx: click.Context, models: tuple[str, ...], yes: bool) -> int:
    """
    Make the AWS account as the configuration says, after showing what changes.

    Does what the template of build --to cloudwatch does, for who cannot use CloudFormation: alarms and
    boards that are no longer wanted are deleted, topics stay. Only what opsctl made for this service is
    touched. When it is interrupted, run it again.
    """
    loaded = load(ctx)
    account, found = _planned(loaded, models)
    emit(_as_text(found))
    if found.foreign:
        refuse_foreign()
        return EXIT_FINDINGS
    if not found.to_do:
        return 0
    confirm(yes, "Apply?")
    carry_out(account, found)
    return 0


@click.command()
@yes_option
@click.pass_context
def destroy(ctx: click.Context, yes: bool) -> int:
    """
    Delete all alarms, boards and topics that opsctl made for this service.

    Subscriptions go with the topics. Nothing pages any more.
    """
    from vllm_opsctl.alarms.cloudwatch.changes import plan as compare

    config = load(ctx).config
    account = _account(config)
    service = config.service.name
    there = account.of_service(service)
    found = compare([], there, account, _owner(config, account), everything=True)
    emit(_as_text(found))
    if not found.to_do:
        return 0
    confirm(yes, f"Delete them, and page nobody of {service} any more?")
    carry_out(account, found)
    return 0


def _account(config: Config) -> Account:
    from vllm_opsctl.alarms.cloudwatch.account import Account
    from vllm_opsctl.exporter.aws import required_region

    settings = config.exporter.cloudwatch
    return Account(required_region(settings, os.environ), settings.endpoint_url)


def _owner(config: Config, account: Account) -> Owner:
    from vllm_opsctl.alarms.cloudwatch.ownership import Owner
    from vllm_opsctl.exporter.identity import identity_of

    return Owner(identity_of(config), account.place.region)


def wanted_in(loaded: LoadedConfig, models: Sequence[str]) -> tuple[Account, list[Item]]:
    """
    The account, and what the configuration wants in it.

    Args:
        loaded: The configuration.
        models: When targets name none.

    Raises:
        ConfigError: Something does not go with CloudWatch alarms.
        UsageError: No region, no boto3, or no model's name.
        AwsError: There are no credentials, or AWS does not answer.
    """
    from vllm_opsctl.alarms.cloudwatch.build import template_text
    from vllm_opsctl.alarms.cloudwatch.wanted import wanted
    from vllm_opsctl.dashboards.cloudwatch import service_template
    from vllm_opsctl.exporter.yaml_text import read_yaml

    config = loaded.config
    with mistakes_of(loaded):
        template = service_template(config, models)
        if "Parameters" in template.body:
            raise UsageError(
                "no target names its models: name those that alarms are for with --model, or set targets' "
                "models"
            )
        body = read_yaml(template_text(template))
    for line in (*template.left_out, *template.notes):
        note(line)
    account = _account(config)
    return account, wanted(body, config.service.name, account.place)


def _planned(loaded: LoadedConfig, models: Sequence[str]) -> tuple[Account, Plan]:
    from vllm_opsctl.alarms.cloudwatch.changes import plan as compare

    account, items = wanted_in(loaded, models)
    config = loaded.config
    there = account.of_service(config.service.name)
    return account, compare(items, there, account, _owner(config, account))


def cloudwatch_drill(
    loaded: LoadedConfig, models: Sequence[str], *, way: Notify, listen: bool, timeout_s: float
) -> CloudWatchDrill:
    """
    A drill of the alarms in the account; raises as ``wanted_in`` does.

    Args:
        loaded: The configuration.
        models: When targets name none.
        way: What is drilled.
        listen: Look whether it arrives.
        timeout_s: How long that may take.
    """
    from vllm_opsctl.alarms.cloudwatch.drill import CloudWatchDrill
    from vllm_opsctl.exporter.identity import identity_of

    account, items = wanted_in(loaded, models)
    return CloudWatchDrill(
        way=way,
        identity=identity_of(loaded.config),
        shall=items,
        account=account,
        listen=listen,
        timeout_s=timeout_s,
        sns_url=loaded.config.alarms.api_url,
    )


class Changed(Protocol):
    """What changes are made in."""

    def put(self, item: Item, *, new: bool) -> None: ...

    def delete(self, item: Item) -> None: ...


def carry_out(account: Changed, found: Plan) -> None:
    """
    Make every change, and say each when it is made.

    Raises:
        AwsError: One failed; those before it stay.
    """
    total = len(found.to_do)
    for done, change in enumerate(found.to_do):
        item = change.item
        try:
            if change.action == "delete":
                account.delete(item)
            else:
                account.put(item, new=change.action == "create")
        except AwsError as problem:
            raise AwsError(
                f"{item.kind} {item.name}: {problem}\n{done} of {total} changes were made; run it again when "
                "this is mended, the rest is done then"
            ) from None
        say(f"{DONE[change.action]} {item.kind} {item.name} ({done + 1} of {total})")


# -- what is shown ---------------------------------------------------------------------------------


def _as_text(found: Plan) -> str:
    things = [
        Planned(
            change.action,
            f"{change.item.kind} {change.item.name}",
            [*renamed(change.was, change.item.name), *change.differences],
            change.why,
        )
        for change in found.changes
    ]
    left: dict[str, list[str]] = {}
    for one in found.left:
        left.setdefault(one.why, []).append(one.name)
    notes = [f"Left alone: {', '.join(names)} ({why})" for why, names in left.items()]
    return plan_text(things, notes)


def _as_json(found: Plan) -> dict[str, Any]:
    return {
        "changes": [
            {
                "action": change.action,
                "kind": change.item.kind,
                "name": change.item.name,
                "was": change.was or None,
                "why": change.why or None,
                "differences": differences_json(change.differences),
            }
            for change in found.changes
            if change.action != "unchanged"
        ],
        "unchanged": sum(change.action == "unchanged" for change in found.changes),
        "left_alone": [one.name for one in found.left],
    }
