"""opsctl alarms: the committed example, foreign files, --check, and what lint explains."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Opsctl
from example_alarms import EXAMPLE, GENERATED, STARTER
from ports import reserve_port

OBJECTIVES = "OPSCTL_OBJECTIVES"


def test_the_committed_example_is_what_a_build_writes(opsctl: Opsctl) -> None:
    answer = opsctl.run(
        "--config", str(STARTER), "alarms", "build", "--out", str(GENERATED), "--check", env=EXAMPLE
    )

    assert answer.returncode == 0, f"run make alarms: {answer.stderr}"


def test_a_build_is_repeatable_and_check_sees_a_change(opsctl: Opsctl, tmp_path: Path) -> None:
    first = opsctl.run("alarms", "build", "--out", "out", cwd=tmp_path, env=EXAMPLE)
    again = opsctl.run("alarms", "build", "--out", "out", cwd=tmp_path, env=EXAMPLE)
    assert first.returncode == again.returncode == 0
    assert "7 files, 7 changed" in first.stdout
    assert "7 files, 0 changed" in again.stdout

    rules = tmp_path / "out" / "rules.yaml"
    rules.write_text(rules.read_text().replace("14.4", "15"))
    check = opsctl.run("alarms", "build", "--out", "out", "--check", cwd=tmp_path, env=EXAMPLE)

    assert check.returncode == 1
    assert "out: not up to date: rules.yaml" in check.stderr
    assert " 15" in rules.read_text()


def test_what_is_no_longer_built_is_removed(opsctl: Opsctl, tmp_path: Path) -> None:
    opsctl.run("alarms", "build", "--out", "out", cwd=tmp_path, env=EXAMPLE)
    opsctl.run("alarms", "build", "--out", "out", cwd=tmp_path)

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "prometheusrule.yaml",
        "rules.yaml",
        "rules_test.second-service",
        "rules_test.yaml",
    ]


def test_a_file_of_somebody_else_is_left_alone(opsctl: Opsctl, tmp_path: Path) -> None:
    (tmp_path / "alertmanager.yaml").write_text("route: {receiver: mine}\n")

    answer = opsctl.run("alarms", "build", "--out", ".", cwd=tmp_path, env=EXAMPLE)

    assert answer.returncode == 64
    assert "alertmanager.yaml: not written by opsctl, it is left alone" in answer.stderr
    assert not (tmp_path / "rules.yaml").exists()
    assert (tmp_path / "alertmanager.yaml").read_text() == "route: {receiver: mine}\n"


ONE = {OBJECTIVES: "[{name: a, sli: availability, target: 99.9%}]"}
"""One objective: a build of it is quick."""
CODE = {**ONE, "OPSCTL_SERVICE__NAME": "code"}
EU = {**ONE, "OPSCTL_EXPORTER__LABELS__CLUSTER": "eu"}


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (
            CODE,
            "out: it holds the rules of vllm (cluster eu), and these are of code; give each a folder",
        ),
        (
            {**ONE, "OPSCTL_EXPORTER__LABELS__CLUSTER": "us"},
            "out: it holds the rules of vllm (cluster eu), and these are of vllm (cluster us)",
        ),
    ],
)
@pytest.mark.parametrize("check", [(), ("--check",)])
def test_the_rules_of_another_fleet_are_not_replaced(
    opsctl: Opsctl, tmp_path: Path, other: dict[str, str], line: str, check: tuple[str, ...]
) -> None:
    opsctl.run("alarms", "build", "--out", "out", cwd=tmp_path, env=EU)
    before = (tmp_path / "out" / "rules.yaml").read_text()

    answer = opsctl.run("alarms", "build", "--out", "out", *check, cwd=tmp_path, env=other)

    assert answer.returncode == 64
    assert line in answer.stderr
    assert (tmp_path / "out" / "rules.yaml").read_text() == before


@pytest.mark.parametrize("check", [(), ("--check",)])
@pytest.mark.parametrize(
    ("first", "second"), [(ONE, CODE), (EU, {**EU, "OPSCTL_EXPORTER__LABELS__CLUSTER": "us"})]
)
def test_the_template_of_another_fleet_is_not_replaced(
    opsctl: Opsctl,
    tmp_path: Path,
    first: dict[str, str],
    second: dict[str, str],
    check: tuple[str, ...],
) -> None:
    build = ("alarms", "build", "--to", "cloudwatch", "--out", "out")
    opsctl.run(*build, cwd=tmp_path, env=first)
    before = (tmp_path / "out" / "cloudwatch.yaml").read_text()

    answer = opsctl.run(*build, *check, cwd=tmp_path, env=second)

    assert answer.returncode == 64
    assert "cloudwatch.yaml: it is the template of vllm" in answer.stderr
    assert (tmp_path / "out" / "cloudwatch.yaml").read_text() == before


def test_a_fleet_may_get_a_label_more(opsctl: Opsctl, tmp_path: Path) -> None:
    opsctl.run("alarms", "build", "--out", "out", cwd=tmp_path, env=ONE)

    assert opsctl.run("alarms", "build", "--out", "out", cwd=tmp_path, env=EU).returncode == 0
    assert "cluster: eu" in (tmp_path / "out" / "rules.yaml").read_text()


def test_a_build_shows_what_it_renames(opsctl: Opsctl, tmp_path: Path) -> None:
    """The names of 0.1: groups without a service, and an object that loses what is illegal."""
    env = {**ONE, "OPSCTL_SERVICE__NAME": "chat.v2"}
    opsctl.run("alarms", "build", "--out", "out", cwd=tmp_path, env=env)
    for name in ("rules.yaml", "prometheusrule.yaml"):
        path = tmp_path / "out" / name
        text = path.read_text().replace("@chat.v2", "")
        path.write_text(text.replace("vllm-slo-chat-v2-f5101bcf", "vllm-slo-chat-v2"))

    answer = opsctl.run("alarms", "build", "--out", "out", cwd=tmp_path, env=env)
    said = " ".join(answer.stderr.split())

    assert "llm-slo-short -> llm-slo-short@chat.v2" in said
    assert "PrometheusRule vllm-slo-chat-v2 -> vllm-slo-chat-v2-f5101bcf: apply" in said
    assert (
        "kubectl delete prometheusrule vllm-slo-chat-v2, or every notification comes twice" in said
    )
    again = opsctl.run("alarms", "build", "--out", "out", cwd=tmp_path, env=env)
    assert "->" not in again.stderr


@pytest.mark.parametrize("name", ["chat.v2", "a:b", "Customer_Support", "x" * 128])
def test_any_service_builds(opsctl: Opsctl, tmp_path: Path, name: str) -> None:
    env = {**EXAMPLE, **ONE, "OPSCTL_SERVICE__NAME": name}

    for to in ("prometheus", "cloudwatch"):
        answer = opsctl.run("alarms", "build", "--to", to, "--out", to, cwd=tmp_path, env=env)
        assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (ONE, "alarms.match is not set: the rules read every vLLM server"),
        (
            {**ONE, "OPSCTL_ALARMS__MATCH": "'{job=~\"[a-c]{3}\"}'"},
            'alarms.match: no labels that {job=~"[a-c]{3}"} accepts could be made up',
        ),
    ],
)
def test_a_build_says_what_rules_on_vllms_own_series_cannot_tell_apart(
    opsctl: Opsctl, tmp_path: Path, settings: dict[str, str], line: str
) -> None:
    command = ("alarms", "build", "--from", "vllm", "--out", "out")
    answer = opsctl.run(*command, cwd=tmp_path, env=settings)

    assert answer.returncode == 0
    assert line in " ".join(answer.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "env", "line"),
    [
        (("--scale", "2"), {}, "'2' is not above 0 and up to 1; write 1/60 or 0.1"),
        (
            ("--from", "vllm", "--vllm-version", "new"),
            {},
            "'new' is no release; write it like 0.32.0",
        ),
        (("--vllm-version", "0.32.0"), {}, "--vllm-version belongs to --from vllm"),
        (
            (),
            {"OPSCTL_ALARMS__PAGE_TOPIC": "llm-page"},
            "alarms.page_topic: 'llm-page' is not a topic's ARN",
        ),
        (
            (),
            {"OPSCTL_ALARMS__PAGE_TOPIC": EXAMPLE["OPSCTL_ALARMS__PAGE_TOPIC"]},
            "(defaults): alarms.ticket_topic: tickets have no receiver",
        ),
        (
            (),
            {"OPSCTL_ALARMS__HISTOGRAM_BUCKETS": "{ttft: [1]}"},
            "alarms.histogram_buckets: 'ttft' has no objective's histogram; there are",
        ),
        (
            (),
            {"OPSCTL_ALARMS__WEBHOOK": "http://me:pass-0815@host"},
            "alarms.webhook: the URL holds credentials",
        ),
        (
            (),
            {OBJECTIVES: "[{name: t, sli: queue_time, threshold: 0.2s, target: 95%}]"},
            "(defaults): objectives[0] (t).threshold: 0.2 s is no bucket bound; the nearest are 0.3 s",
        ),
    ],
)
def test_a_mistake_is_one_line_with_the_fix(
    opsctl: Opsctl, tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str], line: str
) -> None:
    answer = opsctl.run("alarms", "build", "--out", "out", *arguments, cwd=tmp_path, env=env)

    assert answer.returncode == 64
    assert line in answer.stderr
    assert "pass-0815" not in answer.stderr
    assert not (tmp_path / "out").exists()


def test_lint_explains_what_is_not_measured(opsctl: Opsctl, tmp_path: Path) -> None:
    answer = opsctl.run("alarms", "lint", "--from", "vllm", "--vllm-version", "0.6.0", cwd=tmp_path)

    assert answer.returncode == 1
    assert (
        "(ttft-returning): the TTFT of returning users is measured by the sidecar" in answer.stdout
    )
    assert "(queue-time): vLLM 0.6.0 does not expose request_queue_seconds" in answer.stdout
    assert "the bounds of this release are fixed" in answer.stdout
    assert "3 of 6 objectives are measured and can alert" in answer.stdout


@pytest.mark.parametrize("source", ["sidecar", "vllm"])
def test_what_wants_the_tap_is_a_note_to_who_has_none(
    opsctl: Opsctl, tmp_path: Path, source: str
) -> None:
    """As the build has it: without any configuration nothing is wrong yet."""
    answer = opsctl.run("alarms", "lint", "--from", source, cwd=tmp_path)

    assert answer.returncode == 0
    (note,) = [line for line in answer.stdout.splitlines() if "ttft-returning" in line]
    assert note.startswith(
        "Note: (defaults): objectives[2] (ttft-returning): the TTFT of returning"
    )
    assert "5 of 6 objectives are measured and can alert" in answer.stdout


@pytest.mark.parametrize(
    ("per_day", "code", "line"),
    [
        (10, 1, "not even a total outage pages"),
        (30, 1, "one failure spends more than the whole budget"),
        (5000, 0, "1 of 1 objectives are measured"),
    ],
)
def test_lint_says_when_there_is_too_little_traffic(
    opsctl: Opsctl, tmp_path: Path, per_day: int, code: int, line: str
) -> None:
    env = {OBJECTIVES: "[{name: a, sli: availability, target: 99.9%}]"}

    answer = opsctl.run("alarms", "lint", "--requests-per-day", str(per_day), cwd=tmp_path, env=env)

    assert answer.returncode == code
    assert line in answer.stdout


@pytest.mark.parametrize(
    ("policy", "does"),
    [
        (
            "looser",
            "counted at the bucket bound 1.5 s (bucket_policy: looser): what takes between 1.4 s and "
            "1.5 s is good",
        ),
        (
            "stricter",
            "counted at the bucket bound 1 s (bucket_policy: stricter): what takes between 1 s and "
            "1.4 s is bad",
        ),
    ],
)
def test_lint_and_explain_say_where_another_bound_is_counted(
    opsctl: Opsctl, tmp_path: Path, policy: str, does: str
) -> None:
    one = f"{{name: e, sli: e2e_latency, threshold: 1.4s, target: 99%, bucket_policy: {policy}}}"
    env = {OBJECTIVES: f"[{one}]"}

    lint = opsctl.run("alarms", "lint", "--from", "vllm", cwd=tmp_path, env=env)
    explain = opsctl.run("slo", "explain", "e", "--from", "vllm", cwd=tmp_path, env=env)

    assert lint.returncode == 0
    assert f"Note: (defaults): objectives[0] (e).threshold: {does}" in lint.stdout
    assert f"Moved: {does}" in " ".join(explain.stdout.split())


def test_lint_notes_rows_that_cannot_fire(opsctl: Opsctl, tmp_path: Path) -> None:
    env = {OBJECTIVES: "[{name: a, sli: availability, target: 90%}]"}

    answer = opsctl.run("alarms", "lint", cwd=tmp_path, env=env)

    assert answer.returncode == 0
    assert "Note: (defaults): objectives[0] (a).target: no 14.4x row (5m/1h)" in answer.stdout


def test_lint_says_that_no_prometheus_answers(opsctl: Opsctl, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{reserve_port()}"

    answer = opsctl.run("alarms", "lint", "--prometheus", url, cwd=tmp_path)

    assert answer.returncode == 3
    assert url in answer.stderr
