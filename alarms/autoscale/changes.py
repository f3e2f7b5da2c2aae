"""What an account has of scaling against what it shall have, and the way from one to the other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_opsctl.alarms.autoscale.account import Contents, ScalingAccount, Thing
from vllm_opsctl.alarms.autoscale.parts import Part, PartKind
from vllm_opsctl.alarms.autoscale.template import MODEL, TOPIC_PARAMETER, Scaling
from vllm_opsctl.alarms.cloudwatch.definitions import Resolver
from vllm_opsctl.alarms.cloudwatch.models import PARAMETER
from vllm_opsctl.alarms.cloudwatch.ownership import (
    OWNER,
    SERVICE_TAG,
    STACK_TAG,
    missing_tags,
    not_ours,
    other_maker,
    owner_tags,
)
from vllm_opsctl.alarms.cloudwatch.resources import sub
from vllm_opsctl.alarms.differences import Action, Difference, foreign, to_do
from vllm_opsctl.errors import AwsError, UsageError
from vllm_opsctl.exporter.identity import Identity

_ORDER: tuple[PartKind, ...] = (
    "target",
    "policy",
    "group policy",
    "metric alarm",
    "composite alarm",
)
"""What comes later refers to what comes before; deleted in the opposite order."""


_DEFAULTS: Mapping[PartKind, Mapping[str, Any]] = {
    "target": {
        "SuspendedState.DynamicScalingInSuspended": False,
        "SuspendedState.DynamicScalingOutSuspended": False,
    },
    "policy": {"TargetTrackingScalingPolicyConfiguration.DisableScaleIn": False},
    "group policy": {"TargetTrackingConfiguration.DisableScaleIn": False, "Enabled": True},
    "metric alarm": {"ActionsEnabled": True, "OKActions": [], "AlarmActions": []},
    "composite alarm": {"ActionsEnabled": True},
}
"""What is so when nothing is said: a hand that changed it is seen too."""


@dataclass(frozen=True, slots=True)
class Change:
    """
    What is to be done about one thing.

    Args:
        action: ``foreign`` when it is in the way and somebody else's.
        thing: As it shall be; of what is deleted, as it is.
        differences: Of a change.
        why: Of what must not be touched, whose it is; of what is renamed, the new name.
        was: Of what is created, the name in 0.1 that goes with this plan; empty for none.
    """

    action: Action
    thing: Thing
    differences: tuple[Difference, ...] = ()
    why: str = ""
    was: str = ""


@dataclass(frozen=True, slots=True)
class ScalingPlan:
    """
    Everything that is to be done, in order.

    Args:
        service: Name of the fleet.
        changes: Unchanged things are among them.
        notes: What else was seen, one line each.
    """

    service: str
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()

    @property
    def to_do(self) -> tuple[Change, ...]:
        """Those that change something."""
        return to_do(self.changes)

    @property
    def foreign(self) -> tuple[Change, ...]:
        """Those that must not be touched, and are in the way."""
        return foreign(self.changes)

    def count(self, action: Action) -> int:
        """How many there are."""
        return sum(change.action == action for change in self.changes)


def wanted(scaling: Scaling, model: str | None) -> list[Thing]:
    """
    What there shall be, as the API takes it; ARNs of policies are references.

    Args:
        scaling: What the configuration becomes.
        model: Name of the model where targets name none.

    Raises:
        UsageError: A name that the template would ask for is not known.
    """
    if not scaling.has_topic:
        raise UsageError(
            "alarms.ticket_topic is not set: nobody would hear of a fleet at its limit; name the topic's ARN"
        )
    if not scaling.has_model and model is None:
        raise UsageError(
            "no target names its model: say which one is scaled with --model, or set targets' models"
        )
    if model is not None and not re.fullmatch(MODEL, model):
        raise UsageError(f"--model {model!r} cannot be a dimension in CloudWatch")
    body = scaling.body()
    policies = {
        part.id: reference(part.properties["ResourceId"], part.name)
        for part in scaling.parts
        if part.kind == "policy"
    }
    parameters = {PARAMETER: model or "", TOPIC_PARAMETER: ""}
    resolver = Resolver(body, parameters, policies)
    return [_thing(part, resolver, scaling.identity) for part in scaling.parts]


def _thing(part: Part, resolver: Resolver, identity: Identity) -> Thing:
    properties = resolver.resolved(dict(part.properties))
    was = part.was if part.was != part.name else ""
    if part.kind == "group policy":
        properties = {"PolicyName": part.name, **properties}
        return Thing(
            kind=part.kind,
            name=part.name,
            properties=properties,
            where=properties["AutoScalingGroupName"],
            was=was,
        )
    if part.kind in ("target", "policy"):
        if part.kind == "target":
            # CloudFormation's targets have no tags
            properties["Tags"] = owner_tags(identity)
        where = properties["ResourceId"]
        return Thing(kind=part.kind, name=part.name, properties=properties, where=where, was=was)
    name = properties["AlarmName"]
    return Thing(kind=part.kind, name=name, properties=properties, was=resolver.text(sub(was)))


def plan(account: ScalingAccount, scaling: Scaling, model: str | None) -> ScalingPlan:
    """
    Compare an account with a configuration.

    Raises:
        UsageError: Something that has no default is not known, or a stack of CloudFormation made it all.
        AwsError: AWS refuses, or does not answer.
    """
    things = wanted(scaling, model)
    identity = scaling.identity
    there = _contents(account, identity.service, things)
    found = {one.key: one for one in there.things}
    arns = {reference(one.where, one.name): one.arn for one in there.things if one.kind == "policy"}
    ask = _Ownership(account, identity, there)
    kept = {thing.key for thing in things}
    stale = [one for one in there.things if one.key not in kept]
    new_names = {(one.kind, one.where, one.was): one.name for one in things if one.was}
    removed, notes = _removed(ask, stale, new_names)
    going = {one.thing.key for one in removed}
    changes = [
        _change(ask, with_arns(thing, arns), found.get(thing.key), going) for thing in things
    ]
    return ScalingPlan(
        identity.service,
        tuple(sorted(changes, key=lambda one: _ORDER.index(one.thing.kind))) + removed,
        (*notes, *_group_notes(things, scaling, there)),
    )


def removal(account: ScalingAccount, identity: Identity) -> ScalingPlan:
    """
    Everything of a service, to be deleted.

    Raises:
        UsageError: A stack of CloudFormation made it.
        AwsError: AWS refuses, or does not answer.
    """
    there = _contents(account, identity.service, [])
    removed, notes = _removed(_Ownership(account, identity, there), there.things, {})
    return ScalingPlan(identity.service, removed, notes)


def _contents(account: ScalingAccount, service: str, things: list[Thing]) -> Contents:
    there = account.contents(service, things)
    stack = there.sample.get(STACK_TAG)
    if stack is not None:
        raise UsageError(
            f"the CloudFormation stack {stack} scales {service}: change or delete it there, or else it would "
            "not be what its template says"
        )
    return there


def reference(where: str, policy: str) -> str:
    """What stands for the ARN of a policy until it is known."""
    return f"(the ARN of {policy} of {where})"


def with_arns(thing: Thing, arns: Mapping[str, str]) -> Thing:
    """
    A thing whose actions name policies by their ARNs, as far as these are known.

    Args:
        thing: An alarm; others stay as they are.
        arns: By :func:`reference`.
    """
    actions = thing.properties.get("AlarmActions")
    if not actions:
        return thing
    filled = [arns.get(action, action) for action in actions]
    return replace(thing, properties={**thing.properties, "AlarmActions": filled})


@dataclass(frozen=True, slots=True)
class _Ownership:
    """
    Whose things are.

    Args:
        account: Knows tags.
        identity: Who plans.
        there: What the account has.
    """

    account: ScalingAccount
    identity: Identity
    there: Contents

    @property
    def looks(self) -> bool:
        """Whether tags are asked for where nothing changes, and where a policy is ours."""
        return bool(self.identity.free or self._others_alarms)

    @property
    def _others_alarms(self) -> str:
        """Which other service, or environment of this one, has the alarms, and so the policies."""
        return other_maker(self.there.sample, self.identity)

    def not_ours(self, thing: Thing) -> str:
        """Why something must not be changed; empty when it is the service's own."""
        if "policy" in thing.kind:
            return self._others_alarms
        if self._has_our_policy(thing) and not self.looks:
            return ""
        tags = self.account.tags(thing)
        other = other_maker(tags, self.identity)
        if other or thing.kind != "target":
            return other or not_ours(tags, self.identity)
        if OWNER.items() <= tags.items() or self._has_our_policy(thing):
            return ""
        return (
            "registered by somebody else, with other bounds: deregister it there, or hand it over with aws "
            f"application-autoscaling tag-resource --resource-arn {thing.arn} --tags "
            f"managed-by=opsctl,{SERVICE_TAG}={self.identity.service}"
        )

    def other(self, thing: Thing) -> str:
        """Which other service has something that would not change; empty for none, or not known."""
        if "policy" in thing.kind:
            return self._others_alarms
        is_new_target = thing.kind == "target" and not self._has_our_policy(thing)
        if not (is_new_target or self.looks):
            return ""
        rival = self.rival(thing) if is_new_target else ""
        return rival or other_maker(self.account.tags(thing), self.identity)

    def rival(self, thing: Thing) -> str:
        """Which other service of opsctl's scales a resource; empty for none."""
        policy = self.there.rivals.get(thing.where)
        if policy is None:
            return ""
        return (
            f"{thing.where} belongs to another service, whose policy {policy} scales it; let one service "
            "alone scale a resource"
        )

    def missing_tags(self, thing: Thing) -> tuple[Difference, ...]:
        """Tags of free labels that something of the service lacks."""
        if not self.looks or "policy" in thing.kind:
            return ()
        tags = self.account.tags(thing)
        return tuple(missing_tags(tags, self.identity)) if OWNER.items() <= tags.items() else ()

    def _has_our_policy(self, thing: Thing) -> bool:
        return thing.kind == "target" and any(
            one.kind == "policy" and one.where == thing.where for one in self.there.things
        )


def _change(ask: _Ownership, shall: Thing, now: Thing | None, going: set[Any]) -> Change:
    if now is None:
        why = ask.rival(shall) if shall.kind == "group policy" else ""
        if why:
            return Change("foreign", shall, why=why)
        renamed = (shall.kind, shall.where, shall.was) in going
        return Change("create", shall, was=shall.was if renamed else "")
    shall = replace(shall, arn=now.arn)
    different = tuple(differing(now, shall))
    why = ask.other(now) or (ask.not_ours(now) if different else "")
    if why:
        return Change("foreign", shall, different, why)
    different += ask.missing_tags(now)
    return Change("change" if different else "unchanged", shall, different)


def _removed(
    ask: _Ownership, stale: Sequence[Thing], new_names: Mapping[Any, str]
) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    found, notes = [], []
    for one in sorted(stale, key=lambda one: -_ORDER.index(one.kind)):
        why = ask.not_ours(one)
        if why:
            notes.append(f"{one.kind} {one.name}: left alone, {why}")
        elif one.kind == "target" and one.where in ask.there.crowded:
            # deregistering would delete these too
            notes.append(f"target {one.name}: stays registered, it has policies of somebody else")
        else:
            new = new_names.get(one.key)
            found.append(Change("delete", one, why=f"renamed to {new}" if new else ""))
    return tuple(found), tuple(notes)


def _group_notes(things: Sequence[Thing], scaling: Scaling, there: Contents) -> Iterator[str]:
    for name in dict.fromkeys(one.where for one in things if one.kind == "group policy"):
        bounds, wanted_bounds = there.groups.get(name), scaling.groups[name]
        if bounds is None:
            yield f"auto-scaling-group {name}: there is none of this name in this region"
        elif bounds != wanted_bounds:
            yield (
                f"auto-scaling-group {name}: it has MinSize {bounds[0]} and MaxSize {bounds[1]}, the "
                f"configuration says {wanted_bounds[0]} and {wanted_bounds[1]}; a group's bounds are its "
                "own: change them there"
            )


def carry_out(account: ScalingAccount, found: ScalingPlan) -> Iterator[Change]:
    """
    Make every change in its order.

    Yields:
        Each change when it is made.

    Raises:
        AwsError: One failed; those before it stay, and the next plan knows them.
    """
    arns: dict[str, str] = {}
    for change in found.to_do:
        thing = with_arns(change.thing, arns)
        try:
            if change.action == "delete":
                account.delete(thing)
            else:
                arn = account.put(thing, new=change.action == "create")
                arns[reference(thing.where, thing.name)] = arn
        except AwsError as problem:
            raise AwsError(
                f"{thing.kind} {thing.name}: {problem}\nWhat is told above was done; run it again when this "
                "is mended, the rest is done then"
            ) from None
        yield change


# -- property by property --------------------------------------------------------------------------


def differing(now: Thing, shall: Thing) -> Iterator[Difference]:
    """Properties that are not as they shall be; what the API adds of its own accord is not looked at."""
    wanted_ = dict(_flat({k: v for k, v in shall.properties.items() if k != "Tags"}))
    is_ = dict(_flat(now.properties))
    for path, default in _DEFAULTS[shall.kind].items():
        if path in is_ and path not in wanted_ and is_[path] != default:
            yield Difference(path, is_[path], default)
    for path, value in wanted_.items():
        if is_.get(path) != value:
            yield Difference(path, is_.get(path), value)
    # a query more changes what is watched
    for path in sorted(is_):
        if ".Metrics." in f".{path}" and path.endswith(".Id") and path not in wanted_:
            yield Difference(path, is_[path], None)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by their paths; queries by their ids, dimensions by their names: neither has an order."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _flat(one, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for index, one in enumerate(value):
            yield from _flat(one, f"{path}.{one.get('Id') or one.get('Name') or index}")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        yield path, value
    else:
        yield path, float(value)
