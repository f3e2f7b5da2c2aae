"""
The CloudWatch sink against an AWS-protocol server: what is sent arrives, whatever happens on the way.

CloudWatch is moto's. Between it and the publisher stands a proxy that misbehaves on demand as AWS and
networks do.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_answers import Answer, refuse_as_aws, reset, slow
from commands import Opsctl
from fake_collector import fake_collector
from loopback import http_get, serving, wait_for
from parts.emulated_aws import REGION, EmulatedAws
from paths import RECORDINGS
from ports import reserve_port
from tap.fakes import FakeEngine

from vllm_opsctl.errors import NeverTaken
from vllm_opsctl.exporter.aws import sends_heartbeat
from vllm_opsctl.exporter.config import CloudWatch, Config, Exporter, Target
from vllm_opsctl.exporter.engine import EngineKey, EngineSample, PageSample
from vllm_opsctl.exporter.recording import read_recording
from vllm_opsctl.exporter.sinks.cloudwatch.datum import Datum
from vllm_opsctl.exporter.sinks.cloudwatch.emf import EmfSender
from vllm_opsctl.exporter.sinks.cloudwatch.publisher import Publisher, publisher
from vllm_opsctl.exporter.sinks.cloudwatch.put import PutSender
from vllm_opsctl.exporter.sinks.cloudwatch.spool import Spool
from vllm_opsctl.exporter.target_state import TargetState

INTERVALS = 12


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedAws]:
    """One emulator for all tests; each has a namespace of its own."""
    emulated = EmulatedAws(tmp_path_factory.mktemp("aws"), reserve_port())
    emulated.start()
    yield emulated
    emulated.stop()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")


def sums(aws: EmulatedAws, namespace: str, metric: str) -> dict[int, float]:
    """The metric's sum by the minute's start."""
    client = aws.client("cloudwatch")
    answer = client.list_metrics(Namespace=namespace, MetricName=metric)["Metrics"]
    found: dict[int, float] = defaultdict(float)
    for dimensions in {json.dumps(one["Dimensions"]) for one in answer}:
        now = time.time()
        for point in client.get_metric_statistics(
            Namespace=namespace,
            MetricName=metric,
            Dimensions=json.loads(dimensions),
            StartTime=now - 86400,
            EndTime=now + 3600,
            Period=60,
            Statistics=["Sum"],
        )["Datapoints"]:
            found[int(point["Timestamp"].timestamp())] += point["Sum"]
    return dict(found)


# -- faults on the way --------------------------------------------------------------------------------


@dataclass
class Faults:
    """What the proxy does to requests: as often as its number says, then nothing."""

    left: int = 0
    do: Answer = lambda handler: False
    """Handles a request badly; False to let it pass as well."""
    met: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


FAULTS: dict[str, Answer] = {
    "throttled": refuse_as_aws(400, "ThrottlingException"),
    "server error": refuse_as_aws(500, "InternalServiceFault"),
    "unavailable": refuse_as_aws(503, "ServiceUnavailable"),
    "expired token": refuse_as_aws(403, "ExpiredToken"),
    "skewed clock": refuse_as_aws(403, "RequestExpired"),
    "reset mid-request": reset,
    "slow": slow,
}


@pytest.fixture(scope="module")
def proxy(aws: EmulatedAws) -> Iterator[tuple[str, Faults]]:
    """The emulator behind a server that misbehaves on demand."""
    faults = Faults()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with faults.lock:
                bad = faults.left > 0
                faults.left -= bad
                faults.met += bad
            if bad and faults.do(self):
                return
            backend = http.client.HTTPConnection(aws.url.removeprefix("http://"), timeout=30)
            backend.request("POST", self.path, body, dict(self.headers))
            answer = backend.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "connection", "server", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            backend.close()

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with serving(server) as url:
        yield url, faults


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = float(int(time.time()) // 60 * 60 - 3600)

    def __call__(self) -> float:
        return self.now


def page(t: float, preemptions: float) -> PageSample:
    engine = EngineSample(
        t=t,
        key=EngineKey("tiny", "0"),
        gauges={},
        counters={"preemptions": preemptions},
        histograms={},
    )
    return PageSample(t=t, target="chat-0", engines=(engine,))


class Published:
    """A publisher whose intervals a test makes: minute n has n + 1 preemptions."""

    def __init__(self, namespace: str, url: str, folder: Path) -> None:
        self.clock = Clock()
        self.config = Config.model_validate(
            {
                "service": {"name": "shop"},
                "exporter": {"cloudwatch": {"sink": "put", "namespace": namespace}},
            }
        )
        self._namespace, self._folder = namespace, folder
        self._pages = [page(self.clock.now - 1, 0.0)]
        self._total = 0.0
        self.use(url)
        self.close()

    def use(self, url: str) -> None:
        """A new publisher, as after a restart of the sidecar."""
        self.publisher = Publisher(
            self.config,
            self._take,
            PutSender(self._namespace, REGION, url),
            Spool(self._folder, 1000),
            stop=threading.Event(),
            clock=self.clock,
        )

    def _take(self) -> dict[str, list[PageSample]]:
        pages, self._pages = self._pages, []
        return {"chat-0": pages}

    def minute(self, number: int) -> None:
        """A minute passes with its pages."""
        self._total += number + 1
        self._pages.append(page(self.clock.now + 30, self._total))
        self.close()
        self.clock.now += 60

    def close(self) -> None:
        """The interval ends."""
        self.publisher.close_interval(self.clock.now)
        self.publisher.send_waiting()

    def drain(self) -> None:
        """Time passes until nothing waits."""
        for _ in range(40):
            self.clock.now += 60
            self.publisher.send_waiting()


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_and_every_time_stays_true(
    aws: EmulatedAws,
    proxy: tuple[str, Faults],
    tmp_path: Path,
    measured: Callable[[str], None],
    fault: str,
) -> None:
    """The first eight requests meet the fault; in the end CloudWatch has every minute once."""
    url, faults = proxy
    namespace = "t/" + fault.replace(" ", "-")
    published = Published(namespace, url, tmp_path / "spool")
    start = int(published.clock.now)
    with faults.lock:
        faults.do, faults.left, faults.met = FAULTS[fault], 8, 0
    for number in range(INTERVALS):
        published.minute(number)
    published.drain()

    arrived = sums(aws, namespace, "Preemptions")
    expected = {start + 60 * number: number + 1.0 for number in range(INTERVALS)}
    assert faults.met > 0
    assert {t: total for t, total in arrived.items() if total} == expected
    measured(f"CloudWatch sink, {fault}: {faults.met} requests met it, 0 of {INTERVALS} lost")


REFUSALS = {
    "a value that is none": refuse_as_aws(400, "InvalidParameterValueException"),
    "parameters that exclude each other": refuse_as_aws(
        400, "InvalidParameterCombinationException"
    ),
    "a parameter that is missing": refuse_as_aws(400, "MissingRequiredParameterException"),
    "too large a body": refuse_as_aws(413, "RequestEntityTooLarge"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_what_is_refused_for_good_is_told_counted_and_holds_up_nothing(
    aws: EmulatedAws,
    proxy: tuple[str, Faults],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    why: str,
) -> None:
    """The second of three minutes is refused, as often as it would be sent."""
    url, faults = proxy
    namespace = "t/refused-" + why.replace(" ", "-")
    published = Published(namespace, url, tmp_path / "spool")
    start = int(published.clock.now)
    for number in range(3):
        with faults.lock:
            faults.do, faults.left, faults.met = REFUSALS[why], int(number == 1), 0
        published.minute(number)

    arrived = {t: total for t, total in sums(aws, namespace, "Preemptions").items() if total}
    assert arrived == {start: 1.0, start + 120: 3.0}
    assert list(published.publisher._spool.waiting()) == []
    assert published.publisher.lost == {"full": 0, "refused": 1}
    (said,) = [one.getMessage() for one in caplog.records if "is lost" in one.getMessage()]
    assert str(start + 60) in said
    assert "Preemptions" in said
    assert "cloudwatch:PutMetricData is refused" in said


def test_of_a_large_interval_only_the_refused_request_is_lost(
    aws: EmulatedAws, proxy: tuple[str, Faults]
) -> None:
    url, faults = proxy
    many = [
        Datum(
            metric="Preemptions",
            dimensions=(("Service", "shop"),),
            t=float(int(time.time()) // 60 * 60),
            unit="Count",
            values=(1.0,),
            counts=(1.0,),
        )
    ] * 2500
    with faults.lock:
        faults.do, faults.left, faults.met = REFUSALS["a value that is none"], 1, 0

    with pytest.raises(NeverTaken, match="1000 data"):
        PutSender("t/large", REGION, url).send(many, time.time())

    assert sum(sums(aws, "t/large", "Preemptions").values()) == 1500


def test_half_an_hour_without_cloudwatch_and_a_restart_lose_nothing(
    aws: EmulatedAws, tmp_path: Path
) -> None:
    """What waits is sent by the next sidecar; what was counted while none ran is counted once."""
    published = Published("t/restart", f"http://127.0.0.1:{reserve_port()}", tmp_path / "spool")
    start = int(published.clock.now)
    for number in range(30):
        published.minute(number)
    published.use(aws.url)
    for number in range(30, 32):
        published.minute(number)
    published.drain()

    arrived = {t: total for t, total in sums(aws, "t/restart", "Preemptions").items() if total}
    assert arrived == {start + 60 * number: number + 1.0 for number in range(32)}


def test_a_crash_between_interval_and_memory_repeats_one_interval_at_most(
    aws: EmulatedAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = Published("t/crash", aws.url, tmp_path / "spool")
    published.minute(0)
    monkeypatch.setattr(Spool, "keep_pages", lambda *_: None)
    published.minute(1)
    monkeypatch.undo()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    published.use(aws.url)
    published.minute(2)
    published.drain()

    total = sum(sums(aws, "t/crash", "Preemptions").values())
    assert 1 + 2 + 3 <= total <= 1 + 2 + 3 + 2, "the second minute is there once or twice"


# -- lines for an agent -------------------------------------------------------------------------------


class Emitted(Published):
    """The same minutes, as lines for an agent or a file."""

    def use(self, url: str) -> None:
        """A new publisher, as after a restart of the sidecar."""
        emf = {"sink": "emf", "namespace": self._namespace}
        self.publisher = Publisher(
            Config.model_validate({"exporter": {"cloudwatch": emf}}),
            self._take,
            EmfSender(self._namespace, url),
            Spool(self._folder, 1000),
            stop=threading.Event(),
            clock=self.clock,
        )


def preemptions(lines: str) -> dict[int, float]:
    """By the minute's start, where there were any."""
    found = [json.loads(line) for line in lines.splitlines()]
    return {
        one["_aws"]["Timestamp"] // 1000: one["Preemptions"]
        for one in found
        if one.get("Preemptions")
    }


def test_lines_wait_for_an_agent_that_is_away_or_resets(tmp_path: Path) -> None:
    """It is not there, then it goes without having read, then it takes them."""
    port = reserve_port()
    emitted = Emitted("emf", f"tcp://127.0.0.1:{port}", tmp_path / "spool")
    start, resets, got = int(emitted.clock.now), [True, True], []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                agent, _ = listener.accept()
            except OSError:
                return
            with agent:
                if resets:
                    resets.pop()
                    agent.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    got.append(agent.makefile().read())

    for number in range(3):
        emitted.minute(number)
    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        for number in range(3, INTERVALS):
            emitted.minute(number)
        emitted.drain()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()

    assert resets == []
    assert preemptions("".join(got)) == {start + 60 * n: n + 1.0 for n in range(INTERVALS)}


def test_lines_wait_for_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    log = tmp_path / "not-mounted" / "emf.log"
    emitted = Emitted("emf", str(log), tmp_path / "spool")
    start = int(emitted.clock.now)
    for number in range(3):
        emitted.minute(number)
    log.parent.mkdir()
    for number in range(3, INTERVALS):
        emitted.minute(number)
    emitted.drain()

    expected = {start + 60 * n: n + 1.0 for n in range(INTERVALS)}
    assert preemptions(log.read_text()) == expected


# -- the sidecar itself -------------------------------------------------------------------------------


def configure(folder: Path, aws: EmulatedAws, namespace: str) -> None:
    settings: dict[str, Any] = {
        "service": {"name": "shop"},
        "exporter": {
            "poll_interval": "200ms",
            "cloudwatch": {
                "sink": "put",
                "namespace": namespace,
                "region": REGION,
                "endpoint_url": aws.url,
                "interval": "2s",
            },
        },
    }
    (folder / "opsctl.yaml").write_text(yaml.safe_dump(settings))


def test_a_sidecar_sends_what_its_target_shows(
    aws: EmulatedAws, opsctl: Opsctl, tmp_path: Path
) -> None:
    target = opsctl.start_replay(RECORDINGS / "kv-preemption-thrash.jsonl.gz", "--speed", "4")
    configure(tmp_path, aws, "t/sidecar")
    opsctl.start_sidecar(target, cwd=tmp_path)
    wait_for(
        lambda: sum(sums(aws, "t/sidecar", "Preemptions").values()) > 10,
        timeout_s=60,
        what="preemptions in CloudWatch",
    )
    client = aws.client("cloudwatch")

    def dimensions(metric: str) -> set[str]:
        listed = client.list_metrics(Namespace="t/sidecar", MetricName=metric)["Metrics"]
        return {dimension["Name"] for one in listed for dimension in one["Dimensions"]}

    assert dimensions("Heartbeat") == {"Service"}
    assert dimensions("BadEvents") == {"Service", "Model", "Objective"}
    assert dimensions("KVCacheUsage") == {"Service", "Model"}


def test_percentiles_are_as_exact_as_the_tap(opsctl: Opsctl, tmp_path: Path) -> None:
    """The fake engine's first tokens all take 150 ms: the value sent is within 1.1 % of that."""
    pages, out = tmp_path / "pages", tmp_path / "emf.log"
    (tmp_path / "opsctl.yaml").write_text(
        f"exporter: {{poll_interval: 200ms, tap: {{dir: '{pages}'}}, "
        f"cloudwatch: {{sink: emf, emf_to: '{out}', interval: 1s}}}}\n"
    )

    def values() -> list[float]:
        lines = out.read_text().splitlines() if out.exists() else []
        told = [json.loads(line).get("TimeToFirstToken") for line in lines]
        # the first interval has one page with the tap's bounds, and so only coarse ones
        return [v for one in told[2:] if one is not None for v in one["Values"]]

    with FakeEngine(pages):
        opsctl.start_sidecar(cwd=tmp_path)
        wait_for(lambda: len(values()) >= 2, timeout_s=30, what="TTFT in the log")

    assert all(math.isclose(value, 0.15, rel_tol=0.011) for value in values()[1:]), values()


def preempted(page: str) -> float:
    """The preemptions that a sidecar's page counts."""
    found = re.search(r"^vllm_engine_preemptions_total\{.*\} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_the_interval_that_had_begun_is_sent_when_the_sidecar_stops(
    opsctl: Opsctl, tmp_path: Path
) -> None:
    out = tmp_path / "emf.log"
    target = opsctl.start_replay(RECORDINGS / "kv-preemption-thrash.jsonl.gz", "--speed", "4")
    (tmp_path / "opsctl.yaml").write_text(
        f"exporter: {{cloudwatch: {{sink: emf, emf_to: '{out}', interval: 1h}}}}\n"
    )
    sidecar = opsctl.start_sidecar(target, cwd=tmp_path)
    wait_for(
        lambda: preempted(http_get(f"{sidecar}/metrics")[1]) > 0,
        timeout_s=30,
        what="preemptions",
    )
    assert not out.exists()
    opsctl.stop_all()

    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert any("Heartbeat" in line for line in lines)
    assert any("Preemptions" in line for line in lines)


def test_a_sidecar_without_a_region_says_what_to_write(opsctl: Opsctl, tmp_path: Path) -> None:
    (tmp_path / "opsctl.yaml").write_text("exporter: {cloudwatch: {sink: put}}\n")
    none = {"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}
    ran = opsctl.run("exporter", "run", "http://127.0.0.1:1", env=none, cwd=tmp_path)

    assert ran.returncode == 64
    assert "exporter.cloudwatch.region: not set" in ran.stderr


def test_beside_otlp_the_heartbeat_alone_is_put(
    aws: EmulatedAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A classic alarm on it knows silence; one in PromQL would take it for recovery."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
    settings = {"sink": "otlp", "namespace": "beside-otlp", "region": REGION}
    config = Config.model_validate({"exporter": {"cloudwatch": settings}})
    now = time.time() // 60 * 60
    pages = [page(now, 0.0), page(now + 30, 5.0)]
    sends = publisher(config, {}, lambda: {"chat-0": pages}, dict, threading.Event())
    sends.close_interval(now)
    sends.send_waiting()

    there = aws.client("cloudwatch").list_metrics(Namespace="beside-otlp")["Metrics"]
    assert [one["MetricName"] for one in there] == ["Heartbeat"]
    assert sums(aws, "beside-otlp", "Heartbeat") == {int(now): 1.0}


def test_a_sidecar_that_sends_by_otlp_puts_its_heartbeat(
    aws: EmulatedAws, opsctl: Opsctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
    target = opsctl.start_replay(RECORDINGS / "kv-preemption-thrash.jsonl.gz")
    with fake_collector() as endpoint:
        settings = {
            "sink": "otlp",
            "namespace": "t/otlp",
            "region": REGION,
            "interval": "2s",
            # CloudWatch's by its name
            "endpoint_url": endpoint.url.replace("/v1/", f"/monitoring.{REGION}.amazonaws.com/v1/"),
        }
        (tmp_path / "opsctl.yaml").write_text(
            yaml.safe_dump({"exporter": {"poll_interval": "200ms", "cloudwatch": settings}})
        )
        opsctl.start_sidecar(target, cwd=tmp_path)
        wait_for(
            lambda: sum(sums(aws, "t/otlp", "Heartbeat").values()) >= 2,
            timeout_s=30,
            what="heartbeats in CloudWatch",
        )

    there = aws.client("cloudwatch").list_metrics(Namespace="t/otlp")["Metrics"]
    assert {one["MetricName"] for one in there} == {"Heartbeat"}
    assert "vllm_engine_preemptions" in endpoint.metrics()


@pytest.mark.parametrize(
    ("settings", "sends"),
    [
        ({"sink": "otlp", "region": REGION}, True),
        ({"sink": "otlp", "endpoint_url": "http://collector:4318/v1/metrics"}, False),
    ],
)
def test_a_collector_is_no_cloudwatch(settings: dict[str, str], sends: bool) -> None:
    assert sends_heartbeat(CloudWatch.model_validate(settings)) is sends


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, False),
        ({"sink": "put"}, True),
        ({"sink": "emf"}, True),
        ({"sink": "otlp"}, True),
        ({"sink": "otlp", "endpoint_url": "http://collector:4318/v1/metrics"}, False),
    ],
)
def test_pages_are_kept_for_whoever_makes_metrics_of_them(
    settings: dict[str, str], wanted: bool
) -> None:
    """Of the heartbeat beside OTLP too: without pages the sidecar would seem dead."""
    exporter = Exporter.model_validate({"cloudwatch": settings})
    state = TargetState(Target.model_validate("http://chat-0:8000"), exporter, ())
    read = read_recording(RECORDINGS / "baseline.jsonl.gz")[0]
    assert state.record(read)

    assert bool(state.take_pages()) is wanted
