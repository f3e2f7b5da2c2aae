"""Real vLLM servers that tests share, one at a time: a start takes half a minute."""

from __future__ import annotations

from pathlib import Path

from bench.tap_servers import write_tiny_model
from load.scenarios import SERVERS, ServerKey
from loopback import http_get, wait_for

from parts.engine import RealVllm
from parts.machine import MODEL_FIT
from vllm_opsctl.exporter.exposition import read_page


class Servers:
    """Servers by configuration; the next one stops the one before."""

    def __init__(self, python: Path, folder: Path) -> None:
        self._python = python
        self._model = folder / "model"
        self._logs = folder
        self._key: ServerKey | None = None
        self._vllm: RealVllm | None = None

    def get(self, key: ServerKey) -> RealVllm:
        """The server of a configuration, with nothing to do; started when it is not running."""
        if self._vllm is None or self._key != key:
            self.stop()
            if not self._model.exists():
                write_tiny_model(self._python, self._model, **MODEL_FIT.size)
            log = self._logs / f"{key}.log"
            self._vllm = RealVllm(self._python, self._model, SERVERS[key], log_file=log)
            self._vllm.start()
            self._key = key
        vllm = self._vllm
        wait_for(lambda: _is_idle(vllm), timeout_s=120, what="the end of the last load")
        return vllm

    def stop(self) -> None:
        """Stop what runs."""
        if self._vllm is not None:
            self._vllm.stop()
        self._vllm = None


def _is_idle(vllm: RealVllm) -> bool:
    (engine,) = read_page(http_get(f"{vllm.url}/metrics")[1], t=0.0, target="vllm").engines
    return engine.gauges["requests_running"] == engine.gauges["requests_waiting"] == 0
