"""
Reads the past from a Prometheus: raw samples at their own times, put together to pages again.

An instant query with a range selector gives what was scraped, not what was interpolated, so a page
of the past is the page that the server gave then, less what nobody asks for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.catalogue import catalogue
from vllm_opsctl.exporter.observation import Observation, error, metrics, thinned
from vllm_opsctl.exporter.series import labels_text, quoted
from vllm_opsctl.exporter.sources.promql import PromQL, QueryFailed

DOWN = "down"
"""Reason of a scrape that failed at once; Prometheus does not keep why."""

TIMEOUT_FROM_S = 1.0
"""A failed scrape that took so long was waiting; a refused connection is known in a round trip."""

_RUNNING = "vllm:num_requests_running"
"""Every vLLM since 0.4.3 has it."""

_NAMING_LABELS = ("model_name", "engine")
"""What tells engines apart; a target may carry such a label too, and the page's is wanted."""

_RENAMED = "exported_"
"""Where page and target have a label, Prometheus keeps the target's and renames the page's so."""

_Labels = Mapping[str, str]


class PrometheusSource:
    """
    Asks one Prometheus.

    Args:
        url: Its base URL.
        match: Label matchers of the targets, e.g. ``{job="vllm"}``; all vLLM servers when empty.
        token: Bearer token, or None.
    """

    def __init__(self, url: str, match: str = "", *, token: str | None = None) -> None:
        self._promql = PromQL(url, token=token)
        self._match = match.strip().removeprefix("{").removesuffix("}").strip(" ,")

    def observations(
        self, *, start: float, end: float, full_from: float, step_s: float
    ) -> list[Observation]:
        """
        What was scraped of every target.

        Args:
            start: Nothing older is wanted (unix seconds).
            end: Nothing newer is wanted.
            full_from: From here on every page is wanted.
            step_s: Before that, pages at least so many seconds apart are enough.

        Returns:
            Pages and failed scrapes, ordered by time; each target is called by its instance.

        Raises:
            Unreachable: Prometheus does not answer.
            BadPage: What answers is no Prometheus, or it could not answer this.
            UsageError: It refuses the matchers.
        """
        past = _Past(start, end)
        found: list[Observation] = []
        for name, labels in _named(self._targets(past)):
            seen = sorted(self._of_target(name, labels, past), key=lambda o: o.t)
            found += thinned(seen, start=start, full_from=full_from, step_s=step_s)
        return sorted(found, key=lambda observation: observation.t)

    def _targets(self, past: _Past) -> list[_Labels]:
        """
        The labels of every target that exposed a vLLM engine, or that stands beside one and is down.

        ``up`` has a target's labels and none of its page's.
        """
        running = _names_pattern([_RUNNING])
        rows = self._query(f"last_over_time({_selector(running, self._match)}{past.span})", past)
        shown = [row["metric"] for row in rows]
        jobs = sorted({labels["job"] for labels in shown if labels.get("job")})
        beside = f"job=~{quoted('|'.join(map(_literal, jobs)))}" if jobs else ""
        asked = ",".join(part for part in (beside, self._match) if part)
        ups = self._ups(asked, past)
        # page labels (model_name) match no `up`: then only what showed an engine is known to be meant
        is_down = {index for index, (_, value) in enumerate(ups) if value == 0}
        if not ups and beside:
            ups, is_down = self._ups(beside, past), set()
        found = [
            labels
            for index, (labels, _) in enumerate(ups)
            if index in is_down or any(_is_of(page, labels) for page in shown)
        ]
        for page in shown:
            if not any(_is_of(page, labels) for labels in found):
                found.append({k: page[k] for k in ("job", "instance") if k in page})
        return found

    def _ups(self, matchers: str, past: _Past) -> list[tuple[_Labels, float]]:
        """Targets, and 1 for those that could be scraped at some time."""
        if not matchers:
            return []
        rows = self._query(f"max_over_time(up{{{matchers}}}{past.span})", past)
        return [(row["metric"], float(row["value"][1])) for row in rows]

    def _of_target(self, name: str, target: _Labels, past: _Past) -> Iterator[Observation]:
        own = labels_text(target)
        pattern = _names_pattern(sorted(catalogue().sample_names))
        pages: dict[float, list[str]] = {}
        # one query, for a scrape that is stored meanwhile is in it as a whole or not at all
        rows = self._query(f"{_selector(pattern, own)}{past.span}", past)
        renamed = {name for row in rows for name in row["metric"] if name.startswith(_RENAMED)}
        # honor_labels: a label that nothing was renamed for is the page's as well
        foreign = {n for n in target if n not in _NAMING_LABELS or _RENAMED + n in renamed}
        for row in rows:
            series = _series(row["metric"], foreign)
            for t, value in row.get("values", ()):
                pages.setdefault(float(t), []).append(f"{series} {value}")
        for t, lines in pages.items():
            yield metrics(t, name, "\n".join(lines) + "\n")
        if own:
            yield from self._failed_scrapes(name, own, past)

    def _failed_scrapes(self, name: str, own: str, past: _Past) -> Iterator[Observation]:
        scrapes: dict[str, dict[float, float]] = {"up": {}, "scrape_duration_seconds": {}}
        for row in self._query(f"{_selector('|'.join(scrapes), own)}{past.span}", past):
            values = {float(t): float(value) for t, value in row.get("values", ())}
            scrapes[row["metric"]["__name__"]].update(values)
        for t, up in scrapes["up"].items():
            if up == 0:
                seconds = scrapes["scrape_duration_seconds"].get(t, 0.0)
                if seconds >= TIMEOUT_FROM_S:
                    yield error(t, name, "timeout", f"the scrape failed after {seconds:.1f} s")
                else:
                    yield error(t, name, DOWN, "the scrape failed (up is 0)")

    def _query(self, query: str, past: _Past) -> list[dict[str, Any]]:
        try:
            return self._promql.rows("query", {"query": query, "time": past.time})
        except QueryFailed as problem:
            if problem.kind == "bad_data" and self._match:
                raise UsageError(
                    f"--match {{{self._match}}}: {problem.why}; write it like '{{job=\"vllm\"}}'"
                ) from None
            raise


class _Past:
    """A stretch of time, as queries spell it; both ends belong to it."""

    def __init__(self, start: float, end: float) -> None:
        # Prometheus keeps milliseconds; from 3.0 on a range leaves out its left end
        last = math.ceil(end * 1000)
        self.time = f"{last / 1000:.3f}"
        self.span = f"[{max(last - math.floor(start * 1000), 1) + 1}ms]"


def _named(targets: Sequence[_Labels]) -> Iterator[tuple[str, _Labels]]:
    """Each target and its name: the instance, and more of its labels where that stands for several."""
    several = Counter(target.get("instance") for target in targets)
    for target in targets:
        name = target.get("instance") or target.get("job") or "vllm"
        if several[target.get("instance")] > 1:
            rest = [v for k, v in sorted(target.items()) if k != "instance"]
            name = "/".join([name, *rest])
        yield name, target


def _is_of(page: _Labels, target: _Labels) -> bool:
    """Whether a series is of a target's page: it has all of the target's labels."""
    return all(page.get(name) == value for name, value in target.items())


def _series(labels: _Labels, foreign: Set[str]) -> str:
    """
    A series as the page had it.

    Args:
        labels: As Prometheus has it.
        foreign: Labels that are the target's and not the page's.
    """
    own = {name: value for name, value in labels.items() if name not in foreign}
    for name in foreign:
        if _RENAMED + name in own:
            own[name] = own.pop(_RENAMED + name)
    return f"{own.pop('__name__')}{{{labels_text(own)}}}"


def _selector(name_pattern: str, matchers: str) -> str:
    name = f'__name__=~"{name_pattern}"'
    return f"{{{name},{matchers}}}" if matchers else f"{{{name}}}"


def _names_pattern(names: Sequence[str]) -> str:
    """A regular expression for metric names, as vLLM and as collectors spell them."""
    ours = [name.removeprefix("vllm:") for name in names if name.startswith("vllm:")]
    others = [name for name in names if not name.startswith("vllm:")]
    return "|".join([f"(ray_)?vllm[:_]({'|'.join(ours)})", *others])


def _literal(text: str) -> str:
    """A regular expression that matches a text and nothing else, in RE2."""
    return "".join(c if c.isalnum() or c in "_-/ :" else f"\\{c}" for c in text)
