"""
Whatever vLLM passes to the tap, nothing gets out of it.

An exception out of a stat logger ends the whole server. So the first error ends the tap instead:
one line in the log, a page that says so and keeps the numbers from before, and silence after that.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import errno
import importlib
import logging
import math
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tap.fakes import fake_finished, fake_iteration, fake_scheduler

from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.page import TapPage, read_tap_page

PLUGIN = "vllm_opsctl.exporter.tap.plugin"
LOGGERS = "vllm.v1.metrics.loggers"


class FakeAggregateStatLoggerBase:
    """vLLM's base class has abstract methods only."""


class FakeStats:
    """
    A statistics object whose attributes are whatever a test says; an exception is raised.

    Args:
        attributes: By name; others raise AttributeError.
    """

    def __init__(self, **attributes: object) -> None:
        self._attributes = attributes

    def __getattr__(self, name: str) -> object:
        try:
            value = self._attributes[name]
        except KeyError:
            raise AttributeError(name) from None
        if isinstance(value, BaseException):
            raise value
        return value


class FakeNumber:
    """A number until it is stored."""

    def __init__(self) -> None:
        self._asked = 0

    def __float__(self) -> float:
        self._asked += 1
        if self._asked > 1:
            raise TypeError("not a number after all")
        return 1.0

    def __ge__(self, other: object) -> bool:
        return True

    __le__ = __gt__ = __ge__

    def __lt__(self, other: object) -> bool:
        return False

    def __mul__(self, other: object) -> FakeNumber:
        return self

    __radd__ = __add__ = __mul__


class Lines(logging.Handler):
    """The lines that the tap logs."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it; what cannot be formatted fails here, where vLLM would print a traceback."""
        record.getMessage()
        self.records.append(record)

    def at(self, level: int) -> list[str]:
        """Messages of a level."""
        return [record.getMessage() for record in self.records if record.levelno == level]


@pytest.fixture(scope="module")
def plugin() -> Iterator[Any]:
    """The plugin's module, with a fake of what it imports from vLLM."""
    names = ["vllm", "vllm.v1", "vllm.v1.metrics", LOGGERS]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, ModuleType(name))
        patch.setattr(sys.modules["vllm"], "__version__", "0.0.fake", raising=False)
        patch.setattr(
            sys.modules[LOGGERS],
            "AggregateStatLoggerBase",
            FakeAggregateStatLoggerBase,
            raising=False,
        )
        patch.delitem(sys.modules, PLUGIN, raising=False)
        yield importlib.import_module(PLUGIN)
        sys.modules.pop(PLUGIN, None)


def config(**attributes: object) -> Any:
    """VllmConfig, as far as the tap reads it."""
    return FakeStats(
        **{
            "model_config": SimpleNamespace(served_model_name=["fake-llama"], max_model_len=4096),
            "parallel_config": SimpleNamespace(),
            "cache_config": SimpleNamespace(metrics_info=lambda: {"block_size": "16"}),
            **attributes,
        }
    )


@contextlib.contextmanager
def loaded(
    plugin: Any, where: Path | str, *, engines: Any = (0,), of: Any = None
) -> Iterator[tuple[Any, Lines]]:
    """The tap as vLLM makes it, and what it logs."""
    lines = Lines()
    plugin.log.addHandler(lines)
    level, plugin.log.propagate = plugin.log.level, False
    plugin.log.setLevel(logging.DEBUG)
    pages: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPSCTL_TAP", str(where))
        try:
            tap = plugin.Tap(vllm_config=of or config(), engine_indexes=engines)
            pages = list(tap._pages.values())
            yield tap, lines
        finally:
            # it holds its files for as long as the process lives: here that is many examples
            atexit.unregister(tap._close)
            for page in pages:
                os.close(page._fd)
            plugin.log.removeHandler(lines)
            plugin.log.setLevel(level)
            plugin.log.propagate = True


def page_in(folder: Path, engine: int = 0) -> TapPage:
    (file,) = folder.glob(f"*.{engine}{layout.SUFFIX}")
    return read_tap_page(file)


def good_step(tap: Any, engine: int = 0) -> None:
    tap.record(
        scheduler_stats=fake_scheduler(3, 1, 0.25, queries=64, hits=32),
        iteration_stats=fake_iteration(
            ttft=[0.2], itl=[0.02], finished=[fake_finished()], prompt=9
        ),
        mm_cache_stats=None,
        engine_idx=engine,
    )


def numbers(page: TapPage) -> Any:
    """Everything that was counted."""
    return page.counters, page.gauges, page.histograms, page.adapters, page.slots


def assert_it_goes_on_or_gave_up_in_order(folder: Path, lines: Lines, before: TapPage) -> bool:
    """
    A page is live and nothing is logged, or it has given up as promised.

    Args:
        before: The page before what may have been an error.

    Returns:
        It gave up.
    """
    page = page_in(folder)
    assert page.path.stat().st_size == 262_144
    assert page.header["sequence"] % 2 == 0
    assert not page.torn
    errors = lines.at(logging.ERROR)
    if page.state == layout.LIVE:
        assert errors == []
        return False
    assert page.state == layout.GAVE_UP
    assert len(errors) == 1
    assert "\n" not in errors[0]
    assert errors[0].startswith("opsctl tap: off after an error, the server is not affected: ")
    assert numbers(page) == numbers(before)
    return True


def provoke(plugin: Any, folder: Path, act: Callable[[Any], None]) -> bool:
    """
    A good step, then what a test does, then more steps that must change nothing after an error.

    Returns:
        The tap gave up.
    """
    with loaded(plugin, folder) as (tap, lines):
        good_step(tap)
        before = page_in(folder)
        act(tap)
        gave_up = assert_it_goes_on_or_gave_up_in_order(folder, lines, before)
        if gave_up:
            end = page_in(folder).path.read_bytes()
            good_step(tap)
            tap.record_sleep_state(1, 1)
            tap.record_admission_rejection("max_num_queued_reqs")
            tap.log_engine_initialized()
            tap.log()
            tap._close()
            assert page_in(folder).path.read_bytes() == end
            assert len(lines.at(logging.ERROR)) == 1
        return gave_up


def step_of(scheduler: Any = None, iteration: Any = None, mm: Any = None) -> Callable[[Any], None]:
    return lambda tap: tap.record(scheduler, iteration, mm_cache_stats=mm, engine_idx=0)


# -- steps that no release would pass ------------------------------------------------------------


class Unprintable(Exception):
    """An error that cannot even be told."""

    def __str__(self) -> str:
        raise ValueError("no text")


FATAL: dict[str, Callable[[Any], None]] = {
    "a property raises": step_of(FakeStats(num_running_reqs=ValueError("not now"))),
    "a property raises in the middle": step_of(
        fake_scheduler(9),
        FakeStats(num_generation_tokens=5, num_prompt_tokens=7, finished_requests=OSError("gone")),
    ),
    "a property recurses": step_of(FakeStats(kv_cache_usage=RecursionError("deep"))),
    "no memory": step_of(FakeStats(kv_cache_usage=MemoryError())),
    "an error of several lines": step_of(FakeStats(kv_cache_usage=ValueError("one\ntwo\r\nthree"))),
    "an error without text": step_of(FakeStats(kv_cache_usage=Unprintable())),
    "a text for a number": step_of(FakeStats(num_running_reqs="3")),
    "a list for a number": step_of(FakeStats(num_waiting_reqs=[1])),
    "nothing for a number": step_of(None, FakeStats(num_generation_tokens=None)),
    "more than 64 bits": step_of(None, FakeStats(num_generation_tokens=2**70)),
    "more than 32 bits in a second": step_of(None, FakeStats(num_generation_tokens=2**33)),
    "below 0 in total": step_of(None, FakeStats(num_generation_tokens=-1000)),
    "half a request": step_of(FakeStats(num_running_reqs=1.5)),
    "a count that is not a number": step_of(None, FakeStats(num_prompt_tokens=math.nan)),
    "text among latencies": step_of(None, FakeStats(inter_token_latencies_iter=[0.1, "0.2"])),
    "garbage among latencies": step_of(None, FakeStats(time_to_first_tokens_iter=[{}, None])),
    "latencies that cannot be counted": step_of(
        None, FakeStats(inter_token_latencies_iter=[[], 1])
    ),
    "token counts too large for a float": step_of(
        None,
        FakeStats(finished_requests=[FakeStats(finish_reason="stop", num_prompt_tokens=10**400)]),
    ),
    "finished requests that are none": step_of(None, FakeStats(finished_requests=7)),
    "cache statistics that are none": step_of(FakeStats(prefix_cache_stats="all hits")),
    "multimodal statistics that are none": step_of(mm=FakeStats(queries="two")),
    "adapters that are no mapping": step_of(FakeStats(running_lora_adapters=["a"])),
    "adapters that have no names": step_of(FakeStats(running_lora_adapters={7: 1})),
    "adapters that are counted below 0": step_of(FakeStats(running_lora_adapters={"a": -1})),
    "adapters that are not counted": step_of(FakeStats(running_lora_adapters={"a": "many"})),
    "an engine index that is none": lambda tap: tap.record(None, None, engine_idx=[]),
    "a sleep level that is none": lambda tap: tap.record_sleep_state(1, "deep"),
    "a rejection that is none": lambda tap: tap.record_admission_rejection([]),
}
"""What ends the tap."""


@pytest.mark.parametrize("what", FATAL)
def test_the_first_error_ends_the_tap_and_nothing_else(
    plugin: Any, tmp_path: Path, what: str
) -> None:
    assert provoke(plugin, tmp_path, FATAL[what])


HARMLESS: dict[str, Callable[[Any], None]] = {
    "nothing at all": step_of(),
    "objects without any attribute": step_of(object(), object(), object()),
    "an engine of another process": lambda tap: tap.record(fake_scheduler(99), None, engine_idx=7),
    "an engine index of another type": lambda tap: tap.record(fake_scheduler(), None, None, "0"),
    "gauges that are not told": step_of(
        FakeStats(num_running_reqs=None, num_waiting_reqs=None, kv_cache_usage=None)
    ),
    "times that are not set": step_of(
        None, fake_iteration(ttft=[math.nan, math.inf, -math.inf, -1.0, 1e300, 0.0])
    ),
    "a time too large for a float": step_of(None, fake_iteration(ttft=[10**400])),
    "a finished request of which little is known": step_of(
        None, FakeStats(finished_requests=[FakeStats(finish_reason="stop")])
    ),
    "a reason that is not known": step_of(None, fake_iteration(finished=[fake_finished("bored")])),
    "a request without a reason": step_of(None, FakeStats(finished_requests=[object()])),
    "a text for a rejection's reason": lambda tap: tap.record_admission_rejection("mood"),
    "a lone surrogate in an adapter's name": step_of(
        FakeStats(running_lora_adapters={"shop\ud800": 1})
    ),
    "more hits than there were tokens": step_of(
        None, fake_iteration(finished=[fake_finished(prompt=10, cached=10_000)])
    ),
    "hits below 0, as 0.16.0 to 0.18.0 may say after a preemption": step_of(
        None,
        FakeStats(
            num_prompt_tokens=10,
            prompt_token_stats=FakeStats(
                computed=10, local_cache_hit=-500, external_kv_transfer=500, total=10
            ),
        ),
    ),
    "cached tokens that were not looked up": step_of(
        None, fake_iteration(finished=[fake_finished(cached=-1)])
    ),
}
"""What the tap takes without an error."""


@pytest.mark.parametrize("what", HARMLESS)
def test_what_a_release_may_leave_out_or_add_is_no_error(
    plugin: Any, tmp_path: Path, what: str
) -> None:
    assert not provoke(plugin, tmp_path, HARMLESS[what])


def test_unknown_reasons_are_counted_as_others(plugin: Any, tmp_path: Path) -> None:
    with loaded(plugin, tmp_path) as (tap, _):
        tap.record(None, fake_iteration(finished=[fake_finished("bored"), fake_finished("")]))
        tap.record_admission_rejection("mood")
        page = page_in(tmp_path)

    assert page.counters["finished_other"] == 2
    assert page.counters["rejected_other"] == 1


def test_of_a_thousand_adapters_the_busiest_stay(plugin: Any, tmp_path: Path) -> None:
    counts = {f"adapter-{number:04}": number for number in range(1000)}
    with loaded(plugin, tmp_path) as (tap, lines):
        tap.record(FakeStats(running_lora_adapters=counts, waiting_lora_adapters={}), None)
        page = page_in(tmp_path)

    assert page.adapters == {f"adapter-{n:04}": (n, 0) for n in range(1000 - layout.ADAPTERS, 1000)}
    assert page.counters["adapters_left_out"] == 1000 - layout.ADAPTERS
    assert lines.at(logging.ERROR) == []


@given(st.text(alphabet="aä€😀", min_size=1, max_size=80))
@example("x" * 47 + "ä")
@example("x" * 46 + "€")
@example("x" * 45 + "😀")
def test_a_name_is_never_cut_within_a_character(plugin: Any, name: str) -> None:
    with folder() as path, loaded(plugin, path) as (tap, _):
        tap.record(FakeStats(running_lora_adapters={name: 1}), None)
        (found,) = page_in(path).adapters

    assert name.startswith(found)
    assert len(found.encode()) > min(len(name.encode()), layout.ADAPTER_NAME_BYTES) - 4


# -- anything ------------------------------------------------------------------------------------


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder for one example."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**80), 2**80),
        st.floats(),
        st.text(max_size=60),
        st.binary(max_size=8),
        st.sampled_from([ValueError("x"), AttributeError("x"), KeyError(1), ZeroDivisionError()]),
        st.complex_numbers(),
        st.decimals(),
        st.fractions(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=60), st.integers()), inner, max_size=4),
    ),
    max_leaves=8,
)

PLAUSIBLE = st.one_of(st.integers(0, 100), st.floats(0.0, 10.0), st.lists(st.floats(0.0, 1.0)))


def stats(*names: str, **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects that have any of the names, with plausible values or any."""
    attributes = {name: st.one_of(PLAUSIBLE, VALUES) for name in names} | parts
    some = st.fixed_dictionaries({}, optional=attributes)
    return some.map(lambda found: FakeStats(**found))


CACHE = st.one_of(VALUES, stats("queries", "hits"))
SCHEDULER = stats(
    *("num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs", "kv_cache_usage"),
    *("running_lora_adapters", "waiting_lora_adapters"),
    prefix_cache_stats=CACHE,
    connector_prefix_cache_stats=CACHE,
    spec_decoding_stats=st.one_of(
        VALUES, stats("num_drafts", "num_draft_tokens", "num_accepted_tokens")
    ),
)
FINISHED = stats(
    *("finish_reason", "e2e_latency", "queued_time", "prefill_time", "decode_time"),
    *("mean_time_per_output_token", "num_prompt_tokens", "num_generation_tokens"),
    *("num_cached_tokens", "max_tokens_param"),
)
ITERATION = stats(
    *("num_generation_tokens", "num_prompt_tokens", "num_preempted_reqs", "num_corrupted_reqs"),
    *("time_to_first_tokens_iter", "inter_token_latencies_iter", "n_params_iter"),
    prompt_token_stats=st.one_of(
        VALUES, stats("computed", "local_cache_hit", "external_kv_transfer", "total")
    ),
    finished_requests=st.one_of(VALUES, st.lists(st.one_of(FINISHED, VALUES), max_size=3)),
)


@given(
    scheduler=st.one_of(SCHEDULER, VALUES),
    iteration=st.one_of(ITERATION, VALUES),
    mm=st.one_of(CACHE, VALUES),
    engine=st.one_of(st.just(0), VALUES),
)
def test_no_step_gets_an_exception_out_of_the_tap(
    plugin: Any, scheduler: Any, iteration: Any, mm: Any, engine: Any
) -> None:
    with folder() as path:
        provoke(plugin, path, lambda tap: tap.record(scheduler, iteration, mm, engine))


@given(sleep=VALUES, level=VALUES, reason=VALUES)
def test_no_other_call_gets_an_exception_out_of_the_tap(
    plugin: Any, sleep: Any, level: Any, reason: Any
) -> None:
    with folder() as path:
        provoke(plugin, path, lambda tap: tap.record_sleep_state(sleep, level))
    with folder() as path, loaded(plugin, path) as (tap, lines):
        tap.record_admission_rejection(reason)
        assert len(lines.at(logging.ERROR)) <= 1


CONFIG = stats(
    *("scheduler_config", "lora_config", "speculative_config", "kv_transfer_config"),
    model_config=st.one_of(VALUES, stats("served_model_name", "model", "max_model_len", "dtype")),
    parallel_config=st.one_of(VALUES, stats("_api_process_count", "_api_process_rank")),
    cache_config=st.one_of(VALUES, stats("metrics_info")),
)


@given(of=CONFIG, engines=st.one_of(st.lists(st.integers(-1, 3), max_size=3), VALUES))
def test_no_configuration_gets_an_exception_out_of_the_tap(
    plugin: Any, of: Any, engines: Any
) -> None:
    with folder() as path, loaded(plugin, path, engines=engines, of=of) as (tap, lines):
        good_step(tap)
        tap.log_engine_initialized()

        assert len(lines.at(logging.ERROR)) <= 1
        assert all(
            page.header["sequence"] % 2 == 0
            for page in map(read_tap_page, path.glob(f"*{layout.SUFFIX}"))
        )


def test_an_error_while_the_page_is_written_leaves_a_whole_sequence_too(
    plugin: Any, tmp_path: Path
) -> None:
    """Only an object made for it gets so far; the page may have half of its step."""
    with loaded(plugin, tmp_path) as (tap, lines):
        good_step(tap)
        tap.record(None, FakeStats(time_to_first_tokens_iter=[FakeNumber()]))
        page = page_in(tmp_path)

    assert (page.state, page.torn) == (layout.GAVE_UP, False)
    assert page.histograms["itl"].count == 1
    assert len(lines.at(logging.ERROR)) == 1


def test_an_error_of_one_engine_ends_the_pages_of_all(plugin: Any, tmp_path: Path) -> None:
    """The server's numbers would be wrong without one of them; readers look at vLLM's own page."""
    with loaded(plugin, tmp_path, engines=[0, 1]) as (tap, lines):
        good_step(tap, 0)
        good_step(tap, 1)
        tap.record(FakeStats(num_running_reqs="3"), None, engine_idx=1)

        assert [page_in(tmp_path, engine).state for engine in (0, 1)] == [layout.GAVE_UP] * 2
        assert [page_in(tmp_path, engine).counters["steps"] for engine in (0, 1)] == [1, 1]
        assert len(lines.at(logging.ERROR)) == 1


def test_an_engine_without_a_page_is_told_before_any_step(plugin: Any, tmp_path: Path) -> None:
    """Of two pages the second cannot be made: the first one says that the tap gave up."""
    with loaded(plugin, tmp_path, engines=[0, -1]) as (tap, lines):
        good_step(tap)

        assert page_in(tmp_path).state == layout.GAVE_UP
        assert len(lines.at(logging.ERROR)) == 1


def test_a_page_that_cannot_be_marked_does_not_keep_others_from_it(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loaded(plugin, tmp_path, engines=[0, 1]) as (tap, lines):
        monkeypatch.setattr(tap._pages[0], "give_up", lambda: 1 / 0)
        tap.record(FakeStats(num_running_reqs="3"), None)

        assert page_in(tmp_path, 1).state == layout.GAVE_UP
        assert len(lines.at(logging.ERROR)) == 1


def test_a_log_that_cannot_be_written_does_not_get_out_either(plugin: Any, tmp_path: Path) -> None:
    """A filter of the server's own logging configuration may raise; logging lets that through."""

    def broken(record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter that fails")

    with loaded(plugin, tmp_path) as (tap, _):
        good_step(tap)
        plugin.log.addFilter(broken)
        try:
            tap.record(FakeStats(num_running_reqs="3"), None)
        finally:
            plugin.log.removeFilter(broken)

        assert page_in(tmp_path).state == layout.GAVE_UP


def test_being_interrupted_within_an_update_leaves_a_whole_sequence(
    plugin: Any, tmp_path: Path
) -> None:
    """SIGINT raises KeyboardInterrupt wherever Python is; the page is closed at exit all the same."""

    class FakeInterrupted(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            raise KeyboardInterrupt

    with loaded(plugin, tmp_path) as (tap, _):
        good_step(tap)
        (page,) = tap._pages.values()
        page.totals.touched = FakeInterrupted()
        with pytest.raises(KeyboardInterrupt):
            tap.record(fake_scheduler(4), None)
        tap._close()
        found = page_in(tmp_path)

    assert not found.torn
    assert found.state == layout.CLOSED


# -- the constructor -----------------------------------------------------------------------------


def assert_nothing_happens(tap: Any, lines: Lines, *told: str) -> None:
    """One line that says why, and no call does anything."""
    good_step(tap)
    tap.record_sleep_state(1, 2)
    tap.record_admission_rejection("max_num_queued_reqs")
    tap.log_engine_initialized()
    tap.log()

    (line,) = lines.at(logging.ERROR)
    assert "the server is not affected" in line
    assert all(part in line for part in told)


def test_a_folder_that_cannot_be_made_is_one_line(plugin: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    for where in (tmp_path / "file", tmp_path / "file" / "below"):
        with loaded(plugin, where) as (tap, lines):
            assert_nothing_happens(tap, lines, str(tmp_path / "file"))


def test_a_full_file_system_is_one_line_and_leaves_no_file(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)

    with loaded(plugin, tmp_path) as (tap, lines):
        assert_nothing_happens(tap, lines, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_folder_that_everybody_may_write_to_is_one_warning(
    plugin: Any, tmp_path: Path, mode: int
) -> None:
    """Whoever may put pages there could say anything of the engine."""
    tmp_path.chmod(mode)
    with loaded(plugin, tmp_path) as (tap, lines):
        good_step(tap)
        tap.log()

    (line,) = lines.at(logging.WARNING)
    assert line == (
        f"opsctl tap: off, the server is not affected: {tmp_path} is writable by everybody "
        f"(mode {mode:04o}): chmod o-w {tmp_path}, or name a folder within it with OPSCTL_TAP"
    )
    assert lines.at(logging.ERROR) == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_can_be_written_no_more_is_one_line(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emptied by somebody, and the file system is full since."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with loaded(plugin, tmp_path) as (tap, lines):
        good_step(tap)
        monkeypatch.setattr(os, "pwrite", full)
        for _ in range(3):
            good_step(tap)
            tap.log()
        monkeypatch.undo()

    (line,) = lines.at(logging.ERROR)
    assert "the server is not affected" in line
    assert "No space left on device" in line


@pytest.mark.parametrize("port", ["99999", "²", "٣", "", "-1", "8000x", "9" * 5000])
def test_a_port_that_is_none_is_not_told(plugin: Any, tmp_path: Path, port: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vllm", "serve", "m", "--port", port])
        with loaded(plugin, tmp_path):
            assert "port" not in page_in(tmp_path).facts


def test_a_folder_that_is_no_absolute_path_is_one_line(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with loaded(plugin, "relative") as (tap, lines):
        assert_nothing_happens(tap, lines, "OPSCTL_TAP=relative", "absolute path")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["off", "0", "no", "false", "OFF", " off "])
def test_switched_off_it_writes_nothing_and_says_so(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    settings = importlib.import_module("vllm_opsctl.exporter.tap.settings")
    monkeypatch.setattr(settings, "DEFAULT_DIRECTORY", tmp_path)

    with loaded(plugin, word) as (tap, lines):
        good_step(tap)
        assert lines.at(logging.INFO) == ["opsctl tap: off (OPSCTL_TAP)"]
        assert lines.at(logging.ERROR) == []
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_it_writes_where_the_sidecar_looks(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = importlib.import_module("vllm_opsctl.exporter.tap.settings")
    monkeypatch.setattr(settings, "DEFAULT_DIRECTORY", tmp_path / "default")

    with loaded(plugin, "") as (_, lines):
        page = page_in(tmp_path / "default")
        (line,) = lines.at(logging.INFO)

    assert str(page.path) in line
    assert stat.S_ISREG(page.path.stat().st_mode)


@pytest.mark.parametrize("flag", ["--disable-log-stats", "--disable_log_stats"])
@pytest.mark.parametrize("switch", [None, "off"])
def test_statistics_that_were_switched_off_and_are_on_again_are_warned_of(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, switch: str | None
) -> None:
    """vLLM collects statistics for any plugin, whatever the flag says and the plugin does."""
    monkeypatch.setattr(sys, "argv", ["vllm", "serve", "model", flag])

    with loaded(plugin, switch or tmp_path) as (_, lines):
        (line,) = lines.at(logging.WARNING)

    assert "--disable-log-stats is given" in line
    assert "VLLM_PLUGINS without opsctl_tap stops that" in line
    assert "OPSCTL_TAP" not in line, "it does not stop that"


def test_without_that_flag_nothing_is_warned_of(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["vllm", "serve", "model"])

    with loaded(plugin, tmp_path) as (_, lines):
        assert lines.at(logging.WARNING) == []


# -- what it brings into vLLM's process ----------------------------------------------------------


def test_the_tap_imports_the_standard_library_vllm_and_itself_alone() -> None:
    """Nothing else may have to be installed beside vLLM, or slow its start."""
    files = sorted(Path(layout.__file__).parent.glob("*.py"))
    assert {"plugin.py", "writer.py", "totals.py"} <= {file.name for file in files}

    for file in files:
        for name in imported(ast.parse(file.read_text())):
            top = name.partition(".")[0]
            own = name == "vllm_opsctl.exporter.tap" or name.startswith("vllm_opsctl.exporter.tap.")
            assert own or top == "vllm" or top in sys.stdlib_module_names, (file.name, name)


def imported(tree: ast.Module) -> Iterator[str]:
    """Names of all modules that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            yield str(node.module)
