"""Compare every page with expected.yaml, without the project's own parser.

    python check.py

Each page must parse as a whole with prometheus_client's parser; the numbers are then read by
plain text matching and compared with the entry in expected.yaml.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from pagefile import PAGES, load_expected

Sample = tuple[str, dict[str, str], float]

GAUGES = {
    "running": ["num_requests_running"],
    "waiting": ["num_requests_waiting"],
    "swapped": ["num_requests_swapped"],
    "kv_usage": ["kv_cache_usage_perc", "gpu_cache_usage_perc"],
    "cpu_kv_usage": ["cpu_cache_usage_perc"],
    "prefix_hit_ratio": ["gpu_prefix_cache_hit_rate"],
}
COUNTERS = {
    "prompt_tokens": ["prompt_tokens_total"],
    "generation_tokens": ["generation_tokens_total"],
    "prefix_queries": ["prefix_cache_queries_total", "gpu_prefix_cache_queries_total"],
    "prefix_hits": ["prefix_cache_hits_total", "gpu_prefix_cache_hits_total"],
    "prompt_tokens_cached": ["prompt_tokens_cached_total"],
    "mm_queries": ["mm_cache_queries_total"],
    "mm_hits": ["mm_cache_hits_total"],
    "preemptions": ["num_preemptions_total"],
    "steps": ["iteration_tokens_total_count"],
}
HISTOGRAMS = {
    "ttft": ["time_to_first_token_seconds"],
    "itl": ["inter_token_latency_seconds", "time_per_output_token_seconds"],
    "tpot": ["request_time_per_output_token_seconds"],
    "e2e": ["e2e_request_latency_seconds"],
    "queue": ["request_queue_time_seconds"],
    "time_in_queue": ["time_in_queue_requests"],
    "prefill": ["request_prefill_time_seconds"],
    "decode": ["request_decode_time_seconds"],
    "inference": ["request_inference_time_seconds"],
}
SPEC_DECODE = {
    "drafts": "spec_decode_num_drafts_total",
    "draft_tokens": "spec_decode_num_draft_tokens_total",
    "accepted_tokens": "spec_decode_num_accepted_tokens_total",
}
REMARKS = {"prefix_unit", "phases_swapped"}
LINE = re.compile(r"^vllm[:_](\w+?)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def read_samples(text: str) -> list[Sample]:
    return [(m[1], dict(LABEL.findall(m[2] or "")), float(m[3])) for m in LINE.finditer(text)]


def pick(samples: list[Sample], names: list[str], labels: dict[str, str]) -> list[Sample]:
    """The samples of the first of these names that the page has for these labels."""
    for name in names:
        found = [s for s in samples if s[0] == name and labels.items() <= s[1].items()]
        if found:
            return found
    return []


def read_engine(samples: list[Sample], engine: str, model: str) -> dict[str, Any]:
    """What the page says about one engine, by concept."""
    mine = [
        s
        for s in samples
        if s[1].get("engine", engine) == engine and s[1].get("model_name", model) == model
    ]
    result: dict[str, Any] = {}
    for concept, names in {**GAUGES, **COUNTERS}.items():
        if found := pick(mine, names, {}):
            result[concept] = max(s[2] for s in found)
    for concept, names in HISTOGRAMS.items():
        counts, sums = (pick(mine, [n + end for n in names], {}) for end in ("_count", "_sum"))
        if counts:
            result[concept] = {"count": counts[0][2], "sum": round(sums[0][2], 6)}
    for reason in ("capacity", "deferred"):
        if found := pick(mine, ["num_requests_waiting_by_reason"], {"reason": reason}):
            result[f"waiting_{reason}"] = found[0][2]
    finished = pick(mine, ["request_success_total"], {})
    result["finished"] = {s[1]["finished_reason"]: s[2] for s in finished}
    spec = {key: pick(mine, [name], {}) for key, name in SPEC_DECODE.items()}
    if all(spec.values()):
        result["spec_decode"] = {key: found[0][2] for key, found in spec.items()}
    if loras := [s for s in mine if s[0] == "lora_requests_info" and s[1]["max_lora"] != "0"]:
        labels = max(loras, key=lambda s: s[2])[1]
        result["lora"] = {
            "max": int(labels["max_lora"]),
            "running": [n for n in labels["running_lora_adapters"].split(",") if n],
            "waiting": [n for n in labels["waiting_lora_adapters"].split(",") if n],
        }
    return result


def read_http(text: str) -> dict[str, int]:
    """Requests by status class, summed over handlers."""
    result: dict[str, int] = {}
    for found in re.finditer(r'^http_requests_total\{.*status="(\dxx)".*\} (\S+)$', text, re.M):
        result[found[1]] = result.get(found[1], 0) + int(float(found[2]))
    return dict(sorted(result.items()))


def differences(name: str, entry: dict[str, Any]) -> list[str]:
    text = (PAGES / name).read_text()
    samples = read_samples(text)
    wrong = []
    models = entry.get("models") or {entry.get("model", ""): entry}
    for model, part in models.items():
        engines = sorted({s[1]["engine"] for s in samples if "engine" in s[1]}) or ["0"]
        if samples and engines != sorted(part["engines"]):
            wrong.append(f"{name}: engines {engines}")
        for engine, expected in part["engines"].items():
            seen = read_engine(samples, engine, model)
            for concept in sorted({*expected, *seen} - REMARKS):
                if expected.get(concept) != seen.get(concept):
                    wrong.append(
                        f"{name}: {model} engine {engine} {concept}: "
                        f"expected {expected.get(concept)}, page says {seen.get(concept)}"
                    )
    if entry.get("http", {}) != read_http(text):
        wrong.append(f"{name}: http {read_http(text)}")
    return wrong


def main() -> int:
    from prometheus_client.parser import text_string_to_metric_families

    expected = load_expected()
    on_disk = {path.name for path in PAGES.glob("*.prom")}
    wrong = [f"{name}: no such pair of page and entry" for name in on_disk ^ set(expected)]
    for name in sorted(on_disk & set(expected)):
        list(text_string_to_metric_families((PAGES / name).read_text()))
        wrong += differences(name, expected[name])
    print("\n".join(wrong) or f"{len(on_disk)} pages as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
