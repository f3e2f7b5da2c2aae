"""What stands first on the sidecar's page: the verdict and the objectives, for people without Grafana."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape

from vllm_opsctl.alarms.burn import ROWS
from vllm_opsctl.alarms.links import Links
from vllm_opsctl.alarms.status import WORST_FIRST, Standing
from vllm_opsctl.alarms.status_live import HOUR_S, JUDGED, live_standings, spent
from vllm_opsctl.cli.slo_text import factor
from vllm_opsctl.cli.text import KINDS, alike, scope, some, tally
from vllm_opsctl.exporter.server import SidecarView
from vllm_opsctl.exporter.status import Column, shown, table
from vllm_opsctl.exporter.units import format_duration, format_number, format_percent
from vllm_opsctl.runbooks.load import Library, shipped_library
from vllm_opsctl.runbooks.on_demand import OUTDATED_S, Look, OnDemand, diagnose_recorded
from vllm_opsctl.runbooks.verdict import FoundCause, TargetVerdict, Verdict

MOST_EVIDENCE = 4
MOST_ACTIONS = 3
MOST_ROOTS = 3
"""Of one target; the command prints the rest."""

MOST_ANSWERS = 8
"""Targets with the same answer are one."""

MOST_ROWS = 40

_SHORT_S, _MIDDLE_S = ROWS[0].short_s, ROWS[2].short_s
_BURNING = ("burning fast", "burning")
_NOW = ("mitigate", "check")
"""Kinds of actions that are for the one who is on call."""


class Overview:
    """
    The page's first part; safe to ask from several threads.

    Args:
        library: Gives the failure modes, when they are first wanted.
    """

    def __init__(self, library: Callable[[], Library] = shipped_library) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._verdicts: OnDemand | None = None

    def __call__(self, view: SidecarView) -> str:
        """The part as HTML."""
        now = view.now()
        look = self._asked(view).ask()
        standings = live_standings(view.config.objectives, view.snapshots(), now)
        command = Links(view.config, "sidecar").command("none")
        parts = (
            *headline_html(look, standings),
            *verdict_html(look, command, now),
            *objectives_html(standings),
        )
        return "".join(parts)

    def _asked(self, view: SidecarView) -> OnDemand:
        with self._lock:
            if self._verdicts is None:
                self._verdicts = OnDemand(lambda: self._diagnose(view), now=view.now)
            return self._verdicts

    def _diagnose(self, view: SidecarView) -> Verdict:
        return diagnose_recorded(
            [snapshot.target.name for snapshot in view.snapshots()],
            view.observations,
            self._library(),
            now=view.now(),
            runbook_url=view.config.alarms.runbook_url,
        )


def headline_html(look: Look, standings: Sequence[Standing]) -> Iterator[str]:
    """
    The answer in one line: how the targets are, and what burns.

    Args:
        look: What is known of the targets.
        standings: As :func:`.live_standings` gives them.
    """
    parts = []
    if look.verdict is not None:
        health = look.verdict.health
        tone = {"critical": "bad", "degraded": "bad", "healthy": "good"}.get(health, "")
        several = len(look.verdict.targets) > 1
        text = tally(look.verdict) if several else look.verdict.targets[0].summary
        parts.append(f'<span class="{tone}">{health.upper()}</span> {escape(text)}')
    state = next((one.state for one in standings if one.state in _BURNING), None)
    if state is not None:
        burning = list(dict.fromkeys(o.objective.name for o in standings if o.state == state))
        parts.append(f'objectives <span class="bad">{state}</span>: {escape(some(burning))}')
    elif any(one.state == "ok" for one in standings):
        parts.append("no objective burns")
    yield f'<p class="headline">{" · ".join(parts)}</p>\n' if parts else ""


# -- the verdict -------------------------------------------------------------------------------


def verdict_html(look: Look, command: str, now: float) -> Iterator[str]:
    """
    The verdict's part of the page.

    Args:
        look: What is known.
        command: The command that prints the whole verdict, for all targets.
        now: Unix seconds.
    """
    yield "<h2>Verdict</h2>\n"
    if look.problem is not None:
        yield (
            '<section class="verdict wrong"><p><span class="bad">The diagnosis failed</span>: '
            f"{escape(look.problem)}</p>\n<p>Everything else on this page is as it was; try "
            f"{_code(command)}.</p></section>\n"
        )
        return
    if look.verdict is None or look.at is None:
        yield (
            '<section class="verdict"><p>The targets are being looked at; the verdict stands here when '
            "this page is read again, in some seconds.</p></section>\n"
        )
        return
    groups = alike(look.verdict)
    for first, *rest in groups[:MOST_ANSWERS]:
        yield from _answer(first, [target.target for target in rest], command, now)
    if groups[MOST_ANSWERS:]:
        more = [target.target for group in groups[MOST_ANSWERS:] for target in group]
        yield f"<p>Other answers on {escape(some(more))}: {_code(command)}</p>\n"
    yield (
        f'<p class="quiet">Of {_clock(look.at)} UTC, {format_duration(max(0.0, round(now - look.at)))} ago; '
        f"made again every {format_duration(look.pause_s)} while somebody has this page open. It rests on "
        f"the flight recorder; {_code(command)} also sends a canary, and prints everything.</p>\n"
    )


def _answer(
    target: TargetVerdict, others: Sequence[str], command: str, now: float
) -> Iterator[str]:
    """What is to be said of one target, and of others that say the same."""
    tone = {"healthy": "fine", "unknown": ""}.get(target.verdict, "wrong")
    colour = {"fine": "good", "wrong": "bad"}.get(tone, "")
    names = ", ".join(root.id for root in target.roots)
    where = some([target.target, *others])
    yield f'<section class="verdict {tone}">\n'
    yield (
        f'<h3><span class="{colour}">{target.verdict.upper()}</span> '
        f"{f'<code>{escape(names)}</code> on ' if names else ''}{escape(where)}</h3>\n"
    )
    yield f"<p>{escape(target.summary)}</p>\n"
    if target.end:
        late = now - target.end
        age = (
            f"; <b>nothing newer for {format_duration(round(late))}</b>"
            if late > OUTDATED_S
            else ""
        )
        yield f'<p class="quiet">{escape(scope(target))}{age}</p>\n'
    for root in target.roots[:MOST_ROOTS]:
        yield from _root(root)
    felt = [cause for cause in target.causes if cause.role == "symptom"]
    if felt:
        texts = "; ".join(f"{cause.id}: {cause.evidence[0].statement}" for cause in felt)
        yield f'<p class="quiet">Symptoms: {escape(texts)}</p>\n'
    for kind in _NOW:
        yield from _actions(target, kind)
    if target.verdict != "healthy":
        one = f"{command} {shlex.quote(target.target)}"
        yield f"<p>All of it: {_code(one)}</p>\n"
    yield "</section>\n"


def _root(root: FoundCause) -> Iterator[str]:
    where = f" on engine {root.engine}" if root.engine else ""
    yield (
        f"<h4>Root cause: <code>{escape(root.id)}</code>{escape(where)} "
        f"({escape(root.severity)}, confidence {format_percent(root.confidence)})</h4>\n<ul>"
    )
    yield from (f"<li>{escape(line.statement)}</li>" for line in root.evidence[:MOST_EVIDENCE])
    yield "</ul>\n"
    for other in root.alternatives:
        yield (
            f"<p>May as well be <code>{escape(other.id)}</code>; what tells them apart: "
            f"{escape(other.apart_by)}</p>\n"
        )
    if root.runbook is not None:
        # only a web address is one to follow: a configured base may be anything
        is_link = root.runbook.startswith(("http://", "https://"))
        text = escape(root.runbook)
        link = f'<a href="{text}">{text}</a>' if is_link else _code(root.runbook)
        yield f"<p>Runbook: {link}</p>\n"


def _actions(target: TargetVerdict, kind: str) -> Iterator[str]:
    actions = [
        action
        for root in target.roots[:MOST_ROOTS]
        for action in root.actions
        if action.kind == kind
    ]
    if not actions:
        return
    yield f"<h4>{escape(KINDS[kind])}</h4>\n<ul>"
    for action in actions[:MOST_ACTIONS]:
        helps = (
            f' <span class="quiet">helps when {escape(action.helps_when)}; look for: '
            f"{escape(action.seen_by)}</span>"
            if action.helps_when and action.seen_by
            else ""
        )
        typed = f" {_code(action.command)}" if action.command else ""
        yield f"<li>{escape(action.text)}{typed}{helps}</li>"
    yield "</ul>\n"


# -- the objectives ----------------------------------------------------------------------------

_COLUMNS = (
    *(Column("State", is_text=True), Column("Objective", is_text=True)),
    *(Column("Model", is_text=True, is_extra=True), Column("Target", is_extra=True)),
    *(Column("Good", is_extra=True), Column("Bad", is_extra=True), Column("Good share")),
    *(Column("Burn 5 min"), Column("Burn 30 min"), Column("Burn 1 h", is_extra=True)),
    Column("Of 30 days' budget", is_extra=True),
)


def objectives_html(standings: Sequence[Standing]) -> Iterator[str]:
    """
    The objectives' part of the page.

    Args:
        standings: As :func:`.live_standings` gives them.
    """
    with_number = [one for one in standings if one.reason is None]
    known_s = max((one.known.seconds for one in with_number), default=0.0)
    if with_number:
        state = next(s for s in WORST_FIRST if s in {one.state for one in with_number})
        caption = f"Objectives: {state}, by the last {format_duration(known_s)}"
        yield table(caption, _COLUMNS, [_row(one) for one in with_number[:MOST_ROWS]])
        more = len(with_number) - MOST_ROWS
        if more > 0:
            yield f'<p class="quiet">and {more} more, none of them in a worse state</p>\n'
        yield from _scope(known_s)
    else:
        yield "<h2>Objectives</h2>\n<p>Nothing is known yet.</p>\n"
    without = [one for one in standings if one.reason is not None]
    if without:
        texts = "; ".join(
            f"{one.objective.name}{f' of {one.model}' if one.model else ''} ({one.state}): {one.reason}"
            for one in without[:MOST_ROWS]
        )
        yield f'<p class="quiet">Without a number: {escape(texts)}</p>\n'


def _scope(known_s: float) -> Iterator[str]:
    """What the numbers are of, and what they are not."""
    short = (
        f"Only {format_duration(known_s)} are known, and longer windows are of those. "
        if known_s < 0.95 * HOUR_S
        else ""
    )
    slow = " and ".join(
        f"{row.burn:g}x over {format_duration(row.long_s)}" for row in ROWS if row not in JUDGED
    )
    yield (
        f'<p class="quiet">{short}Burn: 1x spends the budget in exactly 30 days; coloured is what would '
        f"page. This sidecar knows an hour at most, so slow burns ({slow}) are not judged here and nobody "
        'here knows what is left of the 30 days<span class="extra">: the last column is what these events '
        "are of a 30-day budget at the same traffic</span>. "
        f"{_code('opsctl slo status --prometheus URL')} knows more.</p>\n"
    )


def _row(one: Standing) -> list[str]:
    limit = one.objective.threshold
    name = f"{one.objective.name}{f' ≤ {format_duration(limit)}' if limit else ''}"
    count = one.known.count
    tone = "bad" if one.state in _BURNING else ""
    return [
        f'<span class="state {tone}">{escape(one.state)}</span>',
        f'{escape(name)} <span class="narrow quiet">{escape(one.model or "")}</span>',
        escape(one.model or "–"),
        format_percent(one.objective.target),
        format_number(count.total - count.bad),
        format_number(count.bad),
        shown(one.sli, format_percent),
        *(_burn(one, window_s) for window_s in (_SHORT_S, _MIDDLE_S, HOUR_S)),
        shown(spent(one), format_percent),
    ]


def _burn(one: Standing, window_s: float) -> str:
    """A burn rate, coloured where it is one of those that the state stands for."""
    burn = one.burn(window_s)
    rate = burn.rate if burn is not None else None
    limit = min(row.burn for row in JUDGED if window_s in (row.short_s, row.long_s))
    is_over = one.state in _BURNING and rate is not None and rate > limit
    text = escape(factor(rate))
    return f'<span class="bad">{text}</span>' if is_over else text


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _clock(t: float) -> str:
    return datetime.fromtimestamp(t, UTC).strftime("%H:%M:%S")
