"""What a tap page says once its writer's process has ended, in whatever way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from paths import TESTS
from tap.fakes import (
    FakeEngine,
)

from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.page import read_tap_page


def test_the_lock_tells_a_living_writer_from_a_dead_one(tmp_path: Path) -> None:
    with FakeEngine(tmp_path) as engine:
        assert read_tap_page(engine.page).alive
        engine.kill()

        page = read_tap_page(engine.page)

    assert not page.alive
    assert page.state == layout.LIVE, "it had no time to say anything"
    assert page.gauges["running"] == 4


def test_a_process_that_ends_in_order_says_so(tmp_path: Path) -> None:
    with FakeEngine(tmp_path) as engine:
        engine.stop()

        page = read_tap_page(engine.page)

    assert (page.alive, page.state) == (False, layout.CLOSED)


def in_a_process(folder: Path, code: str) -> str:
    """Run code that has a `writer` of a page in a folder; returns what it printed."""
    head = (
        "import os, sys, time; from pathlib import Path\n"
        f"sys.path.insert(0, {str(TESTS)!r})\n"
        "from tap.fakes import *; from vllm_opsctl.exporter.tap import layout\n"
        "from vllm_opsctl.exporter.tap.writer import PageWriter\n"
        f"writer = PageWriter(Path({str(folder)!r}), fake_identity(), FACTS)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", head + code], check=True, capture_output=True, text=True
    )
    return ran.stdout


def test_a_child_of_the_writer_does_not_keep_it_alive(tmp_path: Path) -> None:
    """vLLM's processes fork: the lock is the process's own, not its children's."""
    child = in_a_process(
        tmp_path,
        "child = os.fork()\n"
        "if child: print(child, flush=True); os._exit(0)\n"
        "for fd in range(3): os.close(fd)\n"
        "time.sleep(60)\n",
    )
    (file,) = tmp_path.glob("*.tap")
    try:
        assert not read_tap_page(file).alive
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_a_writer_that_died_within_an_update_leaves_a_readable_page(tmp_path: Path) -> None:
    in_a_process(
        tmp_path,
        "writer.record(fake_scheduler(7), None, None)\n"
        "writer._sequence += 1; writer._write_sequence()\n"
        "os._exit(0)\n",
    )
    (file,) = tmp_path.glob("*.tap")
    page = read_tap_page(file)

    assert page.torn
    assert page.gauges["running"] == 7
