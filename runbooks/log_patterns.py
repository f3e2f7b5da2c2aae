"""What log lines are looked for: the data of ``log_patterns.yaml``, compiled."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.files import open_plain
from vllm_opsctl.exporter.yaml_text import read_yaml

TAIL_BYTES = 4 * 2**20
"""How much of a log's end is read: hours of a server that logs its statistics every ten seconds."""


@dataclass(frozen=True, slots=True)
class LogPattern:
    """
    A kind of line.

    Args:
        meaning: What such a line says.
        pattern: What it looks like.
        source: Who writes it.
    """

    meaning: str
    pattern: re.Pattern[str]
    source: str


@functools.cache
def log_patterns() -> Mapping[str, LogPattern]:
    """The shipped patterns by id."""
    text = files("vllm_opsctl.runbooks").joinpath("log_patterns.yaml").read_text(encoding="utf-8")
    return {
        id_: LogPattern(
            entry["meaning"], re.compile(entry["pattern"], re.IGNORECASE), entry["source"]
        )
        for id_, entry in read_yaml(text).items()
    }


def count_lines(lines: Iterable[str]) -> dict[str, int]:
    """Count the lines of each kind; 0 where there is none. The lines themselves are not kept."""
    counts = dict.fromkeys(log_patterns(), 0)
    for line in lines:
        for id_, entry in log_patterns().items():
            counts[id_] += entry.pattern.search(line) is not None
    return counts


def read_tail(path: Path) -> list[str]:
    """
    The last lines of a log.

    Raises:
        InputFileError: It cannot be read, or is no plain file: a FIFO would wait for ever.
    """
    try:
        with open_plain(path, "file that holds the log") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            data = file.read(TAIL_BYTES)
    except InputFileError as problem:
        raise InputFileError(f"--log {problem}") from None
    except OSError as problem:
        raise InputFileError(f"--log {path}: cannot be read ({problem.strerror})") from None
    return data.decode("utf-8", errors="replace").splitlines()
