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
from vllm_opsctl.alarms.differences import Action, Difference, foreign, to_do
from vllm_opsctl.errors import AwsError, UsageError

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
        why: Of what must not be touched, and of what is left.
    """

    action: Action
    thing: Thing
    differences: tuple[Difference, ...] = ()
    why: str = ""


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
    return [_thing(part, resolver) for part in scaling.parts]


def _thing(part: Part, resolver: Resolver) -> Thing:
    properties = resolver.resolved(dict(part.properties))
    if part.kind == "group policy":
        properties = {"PolicyName": part.name, **properties}
        return Thing(
            kind=part.kind,
            name=part.name,
            properties=properties,
            where=properties["AutoScalingGroupName"],
        )
    if part.kind in ("target", "policy"):
        where = properties["ResourceId"]
        return Thing(kind=part.kind, name=part.name, properties=properties, where=where)
    return Thing(kind=part.kind, name=properties["AlarmName"], properties=properties)


def plan(account: ScalingAccount, scaling: Scaling, model: str | None) -> ScalingPlan:
    """
    Compare an account with a configuration.

    Raises:
        UsageError: Something that has no default is not known, or a stack of CloudFormation made it all.
        AwsError: AWS refuses, or does not answer.
    """
    things = wanted(scaling, model)
    there = _contents(account, scaling.service, things)
    found = {one.key: one for one in there.things}
    arns = {reference(one.where, one.name): one.arn for one in there.things if one.kind == "policy"}
    owned = {one.where for one in there.things if one.kind == "policy"}
    changes = [
        _change(account, scaling.service, with_arns(thing, arns), found.get(thing.key), owned)
        for thing in things
    ]
    kept = {thing.key for thing in things}
    stale = [one for one in there.things if one.key not in kept]
    removed, notes = _removed(account, scaling.service, stale, there, owned)
    return ScalingPlan(
        scaling.service,
        tuple(sorted(changes, key=lambda one: _ORDER.index(one.thing.kind))) + removed,
        (*notes, *_group_notes(things, scaling, there)),
    )


def removal(account: ScalingAccount, service: str) -> ScalingPlan:
    """
    Everything of a service, to be deleted.

    Raises:
        UsageError: A stack of CloudFormation made it.
        AwsError: AWS refuses, or does not answer.
    """
    there = _contents(account, service, [])
    owned = {one.where for one in there.things if one.kind == "policy"}
    removed, notes = _removed(account, service, there.things, there, owned)
    return ScalingPlan(service, removed, notes)


def _contents(account: ScalingAccount, service: str, things: list[Thing]) -> Contents:
    there = account.contents(service, things)
    stack = account.stack_of(there.things)
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


def _change(
    account: ScalingAccount, service: str, shall: Thing, now: Thing | None, owned: set[str]
) -> Change:
    if now is None:
        return Change("create", shall)
    different = tuple(differing(now, shall))
    if not different:
        return Change("unchanged", shall)
    if not _is_ours(account, service, now, owned):
        return Change("foreign", shall, different, _foreign_text(now))
    return Change("change", shall, different)


def _is_ours(account: ScalingAccount, service: str, thing: Thing, owned: set[str]) -> bool:
    if "policy" in thing.kind or (thing.kind == "target" and thing.where in owned):
        return True
    return account.is_ours(thing, service)


def _foreign_text(thing: Thing) -> str:
    if thing.kind == "target":
        return (
            "registered by somebody else, with other bounds: deregister it there, or hand it over with aws "
            f"application-autoscaling tag-resource --resource-arn {thing.arn} --tags "
            "managed-by=opsctl,opsctl:service=…"
        )
    return "made by somebody else; rename that one"


def _removed(
    account: ScalingAccount,
    service: str,
    stale: Sequence[Thing],
    there: Contents,
    owned: set[str],
) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    found, notes = [], []
    for one in sorted(stale, key=lambda one: -_ORDER.index(one.kind)):
        if not _is_ours(account, service, one, owned):
            notes.append(f"{one.kind} {one.name}: left alone, opsctl did not make it for {service}")
        elif one.kind == "target" and one.where in there.crowded:
            # deregistering would delete these too
            notes.append(f"target {one.name}: stays registered, it has policies of somebody else")
        else:
            found.append(Change("delete", one))
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
                arn = account.put(thing, found.service, new=change.action == "create")
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
