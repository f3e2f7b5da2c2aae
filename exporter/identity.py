"""
Who a fleet is: its service and free labels, on every series, rule, alert and notification.

Two fleets with the same identity in one Prometheus are one fleet; whatever tells them apart (cluster,
environment, team) belongs in ``exporter.labels``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_opsctl.exporter.series import labels_text, quoted

if TYPE_CHECKING:
    from vllm_opsctl.exporter.config import Config

SERVICE = "service"

RESERVED_LABELS = frozenset(
    (
        SERVICE,
        # what tells replicas and engines apart, here and on vLLM's own page
        *("target", "model", "engine", "model_name", "job", "instance"),
        # what the sidecar's families split by
        *("objective", "outcome", "kind", "window", "version", "reason", "sink", "le", "quantile"),
        *("adapter", "finished_reason", "source", "stage", "status"),
        *("block_size", "cache_dtype", "enable_prefix_caching", "gpu_memory_utilization"),
        *("num_gpu_blocks", "implementation", "major", "minor", "patchlevel"),
        # what rules and alerts add
        *("alertname", "alertstate", "severity", "notify", "role", "burn", "scale"),
        *("sli", "bucket_policy", "threshold_asked", "threshold_used", "board"),
        # variables of boards
        *("datasource", "filter"),
    )
)
"""Labels with a meaning of their own; a free label must not replace one."""

MOST_LABELS = 10
LONGEST_NAME = 64
LONGEST_VALUE = 128
"""Characters; CloudWatch's tags take 256, and rules repeat every label."""


@dataclass(frozen=True, slots=True)
class Identity:
    """
    A fleet's identity.

    Args:
        service: ``service.name``.
        free: Free labels, ``exporter.labels``, as pairs in the order of their names.
    """

    service: str
    free: tuple[tuple[str, str], ...] = ()

    def labels(self) -> dict[str, str]:
        """All labels, the service first."""
        return {SERVICE: self.service, **dict(self.free)}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all labels, the service first."""
        return tuple(self.labels())

    def matchers(self, *, or_unlabelled: tuple[str, ...] = ()) -> str:
        """
        PromQL matchers of this fleet's series.

        Args:
            or_unlabelled: Labels that a series may also lack.

        >>> eu = Identity("chat", (("cluster", "eu"),))
        >>> eu.matchers()
        'service="chat",cluster="eu"'
        >>> eu.matchers(or_unlabelled=("cluster",))
        'service="chat",cluster=~"eu|"'
        """
        return ",".join(
            f"{name}=~{quoted(f'{re.escape(value)}|')}"
            if name in or_unlabelled
            else labels_text({name: value})
            for name, value in self.labels().items()
        )

    def __str__(self) -> str:
        """
        The fleet as people call it.

        >>> str(Identity("chat", (("cluster", "eu"),))), str(Identity("chat"))
        ('chat (cluster eu)', 'chat')
        """
        free = ", ".join(f"{name} {value}" for name, value in self.free)
        return f"{self.service} ({free})" if free else self.service


def identity_of(config: Config) -> Identity:
    """The identity of a configuration's fleet."""
    return Identity(config.service.name, tuple(sorted(config.exporter.labels.items())))


def check_free_labels(labels: Mapping[str, str]) -> None:
    """
    Check free labels.

    Raises:
        ValueError: A name or value that cannot be a label of every series, rule and alert.
    """
    if len(labels) > MOST_LABELS:
        raise ValueError(
            f"{len(labels)} labels; at most {MOST_LABELS} are allowed, each is on every series"
        )
    for name, value in labels.items():
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) or name.startswith("__"):
            raise ValueError(
                f"{name!r} is not a label name; use a-z, A-Z, 0-9 and _, such as cluster"
            )
        if len(name) > LONGEST_NAME:
            raise ValueError(f"{name!r} is too long; use at most {LONGEST_NAME} characters")
        if name in RESERVED_LABELS:
            raise ValueError(
                f"{name!r} is already a label of series or alerts; choose another name, "
                f"such as fleet_{name}"
            )
        if not value.strip():
            raise ValueError(f"{name}: empty; give it a value or remove it")
        # a rule's labels are templates, and a CloudFormation template knows ${…}
        if len(value) > LONGEST_VALUE or re.search(r"[^ -~]|[{}]", value):
            raise ValueError(
                f"{name}: {value!r} cannot be the value; use at most {LONGEST_VALUE} printable ASCII "
                "characters, without { and }"
            )
