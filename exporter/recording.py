"""
Recordings: observations over time in a file, JSON lines, gzip when the name ends in ``.gz``.

One line an observation: ``{"t": unix seconds, "target": name, "kind": kind, …the kind's fields}``.
``kind`` is ``metrics`` when absent and ``target`` the file's stem, so a plain ``{"t", "text"}``
capture is a recording; a ``text`` of null there is a failed read with its ``error``.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, cast

from vllm_opsctl import __version__
from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.observation import KINDS, Observation, error

FORMAT_VERSION = 1

log = logging.getLogger(__name__)


def read_recording(path: Path) -> list[Observation]:
    """
    Read a whole recording, headers left out.

    A last line that a crash cut off is dropped with a warning, as are lines of unknown kinds.

    Raises:
        InputFileError: Not there, not readable, or malformed; names the line.
    """
    lines = _lines(path)
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")
    found: list[Observation] = []
    pending: InputFileError | None = None
    number = 0
    for number, line in enumerate(lines, start=1):
        if pending is not None:
            raise pending
        if not line.strip():
            continue
        try:
            observation = parse_line(line, where=f"{path}:{number}", stem=stem)
        except InputFileError as problem:
            pending = problem
            continue
        if observation is not None and observation.kind != "header":
            found.append(observation)
    if pending is not None:
        if not found:
            raise pending
        log.warning("%s: the last line is cut off; dropped", path)
    if not found:
        raise InputFileError(f"{path}: no observations in it; record one with opsctl record")
    return found


def parse_line(line: str, *, where: str, stem: str) -> Observation | None:
    """
    Read one line of a recording.

    Args:
        line: JSON text.
        where: File and line, for messages.
        stem: The target's name when the line has none.

    Returns:
        None for a kind that this version does not know.

    Raises:
        InputFileError: Malformed.
    """
    try:
        data = json.loads(line)
    except ValueError as problem:
        raise InputFileError(f"{where}: not JSON ({problem})") from None
    if not isinstance(data, dict):
        raise InputFileError(f'{where}: expected an object like {{"t": …, "text": …}}')
    t = data.pop("t", None)
    if isinstance(t, bool) or not isinstance(t, int | float):
        raise InputFileError(f"{where}: t is {t!r}; expected unix seconds")
    target = data.pop("target", stem)
    kind = data.pop("kind", "metrics")
    if not isinstance(target, str):
        raise InputFileError(f"{where}: target is {target!r}; expected a name")
    if kind not in KINDS:
        log.warning("%s: unknown kind %r skipped", where, kind)
        return None
    if kind == "metrics" and data.get("text") is None:
        return error(float(t), target, *_failure_of(data))
    if kind == "metrics" and not isinstance(data["text"], str):
        raise InputFileError(f"{where}: text is not a string; expected the page's text")
    return Observation(float(t), target, kind, data)


def _failure_of(data: dict[str, Any]) -> tuple[str, str]:
    """Reason and detail of a capture's failed read."""
    detail = str(data.get("error") or "no page")
    lowered = detail.lower()
    reasons = {"refused": "refused", "timeout": "timeout", "timed out": "timeout", "reset": "reset"}
    reason = next((name for word, name in reasons.items() if word in lowered), "unreachable")
    return reason, detail


def _lines(path: Path) -> Iterator[str]:
    try:
        with _open(path, "rb") as stream:
            for raw in stream:
                yield raw.decode("utf-8", errors="replace")
    except FileNotFoundError:
        raise InputFileError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputFileError(f"{path}: a directory; give a recording") from None
    except EOFError:
        log.warning("%s: the gzip stream is cut off; what was readable is used", path)
    except (OSError, zlib.error) as problem:
        raise InputFileError(f"{path}: cannot be read ({problem})") from problem


def _open(path: Path, mode: Literal["rb", "wb"]) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return cast(IO[bytes], gzip.open(path, mode))
    return path.open(mode)


def format_line(observation: Observation) -> str:
    """One line of a recording, with its newline."""
    fields = {"t": round(observation.t, 3), "target": observation.target, "kind": observation.kind}
    return json.dumps(fields | dict(observation.data), ensure_ascii=False) + "\n"


def header(t: float) -> Observation:
    """The first line of a recording."""
    made_by = f"vllm-opsctl {__version__}"
    return Observation(t, "", "header", {"format": FORMAT_VERSION, "made_by": made_by})


def format_recording(observations: Iterable[Observation]) -> Iterator[str]:
    """All lines of a recording, header first."""
    for index, observation in enumerate(observations):
        if index == 0:
            yield format_line(header(observation.t))
        yield format_line(observation)


class RecordingWriter:
    """Writes observations as they come; what was written survives a crash up to the last line."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            InputFileError: The file cannot be written.
        """
        self._path = path
        try:
            self._stream = _open(path, "wb")
        except OSError as problem:
            raise InputFileError(f"{path}: cannot be written ({problem.strerror})") from problem
        self._started = False

    def write(self, observation: Observation) -> None:
        """Append one observation, preceded by the header if it is the first."""
        if not self._started:
            self._stream.write(format_line(header(observation.t)).encode())
            self._started = True
        self._stream.write(format_line(observation).encode())
        self._stream.flush()

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
