"""The configured policy tried on a recording, beside fixed fleets: its price, and who is served in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from vllm_opsctl.alarms.autoscale.load import Load, load_of
from vllm_opsctl.alarms.autoscale.simulation import LONGEST_S, Run, Scenario, fixed, simulate
from vllm_opsctl.alarms.autoscale.tracking import (
    HIGH_MINUTES,
    LOW_MINUTES,
    LOW_SHARE,
    TrackingPolicy,
    policy_of,
)
from vllm_opsctl.errors import ConfigError, UsageError
from vllm_opsctl.exporter.config import Config, Objective
from vllm_opsctl.exporter.config_autoscaling import ScaledResource
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.units import format_duration, format_number, format_percent

_SHORT_S = 30 * 60.0
"""Told; in less a policy hardly grows and cannot shrink."""

_OFF = 0.2
"""Share by which the recorded batch may differ from max_num_seqs before it is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """
    A policy and fixed fleets under one load.

    Args:
        service: Name of the fleet.
        resource: What is scaled.
        objective: What is promised of the first token, or of the wait.
        scenario: The load, and how it is told.
        policy: What decides.
        start: Replicas at the beginning.
        scale: Told minutes are so much shorter in the recording.
        scaled: What the policy made of it.
        fewest: Always as few as are allowed, one at least.
        most: Always as many as are allowed.
        assumptions: What is taken for granted, one line each.
        notes: What may surprise, one line each.
    """

    service: str
    resource: ScaledResource
    objective: Objective
    scenario: Scenario
    policy: TrackingPolicy
    start: int
    scale: Fraction
    scaled: Run
    fewest: Run
    most: Run
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def limit_s(self) -> float:
        """Longest good duration, seconds."""
        assert self.objective.threshold is not None
        return self.objective.threshold

    @property
    def fewest_replicas(self) -> int:
        """Size of the smaller fixed fleet."""
        return max(1, self.policy.least)


def try_policy(
    config: Config,
    observations: Sequence[Observation],
    *,
    scale: Fraction = Fraction(1),
    name: str | None = None,
    start: int | None = None,
    cold_start_s: float | None = None,
    times: float = 1.0,
) -> Trial:
    """
    Replay the load of a recording.

    Args:
        config: The whole configuration.
        observations: The recording, in order.
        scale: How much shorter than they are minutes are in the recording.
        name: Of the resource, where there are several.
        start: Replicas at the beginning; None for the fewest, one at least.
        cold_start_s: Instead of the configured one.
        times: The load is multiplied by this.

    Raises:
        ConfigError: Nothing is scaled, or nothing is promised.
        UsageError: No such resource, or replicas beyond its bounds.
        InputFileError: The recording does not tell what a replica can do.
    """
    resource = _resource(config, name)
    objective = _objective(config, resource.model)
    load = load_of(observations, model=resource.model, max_num_seqs=resource.max_num_seqs)
    settings = config.autoscaling
    if cold_start_s is not None:
        # pauses that follow from it follow this one
        settings = settings.model_copy(update={"cold_start": cold_start_s})
    policy = policy_of(settings, resource)
    begin = max(1, policy.least) if start is None else start
    if not policy.least <= begin <= policy.most:
        raise UsageError(
            f"--replicas {begin}: {resource.name} has {policy.least} to {policy.most} replicas"
        )
    assert objective.threshold is not None
    # the time to the first token holds the wait and the prefill
    computes_s = load.server.first_token_s if objective.sli == "time_to_first_token" else 0.0
    assert settings.cold_start is not None
    scenario = Scenario(
        load=load,
        told_per_s=float(1 / scale),
        times=times,
        max_num_seqs=resource.max_num_seqs,
        cold_start_s=settings.cold_start,
        patience_s=objective.threshold - computes_s,
        refuses=policy.least == 0,
    )
    if scenario.told_s > LONGEST_S:
        raise UsageError(
            f"the recording is told as {format_duration(scenario.told_s)}, which is more than 7 days; use a "
            "larger --scale"
        )
    scaled = simulate(scenario, policy, begin)
    return Trial(
        service=config.service.name,
        resource=resource,
        objective=objective,
        scenario=scenario,
        policy=policy,
        start=begin,
        scale=scale,
        scaled=scaled,
        fewest=fixed(scenario, max(1, policy.least)),
        most=fixed(scenario, policy.most),
        assumptions=tuple(_assumptions(scenario, policy)),
        notes=tuple(_notes(scenario, policy, resource, objective, scaled)),
    )


def _resource(config: Config, name: str | None) -> ScaledResource:
    resources = config.autoscaling.resources
    if not resources:
        raise ConfigError(
            ["autoscaling.resources: none; say what is scaled (kind, name, max_num_seqs, min, max)"]
        )
    names = ", ".join(one.name for one in resources)
    if name is None and len(resources) > 1:
        raise UsageError(f"several resources are scaled: choose one of {names} with --resource")
    found = next((one for one in resources if name in (None, one.name)), None)
    if found is None:
        raise UsageError(f"--resource {name}: there is none of this name; there are {names}")
    return found


def _objective(config: Config, model: str | None) -> Objective:
    for sli in ("time_to_first_token", "queue_time"):
        for one in config.objectives:
            if one.sli == sli and (one.model is None or model in (None, one.model)):
                return one
    raise ConfigError(
        [
            "objectives: none of time_to_first_token or queue_time, so nothing says how long a request may "
            "wait; add one"
        ]
    )


def _assumptions(scenario: Scenario, policy: TrackingPolicy) -> Iterator[str]:
    server = scenario.load.server
    yield (
        f"A replica runs {server.slots:.3g} requests at once and finishes {server.most_per_s:.3g} a second "
        f"then; a request runs {format_duration(server.alone_s)} alone, {format_duration(server.full_s)} "
        "in a full batch"
        + (
            ", as the recording shows."
            if server.is_saturated
            else ". Nobody waited in the recording, so its limit was not seen and this flatters every fleet."
        )
    )
    yield (
        "Requests spread evenly over replicas, come evenly within a second, nobody hangs up, and output does "
        "not change with load: real queues are longer."
    )
    if scenario.load.server.first_token_s:
        yield (
            f"Without waiting, the first token takes {format_duration(server.first_token_s)}, at any load."
        )
    yield (
        f"Target tracking grows the fleet after {HIGH_MINUTES} of {HIGH_MINUTES} minutes above the target, "
        f"in proportion, and shrinks it after {LOW_MINUTES} of {LOW_MINUTES} below "
        f"{format_percent(LOW_SHARE)} of it, by one replica. Pauses: {format_duration(policy.scale_out_s)} "
        f"and {format_duration(policy.scale_in_s)}."
    )
    yield (
        f"A new replica serves {format_duration(scenario.cold_start_s)} after the decision and is paid from "
        "the decision on; one that goes finishes what it runs. Metrics are there when their minute ends."
    )


def _notes(
    scenario: Scenario,
    policy: TrackingPolicy,
    resource: ScaledResource,
    objective: Objective,
    scaled: Run,
) -> Iterator[str]:
    load: Load = scenario.load
    server = load.server
    if resource.model is not None and resource.model not in load.models:
        yield f"the recording is of {', '.join(load.models)}; it is taken for {resource.model}'s load"
    if server.is_saturated and abs(server.slots / resource.max_num_seqs - 1) > _OFF:
        yield (
            f"autoscaling.resources, {resource.name}: max_num_seqs is {resource.max_num_seqs}, and the "
            f"recorded engine ran {server.slots:.3g} at once while others waited: it was started with "
            "another number, or its KV cache is full before"
        )
    if scenario.patience_s <= 0:
        yield (
            f"objective {objective.name}: the first token takes {format_duration(server.first_token_s)} "
            "without waiting; no number of replicas keeps this promise"
        )
    unknown = sum(rate is None for rate in load.arrivals)
    if unknown > 1:
        yield (
            f"of {load.seconds} s of the recording {unknown} are not known (no page, or a restart): no load "
            "is assumed in them, no metrics, no decisions"
        )
    if scenario.told_s < _SHORT_S:
        yield (
            f"this is {format_duration(scenario.told_s)} of load: too short for policies, which grow after "
            f"{HIGH_MINUTES} minutes and shrink after {LOW_MINUTES}; --scale 1/60 tells a second as a minute"
        )
    if not scaled.decisions and policy.most > 1:
        busiest = max((one.demand for one in scaled.minutes if one.demand is not None), default=0.0)
        yield (
            f"the policy decides nothing: demand is {format_number(round(busiest))} % at most; --load N "
            "multiplies the load"
        )
