"""
The page by way of CloudWatch, end to end: a real vLLM in real trouble, and no Prometheus anywhere.

vLLM on the CPU and the sidecar are real; MiniStack speaks CloudWatch's and SNS's protocols, composes alarms
and delivers over HTTP; metric alarms are judged by the project's evaluator on what MiniStack was sent. Each
second is told as a minute, so the times printed at the end are not production's.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Opsctl
from load.capacity import overloading
from load.generator import start_load
from load.scenarios import SCENARIOS, Scenario
from load.stalls import MachineWatch, play
from load.verdicts import roots, until_a_root
from parts.emulated_aws import REGION
from parts.emulated_cloudwatch import EmulatedCloudWatch, EvaluatedAlarms, HttpSubscriber
from parts.engine import RealVllm
from parts.shared import Servers
from ports import reserve_port

OVERLOAD = SCENARIOS["queue-overload"]

ENDLESS_S = 600.0
"""The load lasts until the page has come and was looked into."""

PAGED_WITHIN_S = 180.0


@dataclass(frozen=True)
class Site:
    """A server with a sidecar that publishes, and who is on call."""

    vllm: RealVllm
    overload: Scenario
    opsctl: Opsctl
    folder: Path
    on_call: HttpSubscriber


@contextmanager
def new_site(part: Callable[[str], Path], vllm: RealVllm, folder: Path) -> Iterator[Site]:
    """A sidecar of the server, the built alarms, and a subscriber of the page's topic."""
    overload = overloading(OVERLOAD, vllm)
    opsctl = Opsctl()
    listen = f"127.0.0.1:{reserve_port()}"
    with ExitStack() as running:
        aws = EmulatedCloudWatch(part("ministack"), folder, reserve_port())
        aws.start()
        running.callback(aws.stop)
        on_call = HttpSubscriber(aws)
        running.callback(on_call.stop)
        sns = aws.client("sns")
        page, ticket = (sns.create_topic(Name=name)["TopicArn"] for name in ("page", "ticket"))
        sns.subscribe(TopicArn=page, Protocol="http", Endpoint=on_call.url)
        config = folder / "opsctl.yaml"
        settings: dict[str, Any] = {
            "service": {"name": "shop"},
            "targets": [{"name": "chat-0", "url": vllm.url, "models": ["tiny"]}],
            "objectives": [
                {"name": "availability", "sli": "availability", "target": "99.9%"},
                {
                    "name": "ttft",
                    "sli": "time_to_first_token",
                    "threshold": "500ms",
                    "target": "99%",
                },
            ],
            "exporter": {
                "listen": listen,
                "poll_interval": "500ms",
                "cloudwatch": {
                    "sink": "put",
                    "region": REGION,
                    "endpoint_url": aws.url,
                    "interval": "1s",
                },
            },
            "alarms": {
                "page_topic": page,
                "ticket_topic": ticket,
                "sidecar_url": f"http://{listen}",
                "runbook_url": "https://runbooks.example.com/vllm",
            },
        }
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        build = ("alarms", "build", "--to", "cloudwatch", "--out", str(folder / "alarms"))
        built = opsctl.run("--config", str(config), *build)
        assert built.returncode == 0, built.stderr
        template = (folder / "alarms" / "cloudwatch.yaml").read_text(encoding="utf-8")
        run = opsctl.command("--config", str(config), "exporter", "run")
        sidecar = subprocess.Popen(run, env=dict(aws.env), cwd=folder)
        running.callback(sidecar.wait, 10)
        running.callback(sidecar.terminate)
        alarms = EvaluatedAlarms(aws, template)
        alarms.start()
        running.callback(alarms.stop)
        yield Site(vllm, overload, opsctl, folder, on_call)


def test_an_overload_pages_through_cloudwatch_and_the_message_leads_to_its_root(
    part: Callable[[str], Path],
    servers: Servers,
    tmp_path_factory: pytest.TempPathFactory,
    measured: Callable[[str], None],
) -> None:
    vllm = servers.get(OVERLOAD.server)

    def attempt(watch: MachineWatch) -> None:
        with new_site(part, vllm, tmp_path_factory.mktemp("site")) as site:
            page_and_paste(site, watch, measured)

    play("overload by way of CloudWatch", attempt, measured)


def page_and_paste(site: Site, watch: MachineWatch, measured: Callable[[str], None]) -> None:
    """The overload pages somebody, who pastes the message."""

    def is_burn(alarm: dict[str, Any]) -> bool:
        name = str(alarm["AlarmName"])
        return name.startswith("LLMSLOErrorBudgetBurn page/") and alarm["NewStateValue"] == "ALARM"

    healthy, incident = site.overload.phases
    phases = (replace(healthy, duration_s=30), replace(incident, duration_s=ENDLESS_S))
    load = start_load(site.vllm.url, site.vllm.model, phases, drain=False)
    with load, watch.during(load):
        began = load.wait_phase("incident")
        paged, body = site.on_call.wait(is_burn, PAGED_WITHIN_S, since=began)
        # somebody wakes up and pastes the message
        message = site.folder / "message.json"
        message.write_text(body, encoding="utf-8")
        config = str(site.folder / "opsctl.yaml")
        pasted = ("--config", config, "diagnose", "--alarm", str(message), "-o", "json")
        said = until_a_root(lambda: site.opsctl.run(*pasted, "--at", str(time.time())))
        told = time.time()
    measured(
        f"overload by way of CloudWatch: fault to page {paged - began:.1f} s, page to root "
        f"{told - paged:.1f} s (real vLLM on the CPU, each second told as a minute)"
    )

    (target,) = said["targets"]
    assert said["alarm"]["service"] == "shop"
    assert said["alarm"]["objective"] == "ttft"
    assert said["alarm"]["model"] == "tiny"
    assert abs(said["alarm"]["since"] - paged) < 60
    assert roots(target) == ["queue-overload"]
