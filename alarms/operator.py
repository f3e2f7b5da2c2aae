"""
The same for the Prometheus operator: PrometheusRule and AlertmanagerConfig resources.

Source:
    prometheus-operator, Documentation/api-reference: monitoring.coreos.com/v1 PrometheusRule,
    v1alpha1 AlertmanagerConfig.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_opsctl.alarms.alertmanager import (
    INHIBITIONS,
    ROUTES,
    SUBJECT,
    Matchers,
    Pager,
    Receiver,
)
from vllm_opsctl.alarms.resource_names import object_name
from vllm_opsctl.exporter.identity import Identity
from vllm_opsctl.exporter.series import labels_text

_LABELS = {"app.kubernetes.io/name": "vllm-opsctl"}


def prometheus_rule(identity: Identity, groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rule groups as a resource."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": _name(identity), "labels": _LABELS},
        "spec": {"groups": list(groups)},
    }


def alertmanager_config(identity: Identity, found: Pager) -> dict[str, Any]:
    """
    Routes, receivers and inhibitions as a resource; templates are inlined, it has no files.

    It takes the alerts of its own service alone: the operator asks all resources about each alert.
    """
    wait, interval, repeat = found.waits()
    routes = []
    for notify, receiver in ROUTES:
        route: dict[str, Any] = {"receiver": receiver, "matchers": _matchers((("notify", notify),))}
        if notify == "deadman":
            route |= {"groupWait": "0s", "groupInterval": found.deadman_interval()}
            route |= {"repeatInterval": found.deadman_interval()}
        routes.append(route)
    return {
        "apiVersion": "monitoring.coreos.com/v1alpha1",
        "kind": "AlertmanagerConfig",
        "metadata": {"name": _name(identity), "labels": _LABELS},
        "spec": {
            "route": {
                "receiver": "ticket",
                "matchers": _matchers(tuple(identity.labels().items())),
                "groupBy": list(found.group_by),
                "groupWait": wait,
                "groupInterval": interval,
                "repeatInterval": repeat,
                "routes": routes,
            },
            "inhibitRules": [
                {
                    "sourceMatch": _matchers(one.source),
                    "targetMatch": _matchers(one.target),
                    "equal": list(found.equal(one)),
                }
                for one in INHIBITIONS
            ],
            "receivers": [_receiver(one, found) for one in found.receivers],
        },
    }


def _matchers(matchers: Matchers) -> list[dict[str, str]]:
    return [{"name": name, "value": value, "matchType": "="} for name, value in matchers]


def _receiver(one: Receiver, found: Pager) -> dict[str, Any]:
    if one.topic is not None:
        endpoint = {"apiURL": found.api_url} if found.api_url is not None else {}
        sns = {
            **endpoint,
            "sigv4": {"region": one.region},
            "topicARN": one.topic,
            "subject": SUBJECT,
            "message": found.message,
            "attributes": dict(found.attributes),
            "sendResolved": True,
        }
        return {"name": one.name, "snsConfigs": [sns]}
    if one.webhook is not None:
        resolved = one.name != "deadman"
        return {
            "name": one.name,
            "webhookConfigs": [{"url": one.webhook, "sendResolved": resolved}],
        }
    return {"name": one.name}


def _name(identity: Identity) -> str:
    """The name of both objects; fleets that differ in a free label alone are two objects."""
    free = labels_text(dict(identity.free))
    return object_name("vllm-slo", f"{identity.service}@{free}" if free else identity.service)
