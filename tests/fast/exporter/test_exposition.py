"""What is no page of vLLM, or a broken one, gets a named error or is handled."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import PAGES
from prometheus_client.parser import text_string_to_metric_families

from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.series import name_and_labels

GOOD = (PAGES / "vllm-0.33.0-v1.logger.prom").read_text()


def reason_of(text: str) -> str:
    with pytest.raises(BadPage) as caught:
        read_page(text, t=0.0, target="replica")
    return caught.value.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("<!DOCTYPE html><html><body>Not found</body></html>", "html"),
        ('{"error": "not found"}', "json"),
        ("node_load1 0.5\n", "not-vllm"),
        (
            "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds 1\n",
            "metrics-disabled",
        ),
        ("# TYPE vllm_engine_requests_running gauge\nvllm_engine_requests_running 1\n", "sidecar"),
        (GOOD[: len(GOOD) // 2 - 7], "truncated"),
        (
            '# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{a="b 1\n',
            "unparsable",
        ),
        ("# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1\n", "no-engine"),
    ],
)
def test_a_page_that_cannot_be_read_is_named(text: str, reason: str) -> None:
    assert reason_of(text) == reason


def one_engine(lines: str) -> str:
    return f"# TYPE vllm:num_requests_running gauge\n{lines}\n"


def test_nan_is_missing_and_reported() -> None:
    page = read_page(
        one_engine('vllm:num_requests_running{model_name="m",engine="0"} NaN\n')
        + '# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{model_name="m",engine="0"} 2\n',
        t=0.0,
        target="replica",
    )

    assert page.engines[0].gauges == {"requests_waiting": 2.0}
    assert page.problems == ("vllm:num_requests_running: nan left out",)


def test_a_series_that_stands_twice_is_counted_once() -> None:
    series = 'vllm:num_requests_running{model_name="m",engine="0"}'
    page = read_page(one_engine(f"{series} 3\n{series} 4"), t=0.0, target="replica")

    assert page.engines[0].gauges["requests_running"] == 3
    assert "stands twice" in page.problems[0]


def test_a_histogram_whose_counts_fall_is_left_out() -> None:
    name = "vllm:time_to_first_token_seconds"
    labels = 'model_name="m",engine="0"'
    page = read_page(
        one_engine(f"vllm:num_requests_running{{{labels}}} 1")
        + f"# TYPE {name} histogram\n"
        + f'{name}_bucket{{{labels},le="0.1"}} 5\n{name}_bucket{{{labels},le="+Inf"}} 3\n'
        + f"{name}_sum{{{labels}}} 1\n{name}_count{{{labels}}} 3\n",
        t=0.0,
        target="replica",
    )

    assert page.engines[0].histograms == {}
    assert page.problems == ("time_to_first_token_seconds: bucket counts that fall; left out",)


def test_names_that_a_collector_mangled_are_recognised() -> None:
    plain = read_page(GOOD, t=0.0, target="replica").engines[0]
    mangled = read_page(GOOD.replace("vllm:", "vllm_"), t=0.0, target="replica").engines[0]

    assert mangled == plain


def parsed(series: str) -> tuple[str, dict[str, str]] | None:
    """By prometheus-client; None for what breaks the format."""
    try:
        (family,) = text_string_to_metric_families(f"{series} 0\n")
        (sample,) = family.samples
    except (ValueError, KeyError, IndexError):
        return None
    return sample.name, sample.labels


VALUES = st.text(alphabet=st.characters(exclude_characters='\n"\\', codec="utf-8"), max_size=8)
LABELS = st.from_regex(r"[a-z_]\w{0,3}", fullmatch=True)


@given(st.lists(st.tuples(LABELS, VALUES), max_size=4), st.sampled_from(["", ",", " ", "\\"]))
def test_series_are_read_as_prometheus_client_reads_them(
    pairs: list[tuple[str, str]], odd: str
) -> None:
    series = "vllm:x{" + ",".join(f'{name}="{value}"' for name, value in pairs) + odd + "}"
    try:
        found = name_and_labels(series)
    except ValueError:
        found = None

    assert found == parsed(series)


@given(st.text(max_size=400))
def test_any_text_is_read_or_named(text: str) -> None:
    with contextlib.suppress(BadPage):
        read_page(text, t=0.0, target="replica")


@given(st.integers(0, len(GOOD) - 2))
def test_a_page_cut_anywhere_never_yields_wrong_numbers(cut: int) -> None:
    """A cut within a line is found; one between lines can only lose concepts, never change them."""
    whole = read_page(GOOD, t=0.0, target="replica").engines[0]
    try:
        partial = read_page(GOOD[:cut], t=0.0, target="replica").engines[0]
    except BadPage:
        return
    assert partial.gauges.items() <= whole.gauges.items()
    for concept, histogram in partial.histograms.items():
        assert histogram == whole.histograms[concept]
