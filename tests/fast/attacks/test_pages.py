"""Metrics pages that try to harm their reader: bounded, reported, and never believed."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable

import pytest
from fake_vllm import page
from hypothesis import given
from hypothesis import strategies as st
from paths import PAGES

from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter import series
from vllm_opsctl.exporter.config import DEFAULT_OBJECTIVES, Exporter, Target
from vllm_opsctl.exporter.engine import PageSample
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.limits import MAX_ENGINES, MAX_REMEMBERED, MAX_SERIES, MAX_SPLIT_VALUES
from vllm_opsctl.exporter.observation import metrics
from vllm_opsctl.exporter.sinks.prometheus import EngineCollector
from vllm_opsctl.exporter.target_state import TargetState
from vllm_opsctl.runbooks.diagnosis import diagnose_target
from vllm_opsctl.runbooks.load import shipped_library


def read(text: str) -> PageSample:
    return read_page(text, t=1.0, target="chat-0")


def reason_of(text: str) -> str:
    with pytest.raises(BadPage) as raised:
        read(text)
    assert raised.value.detail.isprintable()
    assert len(raised.value.detail) < 300
    return raised.value.reason


# -- bounds, by name -------------------------------------------------------------------------------


def test_engines_beyond_the_bound_are_left_out_and_counted() -> None:
    found = read("".join(page(f"m{number}") for number in range(MAX_ENGINES + 50)))

    assert len(found.engines) == MAX_ENGINES
    assert found.left_out == {"engines": 50}


def test_series_beyond_the_bound_are_left_out_and_counted() -> None:
    names = (f'vllm:lora_requests_info{{max_lora="{n}"}} 1\n' for n in range(MAX_SERIES))
    found = read(page() + "".join(names))

    assert found.left_out["series"] == 6


def test_values_of_one_label_beyond_the_bound_are_left_out_and_counted() -> None:
    reasons = (
        f'vllm:request_success_total{{engine="0",model_name="m",finished_reason="r{n}"}} 1\n'
        for n in range(MAX_SPLIT_VALUES)
    )
    found = read(page() + "".join(reasons))

    assert found.left_out == {"split-values": 1}


MANY_LABELS = [f'l{number}="x"' for number in range(500)]


@pytest.mark.parametrize(
    ("line", "bound"),
    [
        ('vllm:num_requests_running{model_name="%s"} 1\n' % ("L" * 10_000), "name-length"),
        (
            'vllm:request_success_total{model_name="m",finished_reason="%s"} 1\n' % ("x" * 1000),
            "name-length",
        ),
        ('vllm:cache_config_info{model_name="m",a="%s"} 1\n' % ("x" * 20_000), "series-length"),
        (
            f'vllm:num_requests_running{{model_name="m",{",".join(MANY_LABELS)}}} 1\n',
            "labels",
        ),
    ],
)
def test_a_series_that_is_too_long_is_left_out_and_counted(line: str, bound: str) -> None:
    found = read(page() + line)

    assert found.left_out == {bound: 1}
    assert [sample.key.model for sample in found.engines] == ["m"]


def test_what_was_left_out_is_on_the_sidecars_page_and_in_the_verdict() -> None:
    text = "".join(page(f"m{number}") for number in range(MAX_ENGINES + 50))
    state = TargetState(Target(name="chat-0", url="http://chat-0:8000"), Exporter(), ())
    state.record(metrics(1.0, "chat-0", text))
    families = {
        family.name: family
        for family in EngineCollector(lambda: [state.snapshot(1.5)], ()).collect()
    }
    (sample,) = families["opsctl_target_left_out"].samples
    verdict = diagnose_target(
        "chat-0",
        [metrics(float(t), "chat-0", text) for t in range(3)],
        shipped_library(),
        source="recording",
    )

    assert (sample.labels, sample.value) == ({"target": "chat-0", "bound": "engines"}, 50)
    assert "of the metrics page was left out: 50 engines beyond 256" in verdict.blind_spots


def test_a_page_of_nothing_but_what_is_left_out_is_too_large() -> None:
    assert reason_of(page("L" * 10_000)) == "too-large"


# -- memory ----------------------------------------------------------------------------------------


def test_names_that_are_new_in_every_page_do_not_fill_memory() -> None:
    state = TargetState(
        Target(name="chat-0", url="http://chat-0:8000"), Exporter(), DEFAULT_OBJECTIVES
    )

    def churn(pages: range) -> None:
        for t in pages:
            text = "".join(page(f"m{t}-{number}") for number in range(100))
            state.record(metrics(float(t), "chat-0", text))

    tracemalloc.start()
    churn(range(8))
    series._remembered.cache_clear()
    before, _ = tracemalloc.get_traced_memory()
    churn(range(8, 24))
    series._remembered.cache_clear()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    snapshot = state.snapshot(23.5)

    assert len({model for _, model in snapshot.events}) <= MAX_REMEMBERED
    # 1600 new names; each that was never forgotten cost 17 KiB
    assert after - before < 2**20


def test_long_series_are_not_remembered_by_the_thousand() -> None:
    tracemalloc.start()
    for number in range(20):
        lines = (
            f'vllm:cache_config_info{{engine="0",a="{number}-{n}-{"x" * 10_000}"}} 1\n'
            for n in range(100)
        )
        read(page() + "".join(lines))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert after < 8 * 2**20


# -- what must not be believed ---------------------------------------------------------------------


@pytest.mark.parametrize("control", ["\0", "\x1b", "\x08", "\x0b"])
def test_control_characters_in_names_are_damage_and_no_finding(control: str) -> None:
    text = page() + "process_start_time_seconds 1\n"

    assert reason_of(text.replace("vllm:", f"vllm:{control}")) == "unparsable"


def test_metrics_of_vllm_that_nobody_knows_are_not_taken_for_none() -> None:
    text = page().replace("vllm:", "vllm:renamed_") + "process_start_time_seconds 1\n"

    assert reason_of(text) == "unknown-metrics"


@pytest.mark.parametrize("value", ["1e308", "-1e308", "9" * 300, "1" + "0" * 18 + "1"])
def test_a_value_beyond_all_that_is_counted_is_left_out(value: str) -> None:
    verdict = diagnose_target(
        "chat-0",
        [metrics(float(t), "chat-0", page(running=value)) for t in range(10)],
        shipped_library(),
        source="recording",
    )

    assert verdict.verdict in ("healthy", "unknown")
    assert "requests_running" not in read(page(running=value)).engines[0].gauges


@pytest.mark.parametrize("name", ["\x1b[2J", "\u202egnp", "\ud800", "a\\nb", "\x00", "\x9b31m"])
def test_names_are_shown_and_not_obeyed(name: str) -> None:
    (engine,) = read(page(model=f"m{name}")).engines

    assert engine.key.model.isprintable()
    assert engine.key.model != "m"


@given(st.text(max_size=200))
def test_no_page_raises_anything_but_its_named_error(tail: str) -> None:
    for text in (tail, page() + tail, page() + tail + "\n", page(model=tail.replace('"', ""))):
        try:
            said = "".join(sample.key.model for sample in read(text).engines)
        except BadPage as problem:
            said = problem.detail
        assert said.isprintable()


# -- odd pages: read as far as they make sense, or named ---------------------------------------------

REAL = (PAGES / "vllm-0.33.0-v1.logger.prom").read_text()

ODD: dict[str, tuple[Callable[[str], str], str]] = {
    "CRLF": (lambda text: text.replace("\n", "\r\n"), "read"),
    "BOM": (lambda text: f"\ufeff{text}", "read"),
    "no last newline": (lambda text: text.rstrip("\n"), "truncated"),
    "cut in a line": (lambda text: text[: len(text) // 2], "truncated"),
    "timestamps": (lambda text: re.sub(r"(?m)^(\w.*)$", r"\1 1395066363000", text), "read"),
    "reversed": (lambda text: "\n".join(reversed(text.rstrip("\n").split("\n"))) + "\n", "read"),
    "no +Inf": (lambda text: re.sub(r'(?m)^.*le="\+Inf".*\n', "", text), "read"),
    "twice": (lambda text: text + text, "read"),
    "le is a word": (lambda text: text.replace('le="1.0"', 'le="banana"'), "unparsable"),
    "le is NaN": (lambda text: text.replace('le="1.0"', 'le="NaN"'), "read"),
    "le is -Inf": (lambda text: text.replace('le="1.0"', 'le="-Inf"'), "read"),
    "falling buckets": (lambda text: re.sub(r'(le="1.0"[^}]*} )\S+', r"\g<1>9e9", text), "read"),
    "values in quotes": (lambda text: re.sub(r"(?m) (\d+\.\d+)$", r' "\1"', text), "unparsable"),
    "hexadecimal": (lambda text: re.sub(r"(?m) (\d+\.\d+)$", " 0x10", text), "unparsable"),
    "NaN": (lambda text: re.sub(r"(?m) (\d+\.\d+)$", " NaN", text), "unparsable"),
    "infinite": (lambda text: re.sub(r"(?m) (\d+\.\d+)$", " +Inf", text), "unparsable"),
    "negative": (lambda text: re.sub(r"(?m) (\d+\.\d+)$", r" -\1", text), "read"),
    "a brace in a label": (
        lambda text: text.replace('model_name="', 'model_name="a} 5 {b'),
        "read",
    ),
    "a label without an end": (
        lambda text: f'{text}vllm:num_requests_running{{a="x\n',
        "unparsable",
    ),
    "an exemplar": (lambda text: re.sub(r"(?m)(le=.*)$", r'\1 # {trace="x"} 1 1', text), "read"),
    "empty": (lambda _: "", "empty"),
    "blanks": (lambda _: " \n\n", "empty"),
    "a login page": (lambda _: "<!DOCTYPE html><title>Log in</title>\n", "html"),
    "JSON": (lambda _: '{"detail": "Not Found"}\n', "json"),
    "binary": (lambda _: bytes(range(256)).decode("utf-8", "replace") * 100, "unparsable"),
    "UTF-16": (lambda text: text.encode("utf-16").decode("utf-8", "replace"), "unparsable"),
    "another server's": (lambda _: "python_info 1\n", "metrics-disabled"),
}


@pytest.mark.parametrize(("change", "result"), ODD.values(), ids=ODD.keys())
def test_an_odd_page_is_read_or_named(change: Callable[[str], str], result: str) -> None:
    try:
        found = "read" if read(change(REAL)).engines else "nothing"
    except BadPage as problem:
        found = problem.reason

    assert found == result


# -- another dialect --------------------------------------------------------------------------------


@pytest.mark.parametrize("time_stamp", ["", " 1700000000.5"])
def test_an_exemplar_is_not_taken_for_the_value(time_stamp: str) -> None:
    name, labels = "vllm:time_to_first_token_seconds", 'engine="0",model_name="m } 7 # {x"'
    exemplar = f'{time_stamp} # {{trace_id="4bf9}}"}} 0.67 1700000000.1'
    found = read(
        page("m } 7 # {x")
        + f'{name}_bucket{{{labels},le="1.0"}} 5{exemplar}\n'
        + f'{name}_bucket{{{labels},le="+Inf"}} 8{exemplar}\n'
        + f"{name}_sum{{{labels}}} 6.5\n{name}_count{{{labels}}} 8\n# EOF\n"
    )

    (engine,) = found.engines
    assert engine.histograms["time_to_first_token_seconds"].counts == (5.0, 8.0)
