"""
Bundles: what an incident ticket wants of one diagnosis, in one ``.tar.gz``.

``recording.jsonl.gz`` holds the observations and ``manifest.json`` says how they were diagnosed, so
that a bundle reads like a recording and gives the verdict that lies beside them. Secrets are scrubbed
before anything is packed. A bundle comes from a ticket, from anybody: reading one is bounded, unpacks
nothing to disk and takes only plain members with plain names.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.files import open_plain, unpacked, written_whole
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS, MAX_RECORDED_TARGETS
from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.observation_shape import LATEST_T, shown
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.recording import (
    bounded_lines,
    format_recording,
    parse_recording,
    read_recording,
)
from vllm_opsctl.exporter.redaction import without_secrets

RECORDING = "recording.jsonl.gz"
MANIFEST = "manifest.json"
FORMAT_VERSION = 1

MAX_PACKED_BYTES = 256 * 2**20
"""A fleet of 50 busy targets over half an hour packs to about 140 MiB (2.7 MiB each)."""

MAX_MEMBERS = 64

_MAX_TOLD = 120
"""Characters of what a parser says of damaged bytes."""


@dataclass(frozen=True, slots=True)
class Scrubber:
    """
    Takes out of texts what a ticket must not show.

    Args:
        secrets: Values of API keys; hidden wherever they occur.
    """

    secrets: Sequence[str] = ()

    def text(self, text: str) -> str:
        """
        A text without known secrets, and its URLs without credentials and query values.

        >>> Scrubber(["sk-1234"]).text("http://me:pw@h:1/m?token=abc&x=1 says sk-1234")
        'http://***@h:1/m?token=***&x=*** says ***'
        """
        return without_secrets(text, self.secrets)

    def observation(self, observation: Observation) -> Observation:
        """An observation whose details are scrubbed; pages are metrics and stay as they were."""
        data = {
            key: self.text(value) if isinstance(value, str) and key != "text" else value
            for key, value in observation.data.items()
        }
        return replace(observation, data=data)


def as_packed(observations: Iterable[Observation], scrubber: Scrubber) -> list[Observation]:
    """The observations as a bundle will give them back: scrubbed, times in milliseconds."""
    return [replace(scrubber.observation(o), t=round(o.t, 3)) for o in observations]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """
    What a diagnosis was asked.

    Args:
        source: How the observations were had (``scrape``, ``sidecar``, ``recording``).
        at: End of the window (unix seconds); None for each target's newest observation.
        window_s: Length of the window.
        targets: Names of the targets, in the order of the verdict.
        now: Unix seconds at which it was asked how the targets are now; None for a question about the
            past.
    """

    source: str
    at: float | None
    window_s: float
    targets: tuple[str, ...]
    now: float | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """The observations of a bundle, and what was asked about them."""

    observations: list[Observation]
    asked: Asked


# -- writing -----------------------------------------------------------------------------------


def refuse_to_overwrite(path: Path) -> None:
    """
    Check early, before anything is observed, that a bundle may be written.

    Raises:
        InputFileError: Something lies there, or the folder does not exist.
    """
    if path.is_dir() or (path.exists() and path.stat().st_size > 0):
        raise InputFileError(f"{path} exists; it is left alone, choose another name")
    if not path.parent.is_dir():
        raise InputFileError(f"{path}: cannot be written (no folder {path.parent})")


def write_bundle(
    path: Path,
    observations: Sequence[Observation],
    asked: Asked,
    *,
    texts: Mapping[str, str],
    made: Mapping[str, str],
    t: float,
) -> None:
    """
    Pack a bundle; it is there when it is complete, or not at all.

    Args:
        path: Must not exist, or be empty.
        observations: As :func:`as_packed` gives them.
        asked: What was diagnosed.
        texts: The other members by name.
        made: Who made it and how, for the manifest.
        t: Unix seconds, the time of the members.

    Raises:
        InputFileError: Something lies there, or it cannot be written.
    """
    refuse_to_overwrite(path)
    members = {
        RECORDING: _packed(format_recording(observations)),
        **{name: text.encode() for name, text in texts.items()},
    }
    manifest = {
        "format": FORMAT_VERSION,
        **made,
        "diagnosis": {
            "source": asked.source,
            "at": asked.at,
            "window_s": asked.window_s,
            "targets": list(asked.targets),
            "now": asked.now,
        },
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in members.items()},
    }
    members[MANIFEST] = (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()
    with (
        written_whole(path, _move_to_free_name) as stream,
        tarfile.open(fileobj=stream, mode="w:gz", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name in (MANIFEST, *(name for name in members if name != MANIFEST)):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(members[name]), int(t), 0o644
            archive.addfile(info, io.BytesIO(members[name]))


def _packed(lines: Iterable[str]) -> bytes:
    """Lines, gzipped one by one: together they may take more than memory should hold."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as stream:
        for line in lines:
            stream.write(line.encode())
    return packed.getvalue()


def _move_to_free_name(unfinished: Path, path: Path) -> None:
    """Rename; what came to lie there meanwhile is left alone."""
    if path.exists():
        refuse_to_overwrite(path)
        path.unlink()
    # claims the name: of two that write at once, one fails here
    path.open("xb").close()
    unfinished.replace(path)


# -- reading -----------------------------------------------------------------------------------


def read_observations(path: Path) -> tuple[list[Observation], Asked | None]:
    """
    Read a recording, or the recording within a bundle and what was asked about it.

    Raises:
        InputFileError: Not there, not readable, malformed, or a bundle that nobody should trust.
    """
    if not _is_archive(path):
        return read_recording(path), None
    bundle = read_bundle(path)
    return bundle.observations, bundle.asked


def _is_archive(path: Path) -> bool:
    """Whether a file is a tar archive, gzipped or not; mail and trackers rename and unpack."""
    with open_plain(path, "recording") as stream:
        try:
            return unpacked(stream).read(512)[257:262] == b"ustar"
        except (OSError, EOFError, zlib.error):
            return False


def read_bundle(path: Path) -> Bundle:
    """
    Read a bundle.

    Raises:
        InputFileError: It is none, it is damaged, or a member is not what a bundle holds.
    """
    try:
        with open_plain(path, "bundle") as stream:
            members = _members(path, _Bounded(unpacked(stream), MAX_PACKED_BYTES, path))
    except InputFileError:
        raise
    except Exception as problem:
        # tarfile's own, gzip's, zlib's, and what either meets in headers that somebody made up
        raise InputFileError(f"{path}: the bundle is damaged ({_told(problem)})") from problem
    for name in (MANIFEST, RECORDING):
        if name not in members:
            raise InputFileError(f"{path}: no {name} in it; it is no bundle of opsctl diagnose")
    asked = _checked_manifest(path, members)
    lines = _recorded_lines(members[RECORDING], path)
    return Bundle(parse_recording(lines, where=f"{path}:{RECORDING}", stem=path.stem), asked)


class _Bounded(io.RawIOBase):
    """A stream that fails once more was read from it than a bundle may hold."""

    def __init__(self, stream: IO[bytes], limit: int, path: Path) -> None:
        self._stream = stream
        self._left = limit
        self._refusal = f"{path}: more than {limit >> 20} MiB unpacked; no bundle is so large"

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there, within the bound."""
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise InputFileError(self._refusal)
        buffer[: len(data)] = data
        return len(data)


def _members(path: Path, stream: _Bounded) -> dict[str, bytes]:
    """All members; everything but plain files with plain names is refused."""
    found: dict[str, bytes] = {}
    # as a stream: nothing is sought, so no header can send the reader round in circles
    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|") as archive:
        for member in archive:
            name = shown(member.name)
            if "/" in member.name or "\\" in member.name or member.name in ("", ".", ".."):
                raise InputFileError(f"{path}: member {name} has a path; a bundle has none")
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                raise InputFileError(f"{path}: member {name} is no plain file; nothing was read")
            if member.size > MAX_PACKED_BYTES:
                raise InputFileError(
                    f"{path}: member {name} is larger than {MAX_PACKED_BYTES >> 20} MiB"
                )
            if member.name in found or len(found) >= MAX_MEMBERS:
                why = "stands twice" if member.name in found else "is one too many"
                raise InputFileError(f"{path}: member {name} {why}")
            content = archive.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
    return found


def _checked_manifest(path: Path, members: Mapping[str, bytes]) -> Asked:
    """What was asked; the members are what the manifest says they are."""
    try:
        manifest: Any = json.loads(members[MANIFEST])
        asked, sums = manifest["diagnosis"], manifest["sha256"]
        sums = {str(name): str(value) for name, value in sums.items()}
        found = Asked(
            source=plain(str(asked["source"]), MAX_NAME_CHARS),
            at=None if asked["at"] is None else _number(asked["at"], least=0.0),
            window_s=_number(asked["window_s"], least=1e-3),
            targets=_names(asked["targets"]),
            # bundles of 0.2 and before do not say it
            now=None if asked.get("now") is None else _number(asked["now"], least=0.0),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise InputFileError(
            f"{path}: {MANIFEST} is not one of opsctl's ({_told(problem)})"
        ) from None
    for name, data in members.items():
        if name != MANIFEST and sums.get(name) != hashlib.sha256(data).hexdigest():
            raise InputFileError(
                f"{path}: {shown(name)[1:-1]} is not what {MANIFEST} says; it was changed or damaged"
            )
    return found


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_RECORDED_TARGETS:
        raise ValueError("targets are no list of names")
    return tuple(dict.fromkeys(plain(str(name), MAX_NAME_CHARS) for name in value))


def _number(value: object, *, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{shown(value)} is no number")
    if not least <= value < LATEST_T:
        raise ValueError(f"{shown(value)} is out of range")
    return float(value)


def _told(problem: Exception) -> str:
    """What is wrong, in a line that is cut: some name all that they could not read."""
    return plain(f"{type(problem).__name__}: {problem}", _MAX_TOLD)


def _recorded_lines(data: bytes, path: Path) -> Iterator[str]:
    stream = cast(IO[bytes], gzip.GzipFile(fileobj=io.BytesIO(data)))
    try:
        yield from bounded_lines(stream, f"{path}:{RECORDING}")
    except (OSError, EOFError, zlib.error) as problem:
        raise InputFileError(f"{path}: {RECORDING} is damaged ({_told(problem)})") from problem
