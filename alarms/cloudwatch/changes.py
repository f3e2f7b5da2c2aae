"""What an account has against what it shall have, and the way from one to the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vllm_opsctl.alarms.cloudwatch.account import OWNER, SERVICE_TAG, STACK_TAG
from vllm_opsctl.alarms.cloudwatch.wanted import Item, in_order
from vllm_opsctl.alarms.differences import Action, Difference, foreign, to_do

_DEFAULTS: Mapping[str, Any] = {
    "ActionsEnabled": True,
    "AlarmActions": [],
    "OKActions": [],
    "InsufficientDataActions": [],
    "ActionsSuppressor": None,
    "ActionsSuppressorWaitPeriod": None,
    "ActionsSuppressorExtensionPeriod": None,
    "EvaluateLowSampleCountPercentile": None,
    "Unit": None,
}
"""Of what alarms are when nothing is said; a hand that changed one of these is seen too."""

_NOT_OURS = "not made by opsctl for this service"


class Tagged(Protocol):
    """Who knows the tags of things that are there."""

    def tags(self, item: Item) -> dict[str, str]: ...


@dataclass(frozen=True, slots=True)
class Change:
    """
    What is to be done about one thing.

    Args:
        action: ``foreign`` when it is in the way and somebody else's.
        item: As it shall be; of what is deleted, as it is.
        differences: Of a change.
        why: Of something foreign, whose it is.
    """

    action: Action
    item: Item
    differences: tuple[Difference, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """
    Everything that is to be done, in order: what is needed first is made first, and deleted last.

    Args:
        changes: Unchanged things are among them.
        left: Names like ours that are somebody else's and in nobody's way.
    """

    changes: tuple[Change, ...]
    left: tuple[str, ...] = ()

    @property
    def to_do(self) -> tuple[Change, ...]:
        """Those that change something."""
        return to_do(self.changes)

    @property
    def foreign(self) -> tuple[Change, ...]:
        """Those that must not be touched."""
        return foreign(self.changes)


def plan(
    shall: Sequence[Item],
    there: Iterable[Item],
    account: Tagged,
    service: str,
    *,
    everything: bool = False,
) -> Plan:
    """
    Compare.

    Args:
        shall: What shall be there, in order.
        there: What is, under names of the service.
        account: Knows tags; asked for what would change.
        service: Name of the fleet.
        everything: Topics and key go too when they are not wanted: their subscribers are lost.
    """
    left: list[str] = []
    changes = []
    found = {(item.kind, item.name): item for item in there}
    for item in shall:
        now = found.pop((item.kind, item.name), None)
        if now is None:
            changes.append(Change("create", item))
            continue
        differences = tuple(differing(now, item))
        if not differences:
            changes.append(Change("unchanged", item))
            continue
        why = whose(now, account, service)
        changes.append(Change("foreign" if why else "change", item, differences, why))
    stale = [item for item in found.values() if everything or item.kind not in ("key", "topic")]
    for item in reversed(in_order(stale)):
        if whose(item, account, service):
            left.append(item.name)
        else:
            changes.append(Change("delete", item))
    return Plan(tuple(changes), tuple(left))


def whose(item: Item, account: Tagged, service: str) -> str:
    """Whose something is, in words; empty when it is ours to change."""
    if item.kind == "board":
        return "" if is_ours(item.properties["DashboardBody"]) else _NOT_OURS
    tags = account.tags(item)
    if STACK_TAG in tags:
        return f"of the CloudFormation stack {tags[STACK_TAG]}; deploy the template there, or delete it"
    expected = {**OWNER, SERVICE_TAG: service}
    return "" if expected.items() <= tags.items() else _NOT_OURS


def is_ours(body: Mapping[str, Any]) -> bool:
    """Whether a board says that opsctl wrote it; its tags cannot be asked for everywhere."""
    return any(
        OWNER_TEXT in str(one.get("properties", {}).get("markdown", ""))
        for one in body.get("widgets", ())
    )


OWNER_TEXT = "written by opsctl"
"""In a board that may be replaced."""


def differing(now: Item, shall: Item) -> Iterator[Difference]:
    """Properties that differ; what the API adds of its own accord is not looked at."""
    if shall.kind in ("key", "topic", "board"):
        for key, value in shall.properties.items():
            if now.properties.get(key) != value:
                yield Difference(key, now.properties.get(key), value)
        return
    for key in dict.fromkeys((*shall.properties, *_DEFAULTS)):
        default = _DEFAULTS.get(key)
        old, new = now.properties.get(key, default), shall.properties.get(key, default)
        if key == "Metrics":
            yield from _queries(old or [], new or [])
        elif old != new and (old or new):
            yield Difference(key, old, new)


def _queries(
    old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
) -> Iterator[Difference]:
    before, after = ({one["Id"]: dict(_flat(one)) for one in some} for some in (old, new))
    for name in dict.fromkeys((*before, *after)):
        ours, theirs = after.get(name), before.get(name)
        if ours is None or theirs is None:
            yield Difference(f"Metrics.{name}", _brief(theirs), _brief(ours))
            continue
        for key in dict.fromkeys((*theirs, *ours)):
            if theirs.get(key) != ours.get(key):
                yield Difference(f"Metrics.{name}.{key}", theirs.get(key), ours.get(key))


def _brief(query: Mapping[str, Any] | None) -> str | None:
    if query is None or "Expression" in query:
        return None if query is None else str(query["Expression"])
    return "{Stat} of {Namespace} {MetricName} in {Period} s".format(**query)


def _flat(query: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A query's parts with defaults filled in; dimensions have no order."""
    yield "ReturnData", query.get("ReturnData", True)
    for key in ("Expression", "Label"):
        if query.get(key):
            yield key, query[key]
    measured = query.get("MetricStat")
    if measured is not None:
        metric = measured["Metric"]
        yield "Namespace", metric["Namespace"]
        yield "MetricName", metric["MetricName"]
        yield "Period", measured["Period"]
        yield "Stat", measured["Stat"]
        for one in metric.get("Dimensions", ()):
            yield f"Dimensions.{one['Name']}", one["Value"]
