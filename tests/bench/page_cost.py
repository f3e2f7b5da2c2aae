"""What reading a page costs, beside parsing the whole of it with prometheus-client's parser."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench.table import Row, report
from vllm_opsctl.exporter.exposition import read_page

REPEATS = 60
PAGES = Path(__file__).resolve().parents[1] / "pages"
MEASURED = (
    "vllm-0.6.6-v0.logger.prom",
    "vllm-0.11.2-v1.logger.prom",
    "vllm-0.32.0-v1.recorded.prom",
    "multi-engine-0.16.0.prom",
)


def milliseconds(work: Callable[[], object]) -> float:
    """Median wall time of one call, after one warm-up."""
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[1:])


def main() -> None:
    """Measure and report."""
    rows = []
    for name in MEASURED:
        text = (PAGES / name).read_text()
        whole = milliseconds(lambda text=text: list(text_string_to_metric_families(text)))  # type: ignore[misc]
        ours = milliseconds(lambda text=text: read_page(text, t=0.0, target="x"))  # type: ignore[misc]
        label = f"{name.removesuffix('.prom')} ({len(text) // 1024} KiB)"
        rows.append(Row(label, ours, "ms", "the whole page", whole))
    report("page_cost", f"median of {REPEATS} reads; only catalogued families are parsed", rows)


if __name__ == "__main__":
    main()
