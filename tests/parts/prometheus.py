"""A real Prometheus: it scrapes, or it is given the past of a recording before it starts."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from parts.processes import start_server, stop_server
from vllm_opsctl.exporter.observation import Observation

_SAMPLE = re.compile(r"^([^{\s]+)(?:\{(.*)\})? (\S+)$")


class RealPrometheus:
    """
    One server on the loopback with a folder of its own.

    Args:
        binary: The program.
        folder: For its configuration, data and log.
        port: A free port.
        scrape: Job to its static targets (``HOST:PORT``).
        interval_s: Time between two scrapes.
        job_settings: More lines of every scrape configuration.
        rules: Rule files that it evaluates.
        alertmanager: ``HOST:PORT`` of who gets the alerts.
    """

    def __init__(
        self,
        binary: Path,
        folder: Path,
        port: int,
        *,
        scrape: Mapping[str, Sequence[str]] | None = None,
        interval_s: float = 1.0,
        job_settings: Mapping[str, object] | None = None,
        rules: Sequence[Path] = (),
        alertmanager: str | None = None,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.data = folder / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        interval = f"{interval_s * 1000:.0f}ms"
        jobs = [
            {
                "job_name": job,
                "static_configs": [{"targets": list(targets)}],
                **(job_settings or {}),
            }
            for job, targets in (scrape or {}).items()
        ]
        settings: dict[str, object] = {
            "global": {
                "scrape_interval": interval,
                "scrape_timeout": interval,
                "evaluation_interval": interval,
            },
            "scrape_configs": jobs,
            "rule_files": [str(path) for path in rules],
        }
        if alertmanager is not None:
            settings["alerting"] = {
                "alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]
            }
        config = folder / "prometheus.yml"
        # JSON is YAML
        config.write_text(json.dumps(settings), encoding="utf-8")
        self._log = folder / "prometheus.log"
        self._command = [
            str(binary),
            f"--config.file={config}",
            f"--storage.tsdb.path={self.data}",
            # recordings are as old as they are
            "--storage.tsdb.retention.time=100y",
            f"--web.listen-address=127.0.0.1:{port}",
            # a minute by default: what was sent before the Alertmanager was known is late by it
            "--rules.alert.resend-delay=1s",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self._process = start_server(self._command, self._log, f"{self.url}/-/ready")

    def stop(self) -> None:
        """Stop it."""
        if self._process is not None:
            stop_server(self._process)


def backfill(
    promtool: Path, observations: Sequence[Observation], into: Path, **labels: str
) -> None:
    """
    Put a recording into a Prometheus's data folder, as if it had been scraped at the recorded times.

    Args:
        promtool: The program.
        observations: Of one target.
        into: The data folder.
        labels: The target's labels, ``job`` and ``instance`` at least.
    """
    text = into.parent / "backfill.txt"
    with text.open("w", encoding="utf-8") as stream:
        for line in openmetrics(observations, labels):
            stream.write(line + "\n")
    subprocess.run(
        [promtool, "tsdb", "create-blocks-from", "openmetrics", "--quiet", text, into],
        check=True,
        capture_output=True,
    )
    text.unlink()


def openmetrics(observations: Sequence[Observation], labels: Mapping[str, str]) -> Iterator[str]:
    """What Prometheus would have stored: each page's samples with the target's labels, and ``up``."""
    target = ",".join(f'{name}="{value}"' for name, value in labels.items())
    for observation in observations:
        if observation.kind not in ("metrics", "error"):
            continue
        is_page = observation.kind == "metrics"
        yield f"up{{{target}}} {int(is_page)} {observation.t:.3f}"
        if is_page:
            for line in observation.text.splitlines():
                if (sample := _SAMPLE.match(line)) is not None:
                    name, own, value = sample.groups()
                    inner = f"{own},{target}" if own else target
                    yield f"{name}{{{inner}}} {value} {observation.t:.3f}"
    yield "# EOF"
