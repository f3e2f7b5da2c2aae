"""The curated data: what a real incident becomes, what CloudWatch would refuse, what waits on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import botocore.session
import pytest
from botocore.validate import ParamValidator
from hypothesis import assume, given
from hypothesis import strategies as st
from paths import RECORDINGS

from vllm_opsctl.exporter.config import DEFAULT_OBJECTIVES
from vllm_opsctl.exporter.engine import Histogram, PageSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.recording import read_recording
from vllm_opsctl.exporter.sinks.cloudwatch.curated import curated
from vllm_opsctl.exporter.sinks.cloudwatch.datum import (
    MAX_VALUES,
    Datum,
    Refused,
    Statistics,
    accepted,
    distribution,
)
from vllm_opsctl.exporter.sinks.cloudwatch.emf import lines_of
from vllm_opsctl.exporter.sinks.cloudwatch.interval import Labels, data_of
from vllm_opsctl.exporter.sinks.cloudwatch.put import requests_of
from vllm_opsctl.exporter.sinks.cloudwatch.spool import Spool
from vllm_opsctl.exporter.window import windows_by_engine

FLEET = Labels("shop", None)
T = 1_700_000_000.0


def pages_of(name: str) -> list[PageSample]:
    return [
        read_page(o.text, t=o.t, target=o.target)
        for o in read_recording(RECORDINGS / f"{name}.jsonl.gz")
        if o.kind == "metrics"
    ]


def data(pages: Sequence[PageSample], before: PageSample | None = None) -> list[Datum]:
    return data_of(before, pages, t=T, labels=FLEET, objectives=DEFAULT_OBJECTIVES)


def total(found: Sequence[Datum], metric: str) -> float:
    return sum(
        value * count
        for datum in found
        if datum.metric == metric
        for value, count in zip(datum.values, datum.counts, strict=True)
    )


def one(found: Sequence[Datum], metric: str) -> Datum:
    (datum,) = [d for d in found if d.metric == metric]
    return datum


THRASH = pages_of("kv-preemption-thrash")


def test_an_incident_becomes_every_metric_that_the_page_can_tell() -> None:
    named = {datum.metric for datum in data(THRASH)}

    assert named == {metric.metric for metric in curated()} - {"RequestsGaveUp"}, "the tap's alone"


def test_dimensions_are_the_fleets_unless_the_target_is_asked_for() -> None:
    assert FLEET.of("tiny") == (("Service", "shop"), ("Model", "tiny"))
    assert Labels("shop", "chat-0").of("tiny", "ttft") == (
        ("Service", "shop"),
        ("Model", "tiny"),
        ("Target", "chat-0"),
        ("Objective", "ttft"),
    )


def test_peaks_of_gauges_survive() -> None:
    (window,) = windows_by_engine(THRASH).values()
    usage = one(data(THRASH), "KVCacheUsage").statistics

    assert usage is not None
    assert usage.most == 100 * max(window.gauge("kv_cache_usage_ratio"))
    assert usage.least == 100 * min(window.gauge("kv_cache_usage_ratio"))
    assert usage.count == len(THRASH)


def test_counters_are_increases_that_add_up_over_intervals() -> None:
    (window,) = windows_by_engine(THRASH).values()
    parts = [THRASH[:20], THRASH[20:40], THRASH[40:]]
    befores = [None, THRASH[19], THRASH[39]]
    split = [data(pages, before) for pages, before in zip(parts, befores, strict=True)]

    for metric in ("Preemptions", "GoodEvents", "BadEvents"):
        assert sum(total(found, metric) for found in split) == total(data(THRASH), metric)
    assert total(data(THRASH), "Preemptions") == window.delta("preemptions")


def test_the_hit_ratio_weighs_as_much_as_was_asked_for() -> None:
    """So the average over replicas is the fleet's ratio, not the mean of ratios."""
    pages = pages_of("prefix-cache-nonce")
    (window,) = windows_by_engine(pages).values()
    ratio = one(data(pages), "PrefixCacheHitRatio")
    hits, queried = (window.delta(f"prefix_cache_{what}_tokens") for what in ("hit", "queried"))

    assert hits is not None
    assert queried is not None
    assert ratio.counts == (queried,)
    assert ratio.values[0] == pytest.approx(100 * hits / queried)


def test_a_distribution_counts_every_observation_within_its_bucket() -> None:
    (window,) = windows_by_engine(THRASH).values()
    histogram = window.histogram("time_to_first_token_seconds")
    ttft = one(data(THRASH), "TimeToFirstToken")

    assert histogram is not None
    assert sum(ttft.counts) == histogram.count
    for value, count in zip(ttft.values, ttft.counts, strict=True):
        index = next(i for i, bound in enumerate(histogram.bounds) if value < bound)
        below = histogram.counts[index - 1] if index else 0.0
        assert histogram.counts[index] - below == count


def test_what_happened_while_the_sidecar_was_away_is_counted_once() -> None:
    away = THRASH[10], THRASH[50:]
    found = data(away[1], before=away[0])
    (window,) = windows_by_engine([away[0], *away[1]]).values()

    assert total(found, "Preemptions") == window.delta("preemptions")


def test_an_objective_that_the_page_cannot_tell_costs_nothing() -> None:
    objectives = {dict(found.dimensions).get("Objective") for found in data(THRASH)} - {None}

    assert objectives == {o.name for o in DEFAULT_OBJECTIVES} - {"ttft-returning"}, "the tap's"


def test_a_dead_target_has_no_heartbeat() -> None:
    assert [found.metric for found in data(THRASH[:1])].count("Heartbeat") == 1
    assert "Heartbeat" not in {found.metric for found in data([], before=THRASH[0])}


def datum(**changes: object) -> Datum:
    fields: dict[str, object] = {
        "metric": "RequestsWaiting",
        "dimensions": (("Service", "shop"),),
        "t": T,
        "unit": "Count",
        "values": (1.0,),
        "counts": (1.0,),
    }
    return Datum(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"values": (math.nan,)}, "no number"),
        ({"values": (math.inf,)}, "no number"),
        ({"values": (2.0**361,)}, "2\\^360"),
        ({"values": (1e-200,)}, "2\\^-360"),
        ({"values": tuple(map(float, range(151))), "counts": (1.0,) * 151}, "150 are allowed"),
        ({"dimensions": tuple((f"d{i}", "x") for i in range(31))}, "30 are allowed"),
        ({"dimensions": (("Model", ""),)}, "Model is empty"),
        ({"dimensions": (("Model", " \t "),)}, "Model is empty, or nothing but spaces"),
        ({"dimensions": (("Model", "größe"),)}, "Model is not ASCII"),
        ({"dimensions": (("Model", "tiny\n"),)}, "Model has a control character"),
        ({"dimensions": (("Model", "tiny\x7f"),)}, "Model has a control character"),
        ({"dimensions": (("Model", "m" * 1025),)}, "1024"),
        ({"dimensions": (("", "tiny"),)}, "name '' is empty"),
        ({"dimensions": (("D" * 256, "tiny"),)}, "255"),
        ({"dimensions": ((":Model", "tiny"),)}, "begins with a colon"),
        ({"dimensions": (("Größe", "tiny"),)}, "name 'Größe' is not ASCII"),
        ({"dimensions": (("Model\x00", "tiny"),)}, "has a control character"),
        ({"metric": "M" * 256}, "255"),
        ({"metric": "Größe"}, "the name is not ASCII"),
        ({"metric": " "}, "the name is empty"),
        ({"t": T - 15 * 86400}, "14 days"),
        ({"t": T + 3 * 3600}, "2 hours"),
    ],
)
def test_what_cloudwatch_refuses_is_refused_here_by_name(
    changes: dict[str, object], limit: str
) -> None:
    with pytest.raises(Refused, match=limit):
        datum(**changes).check(T)


@given(name=st.text(max_size=300), text=st.text(max_size=1100))
def test_a_dimension_passes_when_it_is_as_the_api_reference_says_and_no_other(
    name: str, text: str
) -> None:
    def fits(what: str, most: int) -> bool:
        return 1 <= len(what) <= most and all(" " <= c <= "~" for c in what) and bool(what.strip())

    allowed = fits(name, 255) and fits(text, 1024) and not name.startswith(":")

    assert bool(list(accepted([datum(dimensions=((name, text),))], T))) is allowed


@given(
    name=st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=255),
    text=st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=1024),
)
def test_printable_ascii_passes_and_is_sent_as_it_is(name: str, text: str) -> None:
    assume(name.strip() and text.strip() and not name.startswith(":"))

    ((sent,),) = requests_of([datum(dimensions=((name, text),))], T)

    assert sent["Dimensions"] == [{"Name": name, "Value": text}]


def test_many_values_travel_in_parts_and_none_is_lost() -> None:
    values = tuple(float(i) for i in range(1, 401))
    parts = list(accepted([datum(values=values, counts=(2.0,) * 400)], T))

    assert [len(part.values) for part in parts] == [MAX_VALUES, MAX_VALUES, 100]
    assert [value for part in parts for value in part.values] == list(values)


@given(
    st.lists(st.floats(1e-4, 1e3), min_size=2, max_size=30, unique=True),
    st.lists(st.integers(0, 50), min_size=31, max_size=31),
)
def test_a_distribution_keeps_the_count_whatever_the_buckets(
    bounds: list[float], inside: list[int]
) -> None:
    ends = (*sorted(bounds), math.inf)
    counts = tuple(float(sum(inside[: i + 1])) for i in range(len(ends)))
    values, weights = distribution(Histogram(ends, counts, 0.0))

    assert sum(weights) == counts[-1]
    assert len(set(values)) == len(values)
    assert all(math.isfinite(value) for value in values)


def test_requests_are_valid_by_botocores_model_and_within_the_limits() -> None:
    model = botocore.session.get_session().get_service_model("cloudwatch")
    shape = model.operation_model("PutMetricData").input_shape
    many = [datum(values=(float(i),)) for i in range(2500)] + data(THRASH)
    requests = list(requests_of(many, T))

    assert [len(request) for request in requests] == [1000, 1000, len(requests[2])]
    for request in requests:
        report = ParamValidator().validate({"Namespace": "vLLM", "MetricData": request}, shape)
        assert not report.has_errors(), report.generate_report()
        assert len(json.dumps(request)) <= 1_000_000


def test_a_request_is_never_larger_than_a_megabyte() -> None:
    wide = datum(
        dimensions=(("Model", "m" * 1000),),
        values=tuple(i / 7 for i in range(1, 151)),
        counts=(1.0,) * 150,
    )
    requests = list(requests_of([wide] * 900, T))

    assert len(requests) > 1
    assert sum(map(len, requests)) == 900
    assert all(len(json.dumps(request)) <= 1_000_000 for request in requests)


def test_emf_lines_are_pure_json_with_all_that_they_promise() -> None:
    lines = [json.loads(line) for line in lines_of("vLLM", data(THRASH), T)]
    named = set()
    for line in lines:
        (directive,) = line["_aws"]["CloudWatchMetrics"]
        assert line["_aws"]["Timestamp"] == T * 1000
        assert directive["Namespace"] == "vLLM"
        for metric in directive["Metrics"]:
            assert metric["Name"] in line
            named.add(metric["Name"])
        for dimension in directive["Dimensions"][0]:
            assert isinstance(line[dimension], str)

    assert named == {found.metric for found in data(THRASH)}


def test_an_emf_line_names_a_metric_once_and_stays_below_256_kb() -> None:
    values = tuple(i / 7 for i in range(1, 151))
    parts = [datum(metric=f"M{'a' * n}", values=values, counts=(1.0,) * 150) for n in range(120)]
    lines = list(lines_of("vLLM", [*parts, parts[0]], T))

    assert all(len(line) <= 256_000 for line in lines)
    read = [json.loads(line) for line in lines]
    counted = [len(line["_aws"]["CloudWatchMetrics"][0]["Metrics"]) for line in read]
    # 150 values are two arrays
    assert sum(counted) == 2 * 121
    assert max(counted) <= 100
    arrays = [one["Values"] for line in read for one in line.values() if "Values" in one]
    assert max(map(len, arrays)) <= 100


def test_the_spool_survives_a_restart_with_everything_that_waits(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10)
    spool.add(T, data(THRASH))
    spool.add(T + 60, [datum(statistics=Statistics(1, 2, 3, 4), values=(), counts=())])
    spool.keep_pages({"chat-0": THRASH[-1]})
    again = Spool(tmp_path, 10)

    assert list(again.waiting()) == list(spool.waiting())
    assert again.kept_pages() == {"chat-0": THRASH[-1]}
    again.remove(T)
    assert [t for t, _ in Spool(tmp_path, 10).waiting()] == [T + 60]


def test_an_interval_that_is_added_to_keeps_what_waits_of_it(tmp_path: Path) -> None:
    Spool(tmp_path, 10).add(T, [datum()])
    Spool(tmp_path, 10).add(T, [datum(metric="RequestsRunning")])
    ((_, waiting),) = Spool(tmp_path, 10).waiting()

    assert [found.metric for found in waiting] == ["RequestsWaiting", "RequestsRunning"]


def test_a_full_spool_lets_the_oldest_go_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, 2)
    for minute in range(3):
        spool.add(T + 60 * minute, [datum()])

    assert [t for t, _ in spool.waiting()] == [T + 60, T + 120]
    assert len(list(tmp_path.glob("interval-*.json"))) == 2
    assert spool.lost == 1
    assert "is lost" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"metric": "X"}]'])
def test_a_broken_file_in_the_spool_is_left_alone_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    broken = tmp_path / "interval-0000000001.000.json"
    broken.write_text(text)
    (tmp_path / "pages.json").write_text(text)
    spool = Spool(tmp_path, 10)

    assert list(spool.waiting()) == []
    assert spool.kept_pages() == {}
    assert broken.exists()
    assert "left alone" in caplog.text
