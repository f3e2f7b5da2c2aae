"""What an account has against what it shall have, and the way from one to the other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vllm_opsctl.alarms.cloudwatch.ownership import (
    OWNER,
    SERVICE_TAG,
    STACK_TAG,
    Owner,
    board_maker,
    missing_tags,
    not_ours,
    other_maker,
    without_stack,
)
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


class Tagged(Protocol):
    """Who knows the tags of things that are there."""

    def tags(self, item: Item) -> dict[str, str]:
        """The tags of an alarm, topic or key; none when it is gone."""


@dataclass(frozen=True, slots=True)
class Change:
    """
    What is to be done about one thing.

    Args:
        action: ``foreign`` when it is in the way and somebody else's.
        item: As it shall be; of what is deleted, as it is.
        differences: Of a change.
        why: Of something foreign, whose it is; of what is renamed, the new name.
        was: Of what is created, the name in 0.1 that goes with this plan; empty for none.
    """

    action: Action
    item: Item
    differences: tuple[Difference, ...] = ()
    why: str = ""
    was: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """
    Something that is left alone and in nobody's way.

    Args:
        name: Its name.
        why: Whose it is, or what is to be done about it.
    """

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """
    Everything that is to be done, in order: what is needed first is made first, and deleted last.

    Args:
        changes: Unchanged things are among them.
        left: What has a name like ours and stays.
    """

    changes: tuple[Change, ...]
    left: tuple[Left, ...] = ()

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
    owner: Owner,
    *,
    everything: bool = False,
) -> Plan:
    """
    Compare.

    Args:
        shall: What shall be there, in order.
        there: What is, under names of the service.
        account: Knows tags. Tags of what does not change are asked for when the owner has free labels, or
            the first of them is another owner's.
        owner: Whose all of it is.
        everything: Topics and key go too when they are not wanted: their subscribers are lost.
    """
    found = {(item.kind, item.name): item for item in there}
    pairs = [(item, found.pop((item.kind, item.name), None)) for item in shall]
    first = next((now for _, now in pairs if now is not None and now.kind != "board"), None)
    look = bool(owner.identity.free) or (
        first is not None and bool(other_maker(account.tags(first), owner.identity))
    )
    stale = {
        key: Left(item.name, whose(item, account, owner))
        for key, item in found.items()
        if everything or item.kind not in _KEPT or _renamed(item, shall)
    }
    changes = [
        Change("create", item, was=_old_name(item, stale))
        if now is None
        else _compared(item, now, account, owner, look=look)
        for item, now in pairs
    ]
    left = []
    for item in reversed(in_order([found[key] for key in stale])):
        one, new = stale[item.kind, item.name], _renamed(item, shall)
        if one.why:
            left.append(one)
        elif new and item.kind in _KEPT and not everything:
            left.append(Left(item.name, _KEPT[item.kind].format(new=new)))
        else:
            changes.append(Change("delete", item, why=f"renamed to {new}" if new else ""))
    return Plan(tuple(changes), tuple(left))


_KEPT = {
    "key": "0.1's name for {new}, still the key of 0.1's topics; opsctl alarms destroy deletes both",
    "topic": "0.1's name for {new}, to which everything goes now: move its subscriptions there",
}
"""What is not deleted with its old name, for the sake of subscribers."""


def _renamed(item: Item, shall: Sequence[Item]) -> str:
    """The name that something has now which 0.1 called like this item; empty for none."""
    return next((one.name for one in shall if (one.kind, one.was) == (item.kind, item.name)), "")


def _old_name(item: Item, stale: Mapping[Any, Left]) -> str:
    old = stale.get((item.kind, item.was))
    goes = old is not None and not old.why and item.kind not in _KEPT
    return item.was if goes else ""


def _compared(item: Item, now: Item, account: Tagged, owner: Owner, *, look: bool) -> Change:
    differences = tuple(differing(now, item))
    if differences:
        why = whose(now, account, owner)
        if why:
            return Change("foreign", item, differences, why)
    if look and item.kind != "board":
        tags = account.tags(now)
        why = other_maker(tags, owner.identity)
        if why:
            return Change("foreign", item, differences, why)
        if OWNER.items() <= tags.items() and STACK_TAG not in tags:
            differences += tuple(missing_tags(tags, owner.identity))
    return Change("change" if differences else "unchanged", item, differences)


def whose(item: Item, account: Tagged, owner: Owner) -> str:
    """Whose something is, in words; empty when it is ours to change."""
    if item.kind != "board":
        return not_ours(account.tags(item), owner.identity)
    maker = board_maker(item.properties["DashboardBody"])
    if maker is None:
        return not_ours({}, owner.identity)
    tags = dict(maker.tags)
    service = tags[SERVICE_TAG]
    if service != owner.identity.service and maker.alarm is not None:
        return f"belongs to service {service}, by its name in 0.1; opsctl alarms apply renames it there"
    if service == owner.identity.service and maker.region != owner.region:
        return f"belongs to service {service} in {maker.region or 'several regions'}"
    if maker.alarm is not None:
        # what made the alarms on it made the board too
        name = maker.alarm.partition(":alarm:")[2]
        tags |= account.tags(Item("metric alarm", name, {}))
    return not_ours(tags, owner.identity)


def differing(now: Item, shall: Item) -> Iterator[Difference]:
    """Properties that differ; what the API adds of its own accord is not looked at."""
    if shall.kind in ("key", "topic", "board"):
        for key, value in shall.properties.items():
            is_ = now.properties.get(key)
            # a stack's board says so, and is no other board for it
            if is_ != value and (shall.kind != "board" or _without_stack(is_) != value):
                yield Difference(key, is_, value)
        return
    for key in dict.fromkeys((*shall.properties, *_DEFAULTS)):
        default = _DEFAULTS.get(key)
        old, new = now.properties.get(key, default), shall.properties.get(key, default)
        if key == "Metrics":
            yield from _queries(old or [], new or [])
        elif old != new and (old or new):
            yield Difference(key, old, new)


def _without_stack(body: Any) -> Any:
    return json.loads(without_stack(json.dumps(body)))


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
