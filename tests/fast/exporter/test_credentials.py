"""Keys that become a header: checked when the configuration is loaded, and never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import Opsctl

from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.config import Target
from vllm_opsctl.exporter.config_load import api_key, known_secrets, load_config

SECRET = "sk-hunter2"  # noqa: S105 - planted


@pytest.mark.parametrize("around", ["{}", "{}\n", "{}\r\n", " {} ", "\t{}\n\n", "\ufeff{}\n"])
def test_white_space_around_a_key_is_none_of_it(tmp_path: Path, around: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(around.format(SECRET).encode())

    by_file = Target(name="a", url="http://a", api_key_file=str(path))
    by_env = Target(name="a", url="http://a", api_key_env="K")

    assert api_key(by_file, {}) == SECRET
    assert api_key(by_env, {"K": around.format(SECRET)}) == SECRET


UNUSABLE = [
    (f"{SECRET}\nx", "a line break inside"),
    (f"{SECRET}\rx", "a line break inside"),
    (f"{SECRET}\r\n{SECRET}", "a line break inside"),
    (f"{SECRET}\tx", "a control character inside"),
    (f"{SECRET}\x00x", "a control character inside"),
    (f"{SECRET}\x1b[2Jx", "a control character inside"),
    (f"{SECRET}\x85x", "a control character inside"),
    (f"{SECRET}\u20ac", "no HTTP header can have"),
    (f"{SECRET}\u2028x", "no HTTP header can have"),
]


@pytest.mark.parametrize(("key", "why"), UNUSABLE)
@pytest.mark.parametrize("kind", ["env", "file"])
def test_a_key_that_can_be_no_header_is_refused_at_load(
    tmp_path: Path, key: str, why: str, kind: str
) -> None:
    (tmp_path / "key").write_bytes(key.encode())
    named = "api_key_env: K" if kind == "env" else f"api_key_file: {tmp_path / 'key'}"
    line = refused(tmp_path, f"targets: [{{url: 'h:1', {named}}}]", K=key)

    assert f"targets[0].api_key_{kind}: " in line
    assert why in line
    assert SECRET not in line


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b" \n"), "empty"),
        (lambda path: path.write_bytes(b"sk-hunter2\xff"), "not UTF-8"),
        (lambda path: path.write_bytes("sk-hunter2".encode("utf-16")), "not UTF-8"),
        (lambda path: path.write_bytes(b"x" * 20_000), "larger than 16 KiB"),
        (lambda path: path.mkdir(), "a directory"),
        (os.mkfifo, "a FIFO"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
)
def test_a_file_that_holds_no_key_is_refused_at_load(
    tmp_path: Path, make: object, why: str
) -> None:
    path = tmp_path / "key"
    make(path)  # type: ignore[operator]
    line = refused(tmp_path, f"targets: [{{url: 'h:1', api_key_file: {path}}}]")

    assert f"targets[0].api_key_file: {path}: {why}" in line
    assert SECRET not in line


def test_a_key_that_is_not_there_yet_is_refused_by_who_needs_it(tmp_path: Path) -> None:
    text = "targets: [{url: 'a:1', api_key_env: K}, {url: 'b:1', api_key_file: /none/key}]"
    (tmp_path / "opsctl.yaml").write_text(text)
    by_env, by_file = load_config(tmp_path / "opsctl.yaml", {"K": " \n"}).config.targets

    with pytest.raises(ConfigError, match="the variable K is not set"):
        api_key(by_env, {"K": " \n"})
    with pytest.raises(ConfigError, match="/none/key: no such file"):
        api_key(by_file, {})


def test_what_stands_where_a_variable_should_is_not_repeated(tmp_path: Path) -> None:
    target = Target(name="a", url="http://a", api_key_env="hf_hunter2")

    with pytest.raises(ConfigError) as caught:
        api_key(target, {})
    assert "hunter2" not in str(caught.value)


def test_secrets_of_urls_are_known_to_who_packs_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "opsctl.yaml").write_text(
        "targets: [{url: 'a:1', api_key_env: K, metrics_path: '/m?token=of-the-query'}]\n"
        "alarms: {webhook: 'https://h/services/0123456789abcdef', deadman_url: 'https://h/ping'}\n"
    )
    loaded = load_config(tmp_path / "opsctl.yaml", {"K": f"{SECRET}\n"})
    known = known_secrets(loaded.config, {"K": f"{SECRET}\n"})

    assert {SECRET, "of-the-query", "0123456789abcdef", "https://h/ping"} <= {*known}
    assert "ping" not in known


def refused(tmp_path: Path, text: str, **environment: str) -> str:
    path = tmp_path / "opsctl.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environment)
    (line,) = caught.value.problems
    assert line.isprintable()
    return line


@pytest.mark.parametrize(
    "name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
)
@pytest.mark.parametrize(
    "form", ["{}\n", "{}\nx", " {}", "{}\x01", "{}\u20ac", "{}\xe9", "{}\udcff"]
)
def test_an_aws_key_that_can_be_no_header_is_refused_before_boto3_prints_it(
    opsctl: Opsctl, tmp_path: Path, name: str, form: str
) -> None:
    good = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu-central-1"}
    bad = {name: form.format(SECRET), "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    ran = opsctl.run("-vv", "diagnose", "--sagemaker", "x", env=good | bad, cwd=tmp_path)

    assert ran.returncode == 64
    assert name in ran.stderr
    assert SECRET not in ran.stderr


@pytest.mark.parametrize("form", ["{}\nx", "{}\x01", "{}\u20ac", "{}\udcff"])
@pytest.mark.parametrize(
    "words",
    [
        ("diagnose", "--prometheus", "http://127.0.0.1:1", "--prometheus-token-env", "T"),
        ("slo", "status", "--prometheus", "http://127.0.0.1:1", "--prometheus-token-env", "T"),
        ("slo", "report", "--prometheus", "http://127.0.0.1:1", "--prometheus-token-env", "T"),
        ("dashboards", "push", "--url", "http://127.0.0.1:1", "--token-env", "T"),
        ("dashboards", "diff", "--url", "http://127.0.0.1:1", "--token-env", "T"),
    ],
)
def test_a_token_that_can_be_no_header_is_refused_before_anybody_is_asked(
    opsctl: Opsctl, tmp_path: Path, form: str, words: tuple[str, ...]
) -> None:
    ran = opsctl.run("-vv", *words, env={"T": form.format(SECRET)}, cwd=tmp_path)

    assert ran.returncode == 64
    assert "the variable T has a " in ran.stderr
    assert SECRET not in ran.stderr
