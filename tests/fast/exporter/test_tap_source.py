"""The tap source: pages of one server become metrics pages, now and for the seconds before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tap.fakes import (
    FACTS,
    FakeClock,
    fake_finished,
    fake_identity,
    fake_iteration,
    fake_scheduler,
)

from vllm_opsctl.errors import UsageError
from vllm_opsctl.exporter.config import TAP_ONLY, Objective, Target
from vllm_opsctl.exporter.engine import EngineSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.sources.reader import TargetReader
from vllm_opsctl.exporter.sources.tap import (
    TapFolder,
    TapServer,
    read_folder,
)
from vllm_opsctl.exporter.sources.tap_text import Bounds, merged
from vllm_opsctl.exporter.tap.writer import PageWriter

T0 = 1_800_000_000.0
BOUNDS = Bounds([Objective(name="ttft", sli="time_to_first_token", threshold=0.18, target=0.95)])


class Writers:
    """
    Pages that are written in the test itself, with a clock of its own.

    A process does not see its own locks, so these servers read as dead ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FakeClock(T0)
        self.open: list[PageWriter] = []

    def add(self, pid: int = 101, *, engine: int = 0, rank: int = 0, count: int = 1) -> PageWriter:
        identity = fake_identity(pid, engine=engine, rank=rank, count=count, started=T0 - 9999)
        writer = PageWriter(self.folder, identity, FACTS, now=self.clock, monotonic=self.clock)
        self.open.append(writer)
        return writer

    def server(self) -> TapServer:
        (server,) = TapFolder(self.folder, BOUNDS).servers()
        return server

    def sample(self, since: float = 0.0) -> EngineSample:
        text = self.server().text(BOUNDS, since)
        page = read_page(text, t=self.clock.t, target="chat")
        assert page.problems == ()
        (sample,) = page.engines
        return sample

    def history(self) -> list[EngineSample]:
        observations = self.server().history("chat", BOUNDS, start=0, full_from=0, step_s=1)
        return [sample_of(o) for o in observations if o.kind == "metrics"]


def sample_of(observation: Observation) -> EngineSample:
    page = read_page(observation.text, t=observation.t, target="chat")
    assert page.problems == ()
    return page.engines[0]


@pytest.fixture
def writers(tmp_path: Path) -> Writers:
    return Writers(tmp_path)


def test_a_page_reads_as_vllm_would_have_served_it(writers: Writers) -> None:
    writers.add().record(
        fake_scheduler(3, 2, 0.5, queries=64, hits=16),
        fake_iteration(
            ttft=[0.17, 0.19], itl=[0.02] * 3, prompt=64, finished=[fake_finished(cached=16)]
        ),
        None,
    )
    sample = writers.sample()

    assert sample.key == ("fake-llama", "0")
    assert sample.gauges["requests_running"] == 3
    assert sample.gauges["requests_waiting"] == 2
    assert sample.gauges["requests_running_recent_peak"] == 3
    assert sample.counters["prefix_cache_hit_tokens"] == 16
    assert sample.counters["requests_finished{stop}"] == 1
    assert sample.histograms["time_to_first_token_cached_seconds"].count == 1
    assert sample.histograms["request_inference_seconds"].sum == pytest.approx(1.1)
    assert sample.facts["num_gpu_blocks"] == "512"


@given(st.lists(st.floats(min_value=0.15, max_value=0.21), min_size=1, max_size=60))
@settings(max_examples=25)
def test_an_objectives_threshold_is_a_bound_and_is_never_flattered(values: list[float]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        writers = Writers(Path(folder))
        writers.add().record(fake_scheduler(), fake_iteration(ttft=values), None)
        good = writers.sample().histograms["time_to_first_token_seconds"].at_or_below(0.18)

    assert good is not None
    assert good <= sum(value <= 0.18 for value in values)
    assert good >= sum(value <= 0.18 / 1.022 for value in values)


def test_an_engine_that_stands_still_peaks_where_it_stands(writers: Writers) -> None:
    """A frozen engine writes no seconds any more, and still holds its requests and blocks."""
    writer = writers.add()
    writer.record(fake_scheduler(8, 3, 0.875), fake_iteration(ttft=[0.1] * 8), None)
    writers.clock.t += 60
    writer.touch()
    gauges = writers.sample(since=T0 + 30).gauges

    assert {name: value for name, value in gauges.items() if name.endswith("_recent_peak")} == {
        "requests_running_recent_peak": 8,
        "requests_waiting_recent_peak": 3,
        "kv_cache_usage_recent_peak": 0.875,
    }


def test_what_a_release_does_not_tell_is_missing_now_and_in_the_past(writers: Writers) -> None:
    """0.12.0 defers no requests apart; nothing may read as an empty KV cache or as no preemption."""
    writer = writers.add()
    stats = SimpleNamespace(num_running_reqs=8, num_waiting_reqs=3)
    step = SimpleNamespace(
        num_prompt_tokens=10, num_generation_tokens=1, time_to_first_tokens_iter=[0.1]
    )
    for _ in range(3):
        writers.clock.t += 1.0
        writer.record(stats, step, None)
    now, past = writers.sample(), writers.history()

    gone = {"kv_cache_usage_ratio", "kv_cache_usage_recent_peak"}
    assert not gone & now.gauges.keys()
    assert not any("by_reason" in name for name in now.gauges)
    assert (
        not {"preemptions", "corrupted_requests", "prefix_cache_hit_tokens"} & now.counters.keys()
    )
    assert now.counters["prompt_tokens"] == 30
    assert {frozenset(sample.gauges) for sample in past} == {frozenset(now.gauges)}
    assert {frozenset(sample.counters) for sample in past} == {frozenset(now.counters)}
    assert {sample.gauges["requests_waiting"] for sample in past} == {3}


def test_api_processes_of_one_server_are_added_up(writers: Writers) -> None:
    """Each step's scheduler statistics reach one of them; that one knows how things stand."""
    first, second = writers.add(101, rank=0, count=2), writers.add(102, rank=1, count=2)
    first.record(fake_scheduler(9, 9, 0.9), fake_iteration(ttft=[0.1, 0.3]), None)
    writers.clock.t += 0.1
    second.record(fake_scheduler(2, 1, 0.2), fake_iteration(ttft=[0.2]), None)
    writers.clock.t += 0.1
    first.record(None, fake_iteration(itl=[0.02]), None)
    sample = writers.sample()

    assert sample.gauges["requests_running"] == 2
    assert sample.gauges["requests_running_recent_peak"] == 9
    assert sample.histograms["time_to_first_token_seconds"].count == 3
    assert sample.steps == 3


def test_engines_of_a_server_stand_on_one_page(writers: Writers) -> None:
    for engine in (0, 1):
        writers.add(engine=engine).record(fake_scheduler(engine + 1), None, None)
    page = read_page(writers.server().text(BOUNDS, 0.0), t=T0, target="chat")

    assert [(e.key.engine, e.gauges["requests_running"]) for e in page.engines] == [
        ("0", 1),
        ("1", 2),
    ]


STEP = st.tuples(
    st.floats(min_value=0.05, max_value=3.0),
    st.integers(min_value=0, max_value=5),
    st.floats(min_value=0.001, max_value=20.0),
    st.integers(min_value=0, max_value=2),
)


@given(st.lists(STEP, min_size=3, max_size=40))
@settings(max_examples=40)
def test_the_past_grows_into_the_present(steps: list[tuple[float, int, float, int]]) -> None:
    """No counter and no bucket of an earlier second is larger than that of a later one."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        writers = Writers(Path(folder))
        writer = writers.add()
        for pause, tokens, latency, done in steps:
            writers.clock.t += pause
            writer.record(
                fake_scheduler(tokens, done, 0.1, queries=tokens, hits=done),
                fake_iteration(
                    ttft=[latency] * done,
                    itl=[latency / 10] * tokens,
                    finished=[fake_finished(decode=latency)] * done,
                    prompt=done * 64,
                ),
                None,
            )
        past, now = writers.history(), writers.sample()

    for earlier, later in zip([*past], [*past[1:], now], strict=True):
        for key, value in earlier.counters.items():
            assert value <= later.counters[key], key
        for key, histogram in earlier.histograms.items():
            assert later.histograms[key].minus(histogram) is not None, key
    for second in past[-1:]:
        assert second.counters["generation_tokens"] <= now.counters["generation_tokens"]


def test_every_second_of_the_past_has_its_own_numbers(writers: Writers) -> None:
    writer = writers.add()
    for second in range(10):
        writers.clock.t = T0 + second + 0.5
        writer.record(
            fake_scheduler(second, 0, second / 10), fake_iteration(ttft=[0.1 * (second + 1)]), None
        )
    writers.clock.t += 2.0
    writer.touch()
    past = writers.history()

    assert [s.t - T0 for s in past] == [*range(1, 12), 11.5]
    assert [s.gauges["requests_running"] for s in past] == [*range(10), 9, 9]
    first_tokens = [s.histograms["time_to_first_token_seconds"] for s in past]
    assert [h.count for h in first_tokens] == [*range(1, 11), 10, 10]
    grown = first_tokens[5].minus(first_tokens[4])
    assert grown is not None
    assert grown.sum == pytest.approx(0.6)


def test_an_engine_that_idles_has_a_quarter_of_an_hour_of_past_and_no_more(
    writers: Writers,
) -> None:
    writer = writers.add()
    writer.record(fake_scheduler(1), fake_iteration(ttft=[0.1]), None)
    writer.record(fake_scheduler(0), fake_iteration(itl=[0.1]), None)
    writers.clock.t += 36_000
    writer.touch()
    past = writers.history()

    assert len(past) == 900
    assert {s.gauges["requests_running"] for s in past} == {0}
    assert {s.counters["generation_tokens"] for s in past} == {2}


def test_what_clients_hung_up_on_is_estimated_and_never_too_much(writers: Writers) -> None:
    writer = writers.add()
    truth = 0
    for running, started, finished, hung_up in (
        (3, 3, 0, 0),
        (2, 0, 0, 1),
        (4, 2, 0, 0),
        (2, 0, 1, 1),
        (0, 0, 2, 0),
    ):
        truth += hung_up
        writers.clock.t += 1.0
        done = [fake_finished()] * finished
        writer.record(
            fake_scheduler(running), fake_iteration(ttft=[0.1] * started, finished=done), None
        )
        assert writers.sample().gauges["requests_hung_up_estimate"] <= truth

    assert writers.sample().gauges["requests_hung_up_estimate"] == truth == 2


def test_preempted_requests_have_not_hung_up(writers: Writers) -> None:
    writer = writers.add()
    writer.record(fake_scheduler(4), fake_iteration(ttft=[0.1] * 4), None)
    writers.clock.t += 1.0
    writer.record(fake_scheduler(1, 3), fake_iteration(preempted=3), None)

    assert writers.sample().gauges["requests_hung_up_estimate"] == 0


def test_the_servers_own_page_adds_what_the_tap_does_not_know(writers: Writers) -> None:
    writers.add().record(fake_scheduler(3), fake_iteration(ttft=[0.1]), None)
    served = (
        "# TYPE vllm:num_requests_running gauge\n"
        'vllm:num_requests_running{engine="0",model_name="fake-llama"} 99.0\n'
        'vllm:num_requests_running{engine="1",model_name="fake-llama"} 5.0\n'
        'vllm:nixl_num_failed_transfers_total{engine="0",model_name="fake-llama"} 7.0\n'
        "process_start_time_seconds 1.5\n"
        "process_open_fds 40.0\n"
    )
    page = read_page(merged(writers.server().text(BOUNDS, 0.0), served), t=T0, target="chat")
    tapped, other = page.engines

    assert page.problems == ()
    assert tapped.gauges["requests_running"] == 3
    assert other.gauges["requests_running"] == 5
    assert tapped.counters["kv_transfer_failures"] == 7
    assert tapped.gauges["process_open_fds"] == 40
    assert tapped.gauges["process_start_time_seconds"] == 1.5


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_a_folder_without_pages_is_a_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="OPSCTL_TAP"):
        read_folder(TapFolder(tmp_path / name, BOUNDS), [], full_s=60, step_s=10)


def test_what_is_no_page_is_left_out_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "junk.tap").write_bytes(b"junk")
    folder = TapFolder(tmp_path, BOUNDS)

    assert folder.servers() == folder.servers() == []
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "no tap page; left out"
    ]


def test_a_dead_engines_page_goes_when_it_was_read_long_enough_ago(writers: Writers) -> None:
    writers.add().record(fake_scheduler(1), fake_iteration(ttft=[0.1]), None)
    folder, clock = TapFolder(writers.folder, BOUNDS), FakeClock(T0 + 6600.0)
    target = Target(name="fake-llama:8000", url=TAP_ONLY)
    reader = TargetReader(target, scraper=None, folder=folder, clock=clock)

    def is_there(after_s: float) -> bool:
        """The page, where an hour is long enough."""
        clock.t = T0 + 6600.0 + after_s
        reader.read()
        folder.remove_read(folder.servers(), reader.finished, clock.t - 3600.0)
        return bool(folder.servers())

    assert [is_there(after_s) for after_s in (0.0, 3599.0, 3601.0)] == [True, True, False]


def test_what_a_writer_left_unfinished_goes_when_it_is_old(tmp_path: Path) -> None:
    (tmp_path / ".1-2.0.0.tap.new").write_bytes(b"")
    folder = TapFolder(tmp_path, BOUNDS)
    folder.remove_unfinished(before=T0 - 1e9)
    assert len(list(tmp_path.iterdir())) == 1

    folder.remove_unfinished(before=T0 * 2)
    assert list(tmp_path.iterdir()) == []
