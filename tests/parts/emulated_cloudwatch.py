"""
CloudWatch and SNS on the loopback: MiniStack keeps metrics, composes alarms and delivers over HTTP.

It evaluates no metric math and knows no missing data, so metric alarms are judged by the project's own
evaluator, which sets their state. They are stored on a metric that nobody publishes, or MiniStack
would judge them too.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from parts.emulated_aws import Emulator
from vllm_opsctl.alarms.cloudwatch.definitions import Resolver, read_definitions
from vllm_opsctl.alarms.cloudwatch.metrics import Metrics
from vllm_opsctl.alarms.cloudwatch.timeline import Timeline
from vllm_opsctl.exporter.sinks.cloudwatch.datum import Datum, Statistics

MINUTE_S = 60

_STATISTICS = ("Minimum", "Maximum", "Sum", "SampleCount")

_SETTLES = 2
"""Seconds after which an interval's data have arrived."""


class EmulatedCloudWatch(Emulator):
    """
    CloudWatch and SNS by MiniStack.

    Args:
        binary: The program.
        folder: For the log.
        port: A free port.
    """

    def __init__(self, binary: Path, folder: Path, port: int) -> None:
        env = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)}
        log = folder / "ministack.log"
        super().__init__([str(binary)], port, "/_ministack/health", log, env)


class HttpSubscriber:
    """Who is on call: an HTTP endpoint that confirms its subscription, as SNS asks it to."""

    def __init__(self, aws: EmulatedCloudWatch) -> None:
        self.received: list[tuple[float, str]] = []
        self._arrived = threading.Condition()
        subscriber = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()
                subscriber._take(aws, body)

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def _take(self, aws: EmulatedCloudWatch, body: str) -> None:
        message = json.loads(body)
        if message["Type"] == "SubscriptionConfirmation":
            # MiniStack takes the confirmation as a call, not at the URL that it sends
            token = message["Token"]
            aws.client("sns").confirm_subscription(TopicArn=message["TopicArn"], Token=token)
            return
        with self._arrived:
            self.received.append((time.time(), body))
            self._arrived.notify_all()

    def wait(
        self, wanted: Callable[[dict[str, Any]], bool], within_s: float, since: float = 0.0
    ) -> tuple[float, str]:
        """
        The first message that is wanted, and when it came.

        Args:
            wanted: Of a message's alarm.
            within_s: From now on.
            since: What came before, Unix seconds, is left.

        Raises:
            TimeoutError: None came; names what did.
        """
        deadline = time.monotonic() + within_s
        with self._arrived:
            while time.monotonic() < deadline:
                for at, body in self.received:
                    if at >= since and wanted(json.loads(json.loads(body)["Message"])):
                        return at, body
                self._arrived.wait(1.0)
        subjects = [json.loads(body).get("Subject") for _, body in self.received]
        raise TimeoutError(f"not within {within_s:g} s, but {subjects}")

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


@dataclass
class EvaluatedAlarms:
    """
    The alarms of a template on what a sidecar publishes: each second of it is told as a minute.

    Args:
        aws: Keeps the metrics, composes and delivers.
        template: As it was built.
        began: The second that is minute 0, Unix seconds.
    """

    aws: EmulatedCloudWatch
    template: str
    began: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        """Store every alarm of the template."""
        self._definitions = read_definitions(self.template)
        self._client = self.aws.client("cloudwatch")
        for alarm in self._definitions.metric_alarms:
            self._client.put_metric_alarm(
                AlarmName=alarm.name,
                Namespace="judged-elsewhere",
                MetricName="nothing",
                Statistic="Sum",
                Period=60,
                EvaluationPeriods=1,
                Threshold=0,
                ComparisonOperator="GreaterThanThreshold",
                TreatMissingData="ignore",
            )
        template = yaml.safe_load(self.template)
        resolver = Resolver(template, {})
        for resource in template["Resources"].values():
            if resource["Type"] == "AWS::CloudWatch::CompositeAlarm":
                properties = resource["Properties"]
                self._client.put_composite_alarm(
                    **{
                        key: resolver.text(properties[key])
                        for key in ("AlarmName", "AlarmDescription", "AlarmRule")
                    },
                    **{key: properties[key] for key in ("AlarmActions", "OKActions")},
                )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Judge from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Judge no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        metrics = Metrics("vLLM", late_s=0)
        timeline = Timeline(self._definitions.metric_alarms, self._definitions.composites, metrics)
        own = {alarm.name for alarm in self._definitions.metric_alarms}
        second = 0
        while not self._stop.wait(max(0.0, self.began + second + 1 + _SETTLES - time.time())):
            metrics.add(self._published(second))
            now = float((second + 1) * MINUTE_S)
            seen = len(timeline.transitions)
            timeline.run(now, now)
            for change in timeline.transitions[seen:]:
                if change.alarm in own:
                    self._client.set_alarm_state(
                        AlarmName=change.alarm,
                        StateValue=change.after,
                        StateReason=f"minute {second + 1}",
                    )
            second += 1

    def _published(self, second: int) -> Iterator[Datum]:
        """What was published of one second, told as a minute."""
        keys = {stat.metric for alarm in self._definitions.metric_alarms for stat in alarm.stats}
        asked = sorted(keys, key=lambda key: (key.name, sorted(key.dimensions)))
        queries = [
            {
                "Id": f"m{number}_{statistic}",
                "MetricStat": {
                    "Metric": {
                        "Namespace": key.namespace,
                        "MetricName": key.name,
                        "Dimensions": [
                            {"Name": name, "Value": text} for name, text in key.dimensions
                        ],
                    },
                    "Period": 1,
                    "Stat": statistic,
                },
            }
            for number, key in enumerate(asked)
            for statistic in _STATISTICS
        ]
        start = self.began + second
        answer = self._client.get_metric_data(
            StartTime=start, EndTime=start + 1, MetricDataQueries=queries
        )
        found = {
            one["Id"]: one["Values"][0] for one in answer["MetricDataResults"] if one["Values"]
        }
        for number, key in enumerate(asked):
            ids = [f"m{number}_{statistic}" for statistic in _STATISTICS]
            if found.keys() >= set(ids):
                yield Datum(
                    metric=key.name,
                    dimensions=tuple(sorted(key.dimensions)),
                    t=float(second * MINUTE_S),
                    unit="Count",
                    statistics=Statistics(*(float(found[one]) for one in ids)),
                )
