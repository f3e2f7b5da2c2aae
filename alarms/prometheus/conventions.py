"""
What series, rules, alerts and rule groups are called, and which of them are a service's.

Rules, their tests, boards, status, drills, lint and CloudWatch's alarms all ask here: a name or matcher
that is spelled elsewhere is one that two services can break.

Source:
    Prometheus, Recording rules: ``level:metric:operations``; identity labels in one place as in sloth
    (pkg/common/conventions/slo.go, GetSLOIDPromLabels).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

from vllm_opsctl.alarms.resource_names import legal_name
from vllm_opsctl.exporter import own_series
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.identity import SERVICE, Identity, identity_of
from vllm_opsctl.exporter.series import labels_text, quoted

Source = Literal["sidecar", "vllm"]

# -- alerts ----------------------------------------------------------------------------------------

ALERT_PREFIX = "LLM"

BURN_ALERT = "LLMSLOErrorBudgetBurn"
FLOOR_ALERT = "LLMSLOHardFloor"
BUCKET_ALERT = "LLMSLOBucketMissing"
WATCHDOG_ALERT = "LLMWatchdog"
DRILL_ALERT = "LLMDrill"
SIDECARS_ALERT = "LLMSidecarsDown"
VANISHED_ALERT = "LLMModelVanished"
STALLED_ALERT = "LLMEngineStalled"
TARGET_ALERT = "LLMTargetDown"
FIRST_ERROR_ALERT = "LLMNewServerErrors"
THRASH_ALERT = "LLMKVPreemptionThrash"
QUEUE_ALERT = "LLMQueueOverload"
CACHE_FULL_ALERT = "LLMKVCacheFull"
HITS_FELL_ALERT = "LLMPrefixCacheHitsFell"
PAGER_ALERT = "LLMPagerFailing"
RULES_ALERT = "LLMRulesFailing"

BURNING = (BURN_ALERT, FLOOR_ALERT)
"""An objective is missed right now."""

BLIND = (BUCKET_ALERT, TARGET_ALERT, VANISHED_ALERT, SIDECARS_ALERT, RULES_ALERT, PAGER_ALERT)
"""Something is not measured, or nobody would hear of it."""

# -- recorded series -------------------------------------------------------------------------------

Recorded = Literal["total", "bad", "error"]
"""All events and bad ones, per second; the share of bad ones."""

BUDGET_LEFT = "llm_slo:error_budget_remaining:ratio"
TARGET_RATIO = "llm_slo:objective:ratio"
INFO = "llm_slo_info"

PERIOD = "30d"

SELECTED_RECORDING = re.compile(r'(llm_slo:[\w:]+)\{[^{}]*\bobjective="([^"]+)"[^{}]*\}')
"""A selector of a recorded series of one objective: group 1 is the series, group 2 the objective."""


def recorded_name(what: Recorded, window: str) -> str:
    """
    The recorded series of a window.

    >>> recorded_name("bad", "5m"), recorded_name("error", "30d")
    ('llm_slo:bad:rate5m', 'llm_slo:error:ratio_rate30d')
    """
    return f"llm_slo:{what}:{'ratio_rate' if what == 'error' else 'rate'}{window}"


# -- joins -----------------------------------------------------------------------------------------

LEVELS: Mapping[Source, Mapping[str, str]] = {
    "sidecar": {
        "engine": "job, instance, target, model, engine",
        "replica": "job, instance, target",
        "served": "job, instance, target, model",
        "model": "model",
    },
    "vllm": {
        "engine": "job, instance, model_name, engine",
        "replica": "job, instance",
        "served": "job, instance, model_name",
        "model": "model_name",
    },
}
"""
Labels that tell engines, replicas and models apart, for ``on`` and ``by``.

One of them may have several series: a pod that was replaced behind the same ``instance``, both halves of
an HA pair under one ruler. So what is compared across series is aggregated (``max by``) or joined with
``and`` and ``unless``, which allow duplicates.
"""

# -- which series are a service's ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scope:
    """
    Which series are a service's.

    Args:
        identity: The labels that the sidecar's series, recorded series and alerts carry; None for every
            service.
        match: Matchers of the service's series on vLLM's own page, which carry none of ours.
        reads_unlabelled: Series of the sidecar may lack the identity's labels.
        chosen: Matchers of recorded series and of the sidecar's beside the identity, as boards have them.
    """

    identity: Identity | None = None
    match: str = ""
    reads_unlabelled: bool = False
    chosen: str = ""

    def raw(self, source: Source) -> str:
        """Matchers of the series that a source gives."""
        if source == "vllm":
            return self.match
        if self.identity is None or not self.reads_unlabelled:
            return self._matchers()
        return self._matchers(self.identity.names)

    def _matchers(self, or_unlabelled: tuple[str, ...] = ()) -> str:
        own = self.identity.matchers(or_unlabelled=or_unlabelled) if self.identity else ""
        return ",".join(filter(None, (own, self.chosen)))

    def exported(self, series: str, matchers: str = "") -> str:
        """The service's series of the sidecar itself; of 0.1's sidecars too where the scope says so."""
        return _selected(series, self.raw("sidecar"), matchers)

    def selector(self, series: str, matchers: str = "") -> str:
        """
        The service's series of a recording.

        Args:
            series: Its name.
            matchers: More matchers.

        >>> Scope(Identity("chat")).selector(BUDGET_LEFT, 'objective="ttft"')
        'llm_slo:error_budget_remaining:ratio{service="chat",objective="ttft"}'
        """
        return _selected(series, self._matchers(), matchers)

    def recorded(self, series: str, objective: str, *, ever: bool = False) -> str:
        """
        The value of an objective's recording by model, however many rulers recorded it.

        Args:
            series: The recording.
            objective: Its objective.
            ever: Also what was recorded before a free label was added.

        >>> Scope(Identity("chat")).recorded(recorded_name("bad", "5m"), "ttft")
        'max by (model) (llm_slo:bad:rate5m{service="chat",objective="ttft"})'
        """
        return f"max by (model) ({self._recorded(series, objective, ever=ever)})"

    def _recorded(self, series: str, objective: str, *, ever: bool) -> str:
        free = self.identity.names[1:] if ever and self.identity is not None else ()
        return _selected(series, self._matchers(free), labels_text({"objective": objective}))

    def recorded_over(self, series: str, objective: str, duration: str) -> str:
        """
        The sum of an objective's recording over time, by model.

        What was recorded before a free label was added has no such label and counts too: a budget of 30
        days does not start anew.

        >>> eu = Scope(Identity("chat", (("cluster", "eu"),)))
        >>> print(eu.recorded_over("bad", "a", "30d"))
        sum by (model) (sum_over_time(bad{service="chat",cluster=~"eu|",objective="a"}[30d]))
        """
        selected = self._recorded(series, objective, ever=True)
        return f"sum by (model) (sum_over_time({selected}[{duration}]))"

    def alerts(self, matchers: str = "") -> str:
        """The service's alerts that are firing; of every service, those that have one."""
        every = labels_text({"alertstate": "firing"}) + f',alertname=~"{ALERT_PREFIX}.*"'
        own = self._matchers() if self.identity is not None else 'service=~".+"'
        return _selected("ALERTS", f"{every},{own}", matchers)

    def group(self, name: str) -> str:
        """
        The name of a rule group: ``llm-slo-short@chat``.

        Raises:
            ValueError: The scope is every service's.
        """
        return f"llm-{name}@{self._group_owner}"

    @property
    def rule_failures(self) -> str:
        """Failed evaluations of the service's own rule groups; ``rule_group`` is file;group."""
        groups = f".*;llm-[a-z-]+@{re.escape(self._group_owner)}"
        return _selected(
            "prometheus_rule_evaluation_failures_total", f"rule_group=~{quoted(groups)}"
        )

    @property
    def _group_owner(self) -> str:
        if self.identity is None:
            raise ValueError("rules are of one service")
        free = [
            f"{name}={legal_name(value, illegal='[^A-Za-z0-9_.:-]', longest=48)}"
            for name, value in self.identity.free
        ]
        return "@".join((self.identity.service, *free))


EVERY_SERVICE = Scope(identity=None)


def scope_of(config: Config) -> Scope:
    """The series of a configuration's service."""
    return Scope(identity_of(config), config.alarms.match or "", config.alarms.read_unlabelled)


def board_scope(config: Config) -> Scope:
    """
    The series of a configuration's service on a board, whose variables choose among its free labels.

    The values of free labels are not in it: clusters of one service have the same boards.
    """
    free = (name for name in identity_of(config).names if name != SERVICE)
    chosen = ",".join(f'{name}=~"${name}"' for name in free)
    return replace(scope_of(config), identity=Identity(config.service.name), chosen=chosen)


def _selected(series: str, *matchers: str) -> str:
    inside = ",".join(filter(None, matchers))
    return f"{series}{{{inside}}}" if inside else series


# -- placeholders ----------------------------------------------------------------------------------

_SIDECAR_SERIES: Mapping[str, str] = {
    "target_up": own_series.TARGET_UP,
    "sidecar_info": own_series.BUILD_INFO,
    "engine_info": own_series.ENGINE_INFO,
    "kv_cache_capacity": own_series.KV_CACHE_CAPACITY,
    "lora_adapters_running": own_series.LORA_ADAPTERS_RUNNING,
}
_ALERT_GROUPS: Mapping[str, tuple[str, ...]] = {"burning_alerts": BURNING, "blind_alerts": BLIND}
_RECORDED = re.compile(r"(total|bad|error)_(\d+[smhd])")
_RECORDED_SERIES: Mapping[str, str] = {
    "budget_left": BUDGET_LEFT,
    "target_ratio": TARGET_RATIO,
    "slo_info": INFO,
}


def named_series(name: str, matchers: str, scope: Scope, source: Source) -> str | None:
    """
    What a placeholder stands for that is no concept of the catalogue.

    Args:
        name: ``target_up``, ``scrape_up``, ``rule_failures``, ``alerts``, ``burning_alerts``,
            ``budget_left``, ``error_1h``, …
        matchers: More matchers.
        scope: Whose series.
        source: Where the expression reads.

    Returns:
        A selector; None when the name is not known here.

    >>> named_series("error_1h", 'model="m"', Scope(Identity("chat")), "sidecar")
    'llm_slo:error:ratio_rate1h{service="chat",model="m"}'
    """
    if name in _SIDECAR_SERIES:
        return scope.exported(_SIDECAR_SERIES[name], matchers)
    if name == "scrape_up":
        return _selected("up", scope.raw(source), matchers)
    if name == "rule_failures":
        return scope.rule_failures
    if name == "alerts":
        return scope.alerts(matchers)
    if name in _ALERT_GROUPS:
        named = f"alertname=~{quoted('|'.join(_ALERT_GROUPS[name]))}"
        return scope.alerts(",".join(filter(None, (named, matchers))))
    series = _RECORDED_SERIES.get(name)
    match = _RECORDED.fullmatch(name)
    if match is not None:
        series = recorded_name(cast(Recorded, match[1]), match[2])
    return scope.selector(series, matchers) if series is not None else None
