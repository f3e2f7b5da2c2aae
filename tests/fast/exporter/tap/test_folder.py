"""Whose folder and whose pages: others' are neither written to nor believed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import InProcess
from pydantic import ValidationError
from tap.fakes import FACTS, fake_identity

from vllm_opsctl.errors import ConfigError, UsageError
from vllm_opsctl.exporter.config import Tap
from vllm_opsctl.exporter.sources import tap
from vllm_opsctl.exporter.sources.tap import TapFolder, owner_id, read_folder
from vllm_opsctl.exporter.sources.tap_text import Bounds
from vllm_opsctl.exporter.tap import folder as folders
from vllm_opsctl.exporter.tap.folder import UnsafeFolder, check_folder, make_folder
from vllm_opsctl.exporter.tap.writer import PageWriter

OTHER = 65534
ENGINE = 4711

Given = Callable[..., Path]


def write_page(folder: Path, pid: int = 101) -> Path:
    writer = PageWriter(folder, fake_identity(pid, started=1.0), FACTS)
    os.close(writer._fd)
    return writer.path


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """A folder with a page: owner, group and mode of both as a test says."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files to others")

    def make(uid: int, gid: int, mode: int, page_uid: int | None = None) -> Path:
        folder = tmp_path / "pages"
        page = write_page(folder)
        os.chown(page, uid if page_uid is None else page_uid, gid)
        os.chown(folder, uid, gid)
        folder.chmod(mode)
        return folder

    return make


def as_user(monkeypatch: pytest.MonkeyPatch, uid: int, *groups: int) -> None:
    """What the reader is, as far as it looks."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(os, "getegid", lambda: groups[0])
    monkeypatch.setattr(os, "getgroups", lambda: list(groups))


# -- the writer ----------------------------------------------------------------------------------


def test_every_folder_that_is_made_is_for_owner_and_group(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b" / "c")

    for path in ("a", "a/b", "a/b/c"):
        assert (tmp_path / path).stat().st_mode & 0o027 == 0


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    make_folder(tmp_path)

    assert tmp_path.stat().st_mode & 0o777 == 0o770


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_folder_that_everybody_may_write_to_is_not_used(tmp_path: Path, mode: int) -> None:
    """The sticky bit keeps others from deleting pages, not from adding some."""
    tmp_path.chmod(mode)

    with pytest.raises(UnsafeFolder, match=rf"mode {mode:04o}\): chmod o-w {tmp_path}"):
        make_folder(tmp_path)


def test_somebody_elses_folder_is_not_used(given: Given) -> None:
    folder = given(OTHER, OTHER, 0o755)

    with pytest.raises(UnsafeFolder, match=f"{folder} belongs to uid {OTHER}.* chown 0 {folder}"):
        make_folder(folder)


def test_a_link_that_somebody_else_put_there_is_not_followed(tmp_path: Path, given: Given) -> None:
    given(0, 0, 0o750)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "pages")
    os.lchown(link, OTHER, OTHER)

    with pytest.raises(UnsafeFolder, match=f"belongs to uid {OTHER}"):
        make_folder(link)


# -- the reader ----------------------------------------------------------------------------------


def servers(folder: Path, owner: int | None = None) -> int:
    return len(TapFolder(folder, Bounds(), owner).servers())


@pytest.mark.parametrize(
    ("about", "uid", "groups", "owner", "believed"),
    [
        ((ENGINE, ENGINE, 0o750), ENGINE, (ENGINE,), None, True),
        ((0, 0, 0o755), ENGINE, (ENGINE,), None, True),
        # engine and sidecar as two users of one group, as with a pod's fsGroup
        ((ENGINE, 2000, 0o2770), 1001, (1001, 2000), None, True),
        ((ENGINE, 2000, 0o2777), 1001, (1001, 2000), None, False),
        ((ENGINE, ENGINE, 0o755), 1001, (1001,), None, False),
        ((ENGINE, ENGINE, 0o755), 1001, (1001,), ENGINE, True),
        ((ENGINE, ENGINE, 0o755), 1001, (1001,), OTHER, False),
        # root believes no more than others
        ((ENGINE, ENGINE, 0o750), 0, (0,), None, False),
        ((ENGINE, ENGINE, 0o750), 0, (0,), ENGINE, True),
        # in a folder of root, as an emptyDir is
        ((0, 0, 0o777, ENGINE), 1001, (1001,), None, False),
        ((0, 0, 0o777, ENGINE), 1001, (1001,), ENGINE, True),
        ((0, 2000, 0o2770, 1001), 1001, (1001, 2000), None, True),
        ((ENGINE, ENGINE, 0o750, OTHER), ENGINE, (ENGINE,), None, False),
    ],
)
def test_which_pages_are_believed(
    given: Given,
    monkeypatch: pytest.MonkeyPatch,
    about: tuple[int, ...],
    uid: int,
    groups: tuple[int, ...],
    owner: int | None,
    believed: bool,
) -> None:
    folder = given(*about)
    as_user(monkeypatch, uid, *groups)

    assert servers(folder, owner) == believed


def test_a_folder_of_somebody_else_is_told_once_with_what_to_do(
    given: Given, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = TapFolder(given(ENGINE, ENGINE, 0o777), Bounds())
    as_user(monkeypatch, 1001, 1001)
    assert folder.servers() == folder.servers() == []

    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"{folder.path}: {folder.path} belongs to uid {ENGINE}, group {ENGINE} and is writable by "
        "everybody (mode 0777); this is uid 1001. Run as that user, share its group (and chmod "
        f"o-w), or set exporter.tap.owner: {ENGINE}; no page of it is read"
    )


def test_a_forged_page_beside_a_true_one_is_left_out(
    given: Given, caplog: pytest.LogCaptureFixture
) -> None:
    folder = given(0, 0, 0o1777)
    forged = write_page(folder.parent / "elsewhere", pid=7).rename(folder / "7-7.0.0.tap")
    os.chown(forged, OTHER, OTHER)

    assert servers(folder) == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{forged}: belongs to uid {OTHER}, not to the folder's owner")


def test_a_diagnosis_says_whose_folder_it_is(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = given(ENGINE, ENGINE, 0o750)
    as_user(monkeypatch, 1001, 1001)

    with pytest.raises(UsageError, match=f"set exporter.tap.owner: {ENGINE}"):
        read_folder(TapFolder(folder, Bounds()), [], full_s=60, step_s=10)


def test_a_dump_and_a_diagnosis_believe_the_configured_owner(
    opsctl: InProcess, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = given(ENGINE, ENGINE, 0o750)
    as_user(monkeypatch, 1001, 1001)
    (page,) = folder.glob("*.tap")
    refused = [
        opsctl.run("tap", "dump", str(page)),
        opsctl.run("diagnose", "--tap", str(folder)),
    ]
    monkeypatch.setenv("OPSCTL_EXPORTER__TAP__OWNER", str(ENGINE))
    dumped = opsctl.run("tap", "dump", str(page))
    diagnosed = opsctl.run("diagnose", "--tap", str(folder))

    assert [ran.returncode for ran in refused] == [64, 64]
    assert all("set exporter.tap.owner: 4711" in ran.stderr for ran in refused)
    assert dumped.returncode == 0
    assert "fake-llama" in diagnosed.stdout


def test_a_diagnosis_of_a_folder_that_is_closed_to_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tap, "check_folder", closed)
    with pytest.raises(UsageError, match=r"cannot be looked into \(Permission denied\)"):
        read_folder(TapFolder(tmp_path, Bounds()), [], full_s=60, step_s=10)


def test_an_owner_is_a_number_or_a_name() -> None:
    assert owner_id(None) is None
    assert owner_id(4711) == 4711
    assert owner_id("root") == 0
    for name in ("nobody-of-this-name", "a\0b", ""):
        with pytest.raises(ConfigError, match=r"exporter\.tap\.owner: no user .*write its number"):
            owner_id(name)


@pytest.mark.parametrize(("owner", "kept"), [(1000, 1000), ("1000", 1000), ("vllm", "vllm")])
def test_an_owner_is_configured_by_number_or_name(owner: object, kept: object) -> None:
    assert Tap.model_validate({"owner": owner}).owner == kept


@pytest.mark.parametrize("owner", [-1, True, 1.5, [1], {}, "", "-1", "a b", "٣", 2**32, "9" * 99])
def test_another_owner_is_refused(owner: object) -> None:
    with pytest.raises(ValidationError, match="neither a user's number nor a name"):
        Tap.model_validate({"owner": owner})


def test_a_folder_that_is_none_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "file/below", "nowhere", "loop"):
        assert servers(tmp_path / name) == 0
    with pytest.raises(FileNotFoundError):
        check_folder(tmp_path / "nowhere", None)


def test_the_modes_are_those_that_the_manual_names() -> None:
    assert folders.DIRECTORY_MODE == 0o750
