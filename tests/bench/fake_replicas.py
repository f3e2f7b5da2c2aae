"""
A fake fleet for benchmarks: one light process that answers as many vLLM servers from a recording.

It serves recorded pages as they are and one canned completion; nothing behind it generates. Prints
its URLs, one a line, once it listens.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from vllm_opsctl.exporter.recording import read_recording

COMPLETION = {
    "id": "cmpl-0",
    "object": "text_completion",
    "choices": [{"index": 0, "text": " a", "finish_reason": "length"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


class FakeReplicas:
    """Answers from a recording, the same on every port; it starts again at its end."""

    def __init__(self, recording: Path) -> None:
        pages = [o for o in read_recording(recording) if o.kind == "metrics"]
        self._offsets = [page.t - pages[0].t for page in pages]
        self._pages = [_answer(page.text.encode(), "text/plain; version=0.0.4") for page in pages]
        self._fixed = {
            b"/health": _answer(b"", "text/plain"),
            b"/version": _json({"version": "0.32.0"}),
            b"/v1/models": _json({"object": "list", "data": [{"id": "tiny", "object": "model"}]}),
            b"/v1/completions": _json(COMPLETION),
            b"/tokenize": _json({"count": 1, "tokens": [1]}),
        }
        self._missing = _answer(b"not here\n", "text/plain", "404 Not Found")
        self._started = time.monotonic()

    def _page(self) -> bytes:
        elapsed = (time.monotonic() - self._started) % self._offsets[-1]
        return self._pages[sum(offset <= elapsed for offset in self._offsets) - 1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].partition(b"?")[0]
                lowered = head.lower()
                if b"content-length: " in lowered:
                    length = int(lowered.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
                    await reader.readexactly(length)
                answer = self._page() if path == b"/metrics" else self._fixed.get(path)
                writer.write(answer or self._missing)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def _json(data: object) -> bytes:
    return _answer(json.dumps(data).encode(), "application/json")


def _answer(body: bytes, content_type: str, status: str = "200 OK") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def main(recording: Path, count: int) -> None:
    """Listen on so many free ports of the loopback until stopped."""
    replicas = FakeReplicas(recording)
    servers = [
        await asyncio.start_server(replicas.serve, "127.0.0.1", 0, limit=2**20)
        for _ in range(count)
    ]
    for server in servers:
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
