"""The simulated months say what a real Prometheus says of the same series."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bench import alarm_rules
from bench.alarm_faults import BUSY, HOUR, MINUTE, QUIET, Bools, Event, Floats, Level
from bench.alarm_months import TTFT_BOUNDS, Month, measured_objectives, simulated
from bench.alarm_peers import ttft_5m
from bench.alarm_rules import MINUTES, Alarm, View, ours, rulebook, target_of

from vllm_opsctl.alarms.burn import ROWS, duration_text
from vllm_opsctl.alarms.fleet import compressed
from vllm_opsctl.alarms.prometheus.conventions import BURN_ALERT, EVERY_SERVICE, FLOOR_ALERT
from vllm_opsctl.exporter.identity import identity_of
from vllm_opsctl.exporter.series import labels_text

DAY = 24 * HOUR


def at(hours: float) -> int:
    return int(hours * HOUR)


def lasting(kind: str, hour: float, minutes: float, size: float = 1.0) -> Event:
    return Event(kind, at(hour), at(hour) + int(minutes * MINUTE), size)


def of(*events: Event, level: Level = BUSY, seed: int = 7) -> Month:
    return simulated(level, seed, list(events), np.random.default_rng(seed))


BAD_DAY = (
    lasting("10 % errors", 8, 40, 0.12),
    lasting("all replicas dead", 9.5, 12),
    lasting("one engine frozen", 11, 25),
    lasting("TTFT shift", 12.5, 45, 9),
    lasting("all requests 5xx", 14, 10),
    lasting("crash loop", 15.5, 40),
    lasting("ITL shift", 17.5, 60, 2.6),
    lasting("rolling restart", 20, 12),
)
"""One of everything that pages, within a day; its last hours are quiet."""

THIN_DAY = (
    lasting("a few errors", 7.5, 1, 0.5),
    lasting("10 % errors", 9, 90, 0.3),
    lasting("TTFT shift", 12.5, 60, 9),
    lasting("all requests 5xx", 15, 20),
    lasting("ITL shift", 18, 60, 2.4),
)
"""The same where four requests come a minute, and the guards on few events decide."""


def counters(increments: Floats, starts: Bools | None = None) -> Iterator[str]:
    """A counter at every scrape of a day; it begins anew where a process did."""
    total = 0.0
    yield "0"
    for step in range(DAY):
        total = increments[step] + (0.0 if starts is not None and starts[step] else total)
        yield f"{total:g}"


def shown(values: Sequence[str], alive: Bools) -> list[str]:
    """What is left of it while the replica cannot be read; Prometheus marks the end as stale."""
    visible = [True, *alive[:DAY].tolist()]
    return [
        value if here else "stale" if index and visible[index - 1] else "_"
        for index, (value, here) in enumerate(zip(values, visible, strict=True))
    ]


def input_series(found: Month) -> Iterator[dict[str, str]]:
    """What the sidecar would have exported, in promtool's notation."""
    book = rulebook()
    # a series has labels, not matchers
    names = replace(book.names, scope=EVERY_SERVICE)
    own = labels_text(identity_of(book.links.config).labels())
    for replica, alive in enumerate(found.alive):
        model = found.level.name
        labels = f'{own},instance="sidecar-{model}",target="{target_of(replica)}",model="{model}"'
        for objective in measured_objectives():
            bad, total = (s[objective][replica] for s in (found.seen_bad, found.seen_total))
            for outcome, increments in (("good", total - bad), ("bad", bad)):
                series = f'{{{labels},objective="{objective}",outcome="{outcome}"}}'
                values = compressed(list(counters(increments)))
                yield {"series": f"vllm_sli_events_total{series}", "values": values}
        gauges = {
            "requests_running": found.running[replica],
            "requests_waiting": found.waiting[replica],
            "process_start_time_seconds": np.cumsum(found.started[replica]),
        }
        pages = {
            names.selector(concept): [f"{value:g}" for value in (values[0], *values[:DAY])]
            for concept, values in gauges.items()
        }
        steps = counters(found.work[replica], found.started[replica])
        pages[names.selector("step_tokens", "_count")] = list(steps)
        for name, page in pages.items():
            engine = "" if "process" in name else ',engine="0"'
            series = f"{name}{{{labels}{engine}}}"
            yield {"series": series, "values": compressed(shown(page, alive))}


def rules_that_page() -> dict[str, Any]:
    """The rules of ours that page, and the recordings that they read."""
    paging = [row for row in ROWS if row.notify == "page"]
    windows = {duration_text(s) for row in paging for s in (row.short_s, row.long_s)}
    groups = []
    for group in rulebook().groups:
        rules = [
            rule
            for rule in group["rules"]
            if rule.get("labels", {}).get("notify") == "page"
            or any(rule.get("record", "").endswith(f"rate{window}") for window in windows)
        ]
        groups.append({**group, "rules": rules})
    return {"groups": [group for group in groups if group["rules"]]}


def expectations(alarm: Alarm, model: str) -> Iterator[dict[str, Any]]:
    """That it fires when the evaluator says, and at no other time, to within one evaluation."""
    minutes = DAY // MINUTE
    matchers = {"alertname": alarm.name, "alertstate": "firing", "model": model, **alarm.labels}
    selector = ",".join(f'{key}="{value}"' for key, value in matchers.items())
    edges = np.flatnonzero(np.diff(np.concatenate([[0], alarm.firing[:minutes], [0]])))
    silent_from = 0
    for start, end in [*edges.reshape(-1, 2).tolist(), (minutes + 1, minutes + 1)]:
        first, last = silent_from, start - 2
        if last >= first:
            yield expectation(selector, first, last, 0)
        first, last = start + 1, min(end, minutes) - 2
        if last >= first:
            yield expectation(selector, first, last, last - first + 1)
        silent_from = end + 1


def expectation(selector: str, first: int, last: int, firing: int) -> dict[str, Any]:
    window = f"{60 * (last - first) + 30}s"
    expr = f"sum(count_over_time(ALERTS{{{selector}}}[{window}])) or vector(0)"
    expected = [{"labels": "{}", "value": firing}]
    return {"expr": expr, "eval_time": f"{last}m", "exp_samples": expected}


def promtool(binary: Path, folder: Path, test: dict[str, Any], rules: dict[str, Any]) -> str:
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    whole = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (folder / "test.yaml").write_text(yaml.safe_dump(whole))
    ran = subprocess.run(
        [binary, "test", "rules", "test.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return "" if ran.returncode == 0 else f"{ran.stdout}{ran.stderr}"[:3000]


def test_alerts_fire_when_they_fire_in_prometheus(
    part: Callable[[str], Path], tmp_path: Path
) -> None:
    binary = part("promtool")
    months = [of(*BAD_DAY), of(*THIN_DAY, level=QUIET)]
    alarms = {found.level.name: ours().evaluate(View(found)) for found in months}

    busy, quiet = (
        {alarm.name for alarm in found if alarm.firing[: DAY // MINUTE].any()}
        for found in alarms.values()
    )
    assert busy == {*alarm_rules.simulated_alerts()}, "the day makes every one of them fire"
    assert quiet == {BURN_ALERT, FLOOR_ALERT}, "now and then there are enough events for both"
    test = {
        "interval": "30s",
        "input_series": [series for found in months for series in input_series(found)],
        "promql_expr_test": [
            expected
            for model, found in alarms.items()
            for alarm in found
            for expected in expectations(alarm, model)
        ],
    }
    said = promtool(binary, tmp_path, test, rules_that_page())
    assert not said, said


def test_a_quantile_is_what_prometheus_says(part: Callable[[str], Path], tmp_path: Path) -> None:
    binary = part("promtool")
    found = of(lasting("TTFT shift", 10, 60, 6))
    minutes = [*range(480, 720, 15)]
    below = np.cumsum(found.ttft, axis=0)
    test = {
        "interval": "30s",
        "input_series": [
            {"series": f'ttft_bucket{{le="{bound}"}}', "values": compressed(list(counters(row)))}
            for bound, row in zip([*map(str, TTFT_BOUNDS), "+Inf"], below, strict=True)
        ],
        "promql_expr_test": [
            {
                "expr": f"abs(histogram_quantile({quantile}, rate(ttft_bucket[5m])) - {value}) < bool 1e-6",
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": "{}", "value": 1}],
            }
            for quantile in (0.95, 0.99)
            for minute in minutes
            for value in [ttft_5m(View(found), quantile)[minute]]
        ],
    }

    assert promtool(binary, tmp_path, test, {"groups": []}) == ""


def firing(*spans: tuple[int, int]) -> list[Alarm]:
    found = np.zeros(MINUTES, bool)
    for start, end in spans:
        found[start:end] = True
    return [Alarm("hand-made", found)]
