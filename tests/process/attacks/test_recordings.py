"""Recordings, bundles, logs and runbooks that are no such thing: one line, exit 64, in little memory."""

from __future__ import annotations

import gzip
import io
import os
import resource
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Opsctl
from paths import RECORDINGS

BASELINE = RECORDINGS / "baseline.jsonl.gz"
AT_ONCE_S = 20.0
"""The start of opsctl on a busy machine is the most of it."""

MOST_BYTES = 2**30
"""What a process may take here: a bomb of 4 GiB must not be unpacked."""


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(path.parent, os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a socket": bound_socket,
    "a directory": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}
ASKED: dict[str, tuple[str, ...]] = {
    "a recording": ("diagnose", "--recording", "{}"),
    "a log": ("diagnose", "--recording", str(BASELINE), "--log", "{}"),
    "what to replay": ("replay", "{}", "--port", "0"),
    "runbooks": ("diagnose", "--recording", str(BASELINE), "--runbooks", "{folder}"),
    "a simulation": ("autoscale", "simulate", "{}"),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".tar.gz"])
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_plain_file_is_no_recording(
    opsctl: Opsctl, tmp_path: Path, kind: str, suffix: str
) -> None:
    path = tmp_path / f"r{suffix}"
    NO_FILES[kind](path)
    began = time.monotonic()
    ran = opsctl.run("diagnose", "--recording", str(path))

    assert time.monotonic() - began < AT_ONCE_S
    assert (ran.returncode, ran.stdout) == (64, "")
    assert ran.stderr == f"Error: {path}: {kind}; give a recording\n"


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("what", [what for what in ASKED if what != "a recording"])
def test_what_is_no_plain_file_is_refused_everywhere(
    opsctl: Opsctl, tmp_path: Path, what: str, kind: str
) -> None:
    path = tmp_path / "x.yaml"
    NO_FILES[kind](path)
    arguments = [word.format(path, folder=tmp_path) for word in ASKED[what]]
    began = time.monotonic()
    ran = opsctl.run(*arguments)

    assert time.monotonic() - began < AT_ONCE_S
    assert ran.returncode == 64
    assert str(path) in ran.stderr
    assert kind.removeprefix("a ") in ran.stderr
    assert len(ran.stderr.splitlines()) <= 4, "a line, and how the command is used"


def limited(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Opsctl in so much memory."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))

    # one thread: what a library's threads reserve of the address space is no memory
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        Opsctl.command(*arguments),
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


def pack(path: Path, block: bytes, times: int, *, end: bytes = b"") -> Path:
    """A gzip file of a block again and again."""
    with gzip.open(path, "wb", compresslevel=1) as out:
        for _ in range(times):
            out.write(block)
        out.write(end)
    return path


BOMBS = {
    "one line": (b"x" * 2**20, 512, "a line of more than 32 MiB; no recording"),
    "one page": (b'{"t":1,"text":"' + b"x" * 2**25, 16, "a line of more than 32 MiB"),
    "empty lines": (b"\n" * 2**20, 512, "more than 2000000 lines"),
    "brackets": (b'{"t":1,"kind":"facts","x":[' + b"[]," * 2**20 + b"0]}\n", 1, "brackets"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_is_refused_in_bounded_memory(tmp_path: Path, what: str) -> None:
    block, times, said = BOMBS[what]
    ran = limited("diagnose", "--recording", str(pack(tmp_path / "bomb.jsonl.gz", block, times)))

    assert ran.returncode == 64, ran.stderr[-2000:]
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def bundle_of(path: Path, name: str, data: bytes) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return path


def test_a_name_of_megabytes_is_not_echoed(opsctl: Opsctl, tmp_path: Path) -> None:
    path = bundle_of(tmp_path / "long.tar.gz", "x/" * 2_500_000, b"")
    ran = opsctl.run("diagnose", "--recording", str(path))

    assert ran.returncode == 64
    assert len(ran.stderr) < 500


def test_a_target_of_megabytes_is_not_echoed(opsctl: Opsctl, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with gzip.open(BASELINE, "rt") as lines:
        page = next(line for line in lines if '"text"' in line)
    for target in ("a" * 5_000_000, "\x1b[2J" * 1_000_000):
        path.write_text(
            page.replace('"target": "', f'"target": "{target!s}'.replace("\x1b", "\\u001b"))
        )
        ran = opsctl.run("diagnose", "--recording", str(path))

        assert ran.returncode != 70
        assert len(ran.stdout) + len(ran.stderr) < 20_000
        assert "\x1b" not in ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00i", "not UTF-8 text (byte 0)"),
        (b"[" * 100_000, "nest"),
        (b"id: 2026-99-99\n", "title: Field required"),
        (b"x" * 2**21, "larger than 1 MiB"),
        (b"", "expected a mapping"),
    ],
    ids=["binary", "deep", "a field that is missing", "large", "empty"],
)
def test_a_runbook_that_is_none_is_told_in_one_line(
    opsctl: Opsctl, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    ran = opsctl.run("runbook", "validate", str(tmp_path))

    assert ran.returncode == 64
    assert said in ran.stderr
    assert f"{tmp_path / 'x.yaml'}" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
