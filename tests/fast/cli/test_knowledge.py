"""What opsctl knows, asked from the command line: explain, runbook schema, validate and build."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from commands import Opsctl
from paths import ROOT

from vllm_opsctl.alarms.explain_alerts import alert_explanations
from vllm_opsctl.runbooks.load import shipped_library

OURS = """\
id: our-gateway
title: Our gateway drops requests
severity: high
area: front-end
users: It is broken.
signature:
  require:
    - when: traffic.started < 1.0
      say: nothing arrives
discriminators:
  engine-hung: there requests arrive
actions:
  - kind: check
    text: Look at the gateway.
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kv.usage_queued", "feature (KV cache)"),
        ("vllm:gpu_cache_usage_perc", "vllm_engine_kv_cache_usage_ratio"),
        ("vllm:time_to_first_token_seconds_bucket", "TTFT, from arrival to the first token"),
        ("vllm_engine_preemptions_total", "preemptions"),
        ("kv-preemption-thrash", "failure mode"),
        ("ttft-burn", "never a root cause"),
        ("paged-attention", "cuts that memory into blocks"),
        ("inter-token-latency", "objective (inter_token_latency)"),
        ("opsctl_target_up", "metric of the sidecar"),
        ("LLMModelVanished", "last_over_time over a day keeps the model's name"),
        ("LLMSLOErrorBudgetBurn", "2 % of the budget went in 1h"),
        ("LLMSLOHardFloor", "burn rates tell an outage late or never"),
    ],
)
def test_explain_knows_every_kind_of_name(opsctl: Opsctl, name: str, said: str) -> None:
    answer = opsctl.run("explain", name)

    assert answer.returncode == 0, answer.stderr
    assert said in " ".join(answer.stdout.split())
    assert max(map(len, answer.stdout.splitlines())) <= 80


def test_explain_knows_every_alert_that_is_built() -> None:
    rules = yaml.safe_load((ROOT / "alarms/generated/rules.yaml").read_text())
    built = {r["alert"] for g in rules["groups"] for r in g["rules"] if "alert" in r}

    assert built <= alert_explanations().keys()


def test_explain_asks_back_when_a_name_is_misspelt(opsctl: Opsctl) -> None:
    answer = opsctl.run("explain", "kv.usage_queud")

    assert (answer.returncode, answer.stdout) == (64, "")
    assert "did you mean kv.usage_queued?" in answer.stderr


def test_explain_as_json_has_the_reason_why(opsctl: Opsctl) -> None:
    answer = json.loads(opsctl.run("explain", "prefix.hit_ratio", "--output", "json").stdout)

    assert answer["facts"]["unit"] == "ratio"
    assert any("Prefix caching" in text for text in answer["why"])
    assert answer["links"]


def test_the_published_schema_accepts_every_shipped_failure_mode(opsctl: Opsctl) -> None:
    schema = json.loads(opsctl.run("runbook", "schema").stdout)

    for path in (ROOT / "runbooks" / "library").glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)


def test_a_users_runbooks_are_validated(opsctl: Opsctl, tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(OURS)
    good = opsctl.run("runbook", "validate", str(tmp_path))
    (tmp_path / "ours.yaml").write_text(OURS.replace("traffic.started", "traffic.startet"))
    bad = opsctl.run("runbook", "validate", str(tmp_path))

    assert (good.returncode, good.stdout) == (0, "our-gateway: ok\n")
    assert bad.returncode == 64
    assert "ours.yaml: unknown feature 'traffic.startet'; did you mean" in bad.stderr


def test_a_users_runbook_replaces_a_shipped_one(opsctl: Opsctl, tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(OURS.replace("our-gateway", "queue-overload"))
    answer = opsctl.run("runbook", "validate", str(tmp_path))

    assert answer.stdout == "queue-overload: ok, replaces the shipped one\n"


def test_pages_are_built_and_checked(opsctl: Opsctl, tmp_path: Path) -> None:
    out = tmp_path / "pages"
    built = opsctl.run("runbook", "build", "--out", str(out))
    fresh = opsctl.run("runbook", "build", "--out", str(out), "--check")
    (out / "engine-hung.md").write_text("edited by hand\n")
    stale = opsctl.run("runbook", "build", "--out", str(out), "--check")

    assert built.returncode == fresh.returncode == 0, built.stderr + fresh.stderr
    # a page for each failure mode, and the index
    assert len(list(out.glob("*.md"))) == len(shipped_library().modes) + 1
    assert stale.returncode == 64
    assert "engine-hung.md" in stale.stderr


def test_pages_of_somebody_else_are_left_alone(opsctl: Opsctl, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine\n")
    answer = opsctl.run("runbook", "build", "--out", str(tmp_path))

    assert answer.returncode == 64
    assert (tmp_path / "notes.md").read_text() == "mine\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "notes.md"]


def test_a_log_settles_what_metrics_leave_open(opsctl: Opsctl, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("ERROR The model `chat-v2` does not exist.\n" * 5)
    recording = str(ROOT / "tests/recordings/third/model-not-found.jsonl.gz")
    answer = opsctl.run("diagnose", "--recording", recording, "--log", str(log))

    assert "the log says so 5 times" in " ".join(answer.stdout.split())


def test_a_log_that_is_not_there_is_named(opsctl: Opsctl) -> None:
    recording = str(ROOT / "tests/recordings/baseline.jsonl.gz")
    answer = opsctl.run("diagnose", "--recording", recording, "--log", "none.log")

    assert answer.returncode == 64
    assert "--log none.log: no such file" in answer.stderr
