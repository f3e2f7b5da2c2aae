"""What log lines are looked for: the data of ``log_patterns.yaml``, compiled."""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml

from vllm_opsctl.errors import InputFileError

TAIL_BYTES = 4 * 2**20
"""How much of a log's end is read: hours of a server that logs its statistics every ten seconds."""

EXAMPLES = 3
"""Lines of each kind that are kept, the newest."""

MAX_LINE = 300


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
        for id_, entry in yaml.safe_load(text).items()
    }


def count_lines(lines: Iterable[str]) -> tuple[dict[str, int], dict[str, list[str]]]:
    """
    Count the lines of each kind.

    Returns:
        Counts of every kind (0 where there is none), and the newest examples.
    """
    counts = dict.fromkeys(log_patterns(), 0)
    examples: dict[str, deque[str]] = {}
    for line in lines:
        for id_, entry in log_patterns().items():
            if entry.pattern.search(line):
                counts[id_] += 1
                examples.setdefault(id_, deque(maxlen=EXAMPLES)).append(line.strip()[:MAX_LINE])
    return counts, {id_: list(found) for id_, found in examples.items()}


def read_tail(path: Path) -> list[str]:
    """
    The last lines of a log.

    Raises:
        InputFileError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            data = file.read(TAIL_BYTES)
    except OSError as problem:
        raise InputFileError(f"--log {path}: {problem.strerror}") from None
    return data.decode("utf-8", errors="replace").splitlines()
