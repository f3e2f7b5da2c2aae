"""A configuration that somebody broke, on purpose or not: one line, no secret, no escape, exit 64."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Opsctl

from vllm_opsctl.alarms.links import Links
from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.config import Config, clean_url, name_of, split_listen
from vllm_opsctl.exporter.config_load import load_config
from vllm_opsctl.exporter.limits import MAX_MISTAKES

SECRET = "hunter2"  # noqa: S105 - planted


def lines_of(tmp_path: Path, text: str, **environment: str) -> tuple[str, ...]:
    path = tmp_path / "opsctl.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environment)
    for line in caught.value.problems:
        assert line.isprintable()
        assert len(line) < 1000
        assert SECRET not in line
    return caught.value.problems


@pytest.mark.parametrize(
    "text",
    [
        f"targets: [{{url: 'h:1', api_key_file: [{SECRET}]}}]",
        f"targets: [{{url: 'h:1', api_key_file: {{{SECRET}: 1}}}}]",
        f"targets: [{{url: 'h:1', api_key_env: {SECRET}-x}}]",
        f"targets: [{{url: 'h:1', api_key: {SECRET}}}]",
        f"targets: [{{url: ['http://me:{SECRET}@h']}}]",
        f"targets: 'http://me:{SECRET}@h'",
        f"targets: [{{'http://me:{SECRET}@h': 1}}]",
        f"targets: [{{url: 'h:1', name: 'http://me:{SECRET}@h'}}]",
        f"targets: [{{url: 'htp://me:{SECRET}@h'}}]",
        f"targets: [{{url: 'http://me:a/{SECRET}@h'}}]",
        f"targets: [{{url: 'h:1', metrics_path: 'metrics?t={SECRET}'}}]",
        f"targets: [{{url: 'h:1', metrics_path: '@{SECRET}/x'}}]",
        f"targets: [{{url: 'h:1', metrics_path: ['/metrics?t={SECRET}']}}]",
        f"exporter: {SECRET}",
        f"exporter: {{tap: {SECRET}}}",
        f"exporter: {{cloudwatch: {{endpoint_url: 'ftp://me:{SECRET}@h'}}}}",
        f"exporter: {{cloudwatch: {{endpoint_url: [{SECRET}]}}}}",
        f"exporter: {{cloudwatch: {{emf_to: 'smtp://me:{SECRET}@h'}}}}",
        f"exporter: {{listen: 'http://me:{SECRET}@h:9'}}",
        f"alarms: {{webhook: 'ftp://me:{SECRET}@h/x'}}",
        f"alarms: {{webhook: 'https//hooks.slack.com/services/{SECRET}'}}",
        f"alarms: {{webhook: '{SECRET}'}}",
        f"alarms: {{webhook: 'https://h:port/{SECRET}'}}",
        f"alarms: {{webhook: [https://h/{SECRET}]}}",
        f"alarms: {{deadman_url: 'hc-ping.com/{SECRET}'}}",
        f"alarms: {{deadman_url: 'http://me:{SECRET}@'}}",
        f"alarms: {{page_topic: 'https://hooks.slack.com/services/{SECRET}'}}",
        f"alarms: '{SECRET}'",
        f"x: *{SECRET}",
        f"x: !{SECRET}",
    ],
)
def test_no_mistake_shows_a_secret(tmp_path: Path, text: str) -> None:
    assert lines_of(tmp_path, text)


def test_a_link_that_everybody_sees_loses_its_password(tmp_path: Path) -> None:
    text = f"alarms: {{runbook_url: 'https://me:{SECRET}@wiki/vllm'}}"
    (tmp_path / "opsctl.yaml").write_text(text)
    loaded = load_config(tmp_path / "opsctl.yaml", {})

    assert loaded.config.alarms.runbook_url == "https://wiki/vllm"


@pytest.mark.parametrize(
    "variable",
    ["TARGETS", "EXPORTER__TIMEOUT", "ALARMS__WEBHOOK", "ALARMS", "EXPORTER__LABELS__CLUSTER"],
)
@pytest.mark.parametrize("value", [f"[{SECRET}", f"*{SECRET}", f"!{SECRET} x", f"{{{SECRET}: ["])
def test_a_variable_that_is_no_yaml_is_named_alone(
    tmp_path: Path, variable: str, value: str
) -> None:
    (line,) = lines_of(tmp_path, "{}", **{f"OPSCTL_{variable}": value})

    assert line == f"environment OPSCTL_{variable}: not YAML; quote the value"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"\\e]0;x": 1', "control characters"),
        ("\u202eevil: 1", "\\u202eevil: unknown key"),
        ("service: {name: '\u202ex'}", "has characters that labels should not have"),
        ("1: x", "expected keys such as targets:, got 1"),
        ("on: x", "expected keys such as targets:, got True"),
        ("~: x", "expected keys such as targets:"),
        ("exporter: {1: x}", "keys should be strings"),
        ("exporter: {~: x}", "keys should be strings"),
        ("? [a]\n: b", "a key is a list or a mapping"),
        ("a: " * 3 + "b", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("exporter: {timeout: .nan}", "greater than 0"),
        ("exporter: {timeout: .inf}", "exporter.timeout"),
        (f"exporter: {{timeout: 1{'0' * 400}}}", "a number of more than 64 digits"),
        ("exporter: {timeout: [[[1]]]}", "is not a duration"),
        ("exporter: {labels: {a: {b: c}}}", "put the value in quotes"),
        ("exporter: {labels: 5}", "exporter.labels"),
        ('exporter: {flight_recorder: {save_to: "a\\0b"}}', "control characters"),
        ("objectives: [{name: a, sli: [x], target: 1}]", "is not one of availability"),
        ("alarms: {histogram_buckets: {time_to_first_token: [.nan]}}", "ascending"),
        ("alarms: {histogram_buckets: {time_to_first_token: [1, .inf]}}", "ascending"),
        (f"{'x' * 900}: 1", "unknown key"),
        ("targets: [{url: 'http://[::1'}]", "http://[::1]:8000"),
        ("targets: [{url: 'http://[fe80::1%eth0]:8000'}]", "has a zone (%)"),
        ("targets: [{url: 'http://::1:8000'}]", "an IPv6 address stands in brackets"),
        ("targets: [{url: 'http://h:0'}]", "no valid port"),
        ("targets: [{url: 'http:/h'}]", "is not a server's URL"),
        ("exporter: {listen: '::1:9836'}", "an IPv6 address stands in brackets"),
        ("exporter: {listen: '[fe80::1%lo]:9'}", "without a zone (%)"),
        ("exporter: {listen: 'h:\u00b2'}", "is not an address"),
        ("exporter: {listen: 'h:99999999999999999999'}", "is not an address"),
    ],
)
def test_what_is_broken_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    assert words in lines_of(tmp_path, text)[0]


def test_of_very_many_mistakes_some_are_told_and_the_others_counted(tmp_path: Path) -> None:
    found = lines_of(tmp_path, "\n".join(f"k{index}: 1" for index in range(20_000)))

    assert len(found) == MAX_MISTAKES + 1
    assert found[-1].endswith(f"{20_000 - MAX_MISTAKES} more mistakes")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "a FIFO; give a YAML file"),
        (Path.mkdir, "a directory; give a YAML file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device; give a YAML file"),
        (lambda path: path.symlink_to(path), "cannot be read"),
        (lambda path: path.symlink_to("/none"), "no such file; opsctl config init writes one"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not UTF-8"),
        (lambda path: path.write_bytes(b"#" * (2**22 + 1)), "larger than 4 MiB"),
        (lambda path: path.write_bytes(b"\0"), "control characters"),
    ],
)
@pytest.mark.parametrize("is_named", [True, False])
def test_a_file_that_is_none_is_one_line(
    opsctl: Opsctl, tmp_path: Path, make: Callable[[Path], object], words: str, is_named: bool
) -> None:
    make(tmp_path / "opsctl.yaml")
    named = ("--config", str(tmp_path / "opsctl.yaml")) if is_named else ()
    ran = opsctl.run(*named, "config", "check", cwd=tmp_path)

    assert (ran.returncode, ran.stdout, len(ran.stderr.splitlines())) == (64, "", 1)
    assert words in ran.stderr


def test_a_bomb_is_refused_at_once(opsctl: Opsctl, tmp_path: Path) -> None:
    levels = [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (tmp_path / "opsctl.yaml").write_text("\n".join(["targets:", "  a0: &a0 [x]", *levels]))
    began = time.process_time()
    ran = opsctl.run("config", "check", cwd=tmp_path)

    assert ran.returncode == 64
    assert "more than 200,000 values with its aliases resolved" in ran.stderr
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("given", "url", "name"),
    [
        ("http://[::1]:8000", "http://[::1]:8000", "0::1:8000"),
        ("[::1]:8000", "http://[::1]:8000", "0::1:8000"),
        ("http://[::]", "http://[::]", "0::"),
        ("http://[fd00::7]:8000/v1", "http://[fd00::7]:8000", "fd00::7:8000"),
        ("https://[2001:DB8::1]/embed/", "https://[2001:db8::1]/embed", "2001:db8::1-embed"),
        ("http://[::ffff:10.0.0.1]:8000", "http://[::ffff:10.0.0.1]:8000", "0::ffff:10.0.0.1:8000"),
    ],
)
def test_ipv6_literals_are_targets(given: str, url: str, name: str) -> None:
    assert (clean_url(given), name_of(given)) == (url, name)
    assert Config.model_validate({"targets": [given]}).targets[0].name == name


@pytest.mark.parametrize(
    "variable",
    ["[::1]:8000", "http://[::1]:8000", "[::1]:8000,http://b", "['http://[::1]:8000']"],
)
def test_ipv6_literals_are_targets_in_the_environment(variable: str) -> None:
    loaded = load_config(None, {"OPSCTL_TARGETS": variable})

    assert loaded.config.targets[0].url == "http://[::1]:8000"


@pytest.mark.parametrize(
    ("listen", "host"),
    [("[::1]:9836", "::1"), ("[::]:9836", "::"), (":9836", "0.0.0.0"), ("h:9836", "h")],  # noqa: S104
)
def test_a_sidecar_listens_on_ipv6_too(listen: str, host: str) -> None:
    assert split_listen(listen) == (host, 9836)


@pytest.mark.parametrize(
    ("listen", "reached"),
    [
        ("[::1]:9836", "http://[::1]:9836"),
        ("[::]:9836", "http://[::1]:9836"),
        (":9836", "http://127.0.0.1:9836"),
        ("[fd00::7]:80", "http://[fd00::7]:80"),
    ],
)
def test_pages_name_a_sidecar_on_ipv6_as_urls_do(listen: str, reached: str) -> None:
    config = Config.model_validate({"exporter": {"listen": listen}})

    assert Links(config, "sidecar").sidecar_url == reached


@pytest.mark.parametrize(
    "where", ["tcp://me:hunter2@h:1", "udp://h:99999", "tcp://[::1", "tcp://h x"]
)
def test_an_agents_address_that_is_none_is_one_line(tmp_path: Path, where: str) -> None:
    (line,) = lines_of(tmp_path, f"exporter: {{cloudwatch: {{emf_to: '{where}'}}}}")
    assert "is not an agent's address; write tcp://host:25888" in line
    assert "http://" not in line


def test_a_starter_file_is_not_written_into_a_fifo(opsctl: Opsctl, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    ran = opsctl.run("config", "init", "x.yaml", "--force", cwd=tmp_path)

    assert ran.returncode == 64
    assert "is not a plain file" in ran.stderr


def test_ipv6_targets_are_diagnosed_by_their_own_name(opsctl: Opsctl) -> None:
    ran = opsctl.run("diagnose", "--for", "1ms", "--no-probe", "http://[::1]:1", "-o", "json")

    assert ran.returncode == 3
    assert '"target": "0::1:1"' in ran.stdout
