"""A pasted page is looked into at its time, through a sidecar."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from datetime import UTC, datetime

from commands import Opsctl
from load.verdicts import until_a_root
from loopback import http_get, wait_for
from paths import RECORDINGS
from sns_message import TEXT, notification


def pasted(opsctl: Opsctl, text: str, *more: str, sidecar: str) -> subprocess.CompletedProcess[str]:
    """The message is pasted into stdin, where the configuration names the sidecar."""
    return subprocess.run(
        opsctl.command("diagnose", "--alarm", "-", *more),
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"OPSCTL_ALARMS__SIDECAR_URL": sidecar},
        check=False,
    )


def test_a_pasted_page_is_looked_into_at_its_time(opsctl: Opsctl) -> None:
    # twice as fast an overload is one too
    target = opsctl.start_replay(RECORDINGS / "queue-overload.jsonl.gz", "--speed", "2")
    sidecar = opsctl.start_sidecar(target)
    wait_for(
        lambda: (
            re.search(r"^opsctl_target_up{.*} 1", http_get(f"{sidecar}/metrics")[1], re.M)
            is not None
        ),
        timeout_s=20,
        what="the target",
    )
    asked = ("diagnose", "--sidecar", sidecar, "-o", "json")
    until_a_root(lambda: opsctl.run(*asked, "--no-probe"))
    # a page says whole seconds
    until_a_root(lambda: opsctl.run(*asked, "--at", str(int(time.time()))))
    since = int(time.time())
    stamp = f"{datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M:%S}"
    text = TEXT.replace("http://127.0.0.1:9836 chat-0", sidecar)
    text = text.replace("2026-11-25 03:14:00", stamp)
    message = notification(text, service="shop", objective="ttft", model="tiny")
    ran = pasted(opsctl, message, sidecar=sidecar)
    said = json.loads(pasted(opsctl, message, "-o", "json", sidecar=sidecar).stdout)

    first = " ".join(ran.stdout.partition("\n\n")[0].split())
    assert first.startswith(
        "Alarm: LLMSLOErrorBudgetBurn, service shop, objective ttft, model tiny"
    )
    assert stamp in first
    assert ran.returncode == 2, ran.stdout
    (found,) = said["targets"]
    assert [c["id"] for c in found["causes"] if c["role"] == "root"] == ["queue-overload"]
    assert said["alarm"]["objective"] == "ttft"
