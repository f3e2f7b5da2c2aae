"""Whatever is done to the bytes of a bundle or a recording, it is read or refused in one line."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import InProcess
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import RECORDINGS

from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.bundle import (
    MANIFEST,
    Asked,
    Scrubber,
    as_packed,
    read_observations,
    write_bundle,
)
from vllm_opsctl.exporter.limits import MAX_RECORDED_TARGETS
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


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.txt"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_recording_is_read_whatever_it_is_called(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    plain = gzip.decompress((RECORDINGS / "baseline.jsonl.gz").read_bytes())
    (tmp_path / name).write_bytes(pack(plain))

    assert len(read_recording(tmp_path / name)) == plain.count(b"\n") - plain.count(b'"header"')


def with_targets(targets: object) -> bytes:
    """The bundle, with others in its manifest."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(PACKED)) as before,
        tarfile.open(fileobj=packed, mode="w:gz") as after,
    ):
        for member in before:
            content = before.extractfile(member)
            assert content is not None
            data = content.read()
            if member.name == MANIFEST:
                manifest = json.loads(data)
                manifest["diagnosis"]["targets"] = targets
                data = json.dumps(manifest).encode()
                member.size = len(data)
            after.addfile(member, io.BytesIO(data))
    return packed.getvalue()


@pytest.mark.parametrize(
    "targets", ["chat", {"chat": 1}, 5, ["x"] * (MAX_RECORDED_TARGETS + 1)], ids=type
)
def test_targets_that_are_no_list_of_names_are_refused(tmp_path: Path, targets: object) -> None:
    (tmp_path / "b.tar.gz").write_bytes(with_targets(targets))
    with pytest.raises(InputFileError, match=r"not one of opsctl's \(ValueError: targets are no"):
        read_observations(tmp_path / "b.tar.gz")


def test_targets_that_are_not_in_it_are_told_in_a_line_that_ends(
    opsctl: InProcess, tmp_path: Path
) -> None:
    (tmp_path / "b.tar.gz").write_bytes(with_targets([f"chat-{n}" for n in range(4000)]))
    ran = opsctl.run("diagnose", "--recording", "b.tar.gz", cwd=tmp_path)

    assert ran.returncode == 64
    assert "chat-19 and 3980 more; there are" in ran.stderr
    assert len(ran.stderr) < 500


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
