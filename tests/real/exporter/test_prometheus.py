"""A real Prometheus scrapes the sidecar and answers with what the engine counted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from commands import Opsctl
from loopback import answers, http_get, wait_for
from paths import RECORDINGS
from ports import reserve_port


@pytest.fixture
def prometheus(
    opsctl: Opsctl, part: Callable[[str], Path], tmp_path: Path
) -> Iterator[Callable[[str], float | None]]:
    """Asks a real Prometheus that scrapes a sidecar every second."""
    binary = part("prometheus")
    sidecar = opsctl.start_sidecar(
        opsctl.start_replay(RECORDINGS / "kv-preemption-thrash.jsonl.gz", "--speed", "4")
    )
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "sidecar",
                "static_configs": [{"targets": [sidecar.removeprefix("http://")]}],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    port = reserve_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [
            binary,
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(query: str) -> float | None:
        _, text = http_get(f"{url}/api/v1/query?query={quote(query)}")
        result = json.loads(text)["data"]["result"]
        return float(result[0]["value"][1]) if result else None

    # while it opens its files it answers 503
    wait_for(
        lambda: answers(url) and http_get(f"{url}/-/ready")[0] == 200,
        timeout_s=30,
        what="Prometheus",
    )
    yield ask
    process.terminate()
    process.wait(timeout=20)


def test_prometheus_sees_the_incident(prometheus: Callable[[str], float | None]) -> None:
    wait_for(
        lambda: (prometheus("increase(vllm_engine_preemptions_total[30s])") or 0) > 5,
        timeout_s=40,
        what="preemptions in Prometheus",
    )

    peak = "max_over_time(vllm_engine_kv_cache_usage_peak_ratio{window='15s'}[30s])"
    wait_for(lambda: (prometheus(peak) or 0) > 0.9, timeout_s=40, what="the peak in Prometheus")
    assert (prometheus("vllm_sli_events_total{objective='e2e',outcome='bad'}") or 0) > 0
    assert (
        prometheus(
            "histogram_quantile(0.5, rate(vllm_engine_time_to_first_token_seconds_bucket[30s]))"
        )
        is not None
    )
