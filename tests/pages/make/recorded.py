"""Store one scrape of a recording as a page, unchanged.

    python recorded.py recording.jsonl.gz 0.32.0 [--index -10] [--name other-file-name]

A recording has one JSON object per line with the page in "text".  There is nothing fed here to
compare with: the expected numbers are read from the page by the text matching in check.py.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re

from check import read_engine, read_http, read_samples
from pagefile import store


def whole(value: object) -> object:
    """Counts as whole numbers, as in the other entries."""
    if isinstance(value, dict):
        return {key: whole(part) for key, part in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording")
    parser.add_argument("version")
    parser.add_argument("--index", type=int, default=-10, help="which scrape")
    parser.add_argument("--name")
    arguments = parser.parse_args()
    with gzip.open(arguments.recording, "rt") as lines:
        page = json.loads(list(lines)[arguments.index])["text"]
    samples = read_samples(page)
    (model,) = set(re.findall(r'model_name="([^"]+)"', page))
    engines = sorted({labels["engine"] for _, labels, _ in samples if "engine" in labels})
    entry = {
        "version": arguments.version,
        "engine": "v1",
        "model": model,
        "engines": {engine: whole(read_engine(samples, engine, model)) for engine in engines},
        "http": read_http(page),
    }
    store(arguments.name or f"vllm-{arguments.version}-v1.recorded.prom", page, entry)


if __name__ == "__main__":
    main()
