"""setup.cfg, the tree and the links under src/ tell one story, and so do version and changelog."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

import vllm_opsctl

ROOT = Path(__file__).resolve().parents[2]
CFG = configparser.ConfigParser()
CFG.read(ROOT / "setup.cfg")
PACKAGE_DIR = {
    line.partition("=")[0].strip(): line.partition("=")[2].strip()
    for line in CFG["options"]["package_dir"].split("\n")
    if line.strip()
}
PACKAGES = CFG["options"]["packages"].split()
EXAMPLES = {ROOT / folder / "generated" for folder in ("alarms", "dashboards")}
"""What a build writes, for people to look at; it is not shipped."""
FOLDERS = {name.partition(".")[2]: folder for name, folder in PACKAGE_DIR.items() if "." in name}


def test_every_package_of_the_tree_is_declared() -> None:
    found = {"vllm_opsctl"} | {
        "vllm_opsctl." + ".".join(init.parent.relative_to(ROOT).parts)
        for folder in FOLDERS.values()
        for init in (ROOT / folder).rglob("__init__.py")
    }

    assert found == set(PACKAGES)


def test_every_data_file_is_declared() -> None:
    shipped = {
        path
        for name, globs in CFG["options.package_data"].items()
        for pattern in globs.replace(",", " ").split()
        for path in (ROOT / PACKAGE_DIR[name]).glob(pattern)
    }
    found = {
        path
        for folder in PACKAGE_DIR.values()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"} and not EXAMPLES & {*path.parents}
    }

    assert found == shipped


@pytest.mark.parametrize(("name", "folder"), FOLDERS.items())
def test_each_folder_is_linked_for_type_checkers(name: str, folder: str) -> None:
    link = ROOT / "src" / "vllm_opsctl" / name

    assert link.resolve() == ROOT / folder


def test_the_newest_changelog_entry_is_this_version() -> None:
    versions = [
        line.split("[", 1)[1].split("]", 1)[0]
        for line in (ROOT / "CHANGELOG.md").read_text().splitlines()
        if line.startswith("## [")
    ]

    released = [version for version in versions if version != "Unreleased"]
    assert released[0] == vllm_opsctl.__version__
