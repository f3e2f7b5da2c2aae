"""A file that opens and then cannot be read: a failing disk, a server that is gone, the kernel's own."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest
from commands import InProcess

from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.files import open_plain, read_plain


@pytest.fixture(params=[errno.EIO, errno.ESTALE])
def failing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    """A file whose reading fails."""

    def fails(*_: object) -> int:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("vllm_opsctl.exporter.files._Reading._into", fails)
    path = tmp_path / "file"
    path.write_text("targets: []\n")
    return path


def test_a_read_that_fails_is_told_in_one_line(failing: Path) -> None:
    with pytest.raises(InputFileError, match=rf"^{failing}: cannot be read \(.+\)$"):
        read_plain(failing, 100)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config", "{}", "config", "check"),
        ("diagnose", "--recording", "{}"),
        ("diagnose", "--alarm", "{}"),
        ("slo", "import", "{}"),
    ],
    ids=lambda words: " ".join(words),
)
def test_no_command_takes_it_for_a_fault_of_its_own(
    opsctl: InProcess, failing: Path, arguments: tuple[str, ...]
) -> None:
    ran = opsctl.run(*(word.format(failing) for word in arguments))

    assert ran.returncode == 64
    assert ran.stderr.count("\n") == 1
    assert f"{failing}: cannot be read" in ran.stderr


def test_a_file_that_has_nothing_now_is_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /proc/kmsg: a file that is plain to look at, and would block."""
    monkeypatch.setattr("vllm_opsctl.exporter.files._Reading._into", lambda *_: None)
    path = tmp_path / "kmsg"
    path.write_bytes(b"x")

    assert read_plain(path, 100) == b""
    with open_plain(path) as stream:
        assert stream.read(10) == stream.readline() == b""


def test_what_can_be_read_is_read_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"a\nb\n" * 10_000)

    assert read_plain(path, 10**6) == path.read_bytes()
    with open_plain(path) as stream:
        assert stream.seek(-2, io.SEEK_END) == 39_998
        assert stream.readline() == b"b\n"
