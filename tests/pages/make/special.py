"""Pages made from other pages: mangled names, two models on one page, statistics off."""

from __future__ import annotations

import re
from typing import Any

from harness import HTTP_FED, serve_http
from pagefile import PAGES, load_expected, store

MANGLED_FROM = "vllm-0.33.0-v1.logger.prom"
TWO_MODELS_FROM = ("vllm-0.33.0-v1.logger.prom", "vllm-0.30.0-v1.logger.prom")
SECOND_MODEL = "org/other-13b"


def mangle(page: str) -> str:
    """`vllm:` becomes `vllm_`, no `_created` series, one more label, as after a collector."""
    kept = []
    for block in blocks(page):
        name = block.split()[2]
        if name.startswith("vllm:") and not name.endswith("_created"):
            block = block.replace("vllm:", "vllm_")
            block = re.sub(r"^(vllm_\w+\{)", r'\1ReplicaId="replica-1",', block, flags=re.MULTILINE)
            kept.append(block)
    return "".join(kept)


def blocks(page: str) -> list[str]:
    """The metric families of a page, each with its HELP and TYPE lines."""
    return [b for b in re.split(r"(?=^# HELP )", page, flags=re.MULTILINE) if b]


def merge(first: str, second: str) -> str:
    """Both pages' vLLM series under one HELP and TYPE per family."""
    more = {block.split()[2]: block for block in blocks(second)}
    result = []
    for block in blocks(first):
        name = block.split()[2]
        if name.startswith("vllm:") and name in more:
            lines = more.pop(name).splitlines(keepends=True)
            block += "".join(line for line in lines if line[0] != "#" and line not in block)
        result.append(block)
    return "".join(result + [b for name, b in more.items() if name.startswith("vllm:")])


def two_models(expected: dict[str, Any]) -> None:
    first, second = TWO_MODELS_FROM
    model = expected[second]["model"]
    other = (PAGES / second).read_text().replace(f'"{model}"', f'"{SECOND_MODEL}"')
    shown = ("version", "engines")
    entry = {
        "engine": "v1",
        "models": {
            model: {key: expected[first][key] for key in shown},
            SECOND_MODEL: {key: expected[second][key] for key in shown},
        },
        "http": expected[first]["http"],
    }
    store("two-models.prom", merge((PAGES / first).read_text(), other), entry)


def stats_disabled() -> None:
    from prometheus_client import generate_latest

    serve_http()
    store("stats-disabled.prom", generate_latest().decode(), {"engines": {}, "http": HTTP_FED})


def main() -> None:
    expected = load_expected()
    source = dict(expected[MANGLED_FROM])
    del source["http"]
    store("mangled-names-replica-id.prom", mangle((PAGES / MANGLED_FROM).read_text()), source)
    two_models(expected)
    stats_disabled()


if __name__ == "__main__":
    main()
