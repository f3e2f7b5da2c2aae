"""Every page that vLLM ever rendered is read to the numbers that were fed to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from paths import PAGES

from vllm_opsctl.errors import BadPage
from vllm_opsctl.exporter.engine import EngineSample
from vllm_opsctl.exporter.exposition import read_page

EXPECTED: dict[str, dict[str, Any]] = yaml.safe_load((PAGES / "expected.yaml").read_text())

GAUGES = {
    "running": "requests_running",
    "waiting": "requests_waiting",
    "waiting_capacity": "requests_waiting_by_reason{capacity}",
    "waiting_deferred": "requests_waiting_by_reason{deferred}",
    "swapped": "requests_swapped",
    "kv_usage": "kv_cache_usage_ratio",
    "prefix_hit_ratio": "prefix_cache_lifetime_hit_ratio",
}
COUNTERS = {
    "prompt_tokens": "prompt_tokens",
    "generation_tokens": "generation_tokens",
    "prefix_queries": "prefix_cache_queried_tokens",
    "prefix_hits": "prefix_cache_hit_tokens",
    "preemptions": "preemptions",
    "mm_queries": "mm_cache_queried_items",
    "mm_hits": "mm_cache_hit_items",
}
HISTOGRAMS = {
    "ttft": "time_to_first_token_seconds",
    "itl": "inter_token_latency_seconds",
    "tpot": "request_time_per_output_token_seconds",
    "e2e": "request_e2e_seconds",
    "queue": "request_queue_seconds",
    "prefill": "request_prefill_seconds",
    "decode": "request_decode_seconds",
    "inference": "request_inference_seconds",
}


def numbers_of(sample: EngineSample, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The sample's numbers under the names of expected.yaml, those that are wanted."""
    found: dict[str, Any] = {}
    for name in wanted:
        if name in GAUGES:
            found[name] = sample.gauges.get(GAUGES[name])
        elif name in COUNTERS:
            found[name] = sample.total(COUNTERS[name])
        elif name in HISTOGRAMS:
            histogram = sample.histograms.get(HISTOGRAMS[name])
            found[name] = histogram and {"count": histogram.count, "sum": histogram.sum}
        elif name == "steps":
            found[name] = sample.steps
        elif name == "finished":
            found[name] = {
                reason: sample.counters.get(f"requests_finished{{{reason}}}", 0)
                for reason in wanted[name]
            }
    return found


def read(name: str) -> Any:
    return read_page((PAGES / name).read_text(), t=0.0, target="replica")


WITH_ENGINES = [name for name, entry in EXPECTED.items() if entry.get("engines")]


@pytest.mark.parametrize("name", WITH_ENGINES)
def test_a_page_is_read_to_the_numbers_that_were_fed(name: str) -> None:
    entry = EXPECTED[name]
    samples = {sample.key.engine.rsplit("/", 1)[-1]: sample for sample in read(name).engines}

    assert samples.keys() == entry["engines"].keys()
    for engine, wanted in entry["engines"].items():
        comparable = {k: v for k, v in wanted.items() if k in numbers_of(samples[engine], wanted)}
        assert numbers_of(samples[engine], wanted) == {
            key: pytest.approx(value, abs=1e-5) for key, value in comparable.items()
        }
        assert samples[engine].key.model == entry["model"]


@pytest.mark.parametrize("name", WITH_ENGINES)
def test_nothing_of_a_clean_page_is_left_out(name: str) -> None:
    assert read(name).problems == ()


def test_two_models_on_one_page_are_two_engines() -> None:
    entry = EXPECTED["two-models.prom"]
    samples = {sample.key.model: sample for sample in read("two-models.prom").engines}

    assert samples.keys() == entry["models"].keys()
    for model, wanted in entry["models"].items():
        (numbers,) = wanted["engines"].values()
        assert samples[model].gauges["requests_running"] == numbers["running"]


def test_a_page_with_statistics_switched_off_says_so() -> None:
    with pytest.raises(BadPage) as caught:
        read("stats-disabled.prom")

    assert caught.value.reason == "metrics-disabled"


def test_every_name_in_the_catalogue_stands_on_some_page() -> None:
    """Names that no page could show are listed with the reason."""
    from vllm_opsctl.exporter.catalogue import catalogue

    text = "\n".join(path.read_text() for path in PAGES.glob("*.prom"))
    unseen = {
        name.name
        for concept in catalogue()
        for name in concept.names
        # what the tap alone knows is on the page that is made of its statistics (test_tap_source.py)
        if f"# TYPE {name.name} " not in text and "opsctl_tap" not in name.name
    }

    assert unseen == {
        "vllm:corrupted_requests_total",  # only with VLLM_COMPUTE_NANS_IN_LOGITS=1
        # only with a KV connector and the hardware it moves KV between
        "vllm:kv_offload_load_bytes_total",
        "vllm:kv_offload_load_time_total",
        "vllm:nixl_num_failed_transfers_total",
        "vllm:nixl_xfer_time_seconds",
        "vllm:num_requests_kv_fetch_by_stage",
    }
