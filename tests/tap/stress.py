"""
One writer at full speed, several readers: does any of them ever see a torn page?

    python tests/tap/stress.py --readers 4 --reads 500000

prints, per reader, how many copies were read and how many were torn: through the sequence lock, and
as a control without it. The writer adds the same to three counters, a histogram and the slot of
the second, so a copy in which they differ is torn.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import struct
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tap.fakes import FACTS, fake_identity, fake_iteration, fake_scheduler
from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap.page import BadTapPage, consistent_copy
from vllm_opsctl.exporter.tap.writer import PageWriter

LATENCY_S = 0.02
_BUCKET = layout.HISTOGRAM_OFFSETS["itl"] + 8 * (
    layout.HISTOGRAM_HEAD + layout.SECONDS.index(LATENCY_S)
)
_COUNTERS = [
    layout.COUNTERS_OFFSET + 8 * layout.COUNTERS.index(name)
    for name in ("records", "steps", "generation_tokens")
]


def is_torn(data: bytes) -> bool:
    """Whether numbers that grow together differ."""
    offsets = [*_COUNTERS, _BUCKET]
    return len({struct.unpack_from("<Q", data, offset)[0] for offset in offsets}) > 1


def write(folder: str, ready: multiprocessing.synchronize.Event) -> None:
    """Record without a pause."""
    page = PageWriter(Path(folder), fake_identity(), FACTS)
    scheduler, iteration = fake_scheduler(1, 0, 0.5), fake_iteration(itl=[LATENCY_S])
    ready.set()
    while True:
        page.record(scheduler, iteration, None)


def read(path: str, reads: int, results: multiprocessing.queues.Queue[dict[str, int]]) -> None:
    """Copy the page so many times, through the lock, and once as often without it."""
    fd = os.open(path, os.O_RDONLY)
    torn = stuck = 0
    for _ in range(reads):
        try:
            torn += is_torn(consistent_copy(fd, alive=True)[0])
        except BadTapPage:
            # the writer had no core for seconds; that is said, and nothing is made up
            stuck += 1
    unguarded = sum(is_torn(os.pread(fd, layout.PAGE_SIZE, 0)) for _ in range(reads))
    results.put({"reads": reads, "torn": torn, "stuck": stuck, "torn_without_the_lock": unguarded})


def stress(readers: int, reads: int) -> list[dict[str, int]]:
    """
    Run it.

    Args:
        readers: Processes that read at once.
        reads: Copies that each takes.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        ready, results = context.Event(), context.Queue()
        writer = context.Process(target=write, args=(folder, ready), daemon=True)
        writer.start()
        ready.wait()
        path = str(Path(folder) / fake_identity().file_name)
        processes = [
            context.Process(target=read, args=(path, reads, results)) for _ in range(readers)
        ]
        for process in processes:
            process.start()
        found = [results.get() for _ in processes]
        for process in processes:
            process.join()
        writer.kill()
        writer.join()
    return found


def main() -> None:
    """Read the command line, run, print; exit 1 when anything was torn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--reads", type=int, default=500_000, help="copies per reader")
    options = parser.parse_args()
    found = stress(options.readers, options.reads)
    for result in found:
        print(json.dumps(result))
    total = {name: sum(result[name] for result in found) for name in found[0]}
    print(f"together: {json.dumps(total)}")
    sys.exit(total["torn"] > 0)


if __name__ == "__main__":
    main()
