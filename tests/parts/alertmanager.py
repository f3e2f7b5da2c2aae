"""A real Alertmanager with a configuration that was built."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from parts.processes import start_server, stop_server


class RealAlertmanager:
    """
    One server on the loopback.

    Args:
        binary: The program.
        config: Its configuration; templates lie beside it.
        folder: For its data and log.
        port: A free port.
        env: Beside ours, such as the credentials that it signs with.
    """

    def __init__(
        self, binary: Path, config: Path, folder: Path, port: int, env: Mapping[str, str]
    ) -> None:
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        self.log = folder / "alertmanager.log"
        self._env = {**os.environ, **env}
        self._command = [
            str(binary),
            f"--config.file={config}",
            f"--storage.path={folder / 'alertmanager'}",
            f"--web.listen-address={self.address}",
            "--cluster.listen-address=",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self._process = start_server(self._command, self.log, f"{self.url}/-/ready", env=self._env)

    def stop(self) -> None:
        """Stop it."""
        if self._process is not None:
            stop_server(self._process)
