"""Whatever is done to the bytes of a bundle or a recording, it is read or refused in one line."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from paths import RECORDINGS

from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.bundle import Asked, Scrubber, as_packed, read_observations, write_bundle
from vllm_opsctl.exporter.recording import read_recording

SOME = as_packed(read_recording(RECORDINGS / "baseline.jsonl.gz")[:3], Scrubber())


def bundle_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b.tar.gz"
        asked = Asked(source="scrape", at=SOME[-1].t, window_s=60.0, targets=("chat",))
        write_bundle(path, SOME, asked, texts={"verdict.txt": "HEALTHY\n"}, made={}, t=SOME[-1].t)
        return path.read_bytes()


PACKED = bundle_bytes()
ARCHIVE = gzip.decompress(PACKED)
HEADERS = [at for at in range(0, len(ARCHIVE), 512) if ARCHIVE[at + 257 : at + 262] == b"ustar"]

DAMAGE = st.lists(
    st.tuples(st.integers(min_value=0), st.binary(min_size=1, max_size=16)), min_size=1, max_size=4
)


def read_or_refused(data: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        said = ""
        try:
            read_observations(path)
        except InputFileError as problem:
            said = str(problem)
        assert "\n" not in said
        assert len(said) < 1000


def damaged(raw: bytes, damage: list[tuple[int, bytes]]) -> bytes:
    found = bytearray(raw)
    for at, junk in damage:
        start = at % len(found)
        found[start : start + len(junk)] = junk
    return bytes(found)


def test_the_bundle_itself_is_fine() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b.tar.gz"
        path.write_bytes(PACKED)
        assert read_observations(path)[0] == SOME


def test_a_link_under_the_unfinished_name_leads_nowhere(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("kept")
    (tmp_path / ".b.tar.gz.unfinished").symlink_to(mine)
    asked = Asked(source="scrape", at=SOME[-1].t, window_s=60.0, targets=("chat",))
    write_bundle(tmp_path / "b.tar.gz", SOME, asked, texts={}, made={}, t=SOME[-1].t)

    assert mine.read_text() == "kept"
    assert read_observations(tmp_path / "b.tar.gz")[0] == SOME


@given(DAMAGE)
def test_whatever_bytes_of_a_bundle_are_damaged(damage: list[tuple[int, bytes]]) -> None:
    read_or_refused(damaged(PACKED, damage), "b.tar.gz")


@given(st.sampled_from(HEADERS), st.integers(0, 511), st.binary(min_size=1, max_size=40))
@settings(max_examples=200)
def test_whatever_a_header_of_the_archive_says(header: int, at: int, junk: bytes) -> None:
    """The check sum is made right again, so that the rest of it is believed."""
    raw = bytearray(ARCHIVE)
    raw[header + at : header + at + len(junk)] = junk
    block = raw[header : header + 512]
    block[148:156] = b" " * 8
    raw[header + 148 : header + 156] = b"%06o\0 " % sum(block)
    read_or_refused(bytes(raw), "b.tar")


@given(st.integers(0, len(PACKED)))
def test_wherever_a_bundle_is_cut_off(size: int) -> None:
    read_or_refused(PACKED[:size], "b.tar.gz")


@given(DAMAGE)
def test_whatever_bytes_of_a_recording_are_damaged(damage: list[tuple[int, bytes]]) -> None:
    raw = (RECORDINGS / "baseline.jsonl.gz").read_bytes()
    read_or_refused(damaged(raw, damage), "r.jsonl.gz")
