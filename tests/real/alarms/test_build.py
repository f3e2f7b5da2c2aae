"""opsctl alarms lint asks a real Prometheus."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Opsctl
from parts.prometheus import RealPrometheus
from ports import reserve_port

OBJECTIVES = "OPSCTL_OBJECTIVES"


def openmetrics(bounds: tuple[float, ...], per_minute: int) -> list[str]:
    """Two hours of one vLLM until now, as text that promtool makes blocks of."""
    end = int(time.time())
    labels = 'job="vllm",instance="a:8000",model_name="m",engine="0"'
    name = "vllm:time_to_first_token_seconds"
    lines = [f"# TYPE {name} histogram"]
    for bound in (*(str(b) for b in bounds), "+Inf"):
        lines += [
            f'{name}_bucket{{{labels},le="{bound}"}} {minute * per_minute} {end - 7200 + 60 * minute}'
            for minute in range(121)
        ]
    for suffix in ("count", "sum"):
        lines += [
            f"{name}_{suffix}{{{labels}}} {minute * per_minute} {end - 7200 + 60 * minute}"
            for minute in range(121)
        ]
    lines.append("# TYPE vllm:num_requests_running gauge")
    lines += [f"vllm:num_requests_running{{{labels}}} 1 {end - 7200 + 60 * m}" for m in range(121)]
    return [*lines, "# EOF"]


@pytest.mark.parametrize(
    ("bounds", "per_minute", "model", "code", "line"),
    [
        ((0.5, 1.0), 100, None, 0, "1 of 1 objectives are measured"),
        ((0.5, 1.0), 100, "m", 0, "1 of 1 objectives are measured"),
        ((0.5, 1.0), 100, "my-adapter", 1, "knows nothing of my-adapter, but of m: vLLM counts"),
        ((0.5, 2.0), 100, None, 1, "has 1 histograms, but none with the bound 1 s"),
        ((), 0, None, 1, "has no vllm:time_to_first_token_seconds_count; scrape vLLM's /metrics"),
        ((0.5, 1.0), 0, None, 1, "0 events a day of m are too few"),
    ],
)
def test_lint_asks_a_real_prometheus(
    part: Callable[[str], Path],
    opsctl: Opsctl,
    tmp_path: Path,
    bounds: tuple[float, ...],
    per_minute: int,
    model: str | None,
    code: int,
    line: str,
) -> None:
    binary, tool = part("prometheus"), part("promtool")
    prometheus = RealPrometheus(binary, tmp_path, reserve_port())
    if bounds:
        (tmp_path / "past.om").write_text("\n".join(openmetrics(bounds, per_minute)) + "\n")
        blocks = ("tsdb", "create-blocks-from", "openmetrics")
        subprocess.run(
            [tool, *blocks, tmp_path / "past.om", prometheus.data], check=True, capture_output=True
        )
    prometheus.start()
    of = "" if model is None else f", model: {model}"
    env = {OBJECTIVES: f"[{{name: t, sli: time_to_first_token, threshold: 1s, target: 99%{of}}}]"}
    try:
        answer = opsctl.run(
            "alarms",
            "lint",
            "--from",
            "vllm",
            "--prometheus",
            prometheus.url,
            cwd=tmp_path,
            env=env,
        )
    finally:
        prometheus.stop()

    assert line in answer.stdout
    assert answer.returncode == code
