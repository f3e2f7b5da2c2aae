"""The command line: help, exit codes, messages instead of tracebacks, and no colour in pipes."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import yaml
from commands import Opsctl
from paths import RECORDINGS, TESTS
from ports import reserve_port

from vllm_opsctl.cli.main import COMMANDS

THRASH = str(RECORDINGS / "kv-preemption-thrash.jsonl.gz")
GOLDEN = TESTS / "golden"


def test_help_lists_every_command(opsctl: Opsctl) -> None:
    shown = opsctl.run("--help")

    assert shown.returncode == 0
    assert all(name in shown.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_fits_80_columns(opsctl: Opsctl, command: str) -> None:
    shown = opsctl.run(command, "--help", env={"COLUMNS": "80"})

    assert shown.returncode == 0
    assert max(len(line) for line in shown.stdout.splitlines()) <= 80


def test_version(opsctl: Opsctl) -> None:
    assert opsctl.run("--version").stdout.startswith("opsctl 0.")


@pytest.mark.parametrize("output", ["text", "json", "markdown"])
def test_a_verdict_looks_like_this(opsctl: Opsctl, output: str) -> None:
    """Golden files; `make golden` rewrites them, and the review sees the difference."""
    shown = opsctl.run("diagnose", "--recording", THRASH, "--output", output, env={"COLUMNS": "80"})
    golden = GOLDEN / f"kv-preemption-thrash.{output}"

    assert shown.returncode == 2
    assert shown.stdout == golden.read_text()
    if output == "text":
        assert max(len(line) for line in shown.stdout.splitlines()) <= 80


@pytest.mark.parametrize(
    ("name", "code"),
    [("baseline", 0), ("concurrency-cap", 1), ("engine-dead", 2)],
)
def test_the_exit_code_is_the_verdict(opsctl: Opsctl, name: str, code: int) -> None:
    assert (
        opsctl.run("diagnose", "--recording", str(RECORDINGS / f"{name}.jsonl.gz")).returncode
        == code
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["diagnos"], "Did you mean 'diagnose'?"),
        (["diagnose"], "no target"),
        (["diagnose", "ftp://x"], "write http://host:8000"),
        (["diagnose", "chat"], "not a URL and not in the configuration"),
        (["diagnose", "--recording", "none.jsonl"], "none.jsonl: no such file"),
        (["diagnose", "--recording", THRASH, "--at", "noon"], "not a time"),
        (["diagnose", "--recording", THRASH, "--window", "long"], "is not a duration"),
        (["diagnose", "http://h:1", "--at", "-5m"], "a live target has no past"),
        (["diagnose", "--recording", THRASH, "--sidecar", "http://h:1"], "choose one"),
        (["diagnose", "--recording", THRASH, "--runbooks", "none"], "no such directory"),
        (["diagnose", "--recording", THRASH, "other"], "no observations of other"),
        (["exporter", "run"], "targets: none"),
        (["exporter", "run", "http://h:1", "--listen", "9836"], "is not an address"),
        (["replay", "none.jsonl", "--port", "0"], "none.jsonl: no such file"),
        (["record", "http://h:1", "-o", "/nowhere/r.jsonl"], "cannot be written"),
        (["runbook", "show", "queue-overlod"], "did you mean queue-overload?"),
        (["--config", "none.yaml", "config", "check"], "none.yaml: no such file"),
    ],
)
def test_a_users_mistake_is_a_message_on_stderr_and_exit_64(
    opsctl: Opsctl, tmp_path: Path, arguments: list[str], said: str
) -> None:
    shown = opsctl.run(*arguments, cwd=tmp_path)

    assert shown.returncode == 64
    assert said in shown.stderr
    assert shown.stdout == ""
    assert "Traceback" not in shown.stderr


def test_a_sidecar_that_is_none_is_named(opsctl: Opsctl) -> None:
    shown = opsctl.run("diagnose", "--sidecar", f"http://127.0.0.1:{reserve_port()}")

    assert shown.returncode == 3
    assert "connection refused" in shown.stderr


def test_the_starter_file_passes_its_own_check(opsctl: Opsctl, tmp_path: Path) -> None:
    written = opsctl.run("config", "init", cwd=tmp_path)
    checked = opsctl.run("config", "check", cwd=tmp_path)
    again = opsctl.run("config", "init", cwd=tmp_path)

    assert written.returncode == 0
    assert (checked.returncode, checked.stderr) == (0, "")
    assert again.returncode == 64
    assert "left alone" in again.stderr


def test_a_replaced_starter_file_is_as_private_as_it_was_and_a_link_stays_one(
    opsctl: Opsctl, tmp_path: Path
) -> None:
    kept, link = tmp_path / "kept.yaml", tmp_path / "opsctl.yaml"
    kept.write_text("targets: []\n", encoding="utf-8")
    kept.chmod(0o600)
    link.symlink_to(kept)
    ran = opsctl.run("config", "init", "--force", cwd=tmp_path)

    assert ran.returncode == 0
    assert link.is_symlink()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert "objectives" in kept.read_text(encoding="utf-8")


def test_config_show_prints_what_is_in_force(opsctl: Opsctl, tmp_path: Path) -> None:
    environment = {"OPSCTL_SERVICE__NAME": "shop", "OPSCTL_TARGETS": "http://a:8000"}
    shown = opsctl.run("config", "show", cwd=tmp_path, env=environment)

    assert "# service.name: from environment OPSCTL_SERVICE__NAME" in shown.stdout
    assert yaml.safe_load(shown.stdout)["targets"][0]["url"] == "http://a:8000"


def test_config_check_reports_a_threshold_that_cannot_be_counted(
    opsctl: Opsctl, tmp_path: Path
) -> None:
    (tmp_path / "opsctl.yaml").write_text(
        "targets: [http://a:8000]\n"
        "objectives: [{name: t, sli: time_to_first_token, threshold: 180ms, target: 95%}]\n"
    )
    shown = opsctl.run("config", "check", cwd=tmp_path)

    assert shown.returncode == 0
    assert "it lies between 0.1 s and 0.25 s" in shown.stderr


def test_the_schema_is_json_schema(opsctl: Opsctl) -> None:
    schema = json.loads(opsctl.run("config", "schema").stdout)

    assert schema["properties"].keys() == {
        "service",
        "targets",
        "objectives",
        "exporter",
        "alarms",
        "autoscaling",
    }


def test_at_and_window_choose_the_moment(opsctl: Opsctl) -> None:
    early = opsctl.run("diagnose", "--recording", THRASH, "--at=-40s", "--output", "json")
    late = opsctl.run("diagnose", "--recording", THRASH, "--window", "20s", "--output", "json")

    assert json.loads(early.stdout)["verdict"] == "healthy"
    window = json.loads(late.stdout)["targets"][0]["window"]
    assert window["end"] - window["start"] <= 20
    assert json.loads(late.stdout)["verdict"] == "critical"


def test_features_are_shown_with_their_units(opsctl: Opsctl) -> None:
    shown = opsctl.run("diagnose", "--recording", THRASH, "--show-features").stdout

    assert any(line.split() == ["kv.usage_max", "100", "%"] for line in shown.splitlines())


@pytest.mark.parametrize("at", ["nan", "inf", "1e20", "-300", "yesterday"])
def test_a_moment_that_is_none_is_a_usage_error(opsctl: Opsctl, at: str) -> None:
    shown = opsctl.run("diagnose", "--recording", THRASH, f"--at={at}")

    assert shown.returncode == 64
    assert "not a time" in shown.stderr


def test_a_recording_is_not_overwritten(opsctl: Opsctl, tmp_path: Path) -> None:
    path = tmp_path / "incident.jsonl"
    path.write_text("precious\n")
    shown = opsctl.run(
        "record", f"http://127.0.0.1:{reserve_port()}", "-o", str(path), "--for", "1s"
    )

    assert shown.returncode == 64
    assert path.read_text() == "precious\n"


def test_a_runbook_shows_its_commands_and_no_braces(opsctl: Opsctl) -> None:
    shown = opsctl.run("runbook", "show", "engine-hung").stdout

    assert "py-spy dump" in shown
    assert "{" not in shown


def test_two_urls_of_one_name_are_refused(opsctl: Opsctl) -> None:
    shown = opsctl.run("diagnose", "http://h:1/a-b", "http://h:1/a/b")

    assert shown.returncode == 64
    assert "name them in opsctl.yaml" in shown.stderr
