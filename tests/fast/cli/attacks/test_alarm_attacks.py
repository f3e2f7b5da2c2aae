"""A message that anybody may have written: nothing of it is run, and no host is asked that it alone names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from canaries import thief_and_bad_server
from commands import Opsctl
from sns_message import notification

SIDECAR = "Diagnose: opsctl diagnose --sidecar {url} chat-0\n"


def diagnosed(opsctl: Opsctl, folder: Path, text: str, **configured: str) -> tuple[int, str]:
    """What becomes of a message: the exit code, and the one line on stderr."""
    (folder / "page").write_text(text)
    ran = opsctl.run("diagnose", "--alarm", "page", cwd=folder, env=configured)
    (line,) = ran.stderr.splitlines()
    assert line.isprintable()
    return ran.returncode, line


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("--sidecar {url} chat-0", "alarms.sidecar_url"),
        ("--sidecar {url}/", "alarms.sidecar_url"),
        ("--prometheus {url}", "alarms.prometheus_url"),
        ("--prometheus {url} --match '{{a=\"b\"}}'", "alarms.prometheus_url"),
        ("{url}", "list it under targets"),
        ("chat-0 {url}", "list it under targets"),
        ("--sidecar http://chat-0.internal@{url}", "alarms.sidecar_url"),
    ],
)
@pytest.mark.parametrize("wrap", [str, notification])
def test_a_host_that_a_message_alone_names_is_asked_nothing(
    opsctl: Opsctl, tmp_path: Path, command: str, key: str, wrap: Callable[[str], str]
) -> None:
    (tmp_path / "opsctl.yaml").write_text(
        "targets: [{name: chat-0, url: 'http://chat-0.internal:8000', api_key_env: K}]\n"
        "alarms: {sidecar_url: 'http://sidecar.internal:9836', prometheus_url: 'http://prometheus:9090'}\n"
    )
    with thief_and_bad_server() as (thief, _):
        text = f"Diagnose: opsctl diagnose {command.format(url=thief.url)}\n"
        code, line = diagnosed(opsctl, tmp_path, wrap(text), K="sk-1234")

    assert code == 64
    assert key in line
    assert "or type: opsctl diagnose" in line
    assert thief.asked == []


def test_where_nothing_is_configured_a_message_leads_nowhere(
    opsctl: Opsctl, tmp_path: Path
) -> None:
    with thief_and_bad_server() as (thief, _):
        code, line = diagnosed(opsctl, tmp_path, SIDECAR.format(url=thief.url))

    assert code == 64
    assert "OPSCTL_ALARMS__SIDECAR_URL" in line
    assert thief.asked == []


@pytest.mark.parametrize("written", ["{url}", "{url}/", "{url}/metrics"])
def test_where_the_message_and_the_configuration_agree_it_is_followed(
    opsctl: Opsctl, tmp_path: Path, written: str
) -> None:
    with thief_and_bad_server() as (_, bad):
        url = f"{bad}/denied"
        text = SIDECAR.format(url=written.format(url=url))
        code, line = diagnosed(opsctl, tmp_path, text, OPSCTL_ALARMS__SIDECAR_URL=url)

    assert code == 3
    assert "no sidecar answers there (HTTP 401)" in line


@pytest.mark.parametrize("match", ["{} or up", "up", '{a="b"} or on() vector(1)', "{a="])
def test_what_is_no_label_matcher_is_not_asked_of_the_prometheus(
    opsctl: Opsctl, tmp_path: Path, match: str
) -> None:
    with thief_and_bad_server() as (_, bad):
        url = f"{bad}/prometheus"
        text = f"Diagnose: opsctl diagnose --prometheus {url} --match '{match}'\n"
        code, line = diagnosed(opsctl, tmp_path, text, OPSCTL_ALARMS__PROMETHEUS_URL=url)

    assert code == 64
    assert "are not label matchers; type it yourself" in line


def test_a_password_in_a_message_is_not_shown(opsctl: Opsctl, tmp_path: Path) -> None:
    text = SIDECAR.format(url="http://me:hunter2@evil")

    assert "hunter2" not in diagnosed(opsctl, tmp_path, text)[1]


DEEP = "[" * 500 + "1" + "]" * 500


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        (f'{{"Message": {DEEP}}}', "nested more than 64 deep"),
        (json.dumps({"Message": f'{{"AlarmName": {DEEP}}}'}), "nested more than 64 deep"),
        (f"[{'9' * 6000}]", "no line 'Diagnose:"),
        ("\0\0\0", "no line 'Diagnose:"),
        ('{"AlarmName": ["x"]}', "AlarmName is not text"),
        ('{"AlarmName": null}', "AlarmName is not text"),
        ('{"AlarmName": "x", "AlarmDescription": {"a": 1}}', "no line 'Diagnose:"),
        ('{"Message": {"a": 1}, "Subject": [1], "MessageAttributes": 3}', "no line 'Diagnose:"),
        ("Diagnose: opsctl diagnose --sidecar", "--sidecar without a value, or twice"),
        (f"{SIDECAR.format(url='x').strip()} --sidecar y", "--sidecar without a value, or twice"),
        ("Diagnose: opsctl diagnose --bundle x", "is not followed; type it yourself"),
        ("Diagnose: opsctl diagnose --sidecar=http://x", "is not followed; type it yourself"),
        ("Diagnose: opsctl diagnose $(id); id", "list it under targets"),
        (f"Diagnose: opsctl diagnose {'x' * 10_000}", "is no opsctl diagnose command"),
        ("Diagnose: opsctl diagnose \x1b]0;x\x07", "\\x1b]0;x\\x07"),
        ("Diagnose: \u202eopsctl", "\\u202eopsctl"),
    ],
)
def test_what_is_no_page_of_ours_is_one_line(
    opsctl: Opsctl, tmp_path: Path, text: str, words: str
) -> None:
    code, line = diagnosed(opsctl, tmp_path, text)

    assert code == 64
    assert words in line


@pytest.mark.parametrize(
    "since",
    [
        "0001-01-01 00:00:00 UTC",
        "1969-12-31 23:59:59 UTC",
        "9999-12-31 23:59:59 UTC",
        "2026-13-45 03:14:00 UTC",
        "9999-12-31T23:59:59-14:00",
        "0001-01-01T00:00:00+14:00",
        "yesterday",
    ],
)
def test_the_time_of_no_alarm_is_not_taken_for_now(
    opsctl: Opsctl, tmp_path: Path, since: str
) -> None:
    command = SIDECAR.format(url="http://127.0.0.1:9836")
    cloudwatch = {"AlarmName": "x", "AlarmDescription": command, "StateChangeTime": since}
    for text in (f"{command}Since: {since}\n", json.dumps(cloudwatch)):
        code, line = diagnosed(opsctl, tmp_path, text)

        assert code == 64
        assert "cannot be an alarm's time; give --at" in line


def sparse(path: Path) -> None:
    """A file that says that it is a terabyte."""
    path.touch()
    os.truncate(path, 2**40)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "a FIFO; give a message as SNS sent it"),
        (Path.mkdir, "a directory; give a message as SNS sent it"),
        (lambda path: path.symlink_to("/dev/zero"), "a device; give a message as SNS sent it"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not text"),
        (lambda path: path.write_bytes(b"x" * (2**20 + 1)), "larger than 1 MiB"),
        (sparse, "larger than 1 MiB"),
        (lambda path: None, "no such file"),
    ],
)
def test_a_file_that_is_no_message_is_refused_before_it_is_read(
    opsctl: Opsctl, tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / "page")
    ran = opsctl.run("diagnose", "--alarm", "page", cwd=tmp_path)

    assert (ran.returncode, len(ran.stderr.splitlines())) == (64, 1)
    assert words in ran.stderr
