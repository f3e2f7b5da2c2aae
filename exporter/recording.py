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
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, cast

from vllm_opsctl import __version__
from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.observation import KINDS, Observation, error

FORMAT_VERSION = 1

LATEST_T = 1e11
"""Unix seconds beyond any clock: the year 5138."""

MAX_CLOCK_STEPS = 3
"""More steps back in time than a clock makes in one recording: the lines are out of order."""

_Types = tuple[type, ...]
_NUMBER: _Types = (int, float)
_TEXT_OR_NONE: _Types = (str, type(None))
_FIELDS: dict[str, dict[str, _Types]] = {
    "metrics": {"text": (str,)},
    "health": {"status": (int, type(None)), "seconds": _NUMBER},
    "probe": {
        "ok": (bool,),
        "seconds": _NUMBER,
        "reason": _TEXT_OR_NONE,
        "detail": _TEXT_OR_NONE,
    },
    "facts": {"version": (str,), "models": (dict,)},
    "sagemaker": {"metrics": (dict,), "events": (list,), "not_seen": (list,)},
}
"""Types of the fields by kind."""

_SPOKEN: dict[type, str] = {
    str: "text",
    int: "a number",
    float: "a fraction",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    type(None): "null",
}

log = logging.getLogger(__name__)


class CutOffError(InputFileError):
    """A line that is no JSON: the last one of a file may be so after a crash."""


def read_recording(path: Path) -> list[Observation]:
    """
    Read a whole recording, headers left out.

    A last line that a crash cut off is dropped with a warning, as are lines of unknown kinds.

    Raises:
        InputFileError: Not there, not readable, or malformed; names the line.
    """
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")
    return parse_recording(_lines(path), where=str(path), stem=stem)


def parse_recording(lines: Iterable[str], *, where: str, stem: str) -> list[Observation]:
    """
    Read the lines of a recording, headers left out.

    Args:
        lines: JSON texts.
        where: The file, for messages.
        stem: The target's name where a line has none.

    Raises:
        InputFileError: Malformed, or empty; names the line.
    """
    found: list[Observation] = []
    pending: InputFileError | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if pending is not None:
            raise pending
        try:
            observation = parse_line(line, where=f"{where}:{number}", stem=stem)
        except CutOffError as problem:
            pending = problem
            continue
        if observation is not None and observation.kind != "header":
            found.append(observation)
    if pending is not None:
        if not found:
            raise pending
        log.warning("%s: the last line is cut off; dropped", where)
    if not found:
        raise InputFileError(f"{where}: no observations in it; record one with opsctl record")
    return _ordered(found, where)


def _ordered(found: list[Observation], where: str) -> list[Observation]:
    """
    Bring a shuffled file into the order of its times.

    A few steps back are a clock that was set; they stay, for the order of lines is the true one.
    """
    back = sum(later.t < earlier.t for earlier, later in pairwise(found))
    if back > MAX_CLOCK_STEPS:
        log.warning("%s: lines are out of order; sorted by time", where)
        return sorted(found, key=lambda observation: observation.t)
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
        raise CutOffError(f"{where}: not JSON ({problem})") from None
    if not isinstance(data, dict):
        raise InputFileError(f'{where}: expected an object like {{"t": …, "text": …}}')
    t = data.pop("t", None)
    if isinstance(t, bool) or not isinstance(t, int | float) or not 0 <= t < LATEST_T:
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
    for name, allowed in _FIELDS.get(kind, {}).items():
        if name in data and not isinstance(data[name], allowed):
            wanted = " or ".join(_SPOKEN[kind_] for kind_ in allowed)
            raise InputFileError(f"{where}: {name} is {data[name]!r}; expected {wanted}")
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


def _open(path: Path, mode: Literal["rb", "xb"]) -> IO[bytes]:
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
    """
    Writes observations as they come; what was written survives a crash up to the last line.

    Args:
        path: Must not exist, or be empty.

    Raises:
        InputFileError: The file exists or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            if path.is_file() and path.stat().st_size == 0:
                path.unlink()
            self._stream = _open(path, "xb")
        except FileExistsError:
            raise InputFileError(f"{path} exists; it is left alone, choose another name") from None
        except OSError as problem:
            raise self._failed(problem) from problem
        self._started = False

    def write(self, observation: Observation) -> None:
        """
        Append one observation, preceded by the header if it is the first.

        Raises:
            InputFileError: The disk is full, say.
        """
        first = "" if self._started else format_line(header(observation.t))
        self._started = True
        try:
            self._stream.write((first + format_line(observation)).encode())
            self._stream.flush()
        except OSError as problem:
            raise self._failed(problem) from problem

    def _failed(self, problem: OSError) -> InputFileError:
        return InputFileError(f"{self._path}: cannot be written ({problem.strerror})")

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._stream.close()
        except OSError as problem:
            if kind is None:
                raise self._failed(problem) from problem


def save_recording(path: Path, observations: Iterable[Observation]) -> None:
    """
    Write a whole recording at once; an older one is replaced only when the new one is complete.

    Raises:
        InputFileError: It cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as plain:
            # the lightest compression: this runs while an orchestrator waits for the sidecar's end
            stream: IO[bytes] = plain
            if path.name.endswith(".gz"):
                stream = cast(IO[bytes], gzip.GzipFile(fileobj=plain, mode="wb", compresslevel=1))
            for line in format_recording(observations):
                stream.write(line.encode())
            if stream is not plain:
                stream.close()
        unfinished.replace(path)
    except OSError as problem:
        raise InputFileError(f"{path}: cannot be written ({problem.strerror})") from problem
