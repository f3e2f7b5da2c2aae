"""Hostile files in the tap's folder, and hands on a living page: nothing else is touched by them."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import Opsctl
from loopback import http_get, wait_for
from paths import RECORDINGS, TESTS
from tap.fakes import FakeEngine

from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.page import BadTapPage, TapPage, read_tap_page

OVERLOAD = RECORDINGS / "queue-overload.jsonl.gz"


def spoil(pages: Path) -> None:
    """Put into a folder what nobody expects there."""
    pages.mkdir(exist_ok=True)
    os.mkfifo(pages / "1-1.0.0.tap")
    (pages / "2-1.0.0.tap").mkdir()
    (pages / "3-1.0.0.tap").symlink_to("/dev/zero")
    with (pages / "4-1.0.0.tap").open("wb") as sparse:
        sparse.truncate(5 * 2**30)
    (pages / "5-1.0.0.tap").write_bytes(b"junk")


def is_up(sidecar: str, target: str) -> bool:
    lines = http_get(f"{sidecar}/metrics")[1].splitlines()
    return any(
        line.startswith("opsctl_target_up{")
        and f'target="{target}"' in line
        and line.endswith(" 1.0")
        for line in lines
    )


def test_a_target_with_an_address_is_read_beside_a_spoilt_folder(
    opsctl: Opsctl, tmp_path: Path
) -> None:
    pages = tmp_path / "pages"
    spoil(pages)
    url = opsctl.start_replay(OVERLOAD)
    (tmp_path / "opsctl.yaml").write_text(
        f"exporter: {{poll_interval: 200ms, tap: {{dir: '{pages}'}}}}\n"
        f"targets: [{{name: good, url: '{url}'}}]\n"
    )
    sidecar = opsctl.start_sidecar(cwd=tmp_path)
    wait_for(
        lambda: is_up(sidecar, "good"),
        timeout_s=20,
        what="the target",
    )
    with FakeEngine(pages, port=8123):
        wait_for(
            lambda: 'model="fake-llama"' in http_get(f"{sidecar}/metrics")[1],
            timeout_s=20,
            what="the engine",
        )


def test_a_diagnosis_of_a_spoilt_folder_reads_what_is_good(opsctl: Opsctl, tmp_path: Path) -> None:
    spoil(tmp_path)
    with FakeEngine(tmp_path):
        time.sleep(1.0)
        began = time.monotonic()
        ran = opsctl.run("diagnose", "--tap", str(tmp_path), "--output", "json")

    assert time.monotonic() - began < 30
    assert [target["target"] for target in json.loads(ran.stdout)["targets"]] == ["fake-llama:8000"]
    assert ran.stderr.count("; left out") == 5


def test_a_folder_with_nothing_but_a_fifo_is_told(opsctl: Opsctl, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.tap")
    ran = opsctl.run("diagnose", "--tap", str(tmp_path))

    assert ran.returncode == 64
    assert "no tap page in it" in ran.stderr


@pytest.mark.parametrize("size", [0, 100, layout.PAGE_SIZE // 2, 2 * layout.PAGE_SIZE])
def test_an_engine_whose_page_is_cut_lives_on_and_its_reader_sees_it_again(
    tmp_path: Path, size: int
) -> None:
    """A mapped file would end it here: SIGBUS, exit status 135."""
    with FakeEngine(tmp_path) as engine:
        for _ in range(5):
            before = read_whole(engine).counters["records"]
            os.truncate(engine.page, size)
            wait_for(
                functools.partial(is_newer, engine, before), timeout_s=10, what="newer numbers"
            )

        assert read_whole(engine).alive


def is_newer(engine: FakeEngine, records: int) -> bool:
    return read_whole(engine).counters["records"] > records + 1


def read_whole(engine: FakeEngine) -> TapPage:
    """The page as soon as it can be read."""
    found: list[TapPage] = []

    def there() -> bool:
        try:
            found.append(read_tap_page(engine.page))
        except BadTapPage:
            return False
        return True

    wait_for(there, timeout_s=10, what="a page")
    return found[-1]


CHILDREN = """
import atexit, os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from tap.fakes import *
from vllm_opsctl.exporter.tap.writer import PageWriter
writer = PageWriter(Path({folder!r}), fake_identity(started=time.time()), FACTS)
writer.record(fake_scheduler(4), None, None)
atexit.register(writer.close)
child = os.fork()
if child == 0:
    # as a library's worker would end: by exit handlers, after calls that were never meant for it
    writer.record(fake_scheduler(99), None, None)
    writer.touch()
    writer.give_up()
    sys.exit(0)
os.waitpid(child, 0)
print(writer.path, flush=True)
sys.stdin.read()
"""


def test_a_forked_child_that_ends_leaves_the_page_of_its_parent_alone(tmp_path: Path) -> None:
    code = CHILDREN.format(tests=str(TESTS), folder=str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        page = read_tap_page(Path(parent.stdout.readline().strip()))

        assert (page.alive, page.state) == (True, layout.LIVE)
        assert page.gauges["running"] == 4
        parent.communicate("")
    assert read_tap_page(page.path).state == layout.CLOSED
