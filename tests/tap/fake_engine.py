"""The process behind FakeEngine: keeps a tap page until it is told to stop. No vLLM in it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tap.fakes import FACTS, fake_finished, fake_iteration, fake_scheduler
from vllm_opsctl.exporter.tap.identity import identity_of
from vllm_opsctl.exporter.tap.writer import PageWriter


def main() -> None:
    """Write ten steps a second; SIGTERM closes the page."""
    folder, running, waiting, port = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    page = PageWriter(folder, identity_of(0, None), {**FACTS, "port": port})

    def stop(*_: object) -> None:
        page.close()
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    number = 0
    while True:
        number += 1
        page.record(
            fake_scheduler(running, waiting, kv=0.5, queries=64, hits=32),
            fake_iteration(
                ttft=[0.15], itl=[0.02] * running, finished=[fake_finished()], prompt=64
            ),
            None,
        )
        if number == 1:
            print(page.path, flush=True)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
