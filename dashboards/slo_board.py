"""The SLO board of a service: what burns, how much budget is left, and what the engines do meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_opsctl.alarms.burn import ROWS, Row, budget_of, duration_text
from vllm_opsctl.alarms.resource_names import board_title
from vllm_opsctl.dashboards.model import (
    BadShare,
    Board,
    BudgetLeft,
    Burn,
    Counted,
    Events,
    Gauge,
    Limit,
    Line,
    Panel,
    Quantile,
    Reporting,
    Section,
    Share,
)
from vllm_opsctl.exporter.config import SLI_CONCEPTS, Objective
from vllm_opsctl.exporter.units import format_duration, format_percent

_SUBJECT = "Objectives"

_DAY_S = 86400.0
PERIOD_S = 30 * _DAY_S
"""Of an error budget."""

_SHOWN_S = {6 * 3600.0: 7 * _DAY_S, 3 * _DAY_S: PERIOD_S}
"""Burn windows that are as long as a usual range: what is shown of them instead."""

_UNPROMISED = 0.99
"""The quantile beside the median of a latency without an objective."""

QUANTILE_POINTS = 100
"""Over the range: quantiles of hundreds of histograms take seconds where every pixel is one."""

KV_FULL = 0.95
"""Above it sequences are preempted for want of blocks (alarms/companions.yaml)."""

_LATENCIES = (
    (
        "time_to_first_token_seconds",
        "TTFT",
        "Flat, and the percentile that is promised below its line.",
        "When it rises with the queue, requests wait for a place: add replicas. When it rises alone, prompts "
        "got longer or the prefix cache misses.",
        ("queue-overload", "long-prefill-interference"),
    ),
    (
        "inter_token_latency_seconds",
        "Inter-token latency",
        "Flat, and the percentile that is promised below its line.",
        "Rising with the batch it is capacity; in spikes, long prefills share steps with it: lower "
        "--max-num-batched-tokens.",
        ("long-prefill-interference", "kv-preemption-thrash"),
    ),
    (
        "request_e2e_seconds",
        "End-to-end latency",
        "The percentile that is promised below its line. Of answered requests alone, without who gave up.",
        "It follows the length of answers; look at these first, then at the queue.",
        ("output-length-shift", "queue-overload"),
    ),
    (
        "request_queue_seconds",
        "Queue time",
        "Near zero.",
        "Anything else is more demand than the replicas take: add some, or turn requests away early.",
        ("queue-overload",),
    ),
)

_MODES: Mapping[str, tuple[str, ...]] = {
    "availability": ("server-errors-5xx", "engine-dead"),
    "time_to_first_token": ("queue-overload", "long-prefill-interference"),
    "time_to_first_token_cached": ("prefix-cache-eviction", "routing-without-affinity"),
    "inter_token_latency": ("long-prefill-interference", "kv-preemption-thrash"),
    "e2e_latency": ("output-length-shift", "queue-overload"),
    "queue_time": ("queue-overload", "concurrency-cap"),
}
"""Failure modes that most often break an objective, by what it is about."""


def slo_board(service: str, objectives: Sequence[Objective]) -> Board:
    """
    The board.

    Args:
        service: Name of the fleet.
        objectives: What is promised.
    """
    return Board(
        name="slo",
        subject=_SUBJECT,
        title=board_title(service, _SUBJECT),
        about="Is a promise being broken, how fast, and what do the engines do meanwhile?",
        sections=(
            Section("On fire", _alarms(), per_model=False),
            Section("Error budgets", _budgets(objectives)),
            Section("Traffic and latency", _signals(objectives)),
            Section("Saturation", _saturation()),
        ),
    )


def _alarms() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Alarms",
            good="Nothing is red.",
            otherwise="A red one's description has the command that names the cause.",
            kind="alarms",
            unit="count",
            width=18,
            height=6,
        ),
        Panel(
            title="Replicas read, a minute",
            good="As many as there are.",
            otherwise="None for 3 minutes pages, for every other panel is blind then: is the sidecar up, and "
            "can it reach the servers? Start there.",
            kind="time",
            unit="count",
            lines=(Line(Reporting(), "replicas"),),
            modes=("metrics-disabled", "metrics-stale-or-wrong", "clock-skew"),
            width=6,
            height=6,
        ),
    )


def _budgets(objectives: Sequence[Objective]) -> tuple[Panel, ...]:
    left = Panel(
        title="Error budget left, 30 days",
        good="Above zero everywhere.",
        otherwise="At zero the promise of these 30 days is broken: no risky changes until it has recovered.",
        kind="number",
        unit="share",
        lines=tuple(Line(BudgetLeft(one), one.name) for one in objectives),
        limits=(Limit(0, "spent", grave=True),),
        width=24,
        height=4,
        range_s=PERIOD_S,
        modes=_modes(objectives),
    )
    fastest = ROWS[0]
    burns = [fastest, *(row for row in ROWS if row.long_s in _SHOWN_S)]
    shares = tuple(
        Panel(
            title=f"{one.name}: bad events",
            good=f"Below the line. {_promise(one)}",
            otherwise="Above it the budget shrinks faster than it may; the runbooks say what it mostly is.",
            kind="time",
            unit="share",
            lines=(Line(BadShare(one), "bad"),),
            limits=(Limit(budget_of(one.target), f"objective {format_percent(one.target)}"),),
            modes=_modes([one]),
            width=8,
            height=5,
        )
        for one in objectives
    )
    return (left, *(_burn(row, objectives) for row in burns), *shares)


def _burn(row: Row, objectives: Sequence[Objective]) -> Panel:
    window = duration_text(row.long_s)
    does = "pages" if row.notify == "page" else "opens a ticket"
    return Panel(
        title=f"Burn rate, {window}",
        good="Below 1, where the budget lasts its 30 days.",
        otherwise=f"Above {row.burn:g}, if {duration_text(row.short_s)} agree, it {does}: "
        f"{format_percent(row.budget_spent)} of the budget are gone by then. Type the command in its text.",
        kind="time",
        unit="times",
        lines=tuple(Line(Burn(one, row.long_s), one.name) for one in objectives),
        limits=(
            Limit(row.burn, f"{does} above {row.burn:g}", grave=row.notify == "page"),
            *(() if row.burn == 1 else (Limit(1, "sustainable"),)),
        ),
        range_s=_SHOWN_S.get(row.long_s),
        interval_s=row.long_s,
        modes=_modes(objectives),
    )


def promised_limits(objectives: Sequence[Objective]) -> tuple[Limit, ...]:
    """The lines of objectives across their latency."""
    return tuple(
        Limit(one.threshold, f"{one.name}: {format_percent(one.target)} below")
        for one in objectives
        if one.threshold is not None
    )


def _modes(objectives: Sequence[Objective]) -> tuple[str, ...]:
    """The likeliest failure mode of each of several objectives, or all those of one."""
    found = [_MODES[one.sli] for one in objectives]
    return found[0] if len(found) == 1 else tuple(dict.fromkeys(modes[0] for modes in found))


def _promise(one: Objective) -> str:
    share = format_percent(one.target)
    if one.threshold is None:
        return f"{share} are to succeed."
    return f"{share} are to take no longer than {format_duration(one.threshold)}."


def _signals(objectives: Sequence[Objective]) -> tuple[Panel, ...]:
    traffic = [one for one in objectives if one.sli == "availability"][:1]
    first = tuple(
        Panel(
            title="Requests",
            good="The usual shape of the day, and none failed.",
            otherwise="A step down without a deploy is an outage further out, at the gateway or before it.",
            kind="time",
            unit="per second",
            lines=(Line(Events(one), "all"), Line(Events(one, bad=True), "failed")),
            modes=("server-errors-5xx", "engine-dead"),
        )
        for one in traffic
    )
    latencies = tuple(
        Panel(
            title=title,
            good=good,
            otherwise=otherwise,
            kind="time",
            unit="seconds",
            lines=tuple(
                Line(Quantile(concept, q), f"p{100 * q:g}")
                for q in sorted({0.5, *([one.target for one in promised] or [_UNPROMISED])})
            ),
            limits=promised_limits(promised),
            modes=modes,
            points=QUANTILE_POINTS,
        )
        for concept, title, good, otherwise, modes in _LATENCIES
        for promised in [[one for one in objectives if SLI_CONCEPTS.get(one.sli) == concept]]
    )
    gave_up = Panel(
        title="Clients that gave up",
        good="None. Estimated by the tap; vLLM counts them nowhere. Empty without the tap.",
        otherwise="They come when it is slow, and are missing in every latency: trust TTFT and the queue.",
        kind="time",
        unit="count",
        lines=(Line(Counted("requests_hung_up_estimate"), "gave up"),),
        modes=("client-abort-storm",),
    )
    return (*first, *latencies, gave_up)


def _saturation() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Running and waiting, an engine",
            good="Waiting near zero.",
            otherwise="When running stands at its limit and waiting grows, replicas are missing, or one of "
            "them takes no part.",
            kind="time",
            unit="count",
            lines=(
                Line(Gauge("requests_running", "mean"), "running"),
                Line(Gauge("requests_waiting", "mean"), "waiting"),
                Line(Gauge("requests_waiting", "peak"), "peak"),
            ),
            modes=("queue-overload",),
            width=6,
        ),
        Panel(
            title="KV-cache usage",
            good="Full is fine as long as nothing waits and nothing is preempted.",
            otherwise="At the line, sequences are thrown out and computed again: lower --max-num-seqs.",
            kind="time",
            unit="share",
            lines=(
                Line(Gauge("kv_cache_usage_ratio", "mean"), "mean"),
                Line(Gauge("kv_cache_usage_ratio", "peak"), "peak"),
            ),
            limits=(Limit(KV_FULL, "full"),),
            modes=("kv-preemption-thrash", "kv-pinned-long-contexts"),
            width=6,
        ),
        Panel(
            title="Prefix-cache hit ratio",
            good="As it was last week.",
            otherwise="When it falls, returning users wait as long as new ones: look for a changed prompt "
            "template, a deploy, or routing without affinity.",
            kind="time",
            unit="share",
            lines=(Line(Share("prefix_cache_hit_tokens", "prefix_cache_queried_tokens"), "hits"),),
            modes=("prefix-cache-eviction", "prefix-cache-nonce", "routing-without-affinity"),
            width=6,
        ),
        Panel(
            title="Preemptions",
            good="None, or a few at a peak.",
            otherwise="Many, and the KV cache is too small for what runs: fewer requests at once.",
            kind="time",
            unit="count",
            lines=(Line(Counted("preemptions"), "preemptions"),),
            modes=("kv-preemption-thrash",),
            width=6,
        ),
    )
