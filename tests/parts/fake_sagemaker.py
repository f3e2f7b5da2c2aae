"""
A fake of what `opsctl diagnose --sagemaker` asks AWS, behind real botocore clients.

moto knows no inference components, no scaling activities, no failed endpoints and no metric of AWS's own
with a sample count. Requests are validated by botocore as always; what the fake answers is validated
against the same service models, so it cannot say what AWS could not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import boto3
from botocore.config import Config
from botocore.validate import ParamValidator

from parts.emulated_aws import REGION

Answer = Callable[[Mapping[str, Any]], dict[str, Any]]

ENDPOINT, VARIANT = "chat", "AllTraffic"

LOG_GROUP = f"/aws/sagemaker/Endpoints/{ENDPOINT}"

DIMENSIONS = (("EndpointName", ENDPOINT), ("VariantName", VARIANT))

MINUTE_S = 60


class Refusal(Exception):
    """An answer that is an error: its code and message."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(code)
        self.code, self.message, self.status = code, message, status


@dataclass(frozen=True, slots=True)
class Event:
    """A line of a log: unix seconds, stream and text."""

    t: float
    stream: str
    text: str


@dataclass
class FakeSageMaker:
    """
    One endpoint and everything around it.

    Args:
        now: Unix seconds of the look.
        endpoint: Fields of DescribeEndpoint that are not the usual ones.
        variant: Fields of its variant that are not the usual ones.
        components: Answers of DescribeInferenceComponent.
        activities: Scaling activities, newest first.
        logs: Lines by log group; None where there is no group.
        refusals: Operations that are refused.
    """

    now: float
    endpoint: dict[str, Any] = field(default_factory=dict)
    variant: dict[str, Any] = field(default_factory=dict)
    components: list[dict[str, Any]] = field(default_factory=list)
    activities: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, list[Event]] = field(default_factory=dict)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    page_size: int = 10_000

    def __post_init__(self) -> None:
        """Nothing was published or called yet."""
        self.calls: list[tuple[str, str]] = []
        self.asked: list[Mapping[str, Any]] = []
        # namespace, metric, dimensions, minute: least, most, sum, count
        self._data: dict[tuple[str, str, frozenset[tuple[str, str]], int], list[float]] = {}

    # -- what it knows -----------------------------------------------------------------------------

    def put(self, namespace: str, data: list[dict[str, Any]]) -> None:
        """What PutMetricData sends, as the sidecar's sink makes it."""
        for one in data:
            named = frozenset((d["Name"], d["Value"]) for d in one["Dimensions"])
            t = one["Timestamp"]
            key = (namespace, one["MetricName"], named, int(t) // MINUTE_S * MINUTE_S)
            if "StatisticValues" in one:
                s = one["StatisticValues"]
                new = [s["Minimum"], s["Maximum"], s["Sum"], s["SampleCount"]]
            else:
                pairs = list(zip(one["Values"], one["Counts"], strict=True))
                new = [min(one["Values"]), max(one["Values"])]
                new += [sum(v * n for v, n in pairs), sum(n for _, n in pairs)]
            self._data[key] = _added(self._data.get(key), new)

    def aws(
        self,
        metric: str,
        *values: float,
        namespace: str = "AWS/SageMaker",
        dimensions: tuple[tuple[str, str], ...] = DIMENSIONS,
    ) -> None:
        """One value in each of the newest minutes, of AWS's own metrics."""
        last = int(self.now) // MINUTE_S * MINUTE_S
        for back, value in enumerate(reversed(values), start=1):
            key = (namespace, metric, frozenset(dimensions), last - back * MINUTE_S)
            self._data[key] = _added(self._data.get(key), [value, value, value, 1.0])

    # -- botocore ----------------------------------------------------------------------------------

    def client(self, service: str, **_: Any) -> Any:
        """A client whose calls are answered here."""
        client = boto3.client(
            service,
            region_name=REGION,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",  # noqa: S106 - any will do
            config=Config(retries={"total_max_attempts": 1}),
        )
        asked: dict[str, Any] = {}

        def remember(params: Mapping[str, Any], **_: Any) -> None:
            asked.clear()
            asked.update(params)

        def answer(model: Any, **_: Any) -> tuple[Any, dict[str, Any]]:
            return self._answer(service, model, dict(asked))

        client.meta.events.register("before-parameter-build", remember)
        client.meta.events.register("before-call", answer)
        return client

    def _answer(
        self, service: str, model: Any, asked: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        self.calls.append((service, model.name))
        self.asked.append(asked)
        try:
            if model.name in self.refusals:
                raise self.refusals[model.name]
            said = self._operations()[model.name](asked)
        except Refusal as refusal:
            error = {"Code": refusal.code, "Message": refusal.message}
            return SimpleNamespace(status_code=refusal.status), {"Error": error}
        report = ParamValidator().validate(said, model.output_shape)
        assert not report.has_errors(), report.generate_report()
        return SimpleNamespace(status_code=200), said

    def _operations(self) -> dict[str, Answer]:
        return {
            "DescribeEndpoint": self._describe_endpoint,
            "DescribeEndpointConfig": self._describe_config,
            "ListInferenceComponents": self._list_components,
            "DescribeInferenceComponent": self._describe_component,
            "DescribeScalingActivities": lambda _: {"ScalingActivities": self.activities},
            "ListMetrics": self._list_metrics,
            "GetMetricData": self._get_metric_data,
            "FilterLogEvents": self._filter_log_events,
        }

    def _describe_endpoint(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        if asked["EndpointName"] != ENDPOINT:
            arn = f"arn:aws:sagemaker:{REGION}:123456789012:endpoint/{asked['EndpointName']}"
            raise Refusal("ValidationException", f'Could not find endpoint "{arn}".')
        at = datetime.fromtimestamp(self.now - 86400, UTC)
        variant = {
            "VariantName": VARIANT,
            "CurrentWeight": 1.0,
            "DesiredWeight": 1.0,
            "CurrentInstanceCount": 1,
            "DesiredInstanceCount": 1,
            **self.variant,
        }
        said = {
            "EndpointName": ENDPOINT,
            "EndpointArn": f"arn:aws:sagemaker:{REGION}:123456789012:endpoint/{ENDPOINT}",
            "EndpointConfigName": "chat-7",
            "ProductionVariants": [variant],
            "EndpointStatus": "InService",
            "CreationTime": at,
            "LastModifiedTime": at,
            **self.endpoint,
        }
        return {name: value for name, value in said.items() if value is not None}

    def _describe_config(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "EndpointConfigName": asked["EndpointConfigName"],
            "EndpointConfigArn": f"arn:aws:sagemaker:{REGION}:123456789012:endpoint-config/chat-7",
            "ProductionVariants": [{"VariantName": VARIANT, "InstanceType": "ml.g5.2xlarge"}],
            "CreationTime": datetime.fromtimestamp(self.now - 86400, UTC),
        }

    def _list_components(self, _: Mapping[str, Any]) -> dict[str, Any]:
        names = (
            *("CreationTime", "InferenceComponentArn", "InferenceComponentName", "EndpointArn"),
            *("EndpointName", "VariantName", "LastModifiedTime", "InferenceComponentStatus"),
        )
        return {"InferenceComponents": [{n: one[n] for n in names} for one in self.components]}

    def _describe_component(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        wanted = asked["InferenceComponentName"]
        return next(one for one in self.components if one["InferenceComponentName"] == wanted)

    def component(self, name: str, **fields: Any) -> None:
        """Add an inference component."""
        at = datetime.fromtimestamp(self.now - 86400, UTC)
        arn = f"arn:aws:sagemaker:{REGION}:123456789012"
        self.components.append(
            {
                "InferenceComponentName": name,
                "InferenceComponentArn": f"{arn}:inference-component/{name}",
                "EndpointName": ENDPOINT,
                "EndpointArn": f"{arn}:endpoint/{ENDPOINT}",
                "VariantName": VARIANT,
                "InferenceComponentStatus": "InService",
                "RuntimeConfig": {"DesiredCopyCount": 1, "CurrentCopyCount": 1},
                "CreationTime": at,
                "LastModifiedTime": at,
                **fields,
            }
        )

    def _list_metrics(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        wanted = {(d["Name"], d["Value"]) for d in asked["Dimensions"]}
        found = {
            key[2]
            for key in self._data
            if key[:2] == (asked["Namespace"], asked["MetricName"]) and wanted <= key[2]
        }
        ordered = sorted(found, key=sorted)
        first = int(asked.get("NextToken", 0))
        more = first + self.page_size < len(ordered)
        said = {"NextToken": str(first + self.page_size)} if more else {}
        return said | {
            "Metrics": [
                {
                    "Namespace": asked["Namespace"],
                    "MetricName": asked["MetricName"],
                    "Dimensions": [{"Name": name, "Value": value} for name, value in sorted(one)],
                }
                for one in ordered[first : first + self.page_size]
            ]
        }

    def _get_metric_data(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        start, end = asked["StartTime"].timestamp(), asked["EndTime"].timestamp()
        results = []
        for query in asked["MetricDataQueries"]:
            stat = query["MetricStat"]
            assert stat["Period"] == MINUTE_S
            metric = stat["Metric"]
            named = frozenset((d["Name"], d["Value"]) for d in metric["Dimensions"])
            rows = sorted(
                (key[3], numbers)
                for key, numbers in self._data.items()
                if key[:3] == (metric["Namespace"], metric["MetricName"], named)
                and start <= key[3] < end
            )
            results.append(
                {
                    "Id": query["Id"],
                    "Label": metric["MetricName"],
                    "Timestamps": [datetime.fromtimestamp(t, UTC) for t, _ in rows],
                    "Values": [_statistic(numbers, stat["Stat"]) for _, numbers in rows],
                    "StatusCode": "Complete",
                }
            )
        return {"MetricDataResults": results}

    def _filter_log_events(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        group = asked["logGroupName"]
        if group not in self.logs:
            raise Refusal("ResourceNotFoundException", "The specified log group does not exist.")
        first = int(asked.get("nextToken", 0))
        if not first:
            # what a later page continues
            self._filtered = sorted(
                (
                    e
                    for e in self.logs[group]
                    if asked["startTime"] <= e.t * 1000 <= asked["endTime"]
                    and e.stream.startswith(asked.get("logStreamNamePrefix", ""))
                ),
                key=lambda e: e.t,
            )
        found = self._filtered
        page = found[first : first + self.page_size]
        said: dict[str, Any] = {
            "events": [
                {"logStreamName": e.stream, "timestamp": int(e.t * 1000), "message": e.text}
                for e in page
            ]
        }
        if first + self.page_size < len(found):
            said["nextToken"] = str(first + self.page_size)
        return said


def _added(old: list[float] | None, new: list[float]) -> list[float]:
    if old is None:
        return new
    return [min(old[0], new[0]), max(old[1], new[1]), old[2] + new[2], old[3] + new[3]]


def _statistic(numbers: list[float], name: str) -> float:
    least, most, total, count = numbers
    return {
        "Minimum": least,
        "Maximum": most,
        "Sum": total,
        "SampleCount": count,
        "Average": total / count,
    }[name]
