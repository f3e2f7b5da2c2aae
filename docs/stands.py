"""
What stands ready while a transcript is made: files, replays, and servers on the loopback.

A stand is an entry of transcripts.yaml; its keys are those of STANDS. Servers listen on free ports: where a
document says another address, `Place.addresses` tells what stands for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from vllm_opsctl.exporter.observation import Observation
from vllm_opsctl.exporter.recording import read_recording, save_recording

ROOT = Path(__file__).resolve().parent.parent
OPSCTL = Path(sys.executable).with_name("opsctl")

FindPart = Callable[[str], Path]
"""Where a real part is; raises where it is missing."""


@dataclass(frozen=True)
class Place:
    """
    Where the commands run.

    Args:
        folder: Their working directory; `tests` in it is the repository's.
        logs: For logs and data of servers.
        env: Beside ours.
        addresses: What a document says, and what listens.
    """

    folder: Path
    logs: Path
    env: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)


@contextmanager
def ready(stand: Mapping[str, Any], place: Place, part: FindPart) -> Iterator[None]:
    """Make everything of a stand, in its order, and stop it afterwards."""
    with ExitStack() as stack:
        for name, spec in stand.items():
            stack.enter_context(STANDS[name](spec, place, part))
        yield


def needs_servers(stand: Mapping[str, Any]) -> bool:
    """Whether more than files have to stand ready."""
    return bool(stand.keys() - {"config", "recordings"})


def observed(piece: str | Mapping[str, Any], target: str, ends: datetime) -> list[Observation]:
    """
    A recording, or the seconds of it from ``from_s`` to ``to_s``, moved so that it ends at a time.

    Args:
        piece: The file's path in the repository, or a mapping with ``file``.
        target: Its new name.
        ends: Time of the last observation (UTC).
    """
    spec: Mapping[str, Any] = {"file": piece} if isinstance(piece, str) else piece
    found = read_recording(ROOT / spec["file"])
    offsets = (spec.get("from_s", 0.0), spec.get("to_s", float("inf")))
    cut = [o for o in found if offsets[0] <= o.t - found[0].t <= offsets[1]]
    moved = ends.replace(tzinfo=UTC).timestamp() - cut[-1].t
    return [replace(o, t=o.t + moved, target=target) for o in cut]


@contextmanager
def _config(spec: Mapping[str, Any], place: Place, part: FindPart) -> Iterator[None]:
    text = yaml.safe_dump(spec, sort_keys=False)
    for documented, real in place.addresses.items():
        text = text.replace(documented, real)
    (place.folder / "opsctl.yaml").write_text(text, encoding="utf-8")
    yield


@contextmanager
def _recordings(spec: Mapping[str, Any], place: Place, part: FindPart) -> Iterator[None]:
    """Recordings of several targets that were seen at the same time."""
    for name, fleet in spec.items():
        every = [
            observation
            for target, piece in fleet["targets"].items()
            for observation in observed(piece, target, fleet["ends"])
        ]
        save_recording(place.folder / name, sorted(every, key=lambda o: o.t))
    yield


@contextmanager
def _replays(spec: Mapping[str, Any], place: Place, part: FindPart) -> Iterator[None]:
    from parts.processes import start_server, stop_server

    processes = []
    ports = _ports(len(spec))
    try:
        for (address, piece), port in zip(spec.items(), ports, strict=True):
            place.addresses[address] = f"127.0.0.1:{port}"
            if piece is None:
                continue
            file = place.logs / f"{port}.jsonl"
            save_recording(file, observed(piece, "replayed", datetime(2026, 11, 25)))
            command = [str(OPSCTL), "replay", str(file), "--port", str(port)]
            log = place.logs / f"{port}.log"
            processes.append(start_server(command, log, f"http://127.0.0.1:{port}/health"))
        yield
    finally:
        for process in processes:
            stop_server(process)


@contextmanager
def _prometheus(spec: Mapping[str, Any], place: Place, part: FindPart) -> Iterator[None]:
    """A Prometheus with a past: pages that were scraped, or a sidecar's counters over weeks."""
    from parts.prometheus import RealPrometheus, backfill

    (port,) = _ports(1)
    place.addresses[spec["address"]] = f"127.0.0.1:{port}"
    server = RealPrometheus(part("prometheus"), place.logs / "prometheus", port)
    promtool = part("promtool")
    for instance, piece in spec.get("scraped", {}).items():
        pages = observed(piece, instance, spec["ends"])
        backfill(promtool, pages, server.data, job="vllm", instance=instance)
    if "counters" in spec:
        _backfill_events(promtool, spec, server.data)
    server.start()
    try:
        yield
    finally:
        server.stop()


def _backfill_events(promtool: Path, spec: Mapping[str, Any], data: Path) -> None:
    """Write one block; promtool reads its input again for each of its usual two hours."""
    text = data.parent / "events.txt"
    with text.open("w", encoding="utf-8") as stream:
        for one in spec["counters"]:
            stream.writelines(_events({**one, "service": spec["service"]}, spec["ends"]))
        stream.write("# EOF\n")
    create = (promtool, "tsdb", "create-blocks-from", "--max-block-duration=1000h")
    subprocess.run([*create, "openmetrics", "--quiet", text, data], check=True, capture_output=True)


_SCRAPE_S = 100


def _events(spec: Mapping[str, Any], ends: datetime) -> Iterator[str]:
    """A sidecar's counters of good and bad events of an objective and model."""
    end = ends.replace(tzinfo=UTC).timestamp()
    labels = (
        f'service="{spec["service"]}",objective="{spec["objective"]}",model="{spec["model"]}",'
        'target="chat-0",job="sidecar",instance="sidecar:9836"'
    )
    episodes = [
        (begin.replace(tzinfo=UTC).timestamp(), minutes * 60, share)
        for begin, minutes, share in spec.get("episodes", ())
    ]
    for outcome in ("good", "bad"):
        value = 0.0
        for number in range(round(spec["days"] * 86400 / _SCRAPE_S) + 1):
            t = end - spec["days"] * 86400 + number * _SCRAPE_S
            bad = spec["bad"]
            for begin, seconds, share in episodes:
                if begin < t <= begin + seconds:
                    bad = share
            if number:
                share = bad if outcome == "bad" else 1 - bad
                value += spec["events_a_day"] / 86400 * _SCRAPE_S * share
            yield (f'vllm_sli_events_total{{{labels},outcome="{outcome}"}} {value:.6f} {t:.0f}\n')


@contextmanager
def _grafana(spec: Mapping[str, Any], place: Place, part: FindPart) -> Iterator[None]:
    """A server that does what Grafana's documented API does: empty, or with boards changed by hand."""
    from fake_grafana import TOKEN, FakeGrafana, Kept, running

    from vllm_opsctl.alarms.resource_names import FLEET_FOLDER, board_folder
    from vllm_opsctl.dashboards.build import draw_boards
    from vllm_opsctl.exporter.config import Config

    grafana = FakeGrafana()
    if spec["changed"]:
        config = Config.model_validate(yaml.safe_load((place.folder / "opsctl.yaml").read_text()))
        grafana.folders |= {"own": board_folder(config.service.name), "all": FLEET_FOLDER}
        for board in draw_boards(config, "sidecar"):
            folder = "all" if board.of_all_services else "own"
            grafana.boards[board.uid] = Kept({**board.body, "version": 1}, folder)
        _change_by_hand(grafana.boards["opsctl-chat-slo"].body["panels"])
    with running(grafana):
        place.addresses[spec["address"]] = grafana.url
        place.env["GRAFANA_TOKEN"] = TOKEN
        yield


def _change_by_hand(panels: list[dict[str, Any]]) -> None:
    """What somebody did in Grafana's editor: a unit, a threshold, a panel too few and one too many."""
    by_title = {panel["title"]: panel for panel in panels}
    by_title["Replicas read, a minute"]["fieldConfig"]["defaults"]["unit"] = "ms"
    burn = by_title["Burn rate, 1h"]
    burn["fieldConfig"]["defaults"]["thresholds"]["steps"].append({"color": "red", "value": 80})
    panels.remove(by_title["Burn rate, 6h"])
    panels.append({**burn, "title": "Mine", "id": 1 + max(panel["id"] for panel in panels)})


@contextmanager
def _pager(spec: Mapping[str, Any], place: Place, part: FindPart) -> Iterator[None]:
    """Prometheus with the rules that opsctl builds, Alertmanager, and an emulated SNS with a subscriber."""
    from commands import Opsctl
    from loopback import wait_for
    from parts.paging import paging

    from vllm_opsctl.alarms.pager_api import AlertmanagerApi

    with paging(
        place.folder, part, Opsctl(), spec["config"], scale=spec["scale"], scrape={}
    ) as running:
        place.addresses[spec["prometheus"]] = running.prometheus.url.removeprefix("http://")
        place.addresses[spec["alertmanager"]] = running.alertmanager.address
        place.env.update(running.aws.env)
        api = AlertmanagerApi(running.alertmanager.url)
        wait_for(lambda: bool(api.held(alertname="LLMWatchdog")), timeout_s=60, what="the watchdog")
        yield


@contextmanager
def _cloudwatch(spec: Mapping[str, Any], place: Place, part: FindPart) -> Iterator[None]:
    """An account, emulated, with the alarms of the configuration and one subscriber of pages."""
    from parts.emulated_aws import REGION
    from parts.emulated_cloudwatch import EmulatedCloudWatch

    from vllm_opsctl.alarms.cloudwatch.account import Account, Pace
    from vllm_opsctl.alarms.cloudwatch.build import template_text
    from vllm_opsctl.alarms.cloudwatch.wanted import wanted
    from vllm_opsctl.dashboards.cloudwatch import service_template
    from vllm_opsctl.exporter.config import Config

    config = Config.model_validate(yaml.safe_load((place.folder / "opsctl.yaml").read_text()))
    service = config.service.name
    (port,) = _ports(1)
    aws = EmulatedCloudWatch(part("ministack"), place.logs, port)
    aws.start()
    try:
        place.env.update(aws.env)
        with patch.dict(os.environ, aws.env):
            account = Account(REGION, pace=Pace(1000), reading=Pace(1000))
            template = yaml.safe_load(template_text(service_template(config)))
            for item in wanted(template, service, account.place):
                account.put(item, new=True)
            queues = aws.client("sqs")
            queue = queues.create_queue(QueueName="on-call")["QueueUrl"]
            arn = queues.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
            topic = account.place.topic_arn(f"{service}-page")
            aws.client("sns").subscribe(
                TopicArn=topic, Protocol="sqs", Endpoint=arn["Attributes"]["QueueArn"]
            )
        yield
    finally:
        aws.stop()


def _ports(count: int) -> list[int]:
    """In order, so that what sorts by address looks as it does in the document."""
    from ports import reserve_port

    return sorted(reserve_port() for _ in range(count))


STANDS: dict[str, Callable[[Any, Place, FindPart], Any]] = {
    "config": _config,
    "recordings": _recordings,
    "replays": _replays,
    "prometheus": _prometheus,
    "grafana": _grafana,
    "pager": _pager,
    "cloudwatch": _cloudwatch,
}
