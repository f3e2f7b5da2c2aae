"""Failure modes of a user's folder: whatever is wrong is one line that names the file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Opsctl
from paths import RECORDINGS, ROOT

SHIPPED = (ROOT / "runbooks" / "library" / "queue-overload.yaml").read_text()
RECORDING = str(RECORDINGS / "queue-overload.jsonl.gz")


def with_condition(source: str) -> str:
    """A failure mode whose first condition is this."""
    return re.sub(r"(when: ).*", lambda found: found[1] + json.dumps(source), SHIPPED, count=1)


@pytest.mark.parametrize(
    "source",
    [
        "1/0 == 1",
        "1 % 0 == 0",
        "9223372036854775807 + 1 > 0",
        "-9223372036854775807 - 2 < 0",
        "9223372036854775808 > 0",
        "int(1e300) > 0",
        "uint(-1) > 0u",
        "dyn(1) / dyn(0) > 1",
        "true ? 1/0 > 1 : true",
        "[1, 2][5] == 1",
        "[1].map(x, x/0)[0] > 1",
        "int('x') == 1",
        "timestamp('x') > timestamp('y')",
        "duration('x') > duration('1s')",
        "'a'.matches('(')",
        "size(1) > 0",
        "queue.waiting_avg",
        "queue.nonsense > 1.0",
        "queue.waiting_avg > ",
        "(" * 300 + "true" + ")" * 300,
        " && ".join(["true"] * 2000),
        "'" + "a" * 100_000 + "' == 'b'",
        "\u202e == 1",
    ],
)
def test_a_condition_that_cannot_be_evaluated_names_file_and_expression(
    opsctl: Opsctl, tmp_path: Path, source: str
) -> None:
    (tmp_path / "x.yaml").write_text(with_condition(source))
    for words in (
        ("runbook", "validate", "."),
        ("diagnose", "--runbooks", ".", "--recording", RECORDING),
    ):
        ran = opsctl.run(*words, cwd=tmp_path)
        (line,) = ran.stderr.splitlines()

        assert (ran.returncode, ran.stdout) == (64, "")
        assert line.startswith("Error: x.yaml: ")
        assert line.isprintable()
        assert len(line) < 1000
        assert repr(source)[1:20] in line or "unknown feature" in line or "\\u202e" in line


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "x.yaml: a FIFO; give a file of YAML"),
        (Path.mkdir, "x.yaml: a directory; give a file of YAML"),
        (lambda path: path.symlink_to("/dev/zero"), "x.yaml: a device; give a file of YAML"),
        (lambda path: path.symlink_to("/none"), "x.yaml: no such file"),
        (lambda path: path.write_bytes(b"id: \xff"), "x.yaml: not UTF-8"),
        (lambda path: path.write_bytes(b"#" * 2**21), "x.yaml: larger than 1 MiB"),
        (lambda path: path.write_text("[" * 10_000), "x.yaml:1: not YAML"),
        (lambda path: path.write_text("&a [*a]"), "x.yaml:1: not YAML (an alias"),
        (lambda path: path.write_text("? [a]\n: b"), "x.yaml:1: not YAML (a key is"),
        (lambda path: path.write_text("id: a\nid: b"), "x.yaml:2: not YAML (the key 'id'"),
        (lambda path: path.write_text("id: !!binary aGk="), "the tag !!binary is not read"),
        (lambda path: path.write_text('id: "\\e]0;x"'), "control characters"),
        (lambda path: path.write_text("- a"), "x.yaml: expected a mapping"),
        (lambda path: path.write_text("5: a"), "x.yaml: "),
        (lambda path: path.write_text(""), "x.yaml: expected a mapping"),
    ],
)
def test_a_file_that_is_no_failure_mode_is_named(
    opsctl: Opsctl, tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / "x.yaml")
    ran = opsctl.run("runbook", "validate", ".", cwd=tmp_path)

    assert (ran.returncode, len(ran.stderr.splitlines())) == (64, 1)
    assert words in ran.stderr


@pytest.mark.parametrize("folder", ["nope", "x.yaml", "/dev/null", "a" * 300])
def test_what_is_no_folder_is_named(opsctl: Opsctl, tmp_path: Path, folder: str) -> None:
    (tmp_path / "x.yaml").write_text("")
    ran = opsctl.run("runbook", "list", "--runbooks", folder, cwd=tmp_path)

    assert (ran.returncode, len(ran.stderr.splitlines())) == (64, 1)
    assert "no such directory" in ran.stderr


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "a FIFO"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (lambda path: path.write_bytes(b"\xff"), "not UTF-8"),
        (lambda path: path.write_text("a: &a [*a]"), "not YAML: an alias"),
        (lambda path: path.write_text("[" * 10_000), "not YAML"),
    ],
)
def test_openslo_is_read_within_the_same_bounds(
    opsctl: Opsctl, tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / "slo.yaml")
    ran = opsctl.run("slo", "import", "slo.yaml", cwd=tmp_path)

    assert (ran.returncode, len(ran.stderr.splitlines())) == (64, 1)
    assert words in ran.stderr


@pytest.mark.parametrize(
    "text", ["groups: 5", "groups: [5]", "kind: 1", "&a [*a]", "\x00", "groups:"]
)
def test_a_folder_in_which_somebody_edited_a_build_is_built_again(
    opsctl: Opsctl, tmp_path: Path, text: str
) -> None:
    build = ("alarms", "build", "--out", "alarms")
    for name in ("rules.yaml", "prometheusrule.yaml", "alertmanager.yaml"):
        (tmp_path / "alarms").mkdir(exist_ok=True)
        (tmp_path / "alarms" / name).write_text(f"# written by opsctl alarms build\n{text}\n")
    ran = opsctl.run(*build, cwd=tmp_path)

    assert ran.returncode in (0, 64), ran.stderr
