"""The evaluator is CloudWatch's: its documentation's tables and examples, cell for cell."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_opsctl.alarms.cloudwatch.composite import (
    Actions,
    CompositeAlarm,
    RuleError,
    parse_rule,
)
from vllm_opsctl.alarms.cloudwatch.evaluator import (
    MetricAlarm,
    MissingData,
    Stat,
    State,
    evaluation_range,
    state_of,
)
from vllm_opsctl.alarms.cloudwatch.metric_math import MathError, Series, evaluate, parse
from vllm_opsctl.alarms.cloudwatch.metrics import MetricKey, Metrics, percentile_of
from vllm_opsctl.alarms.cloudwatch.timeline import Timeline
from vllm_opsctl.exporter.sinks.cloudwatch.datum import Datum, Statistics

TREATMENTS: tuple[MissingData, ...] = ("missing", "ignore", "breaching", "notBreaching")
STATES: tuple[State, ...] = ("OK", "ALARM", "INSUFFICIENT_DATA")
KEEP = "keep"

# alarms-and-missing-data.html: points (newest on the right), then the state for missing, ignore, breaching
# and notBreaching; N = 3, five points are retrieved
THREE_OF_THREE = [
    ("0-X-X", "OK", "OK", "OK", "OK"),
    ("0----", "OK", "OK", "OK", "OK"),
    ("-----", "INSUFFICIENT_DATA", KEEP, "ALARM", "OK"),
    ("0XX-X", "ALARM", "ALARM", "ALARM", "ALARM"),
    ("--X--", "ALARM", KEEP, "ALARM", "OK"),
]
TWO_OF_THREE = [
    ("0-X-X", "ALARM", "ALARM", "ALARM", "ALARM"),
    ("00X0X", "ALARM", "ALARM", "ALARM", "ALARM"),
    ("0-X--", "OK", "OK", "ALARM", "OK"),
    ("----0", "OK", "OK", "ALARM", "OK"),
    ("---X-", "ALARM", KEEP, "ALARM", "OK"),
]
CELLS = [
    (points, to_alarm, treatment, wanted)
    for to_alarm, table in ((3, THREE_OF_THREE), (2, TWO_OF_THREE))
    for points, *states in table
    for treatment, wanted in zip(TREATMENTS, states, strict=True)
]


def breaching(points: str) -> list[bool | None]:
    return [{"0": False, "X": True, "-": None}[point] for point in points]


def test_there_are_forty_cells() -> None:
    assert len(CELLS) == 40


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize(("points", "to_alarm", "treatment", "wanted"), CELLS)
def test_a_cell_of_the_documentation(
    points: str, to_alarm: int, treatment: MissingData, wanted: str, before: State
) -> None:
    found = state_of(breaching(points), 3, to_alarm, treatment, before)

    assert found == (before if wanted == KEEP else wanted)


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("points", ["----X", "---X-"])
def test_a_young_breaching_point_alone_changes_nothing(points: str, before: State) -> None:
    for treatment in ("missing", "ignore"):
        assert state_of(breaching(points), 3, 3, treatment, before) == before


alarms = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.integers(1, n),
        st.lists(
            st.sampled_from([True, False, None]),
            min_size=evaluation_range(n),
            max_size=evaluation_range(n),
        ),
    )
)


@given(alarms, st.sampled_from(STATES))
def test_with_enough_real_points_the_setting_does_not_matter(
    alarm: tuple[int, int, list[bool | None]], before: State
) -> None:
    n, m, points = alarm
    real = [p if p is not None else False for p in points]

    found = {state_of(real, n, m, treatment, before) for treatment in TREATMENTS}

    assert found == {"ALARM" if sum(real[-n:]) >= m else "OK"}


@given(alarms, st.sampled_from(STATES))
def test_breaching_alarms_wherever_another_setting_does(
    alarm: tuple[int, int, list[bool | None]], before: State
) -> None:
    n, m, points = alarm

    if state_of(points, n, m, "notBreaching", before) == "ALARM":
        assert {state_of(points, n, m, t, "OK") for t in TREATMENTS} == {"ALARM"}
    if state_of(points, n, m, "missing", "OK") == "ALARM":
        assert state_of(points, n, m, "breaching", "OK") == "ALARM"


@given(alarms, st.sampled_from(STATES))
def test_only_missing_data_can_be_insufficient(
    alarm: tuple[int, int, list[bool | None]], before: State
) -> None:
    n, m, points = alarm
    for treatment in TREATMENTS:
        found = state_of(points, n, m, treatment, "OK")
        assert (found == "INSUFFICIENT_DATA") == (
            treatment == "missing" and all(point is None for point in points)
        )


# -- metric math -----------------------------------------------------------------------------------

N = None
# using-metric-math.html: the tables of comparison operators and of IF
M1: Series = (30.0, 20.0, 0.0, 0.0)
M2: Series = (20.0, N, 20.0, N)
IF1: Series = (1.0, 1.0, 0.0, 0.0, N)
IF2: Series = (30.0, N, 0.0, 0.0, 30.0)
IF3: Series = (0.0, 0.0, 20.0, N, 20.0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("m1 < m2", (0, 0, 1, 0)),
        ("m1 >= 30", (1, 0, 0, 0)),
        ("m1 > 15 AND m2 > 15", (1, 0, 0, 0)),
        ("m1 > 15 && m2 > 15", (1, 0, 0, 0)),
        ("m1 > 25 OR m2 > 15", (1, 0, 1, 0)),
        ("m1 + m2", (50, 20, 20, 0)),
        ("m2 + 1", (21, N, 21, N)),
        ("m2 / m1", (20 / 30, 0, N, N)),
        ("-m2 * 2", (-40, N, -40, N)),
        ("1 - m1 / 10 - 1", (-3, -2, 0, 0)),
        ("FILL(m2, 7)", (20, 7, 20, 7)),
        ("FILL(m2, m1)", (20, 20, 20, 0)),
        ("DIFF(m1)", (N, -10, -20, 0)),
        ("DIFF(m2)", (N, N, 0, N)),
        ("IF(i1, i2, i3)", (30, 0, 20, N, N)),
        ("IF(i1, 5, i3)", (5, 5, 20, N, N)),
        ("IF(i1, i2, 5)", (30, 0, 5, 5, N)),
        ("IF(i1, i2)", (30, 0, N, N, N)),
        ("IF(1, i2, i3)", IF2),
        ("IF(0 == 1, i2, 4)", (4, 4, 4, 4, 4)),
        ("m1 + IF(0 == 1, 2, 3)", (33, 23, 3, 3)),
        ("m1 + IF(1 == 1, 2, 3)", (32, 22, 2, 2)),
        ("IF(i2 > 10 AND i1 == 1, 1, 0)", (1, 0, 0, 0, 0)),
    ],
)
def test_metric_math_as_documented(text: str, wanted: tuple[float | None, ...]) -> None:
    series = {"m1": M1, "m2": M2, "i1": IF1, "i2": IF2, "i3": IF3}

    assert evaluate(parse(text), series) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(a + b", "')' is missing before 'its end'"),
        ("a + b)", "')' is one too many"),
        ("a +", "it ends too early"),
        ("a ANDD b", "'ANDD' is one too many"),
        ("SUMM(a)", "'SUMM' is no number, id or function"),
        ("IF(a)", "IF takes 2 or 3 arguments, not 1"),
        ("a ; b", "'; b' is not understood"),
    ],
)
def test_broken_math_is_told(text: str, said: str) -> None:
    with pytest.raises(MathError, match=said.replace("(", r"\(").replace(")", r"\)")):
        parse(text)


numbers = st.one_of(st.none(), st.floats(0, 1e6))


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6))
def test_a_share_is_a_share_or_nothing(pairs: list[tuple[float | None, float | None]]) -> None:
    series = {
        "good": tuple(good for good, _ in pairs),
        "bad": tuple(bad for _, bad in pairs),
    }

    shares = evaluate(parse("bad / (good + bad)"), series)
    guarded = evaluate(parse("IF(FILL(bad, 0) >= 5, bad / (good + bad), 0)"), series)

    assert isinstance(shares, tuple)
    assert all(share is None or 0 <= share <= 1 for share in shares)
    assert isinstance(guarded, tuple)
    assert None not in guarded


# -- statistics ------------------------------------------------------------------------------------

KEY = MetricKey("vLLM", "Queue", frozenset({("Service", "chat")}))
DIMENSIONS = (("Service", "chat"),)


def gauge(t: float, *readings: float) -> Datum:
    statistics = Statistics(min(readings), max(readings), sum(readings), len(readings))
    return Datum(metric="Queue", dimensions=DIMENSIONS, t=t, unit="Count", statistics=statistics)


def test_statistics_of_a_window() -> None:
    metrics = Metrics("vLLM")
    metrics.add([gauge(60, 1, 5), gauge(0, 2, 2), gauge(120, 9)])

    def ask(name: str, start: float = 0, end: float = 120, now: float = 600) -> float | None:
        return metrics.statistic(KEY, name, start, end, now)

    assert (ask("Sum"), ask("SampleCount"), ask("Average")) == (10, 4, 2.5)
    assert (ask("Minimum"), ask("Maximum")) == (1, 5)
    later = [ask(name, start=60, end=180) for name in ("Sum", "SampleCount", "Average")]
    assert later == [15, 3, 5]
    assert ask("p50") is None, "a set whose values differ has no percentile"
    assert ask("p50", end=60) == 2
    assert ask("Sum", start=180, end=240) is None
    assert ask("Sum", now=120) == 10, "what began a minute ago has just ended"
    assert ask("Sum", now=119) == 4


def test_percentiles_of_values_and_counts() -> None:
    metrics = Metrics("vLLM")
    metrics.add(
        [
            Datum(
                metric="Queue",
                dimensions=DIMENSIONS,
                t=0,
                unit="Count",
                values=(0.1, 2.0),
                counts=(98.0, 2.0),
            )
        ]
    )

    assert metrics.statistic(KEY, "p98", 0, 60, 60) == 0.1
    assert metrics.statistic(KEY, "p99", 0, 60, 60) == 2.0


times = st.integers(0, 40).map(lambda minute: 60.0 * minute)
readings = st.tuples(times, st.lists(st.integers(-9, 9), min_size=1, max_size=4))


@given(st.lists(readings, max_size=12), times, times, times)
def test_statistics_are_those_of_the_readings_in_the_window(
    data: list[tuple[float, list[int]]], start: float, end: float, now: float
) -> None:
    metrics = Metrics("vLLM")
    metrics.add(gauge(t, *some) for t, some in data)
    inside = [x for t, some in data if start <= t < end and t + 60 <= now for x in some]

    def ask(name: str) -> float | None:
        return metrics.statistic(KEY, name, start, end, now)

    wanted: dict[str, float | None] = dict.fromkeys(("Sum", "SampleCount", "Minimum", "Maximum"))
    if inside:
        wanted = {
            "Sum": sum(inside),
            "SampleCount": len(inside),
            "Minimum": min(inside),
            "Maximum": max(inside),
        }
    assert {name: ask(name) for name in wanted} == wanted
    assert ask("Average") == (pytest.approx(sum(inside) / len(inside)) if inside else None)


def test_values_have_a_least_and_a_most() -> None:
    metrics = Metrics("vLLM")
    metrics.add(
        [
            Datum(
                metric="Queue",
                dimensions=DIMENSIONS,
                t=0,
                unit="Count",
                values=(3.0, 1.0),
                counts=(1.0, 2.0),
            )
        ]
    )

    found = [metrics.statistic(KEY, name, 0, 60, 60) for name in ("Minimum", "Maximum", "Sum")]
    assert found == [1, 3, 5]


@pytest.mark.parametrize(
    ("name", "share"), [("p99", 0.99), ("p0.5", 0.005), ("p0", None), ("pp99", None), ("Sum", None)]
)
def test_names_of_percentiles(name: str, share: float | None) -> None:
    assert percentile_of(name) == share


# -- alarms over time ------------------------------------------------------------------------------


def alarm(**more: Any) -> MetricAlarm:
    fields: dict[str, Any] = {
        "name": "queue",
        "stats": (Stat(id="m", metric=KEY, statistic="Maximum"),),
        "watched": "m",
        "period_s": 60.0,
        "periods": 3,
        "to_alarm": 3,
        "comparison": "GreaterThanThreshold",
        "threshold": 3.0,
        **more,
    }
    return MetricAlarm(**fields)


def run(one: MetricAlarm, values: list[float | None], *, to: float) -> list[tuple[float, State]]:
    metrics = Metrics("vLLM")
    for minute, value in enumerate(values):
        if value is not None:
            metrics.put("Queue", DIMENSIONS, 60.0 * minute, value)
    timeline = Timeline([one], [], metrics)
    timeline.run(60, to)
    return [(transition.t, transition.after) for transition in timeline.transitions]


def test_three_breaching_minutes_alarm_and_one_good_one_ends_it() -> None:
    # the figure of alarm-evaluation.html: a threshold of three, three of three
    assert run(alarm(), [2, 3, 4, 5, 6, 2, 3, 3, 4, 2], to=600) == [
        (60, "OK"),
        (300, "ALARM"),
        (360, "OK"),
    ]


def test_windows_slide_by_the_minute() -> None:
    five = alarm(period_s=300.0, periods=1, to_alarm=1)

    assert run(five, [1, 1, 9, 1, 1, 1, 1, 1], to=480) == [(60, "OK"), (180, "ALARM"), (480, "OK")]


def test_a_heartbeat_is_missed_when_the_whole_range_is_empty() -> None:
    one = alarm(
        periods=1, to_alarm=1, comparison="LessThanThreshold", threshold=1.0, missing="breaching"
    )

    assert run(one, [1, 1, 1], to=600) == [(60, "OK"), (360, "ALARM")]


def test_alarms_of_more_than_a_day_are_judged_at_full_hours() -> None:
    one = alarm(period_s=86400.0, periods=2, to_alarm=1, missing="notBreaching")
    values: list[float | None] = [1.0] * 3000
    values[65] = 9.0

    assert run(one, values, to=3 * 3600) == [(3600, "OK"), (7200, "ALARM")]


def test_a_day_in_one_piece_is_judged_every_minute() -> None:
    one = alarm(period_s=86400.0, periods=1, to_alarm=1, missing="notBreaching")

    assert run(one, [1, 9], to=180) == [(60, "OK"), (120, "ALARM")]


def test_between_two_full_hours_a_multi_day_alarm_looks_at_the_last() -> None:
    one = alarm(period_s=86400.0, periods=2)
    metrics = Metrics("vLLM")
    metrics.put("Queue", DIMENSIONS, 10 * 86400.0 - 60, 1.0)
    metrics.put("Queue", DIMENSIONS, 10 * 86400.0 + 60, 9.0)

    assert one.points(metrics, 10 * 86400.0 + 1800) == (None, None, None, 1.0)
    assert one.points(metrics, 10 * 86400.0 + 3600) == (None, None, None, 9.0)


def test_high_resolution_alarms_are_judged_every_ten_seconds_beside_others() -> None:
    fast = alarm(name="fast", period_s=10.0, periods=1, to_alarm=1)
    metrics = Metrics("vLLM", late_s=10.0)
    metrics.put("Queue", DIMENSIONS, 60.0, 9.0)
    timeline = Timeline([alarm(periods=1, to_alarm=1), fast], [], metrics)
    timeline.run(60, 120)

    found = [(x.t, x.alarm, x.after) for x in timeline.transitions if x.after == "ALARM"]
    assert found == [(70, "fast", "ALARM"), (120, "queue", "ALARM")]


@pytest.mark.parametrize(("samples", "found"), [(999, []), (1000, [(60.0, "ALARM")])])
def test_few_samples_freeze_a_percentile(samples: int, found: list[tuple[float, State]]) -> None:
    one = alarm(
        stats=(Stat(id="m", metric=KEY, statistic="p99"),),
        periods=1,
        to_alarm=1,
        ignores_low_samples=True,
    )
    metrics = Metrics("vLLM")
    metrics.add(
        [
            Datum(
                metric="Queue",
                dimensions=DIMENSIONS,
                t=0,
                unit="Count",
                values=(9.0,),
                counts=(float(samples),),
            )
        ]
    )
    timeline = Timeline([one], [], metrics)
    timeline.run(60, 60)

    assert [(transition.t, transition.after) for transition in timeline.transitions] == found


def test_steps_build_on_each_other() -> None:
    one = alarm(
        steps=(("twice", parse("m * 2")), ("more", parse("FILL(twice, 0) + 1"))),
        watched="more",
        periods=1,
        to_alarm=1,
        threshold=10.0,
    )

    assert run(one, [4, 5], to=120) == [(60, "OK"), (120, "ALARM")]


# -- composites ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('ALARM("a") AND ALARM(b)', False),
        ("ALARM(a) OR ALARM(b)", True),
        ("ALARM(a) AND NOT ALARM(b)", True),
        ("ALARM(a) OR ALARM(b) AND FALSE", True),
        ("(ALARM(a) OR ALARM(b)) AND FALSE", False),
        ("OK(b) AND INSUFFICIENT_DATA(c) AND TRUE", True),
        ('ALARM("with space/and slash")', True),
        ("NOT (OK(a) OR OK(b))", False),
        ("AT_LEAST(1, ALARM, (a, b, c))", True),
        ('AT_LEAST(2, ALARM, ("a", "b", "c"))', False),
        ('AT_LEAST(2, ALARM, (a, "with space/and slash"))', True),
        ("AT_LEAST(60%, NOT OK, (a, b, c)) AND OK(b)", True),
        ("AT_LEAST(70%, NOT OK, (a, b, c))", False),
    ],
)
def test_rules(text: str, holds: bool) -> None:
    states: dict[str, State] = {
        "a": "ALARM",
        "b": "OK",
        "c": "INSUFFICIENT_DATA",
        "with space/and slash": "ALARM",
    }

    assert parse_rule(text).holds(states) is holds


@pytest.mark.parametrize(
    "text",
    [
        "ALARM(a) ANDD ALARM(b)",
        "ALARM(a",
        "(ALARM(a)",
        "ALARM(a) AND",
        "ALARM(a) ALARM(b)",
        "ALARMED(a)",
        "a",
        "ALARM(a))",
        "AT_LEAST(0, ALARM, (a))",
        "AT_LEAST(2, ALARM, (a))",
        "AT_LEAST(1, ALARM, ())",
        "AT_LEAST(1, (a))",
        "",
    ],
)
def test_broken_rules_are_told(text: str) -> None:
    with pytest.raises(RuleError):
        parse_rule(text)


# Create_Composite_Alarm_Suppression.html, examples 1 to 6: the wait is 2, the extension 3;
# (composite in alarm from, until), (suppressor in alarm from, until), when it acts
EXAMPLES = [
    ((2, 99), None, [(4, "ALARM")]),
    ((2, 99), (3, 99), []),
    ((2, 3), None, [(5, "OK")]),
    ((2, 99), (1, 99), []),
    ((2, 99), (3, 6), [(9, "ALARM")]),
    ((2, 7), (3, 6), [(9, "OK")]),
]


@pytest.mark.parametrize(("composite", "suppressor", "wanted"), EXAMPLES)
def test_suppression_as_documented(
    composite: tuple[int, int], suppressor: tuple[int, int] | None, wanted: list[tuple[int, str]]
) -> None:
    one = CompositeAlarm(
        name="c", rule=parse_rule("ALARM(m)"), suppressor="s", wait_s=2, extension_s=3
    )
    actions = Actions(one, "OK")
    found = []
    for t in range(1, 15):
        state: State = "ALARM" if composite[0] <= t < composite[1] else "OK"
        muted = suppressor is not None and suppressor[0] <= t < suppressor[1]
        if actions.step(t, state, "ALARM" if muted else "OK"):
            found.append((t, state))

    assert found == wanted


def test_composites_of_composites_are_judged_at_once() -> None:
    inner = CompositeAlarm(name="inner", rule=parse_rule("ALARM(queue)"))
    outer = CompositeAlarm(name="outer", rule=parse_rule("ALARM(inner) AND NOT ALARM(other)"))
    other = CompositeAlarm(name="other", rule=parse_rule("FALSE"))
    metrics = Metrics("vLLM")
    metrics.put("Queue", DIMENSIONS, 0.0, 9.0)

    timeline = Timeline([alarm(periods=1, to_alarm=1)], [outer, inner, other], metrics)
    timeline.run(60, 60)

    assert timeline.states == {
        "queue": "ALARM",
        "inner": "ALARM",
        "outer": "ALARM",
        "other": "OK",
    }
    assert {action.alarm for action in timeline.went_off()} == {"queue", "inner", "outer"}


def test_a_circle_of_composites_is_refused() -> None:
    one = CompositeAlarm(name="a", rule=parse_rule("ALARM(b)"))
    two = CompositeAlarm(name="b", rule=parse_rule("ALARM(a)"))

    with pytest.raises(ValueError, match="refer to each other in a circle"):
        Timeline([], [one, two], Metrics("vLLM"))
