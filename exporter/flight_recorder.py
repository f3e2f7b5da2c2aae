"""
The flight recorder: the last half hour of observations at full resolution in little memory.

A page differs from the one before in few values, so a chunk of up to 60 observations is one zlib
stream of one whole page and then of changed lines only. What comes out is what went in, byte for
byte. Whole chunks are dropped when they are too old or the memory bound is reached.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from vllm_opsctl.exporter.observation import Observation, metrics

CHUNK_OBSERVATIONS = 60
"""Observations per chunk: small enough to drop by the minute, large enough to compress well."""


_UNPACKED_AT_ONCE = 2**20


@dataclass(slots=True)
class _Chunk:
    first_t: float
    compressor: zlib._Compress | None = field(default_factory=lambda: zlib.compressobj(6))
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    last_t: float = 0.0
    count: int = 0
    lines: list[str] = field(default_factory=list)

    def append(self, observation: Observation) -> None:
        record = self._encode(observation)
        # half of a surrogate pair is no text, but what came has to go in
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        raw = text.encode("utf-8", "surrogatepass") + b"\n"
        # a flush after each record lets readers see it without ending the stream
        assert self.compressor is not None, "a closed chunk takes nothing more"
        data = self.compressor.compress(raw) + self.compressor.flush(zlib.Z_SYNC_FLUSH)
        self.parts.append(data)
        self.size += len(data)
        self.count += 1
        self.last_t = observation.t

    def _encode(self, observation: Observation) -> list[object]:
        if observation.kind != "metrics":
            return [observation.t, observation.kind, dict(observation.data)]
        lines = observation.text.split("\n")
        if len(lines) == len(self.lines):
            changed = [
                [index, line]
                for index, (line, old) in enumerate(zip(lines, self.lines, strict=True))
                if line != old
            ]
            record: list[object] = [observation.t, "delta", changed]
        else:
            record = [observation.t, "page", lines]
        self.lines = lines
        return record

    def close(self) -> None:
        """No more observations: the compressor's window and the last page are given back."""
        self.compressor = None
        self.lines = []
        self.parts = [b"".join(self.parts)]


def _raw_lines(data: bytes) -> Iterator[bytes]:
    """The lines of a compressed chunk, unpacked one after the other: together they may be a GiB."""
    decompressor = zlib.decompressobj()
    parts: list[bytes] = []
    while plain := decompressor.decompress(data, _UNPACKED_AT_ONCE):
        data = decompressor.unconsumed_tail
        first, *rest = plain.split(b"\n")
        parts.append(first)
        for part in rest:
            yield b"".join(parts)
            parts = [part]


def _decode(data: bytes, target: str) -> Iterator[Observation]:
    lines: list[str] = []
    for raw in _raw_lines(data):
        t, kind, value = json.loads(raw.decode("utf-8", "surrogatepass"))
        if kind == "page":
            lines = value
        elif kind == "delta":
            lines = list(lines)
            for index, line in value:
                lines[index] = line
        else:
            yield Observation(t, target, kind, value)
            continue
        yield metrics(t, target, "\n".join(lines))


class FlightRecorder:
    """
    The recorder of one target; safe to read while it is written.

    Args:
        target: The target's name.
        keep_s: How far back it goes.
        max_bytes: Bound on the compressed observations.
    """

    def __init__(self, target: str, *, keep_s: float, max_bytes: int) -> None:
        self.target = target
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._chunks: deque[_Chunk] = deque()

    def append(self, observation: Observation) -> None:
        """Add the newest observation and drop what is too old or too much."""
        with self._lock:
            if not self._chunks or self._is_full(self._chunks[-1]):
                if self._chunks:
                    self._chunks[-1].close()
                self._chunks.append(_Chunk(observation.t))
            self._chunks[-1].append(observation)
            horizon = observation.t - self._keep_s
            while len(self._chunks) > 1 and (
                self._chunks[0].last_t < horizon or self._size() > self._max_bytes
            ):
                self._chunks.popleft()

    def read(self, start: float | None = None, end: float | None = None) -> Iterator[Observation]:
        """The observations within two times (unix seconds), oldest first."""
        with self._lock:
            chunks = [
                b"".join(chunk.parts)
                for chunk in self._chunks
                if (start is None or chunk.last_t >= start)
                and (end is None or chunk.first_t <= end)
            ]
        for data in chunks:
            for observation in _decode(data, self.target):
                if (start is None or observation.t >= start) and (
                    end is None or observation.t <= end
                ):
                    yield observation

    @property
    def size(self) -> int:
        """Bytes held, compressed."""
        with self._lock:
            return self._size()

    @property
    def span_s(self) -> float:
        """Seconds between the oldest and the newest observation held."""
        with self._lock:
            return self._chunks[-1].last_t - self._chunks[0].first_t if self._chunks else 0.0

    def _is_full(self, chunk: _Chunk) -> bool:
        # an eighth: dropping the oldest chunk must not empty the recorder
        return chunk.count >= CHUNK_OBSERVATIONS or chunk.size > self._max_bytes / 8

    def _size(self) -> int:
        return sum(chunk.size for chunk in self._chunks)
