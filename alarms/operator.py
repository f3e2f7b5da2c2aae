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
    ATTRIBUTES,
    GROUP_BY,
    INHIBITIONS,
    MESSAGE,
    ROUTES,
    SUBJECT,
    Matchers,
    Pager,
    Receiver,
)

_LABELS = {"app.kubernetes.io/name": "vllm-opsctl"}


def prometheus_rule(service: str, groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rule groups as a resource."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": _name(service), "labels": _LABELS},
        "spec": {"groups": list(groups)},
    }


def alertmanager_config(service: str, found: Pager) -> dict[str, Any]:
    """Routes, receivers and inhibitions as a resource; templates are inlined, it has no files."""
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
        "metadata": {"name": _name(service), "labels": _LABELS},
        "spec": {
            "route": {
                "receiver": "ticket",
                "groupBy": list(GROUP_BY),
                "groupWait": wait,
                "groupInterval": interval,
                "repeatInterval": repeat,
                "routes": routes,
            },
            "inhibitRules": [
                {
                    "sourceMatch": _matchers(one.source),
                    "targetMatch": _matchers(one.target),
                    "equal": list(one.equal),
                }
                for one in INHIBITIONS
            ],
            "receivers": [_receiver(one, found.api_url) for one in found.receivers],
        },
    }


def _matchers(matchers: Matchers) -> list[dict[str, str]]:
    return [{"name": name, "value": value, "matchType": "="} for name, value in matchers]


def _receiver(one: Receiver, api_url: str | None) -> dict[str, Any]:
    if one.topic is not None:
        endpoint = {"apiURL": api_url} if api_url is not None else {}
        sns = {
            **endpoint,
            "sigv4": {"region": one.region},
            "topicARN": one.topic,
            "subject": SUBJECT,
            "message": MESSAGE,
            "attributes": dict(ATTRIBUTES),
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


def _name(service: str) -> str:
    """A resource's name: lower case, digits and dashes."""
    plain = "".join(c if c.isalnum() else "-" for c in service.lower()).strip("-")
    return f"vllm-slo-{plain}"[:63].rstrip("-")
