"""What `record()` of one vLLM version got while its logger page was made, attribute by attribute.

Runs as logger_v1.py does, with the same --run as the committed page, and stores the calls beside
the pages.  The page is rendered again: numbers that are not the committed page's are refused.

    PYTHONPATH=path/to/vllm-0.13.0 python records_v1.py 0.13.0 --run 6
"""

from __future__ import annotations

import enum
import functools
import gzip
import inspect
import json
from types import SimpleNamespace
from typing import Any

from harness import stub, tolerate_known_model_types
from logger_v1 import ABSENT, feed, make_config, parse_arguments
from pagefile import PAGES
from workload import busy_run

RECORDS = PAGES / "records"
ITERATION_SECONDS = 0.05
"""IterationStats read the clock; here they are so far apart, so that a file is made identically."""


def attributes(value: Any) -> Any:
    """As JSON: an object of vLLM's is {"class": its name, "attributes": {...}}."""
    if isinstance(value, enum.Enum):
        return str(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [attributes(item) for item in value]
    if isinstance(value, dict):
        return {str(name): attributes(item) for name, item in value.items()}
    kind = type(value)
    properties = [n for n, v in inspect.getmembers(kind) if isinstance(v, property)]
    found = vars(value) | {name: getattr(value, name) for name in properties}
    return {
        "class": kind.__name__,
        "attributes": {name: attributes(item) for name, item in sorted(found.items())},
    }


def signatures() -> dict[str, Any]:
    """Parameters of what a plugin has to be, and what it must have to be instantiated."""
    from vllm.v1.metrics.loggers import AggregateStatLoggerBase as Base

    def parameters(name: str) -> list[dict[str, Any]]:
        return [
            {"name": p.name, "required": p.default is inspect.Parameter.empty}
            for p in inspect.signature(getattr(Base, name)).parameters.values()
        ]

    methods = sorted(
        {"__init__"} | {n for n, v in inspect.getmembers(Base, callable) if n[0] != "_"}
    )
    return {
        "parameters": {name: parameters(name) for name in methods},
        "abstract": sorted(Base.__abstractmethods__),
    }


def recorded(config: SimpleNamespace, runs: list[Any]) -> list[dict[str, Any]]:
    """Feed vLLM's logger and note what its record() was called with."""
    from vllm.v1.metrics import loggers

    calls: list[dict[str, Any]] = []
    real = loggers.PrometheusStatLogger

    class Noting(real):  # type: ignore[misc,valid-type]
        @functools.wraps(real.record)
        def record(self, **arguments: Any) -> None:
            iteration = arguments["iteration_stats"]
            if iteration is not None:
                iteration.iteration_timestamp = round(len(calls) * ITERATION_SECONDS, 2)
            calls.append({name: attributes(value) for name, value in arguments.items()})
            super().record(**arguments)

    loggers.PrometheusStatLogger = Noting
    try:
        feed(config, runs, front_end=0, front_ends=1)
    finally:
        loggers.PrometheusStatLogger = real
    return calls


def numbers(page: str) -> set[str]:
    """vLLM's lines, less the times at which the page was made and the configuration."""
    of_the_moment = ("_created{", "vllm:lora_requests_info{", "vllm:cache_config_info{")
    return {
        line
        for line in page.splitlines()
        if line.startswith("vllm:") and not any(part in line for part in of_the_moment)
    }


def main() -> None:
    arguments = parse_arguments()
    stub(ABSENT + arguments.absent)
    tolerate_known_model_types()
    import vllm.v1.metrics.loggers  # noqa: F401
    from prometheus_client import generate_latest
    from vllm.v1.engine import FinishReason

    reasons = ("stop", "stop", "length", *(str(r) for r in FinishReason if r.value > 1))
    runs = [busy_run(arguments.run + index, reasons) for index in range(arguments.engines)]
    calls = recorded(make_config(arguments), runs)
    page = arguments.name or f"vllm-{arguments.version}-v1.logger.prom"
    other = numbers((PAGES / page).read_text()) ^ numbers(generate_latest().decode())
    if other:
        raise SystemExit(f"{page} was not made so: {len(other)} lines differ, {min(other)}")
    stem = page.removesuffix(".prom").removesuffix("-v1.logger")
    body = {"version": arguments.version, "page": page, "base": signatures(), "calls": calls}
    RECORDS.mkdir(exist_ok=True)
    text = json.dumps(body, separators=(",", ":")).encode()
    (RECORDS / f"{stem}.records.json.gz").write_bytes(gzip.compress(text, 9, mtime=0))


if __name__ == "__main__":
    main()
