"""What each alert means, for `opsctl explain`: whoever is paged pastes its name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vllm_opsctl.alarms.alerts import AlertSpec, shipped_alerts
from vllm_opsctl.alarms.burn import FLOOR, ROWS, duration_text
from vllm_opsctl.alarms.prometheus.conventions import (
    BUCKET_ALERT,
    BURN_ALERT,
    DRILL_ALERT,
    FLOOR_ALERT,
)
from vllm_opsctl.exporter.units import format_percent
from vllm_opsctl.runbooks.explain import Explanation

_DOES = {
    "page": "pages somebody",
    "ticket": "opens a ticket",
    "pager": "goes to the webhook: it is about the pager itself",
    "deadman": "keeps the dead-man's switch from ringing",
}
_PLACEHOLDER = re.compile(r"\{\{ \$(?:labels\.)?(\w+)[^}]*\}\}")


def alert_explanations() -> Mapping[str, Explanation]:
    """Every alert that a build can write, by name."""
    shipped = {spec.alert: _shipped(spec) for specs in shipped_alerts().values() for spec in specs}
    return shipped | {one.name: one for one in (_burn(), _floor(), _bucket(), _drill())}


def _shipped(spec: AlertSpec) -> Explanation:
    facts = {
        "does": _DOES[spec.notify],
        "about": f"one {spec.per}" if spec.per != "none" else "the monitoring itself",
        "must hold for": spec.hold,
    }
    if spec.modes:
        facts["failure modes"] = ", ".join(spec.modes)
        facts["more"] = f"opsctl runbook show {spec.modes[0]}"
    if spec.because is not None:
        facts["why so"] = " ".join(spec.because.split())
    meaning = " ".join(f"{spec.summary} {spec.description}".split())
    return Explanation(spec.alert, "alert", _PLACEHOLDER.sub(r"(\1)", meaning), facts)


def _burn() -> Explanation:
    facts = {
        f"{row.burn:g}x, label window {duration_text(row.long_s)}": (
            f"{_DOES[row.notify]} once {format_percent(row.budget_spent)} of the budget went in "
            f"{duration_text(row.long_s)}, and it still burns over {duration_text(row.short_s)}"
        )
        for row in ROWS
    }
    facts["more"] = "opsctl slo explain OBJECTIVE; opsctl slo status"
    return Explanation(
        BURN_ALERT,
        "alert",
        "The error budget of the objective in its labels is burning too fast: users notice. It says that "
        "something is wrong, the command in the page says what.",
        facts,
    )


def _floor() -> Explanation:
    window = duration_text(FLOOR.window_s)
    meaning = f"More than {format_percent(FLOOR.ratio)} of the events of an objective were bad over {window}."
    why = (
        f"Objectives up to {format_percent(FLOOR.highest_target)} allow so much that their burn rates "
        "tell an outage late or never.",
    )
    return Explanation(FLOOR_ALERT, "alert", meaning, {"does": _DOES["page"]}, why)


def _bucket() -> Explanation:
    return Explanation(
        BUCKET_ALERT,
        "alert",
        "A server's histogram has no bucket bound at the objective's threshold, so its events are missing "
        "from the objective, or are counted at the bound below.",
        {
            "does": _DOES["ticket"],
            "fix": "start it with the --custom-histogram-buckets that opsctl alarms build names",
        },
    )


def _drill() -> Explanation:
    return Explanation(
        DRILL_ALERT,
        "alert",
        "Somebody ran opsctl alarms test to see that pages arrive. Nothing is wrong.",
    )
