"""Bundles: an incident's observations and verdict in one file, for a ticket, without secrets."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from bundle_members import members
from commands import Opsctl
from paths import RECORDINGS
from ports import reserve_port

from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter import bundle, recording
from vllm_opsctl.exporter.bundle import MANIFEST, RECORDING, Scrubber
from vllm_opsctl.exporter.observation import Observation

THRASH = RECORDINGS / "kv-preemption-thrash.jsonl.gz"


def packed(path: Path, contents: dict[str, bytes]) -> Path:
    """A bundle made by hand."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def thrash(opsctl: Opsctl, tmp_path: Path) -> Path:
    """A bundle of a recorded incident."""
    path = tmp_path / "incident.tar.gz"
    opsctl.run("diagnose", "--recording", str(THRASH), "--bundle", str(path))
    return path


@pytest.mark.parametrize(
    "asked", [[], ["--at=-30s"], ["--window", "20s"]], ids=["newest", "at", "window"]
)
def test_a_bundle_gives_the_verdict_that_lies_in_it(
    opsctl: Opsctl, tmp_path: Path, asked: list[str]
) -> None:
    path = tmp_path / "incident.tar.gz"
    before = opsctl.run(
        "diagnose", "--recording", str(THRASH), *asked, "--bundle", str(path), "-o", "json"
    )
    again = opsctl.run("diagnose", "--recording", str(path), "-o", "json")

    assert again.returncode == before.returncode
    assert again.stdout == before.stdout == members(path)["verdict.json"].decode()


def test_another_moment_of_a_bundle_can_be_asked_for(opsctl: Opsctl, thrash: Path) -> None:
    early = opsctl.run("diagnose", "--recording", str(thrash), "--at=-40s", "-o", "json")

    assert json.loads(early.stdout)["verdict"] == "healthy"


def test_a_bundle_that_a_tracker_unpacked_or_renamed_is_still_one(
    opsctl: Opsctl, thrash: Path
) -> None:
    plain = thrash.with_name("attachment-17")
    plain.write_bytes(gzip.decompress(thrash.read_bytes()))

    assert opsctl.run("diagnose", "--recording", str(plain)).returncode == 2


def test_nothing_is_overwritten_and_this_is_said_before_anything_is_observed(
    opsctl: Opsctl, tmp_path: Path
) -> None:
    path = tmp_path / "incident.tar.gz"
    path.write_text("precious\n")
    shown = opsctl.run("diagnose", f"http://127.0.0.1:{reserve_port()}", "--bundle", str(path))

    assert (shown.returncode, shown.stdout) == (64, "")
    assert "exists; it is left alone, choose another name" in shown.stderr
    assert path.read_text() == "precious\n"


def test_nothing_unfinished_is_left_behind(opsctl: Opsctl, tmp_path: Path, thrash: Path) -> None:
    nowhere = opsctl.run(
        "diagnose", "--recording", str(THRASH), "--bundle", str(tmp_path / "no" / "x.tar.gz")
    )

    assert nowhere.returncode == 64
    assert "cannot be written" in nowhere.stderr
    assert list(tmp_path.iterdir()) == [thrash]


def test_a_key_that_a_server_repeats_is_scrubbed_from_details_but_pages_stay() -> None:
    scrubber = Scrubber(["sk-1234"])
    probe = Observation(1.0, "a", "probe", {"ok": False, "detail": "HTTP 401: bad key sk-1234"})
    page = Observation(1.0, "a", "metrics", {"text": 'x{url="/a?b=1"} 1\n'})

    assert scrubber.observation(probe).data["detail"] == "HTTP 401: bad key ***"
    assert scrubber.observation(page) == page


def _link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(RECORDING)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def _named(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


def _claims(size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(RECORDING)
    info.size = size
    return info


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (_named("../recording.jsonl.gz"), "has a path"),
        (_named("/etc/cron.d/x"), "has a path"),
        (_named("a/../../x"), "has a path"),
        (_named("..\\x"), "has a path"),
        (_named(".."), "has a path"),
        (_link(tarfile.SYMTYPE), "is no plain file"),
        (_link(tarfile.LNKTYPE), "is no plain file"),
        (_link(tarfile.FIFOTYPE), "is no plain file"),
        (_link(tarfile.CHRTYPE), "is no plain file"),
        (_link(tarfile.DIRTYPE), "is no plain file"),
        (_claims(2**40), "is larger than 256 MiB"),
        (_claims(4096), "damaged"),
    ],
)
def test_a_hostile_member_is_refused_in_one_line(
    opsctl: Opsctl, tmp_path: Path, member: tarfile.TarInfo, said: str
) -> None:
    path = tmp_path / "hostile.tar.gz"
    header = member.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(gzip.compress(header + b"\0" * 1024))
    shown = opsctl.run("diagnose", "--recording", str(path))

    assert shown.returncode == 64
    assert said in shown.stderr
    assert len(shown.stderr.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["hostile.tar.gz"]


def test_reading_is_bounded_however_well_it_was_compressed(
    opsctl: Opsctl, tmp_path: Path, thrash: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "MAX_RECORDING_BYTES", 2**20)
    with pytest.raises(InputFileError, match="more than 1 MiB"):
        bundle.read_bundle(thrash)
    monkeypatch.setattr(bundle, "MAX_PACKED_BYTES", 2**17)
    with pytest.raises(InputFileError, match="is larger than 0 MiB"):
        bundle.read_bundle(thrash)
    zeros = packed(tmp_path / "zeros.tar.gz", {f"{n}": b"\0" * 2**16 for n in range(8)})
    with pytest.raises(InputFileError, match="no bundle is so large"):
        bundle.read_bundle(zeros)


def test_a_changed_member_is_noticed(opsctl: Opsctl, tmp_path: Path, thrash: Path) -> None:
    changed = members(thrash) | {"verdict.txt": b"HEALTHY\n"}
    shown = opsctl.run("diagnose", "--recording", str(packed(tmp_path / "changed.tar.gz", changed)))

    assert shown.returncode == 64
    assert "verdict.txt is not what manifest.json says" in shown.stderr


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (b"[]", "is not one of opsctl's"),
        (b'{"diagnosis": {"source": "x", "at": NaN, "window_s": 1, "targets": []}, "sha256": {}}',
         "is not one of opsctl's"),
        (b"[" * 100_000, "is not one of opsctl's"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(
    opsctl: Opsctl, tmp_path: Path, thrash: Path, manifest: bytes, said: str
) -> None:
    path = packed(tmp_path / "other.tar.gz", members(thrash) | {MANIFEST: manifest})
    shown = opsctl.run("diagnose", "--recording", str(path))

    assert shown.returncode == 64
    assert said in shown.stderr


def test_an_archive_of_something_else_is_no_bundle(opsctl: Opsctl, tmp_path: Path) -> None:
    path = packed(tmp_path / "photos.tar.gz", {"cat.jpg": b"meow"})

    assert "no manifest.json in it" in opsctl.run("diagnose", "--recording", str(path)).stderr
