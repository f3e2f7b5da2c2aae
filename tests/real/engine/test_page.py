"""
The page, end to end: a real vLLM in real trouble pages somebody, and the command in the page names why.

vLLM on the CPU, the sidecar, Prometheus and Alertmanager are real; SNS and its subscriber are moto's.
Every window is a twelfth of what it is in production, so the times printed at the end are not
production's: there a window of five minutes takes five minutes.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from commands import Opsctl
from load.capacity import overloading
from load.generator import start_load
from load.scenarios import SCENARIOS, Scenario
from load.stalls import MachineWatch
from load.verdicts import roots, until_a_root
from parts.emulated_aws import Received
from parts.engine import RealVllm
from parts.paging import Paging, paging
from parts.shared import Servers
from ports import reserve_port

SCALE = "1/12"

OVERLOAD = SCENARIOS["queue-overload"]

OBJECTIVES = [
    {"name": "availability", "sli": "availability", "target": "99.9%"},
    {"name": "ttft", "sli": "time_to_first_token", "threshold": "500ms", "target": "99%"},
]

ENDLESS_S = 600.0
"""The load lasts until the page has come and was looked into."""

PAGED_WITHIN_S = 180.0


@dataclass(frozen=True)
class Site:
    """A server with everything behind it; ``opsctl`` runs where its opsctl.yaml lies."""

    vllm: RealVllm
    overload: Scenario
    chain: Paging
    opsctl: Opsctl

    def page(self, alert: str) -> Received:
        """The next page of an alert; others are heard and left."""
        deadline = time.monotonic() + PAGED_WITHIN_S
        heard = []
        while (left := deadline - time.monotonic()) > 0:
            one = self.chain.on_call.receive(within_s=left)
            if one is not None:
                heard.append(one.subject)
                if "FIRING" in one.subject and alert in one.subject:
                    return one
        pytest.fail(f"no page of {alert} within {PAGED_WITHIN_S:g} s, but {heard}")

    def obey(self, page: Received) -> tuple[Any, float]:
        """Type the command of a page until it names a root: that verdict, and when it was there."""
        found = re.search(r"^Diagnose: (opsctl .*)$", page.message, re.MULTILINE)
        assert found is not None, page.message
        command = shlex.split(found[1])
        folder = self.chain.config.parent
        said = until_a_root(lambda: self.opsctl.run(*command[1:], "-o", "json", cwd=folder))
        (target,) = said["targets"]
        return target, time.time()

    def paste(self, page: Received, at: float) -> tuple[Any, Any]:
        """
        Give the whole message to opsctl, later: the verdict at a time, and the alarm.

        Left alone it takes the alarm's time; with windows so short, that is too early to be sure.
        """
        message = self.chain.config.with_name("message.json")
        message.write_text(page.raw, encoding="utf-8")
        pasted = ("diagnose", "--alarm", str(message), "--at", str(at), "-o", "json")
        ran = self.opsctl.run(*pasted, cwd=message.parent)
        assert ran.stdout, ran.stderr
        said = json.loads(ran.stdout)
        (target,) = said["targets"]
        return target, said["alarm"]


@pytest.fixture(scope="module")
def site(
    part: Callable[[str], Path], servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A sidecar of the server, and the whole way of a page."""
    vllm, folder = servers.get(OVERLOAD.server), tmp_path_factory.mktemp("site")
    overload = overloading(OVERLOAD, vllm)
    opsctl = Opsctl()
    listen = f"127.0.0.1:{reserve_port()}"
    settings = {
        "service": {"name": "shop"},
        "targets": [{"name": "chat-0", "url": vllm.url}],
        "objectives": OBJECTIVES,
        "exporter": {"listen": listen},
        "alarms": {
            "sidecar_url": f"http://{listen}",
            "runbook_url": "https://runbooks.example.com/vllm",
        },
    }
    scrape = {"sidecar": [listen]}
    with paging(folder, part, opsctl, settings, scale=SCALE, scrape=scrape) as chain:
        opsctl.start("--config", str(chain.config), "exporter", "run")
        try:
            yield Site(vllm, overload, chain, opsctl)
        finally:
            opsctl.stop_all()


def test_an_overload_pages_and_the_command_in_the_page_names_it(
    site: Site, measured: Callable[[str], None]
) -> None:
    healthy, incident = site.overload.phases
    phases = (replace(healthy, duration_s=30), replace(incident, duration_s=ENDLESS_S))
    with MachineWatch() as watch:
        load = start_load(site.vllm.url, site.vllm.model, phases, drain=False)
        with load, watch.during(load):
            began = load.wait_phase("incident")
            page = site.page("LLMSLOErrorBudgetBurn")
            target, told = site.obey(page)
    pasted, alarm = site.paste(page, told)
    measured(f"{times('overload', began, page, told)}; {watch}")

    assert page.subject == "[FIRING:1] LLMSLOErrorBudgetBurn ttft tiny"
    assert page.at > began
    assert page.attributes == {
        "severity": "critical",
        "service": "shop",
        "model": "tiny",
        "objective": "ttft",
    }
    assert page.message.startswith(f"TEST RULES: every window is scaled by {SCALE}.")
    assert "waited longer than 500 ms for their first token" in page.message
    assert (target["target"], roots(target)) == ("chat-0", ["queue-overload"])
    assert (pasted["target"], roots(pasted)) == ("chat-0", ["queue-overload"])
    assert (alarm["service"], alarm["objective"], alarm["model"]) == ("shop", "ttft", "tiny")
    assert began < alarm["since"] < page.at


def test_a_killed_engine_pages_by_its_silence(site: Site, measured: Callable[[str], None]) -> None:
    site.vllm.kill_engine()
    began = time.time()
    page = site.page("LLMModelVanished")
    target, told = site.obey(page)
    measured(times("killed engine", began, page, told))

    assert page.subject == "[FIRING:1] LLMModelVanished - tiny"
    assert "Runbook: https://runbooks.example.com/vllm/engine-dead" in page.message
    assert (target["target"], roots(target)) == ("chat-0", ["engine-dead"])


def times(what: str, began: float, page: Received, told: float) -> str:
    """What the end of the run says."""
    return (
        f"{what}: fault to page {page.at - began:.1f} s, page to verdict {told - page.at:.1f} s "
        f"(real vLLM on the CPU, every window scaled by {SCALE})"
    )
