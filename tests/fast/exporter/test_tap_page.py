"""The tap's page: what is written is what is read, whatever happens in between."""

from __future__ import annotations

import json
import math
import stat
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tap.fakes import (
    FACTS,
    FakeClock,
    fake_finished,
    fake_identity,
    fake_iteration,
    fake_scheduler,
)
from tap.stress import stress

from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.page import BadTapPage, TapPage, parse, read_tap_page
from vllm_opsctl.exporter.tap.writer import PageWriter

WIDTH = 0.022
"""The promised relative width of a bucket."""

T0 = 1_800_000_000.0


def page_writer(folder: Path, clock: FakeClock | None = None) -> PageWriter:
    clock = clock or FakeClock(T0)
    return PageWriter(folder, fake_identity(started=T0 - 1000), FACTS, now=clock, monotonic=clock)


def written(writer: PageWriter) -> TapPage:
    return read_tap_page(writer.path)


@given(st.floats(min_value=2.0**-13, max_value=2047.0))
def test_a_bucket_holds_its_values_and_is_at_most_two_per_cent_wide(value: float) -> None:
    index = layout.SECONDS.index(value)
    lower, upper = layout.SECONDS.lower(index), layout.SECONDS.upper(index)

    assert lower <= value < upper
    assert (upper - lower) / lower <= WIDTH


@given(st.integers(min_value=1, max_value=2**20 - 1))
@example(63)
@example(64)
def test_token_counts_below_64_have_a_bucket_each(tokens: int) -> None:
    index = layout.TOKENS.index(tokens)
    lower, upper = layout.TOKENS.lower(index), layout.TOKENS.upper(index)

    assert lower <= tokens < upper
    if tokens < 64:
        assert not lower <= tokens - 1
        assert not tokens + 1 < upper


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, 1e-9])
def test_what_is_too_small_shares_the_first_bucket(value: float) -> None:
    assert layout.SECONDS.index(value) == 0


def test_what_is_too_large_shares_the_last_bucket() -> None:
    assert layout.SECONDS.index(1e9) == layout.SECONDS.buckets - 1
    assert layout.SECONDS.upper(layout.SECONDS.buckets - 1) == math.inf


@given(st.lists(st.floats(min_value=0.001, max_value=900.0), min_size=1, max_size=200))
def test_quantiles_lie_within_a_buckets_width_of_the_exact_ones(values: list[float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = page_writer(Path(folder))
        writer.record(fake_scheduler(), fake_iteration(ttft=values), None)
        histogram = written(writer).histograms["ttft"]

    assert histogram.count == len(values)
    assert histogram.sum == pytest.approx(sum(values))
    assert histogram.largest == max(values)
    for q in (0.01, 0.5, 0.9, 0.99, 1.0):
        exact = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
        assert histogram.quantile(q) == pytest.approx(exact, rel=WIDTH)


def test_counters_gauges_facts_and_adapters_are_read_as_they_were_written(tmp_path: Path) -> None:
    writer = page_writer(tmp_path)
    scheduler = fake_scheduler(running=3, waiting=2, kv=0.25, queries=100, hits=60)
    scheduler.num_skipped_waiting_reqs = 1
    scheduler.running_lora_adapters = {"shop": 2, "größe": 1}
    scheduler.waiting_lora_adapters = {"shop": 1, "größe": 0}
    done = [fake_finished("stop", cached=32), fake_finished("length"), fake_finished("new-reason")]

    writer.record(
        scheduler, fake_iteration(ttft=[0.2], itl=[0.02, 0.02], finished=done, preempted=1), None
    )
    page = written(writer)

    assert page.facts == FACTS
    assert page.gauges["running"] == 3
    assert (page.gauges["waiting"], page.gauges["deferred"]) == (2, 1)
    assert page.gauges["kv_cache_usage"] == 0.25
    assert (page.counters["prefix_queries"], page.counters["prefix_hits"]) == (100, 60)
    assert page.counters["preemptions"] == 1
    assert page.counters["finished_stop"] == page.counters["finished_length"] == 1
    assert page.counters["finished_other"] == 1
    assert page.counters["generation_tokens"] == 3
    assert page.adapters == {"shop": (2, 1), "größe": (1, 0)}
    assert (page.histograms["ttft_hit"].count, page.histograms["ttft_miss"].count) == (1, 2)
    assert page.histograms["ttft_hit"].quantile(0.5) == pytest.approx(0.11, rel=WIDTH)


def test_adapters_that_are_gone_leave_the_page(tmp_path: Path) -> None:
    writer = page_writer(tmp_path)
    scheduler = fake_scheduler()
    scheduler.running_lora_adapters = {"shop": 1}
    writer.record(scheduler, None, None)
    writer.record(fake_scheduler(), None, None)

    assert written(writer).adapters == {}


def test_impossible_times_are_corrected_and_counted(tmp_path: Path) -> None:
    """vLLM subtracts time stamps of which one may be 0 (vllm-project/vllm issue 49135)."""
    writer = page_writer(tmp_path)
    writer.record(fake_scheduler(), fake_iteration(ttft=[-0.1, 1e9, math.nan, math.inf, 0.2]), None)
    page = written(writer)

    assert page.histograms["ttft"].count == 2
    assert page.histograms["ttft"].sum == pytest.approx(0.2)
    assert page.counters["corrected_times"] == 4


def test_a_second_keeps_sums_and_peaks(tmp_path: Path) -> None:
    clock = FakeClock(T0)
    writer = page_writer(tmp_path, clock)
    for running, waiting, kv in ((4, 0, 0.2), (16, 7, 0.9), (2, 1, 0.1)):
        writer.record(
            fake_scheduler(running, waiting, kv), fake_iteration(ttft=[0.1], itl=[0.02]), None
        )
        clock.t += 0.2
    (slot,) = written(writer).slots

    assert (slot["running"], slot["running_max"]) == (2, 16)
    assert (slot["waiting"], slot["waiting_max"]) == (1, 7)
    assert slot["kv_cache_usage_max"] == pytest.approx(0.9)
    assert (slot["ttft"], slot["itl"], slot["generation_tokens"]) == (3, 3, 6)
    assert slot["ttft_sum"] == pytest.approx(0.3)


def test_the_ring_holds_a_quarter_of_an_hour(tmp_path: Path) -> None:
    clock = FakeClock(T0)
    writer = page_writer(tmp_path, clock)
    for _ in range(1000):
        writer.record(fake_scheduler(1), None, None)
        clock.t += 1.0
    seconds = [slot["second"] for slot in written(writer).slots]

    assert seconds == list(range(int(T0) + 100, int(T0) + 1000))


def test_seconds_of_an_earlier_round_are_not_shown_after_idling(tmp_path: Path) -> None:
    clock = FakeClock(T0)
    writer = page_writer(tmp_path, clock)
    for pause in (1.0, 5000.0, 0.0):
        writer.record(fake_scheduler(1), None, None)
        clock.t += pause

    assert [slot["second"] for slot in written(writer).slots] == [int(T0) + 5001]


def test_a_clock_that_goes_back_loses_nothing(tmp_path: Path) -> None:
    clock = FakeClock(T0)
    writer = page_writer(tmp_path, clock)
    for step in (0.0, 10.0, -20.0):
        clock.t += step
        writer.record(fake_scheduler(1), fake_iteration(ttft=[0.1]), None)
    page = written(writer)

    assert page.counters["steps"] == 3
    assert [slot["ttft"] for slot in page.slots] == [1, 2]


def test_the_file_has_one_size_and_is_for_owner_and_group(tmp_path: Path) -> None:
    writer = page_writer(tmp_path / "pages")
    for number in range(2000):
        scheduler = fake_scheduler(number)
        scheduler.running_lora_adapters = {f"adapter-{number % 500}": 1}
        writer.record(scheduler, fake_iteration(itl=[0.001 * number]), None)
    found = writer.path.stat()

    assert found.st_size == layout.PAGE_SIZE == 256 * 1024
    assert found.st_blocks * 512 >= layout.PAGE_SIZE, "space is reserved before it is written to"
    assert stat.S_IMODE(found.st_mode) & 0o137 == 0
    assert [file.name for file in writer.path.parent.iterdir()] == [writer.path.name]


def test_a_page_of_a_newer_writer_is_read_as_far_as_it_is_understood(tmp_path: Path) -> None:
    """The directory on the page says what stands where: names may come, and may move."""
    writer = page_writer(tmp_path)
    writer.record(fake_scheduler(5), fake_iteration(ttft=[0.1]), None)
    where = layout.directory()
    names = list(where["counters"]["names"])
    names[names.index("mm_hits")] = "something_new"
    where["counters"]["names"] = names
    where["scales"]["bytes"] = {"lowest_exponent": 0, "octaves": 2, "subdivisions": 99}
    where["histograms"]["sizes"] = {"offset": 0, "scale": "bytes"}
    text = json.dumps(where).encode()
    raw = bytearray(writer.path.read_bytes())
    raw[layout.DIRECTORY_OFFSET : layout.DIRECTORY_OFFSET + len(text)] = text
    struct.pack_into("<I", raw, layout.HEADER_OFFSETS["directory_size"], len(text))
    newer = tmp_path / "newer.tap"
    newer.write_bytes(raw)
    page = read_tap_page(newer)

    assert page.gauges["running"] == 5
    assert "something_new" in page.counters
    assert "mm_hits" not in page.counters
    assert "sizes" not in page.histograms


def test_a_counter_that_this_vllm_does_not_tell_is_no_zero(tmp_path: Path) -> None:
    """Before the first step all are 0, which they are; a page of a writer before this says nothing."""
    writer = page_writer(tmp_path)
    assert written(writer).counters["preemptions"] == 0
    iteration = fake_iteration(ttft=[0.1])
    del iteration.num_preempted_reqs
    writer.record(fake_scheduler(5), iteration, None)
    page = written(writer)

    assert set(layout.COUNTERS) - page.counters.keys() == {"preemptions"}
    raw = bytearray(writer.path.read_bytes())
    struct.pack_into("<Q", raw, layout.HEADER_OFFSETS["untold"], 0)
    assert parse(bytes(raw), writer.path, alive=True, torn=False).counters["preemptions"] == 0


@pytest.mark.parametrize("junk", [b"{" * 4000, b"\xff" * 4000, b"{}"])
def test_what_is_damaged_is_said_in_a_line(tmp_path: Path, junk: bytes) -> None:
    raw = bytearray(page_writer(tmp_path).path.read_bytes())
    raw[layout.DIRECTORY_OFFSET : layout.DIRECTORY_OFFSET + len(junk)] = junk
    struct.pack_into("<I", raw, layout.HEADER_OFFSETS["directory_size"], len(junk))

    with pytest.raises(
        BadTapPage, match=r"damaged \((JSONDecode|UnicodeDecode|Key)Error: "
    ) as caught:
        parse(bytes(raw), tmp_path, alive=False, torn=False)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_another_layout_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    raw = bytearray(page_writer(tmp_path).path.read_bytes())
    struct.pack_into("<I", raw, layout.HEADER_OFFSETS["version"], 2)
    (tmp_path / "other.tap").write_bytes(raw)

    with pytest.raises(BadTapPage, match="layout version 2; this opsctl reads 1: bring both"):
        read_tap_page(tmp_path / "other.tap")


@pytest.mark.parametrize("size", [0, 7, 64, 200, 8192, layout.PAGE_SIZE - 1])
def test_a_cut_off_page_is_refused(tmp_path: Path, size: int) -> None:
    raw = page_writer(tmp_path).path.read_bytes()
    (tmp_path / "cut.tap").write_bytes(raw[:size])

    with pytest.raises(BadTapPage):
        read_tap_page(tmp_path / "cut.tap")


@given(st.integers(min_value=128, max_value=12000), st.binary(min_size=1, max_size=64))
def test_garbage_on_a_page_is_refused_or_read_but_never_a_fault(at: int, junk: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        raw = bytearray(page_writer(Path(folder)).path.read_bytes())
        raw[at : at + len(junk)] = junk
        file = Path(folder) / "junk.tap"
        file.write_bytes(raw)
        try:
            read_tap_page(file)
        except BadTapPage:
            return


def test_readers_beside_a_writer_at_full_speed_never_see_a_torn_page() -> None:
    """`python tests/tap/stress.py` does the same with millions of reads."""
    found = stress(readers=4, reads=5000)

    assert sum(result["reads"] for result in found) == 20_000
    assert sum(result["torn"] for result in found) == 0
    assert sum(result["torn_without_the_lock"] for result in found) > 0, "the check cannot fail"
