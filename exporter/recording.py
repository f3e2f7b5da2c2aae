"""
Recordings: observations over time in a file, JSON lines, gzipped or not; written so when the name
ends in ``.gz``.

One line an observation: ``{"t": unix seconds, "target": name, "kind": kind, …the kind's fields}``.
``kind`` is ``metrics`` when absent and ``target`` the file's stem, so a plain ``{"t", "text"}``
capture is a recording; a ``text`` of null there is a failed read with its ``error``.
"""

from __future__ import annotations

import gzip
import json
import logging
import sys
import zlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from vllm_opsctl import __version__
from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.files import open_plain, unpacked, written_whole
from vllm_opsctl.exporter.limits import (
    MAX_JSON_BRACKETS,
    MAX_LINE_BYTES,
    MAX_LINES,
    MAX_NAME_CHARS,
    MAX_OBSERVATIONS,
    MAX_RECORDED_TARGETS,
    MAX_RECORDING_BYTES,
)
from vllm_opsctl.exporter.observation import KINDS, Observation, error
from vllm_opsctl.exporter.observation_shape import LATEST_T, ShapeError, checked, shown
from vllm_opsctl.exporter.plain_text import plain

__all__ = [
    "LATEST_T",
    "RecordingWriter",
    "bounded_lines",
    "format_line",
    "format_recording",
    "header",
    "parse_line",
    "parse_lines",
    "parse_recording",
    "read_recording",
    "save_recording",
]

FORMAT_VERSION = 1

MAX_CLOCK_STEPS = 3
"""More steps back in time than a clock makes in one recording: the lines are out of order."""

_MAX_UNKNOWN_KINDS = 8
"""So many are named before one looks at the version of opsctl."""

_OBSERVATION_BYTES = 512
"""What one takes beside its page, about."""

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
        InputFileError: Malformed, empty, or more than memory should hold; names the line.
    """
    found = parse_lines(lines, where=where, stem=stem)
    if not found:
        raise InputFileError(f"{where}: no observations in it; record one with opsctl record")
    return _ordered(found, where)


def parse_lines(lines: Iterable[str], *, where: str, stem: str) -> list[Observation]:
    """
    The same of lines that may be none, in their own order: what a sidecar answers.

    Raises:
        InputFileError: As :func:`parse_recording`.
    """
    found: list[Observation] = []
    pages: dict[str, str] = {}
    unknown: set[str] = set()
    targets: set[str] = set()
    pending: InputFileError | None = None
    held = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if pending is not None:
            raise pending
        try:
            observation = _parse(line, where=f"{where}:{number}", stem=stem)
        except CutOffError as problem:
            pending = problem
            continue
        if isinstance(observation, str):
            if observation not in unknown and len(unknown) < _MAX_UNKNOWN_KINDS:
                log.warning("%s:%d: unknown kind %s skipped", where, number, observation)
                unknown.add(observation)
        elif observation.kind != "header":
            observation, more = _shared(observation, pages)
            held += more + _OBSERVATION_BYTES
            if held > MAX_RECORDING_BYTES or len(found) >= MAX_OBSERVATIONS:
                raise InputFileError(
                    f"{where}:{number}: more than {MAX_RECORDING_BYTES >> 20} MiB or "
                    f"{MAX_OBSERVATIONS} observations; cut it to the time that matters"
                )
            targets.add(observation.target)
            if len(targets) > MAX_RECORDED_TARGETS:
                raise InputFileError(f"{where}:{number}: more than {MAX_RECORDED_TARGETS} targets")
            found.append(observation)
    if pending is not None:
        if not found:
            raise pending
        log.warning("%s: the last line is cut off; dropped", where)
    return found


def _shared(observation: Observation, pages: dict[str, str]) -> tuple[Observation, int]:
    """A page that is the target's last one again is held once; with the bytes that it takes."""
    if observation.kind != "metrics":
        return observation, 0
    text, target = observation.text, observation.target
    if pages.get(target) == text:
        return Observation(
            observation.t, target, "metrics", {**observation.data, "text": pages[target]}
        ), 0
    pages[target] = text
    return observation, sys.getsizeof(text)


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
    found = _parse(line, where=where, stem=stem)
    if isinstance(found, str):
        log.warning("%s: unknown kind %s skipped", where, found)
        return None
    return found


def _parse(line: str, *, where: str, stem: str) -> Observation | str:
    """An observation, or the kind that this version does not know."""
    if line.count("[") + line.count("{") > MAX_JSON_BRACKETS:
        raise InputFileError(f"{where}: more than {MAX_JSON_BRACKETS} brackets; no observation")
    try:
        data = json.loads(line, parse_constant=_refuse_constant)
    except RecursionError:
        raise InputFileError(f"{where}: nested too deeply; no observation") from None
    except ValueError as problem:
        raise CutOffError(f"{where}: not JSON ({shown(str(problem))[1:-1]})") from None
    except _NotFinite as problem:
        raise InputFileError(f"{where}: {problem} is no number of JSON") from None
    if not isinstance(data, dict):
        raise InputFileError(f'{where}: expected an object like {{"t": …, "text": …}}')
    t = data.pop("t", None)
    if isinstance(t, bool) or not isinstance(t, int | float) or not 0 <= t < LATEST_T:
        raise InputFileError(f"{where}: t is {shown(t)}; expected unix seconds")
    target = data.pop("target", stem)
    kind = data.pop("kind", "metrics")
    if not isinstance(target, str):
        raise InputFileError(f"{where}: target is {shown(target)}; expected a name")
    if not isinstance(kind, str):
        raise InputFileError(f"{where}: kind is {shown(kind)}; expected a name")
    target = plain(target, MAX_NAME_CHARS)
    known = next((name for name in KINDS if name == kind), None)
    if known is None:
        return shown(kind)
    try:
        if known == "metrics" and data.get("text") is None:
            return error(float(t), target, *_failure_of(checked("", data)))
        return Observation(float(t), target, known, checked(known, data))
    except ShapeError as problem:
        raise InputFileError(f"{where}: {problem}") from None


class _NotFinite(Exception):
    """NaN, or an infinity: Python's JSON takes them, and no other."""


def _refuse_constant(name: str) -> float:
    raise _NotFinite(name)


def _failure_of(data: dict[str, Any]) -> tuple[str, str]:
    """Reason and detail of a capture's failed read."""
    detail = str(data.get("error") or "no page")
    lowered = detail.lower()
    reasons = {"refused": "refused", "timeout": "timeout", "timed out": "timeout", "reset": "reset"}
    reason = next((name for word, name in reasons.items() if word in lowered), "unreachable")
    return reason, detail


def bounded_lines(stream: IO[bytes], where: str) -> Iterator[str]:
    """
    The lines of a recording, never more of it in memory than a line may have.

    Args:
        stream: The recording, unpacked.
        where: The file, for messages.

    Raises:
        InputFileError: A line, or all of them, are longer than any recording's.
    """
    left, number = MAX_RECORDING_BYTES, 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        left -= len(raw)
        if len(raw) > MAX_LINE_BYTES:
            raise InputFileError(
                f"{where}:{number}: a line of more than {MAX_LINE_BYTES >> 20} MiB; no recording"
            )
        if left < 0 or number > MAX_LINES:
            most = f"{MAX_RECORDING_BYTES >> 20} MiB unpacked" if left < 0 else f"{MAX_LINES} lines"
            raise InputFileError(
                f"{where}:{number}: more than {most}; cut it to the time that matters"
            )
        yield raw.decode("utf-8", errors="replace")


def _lines(path: Path) -> Iterator[str]:
    with open_plain(path, "recording") as plain_file:
        try:
            yield from bounded_lines(unpacked(plain_file), str(path))
        except EOFError:
            log.warning("%s: the gzip stream is cut off; what was readable is used", path)
        except (OSError, zlib.error) as problem:
            raise InputFileError(f"{path}: cannot be read ({problem})") from problem


def _create(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return cast(IO[bytes], gzip.open(path, "xb"))
    return path.open("xb")


def format_line(observation: Observation) -> str:
    """One line of a recording, with its newline."""
    fields = {"t": round(observation.t, 3), "target": observation.target, "kind": observation.kind}
    text = json.dumps(fields | dict(observation.data), ensure_ascii=False)
    # half a character, out of an engine's JSON, has no bytes
    return text.encode(errors="replace").decode() + "\n"


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
            self._stream = _create(path)
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
    with written_whole(path) as plain_file:
        # the lightest compression: this runs while an orchestrator waits for the sidecar's end
        stream: IO[bytes] = plain_file
        if path.name.endswith(".gz"):
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=plain_file, mode="wb", compresslevel=1))
        for line in format_recording(observations):
            stream.write(line.encode())
        if stream is not plain_file:
            stream.close()
