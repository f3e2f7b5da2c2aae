"""
Whose metrics there are: CloudWatch alarms cannot be made per value of a dimension, so models are named.

An objective's own ``model`` comes first. Others are for the models that targets name, of each the first: vLLM
counts requests to adapters and aliases under the first served name. Where no target names any, the model is
a parameter of the template, one stack a model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.config import Config

PARAMETER = "Model"
AS_PARAMETER = "${" + PARAMETER + "}"

MAX_LENGTH = 100
_NAME = rf"[A-Za-z0-9_./:@+=-]{{1,{MAX_LENGTH}}}"


@dataclass(frozen=True, slots=True)
class Models:
    """
    The models of a template.

    Args:
        fleet: Those of objectives without one of their own, as the template's texts have them.
        named: Those of single objectives besides.
        notes: What was decided, one line each.
    """

    fleet: tuple[str, ...]
    named: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Every model, once."""
        return tuple(dict.fromkeys((*self.fleet, *self.named)))

    @property
    def are_a_parameter(self) -> bool:
        """The model is asked for when the template is deployed."""
        return AS_PARAMETER in self.fleet


def models_of(config: Config, given: Sequence[str] = ()) -> Models:
    """
    The models that alarms are for.

    Args:
        config: The whole configuration.
        given: Instead of the parameter, when targets name no models.

    Raises:
        ConfigError: A name that CloudWatch's dimensions and tags cannot have, or models that are named by
            some targets or objectives only.
    """
    problems = []
    places = [
        *((f"objectives[{i}].model", o.model) for i, o in enumerate(config.objectives) if o.model),
        *(
            (f"targets[{i}].models[0]", t.models[0])
            for i, t in enumerate(config.targets)
            if t.models
        ),
        *(("--model", name) for name in given),
    ]
    problems += [
        f"{place}: {name!r} cannot be a dimension and a tag in CloudWatch; use up to {MAX_LENGTH} of "
        "A-Z a-z 0-9 _ . / : @ + = -"
        for place, name in places
        if not re.fullmatch(_NAME, name)
    ]
    every = [target.models for target in config.targets]
    everybodys = any(objective.model is None for objective in config.objectives)
    silent = [target.name for target in config.targets if not target.models]
    if everybodys and any(every) and silent:
        problems.append(
            f"targets: {', '.join(silent)} does not name its models, others do; CloudWatch alarms "
            "need every model's name: set models on all targets, or on none (then the model is a "
            "parameter)"
        )
    if problems:
        raise ConfigError(problems)
    named = tuple(dict.fromkeys(o.model for o in config.objectives if o.model is not None))
    if not everybodys:
        return Models((), named, ())
    firsts = tuple(dict.fromkeys(models[0] for models in every if models))
    if given and firsts:
        raise ConfigError(
            [
                f"--model {given[0]}: targets name their models already: {', '.join(firsts)}; it is for "
                "when none does"
            ]
        )
    firsts = firsts or tuple(dict.fromkeys(given))
    if not firsts and named:
        raise ConfigError(
            [
                f"targets: none names its models, and only some objectives do ({', '.join(named)}); "
                "CloudWatch alarms need every model's name: set models on all targets"
            ]
        )
    if not firsts:
        note = (
            "no target names its models: the model is the template's parameter Model, one stack a model "
            "(or set targets' models)"
        )
        return Models((AS_PARAMETER,), (), (note,))
    others = dict.fromkeys(m for models in every for m in models[1:] if m not in firsts)
    notes = [
        f"model {name}: not the first of its target's models; vLLM counts adapters and aliases under the "
        "first"
        for name in others
    ]
    return Models(firsts, named, tuple(notes))
