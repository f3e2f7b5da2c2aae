"""An AWS account as far as alarms go: what it has, whose that is, and how it is changed, slowly."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vllm_opsctl.alarms.cloudwatch.wanted import (
    Item,
    Kind,
    Place,
    alarm_parts,
    children,
    each_name,
    old_board_name,
    old_key_alias,
    old_topic_name,
    service_in,
)
from vllm_opsctl.alarms.prometheus.conventions import ALERT_PREFIX
from vllm_opsctl.alarms.resource_names import dashboard_name, key_alias, topic_name
from vllm_opsctl.errors import AwsError
from vllm_opsctl.exporter.aws import aws_client, aws_mistakes

PER_SECOND = 3.0
"""Requests: the quota of PutMetricAlarm and of PutCompositeAlarm in a region, shared by the whole account
(CloudWatch user guide, service quotas)."""

READS_PER_SECOND = 6.0
"""DescribeAlarms may be asked nine times a second; others of the account ask too."""

_KEY_WAITS_DAYS = 7
"""Until a key is deleted, the least that KMS allows; it can be kept until then."""

_GONE = ("NotFoundException", "NotFound", "ResourceNotFound", "ResourceNotFoundException")


class Pace:
    """
    Keeps requests apart.

    Args:
        per_second: At most so many, evenly.
        now: Seconds, of a clock that never goes back.
        sleep: Waits for seconds.
    """

    def __init__(
        self,
        per_second: float = PER_SECOND,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gap_s = 1 / per_second
        self._now, self._sleep = now, sleep
        self._free_at = 0.0

    def wait(self) -> None:
        """Return when the next request may be made."""
        early = self._free_at - self._now()
        if early > 0:
            self._sleep(early)
        self._free_at = max(self._free_at, self._now()) + self._gap_s


class Account:
    """
    One region of an account; every request is paced.

    Args:
        region: Such as ``eu-central-1``.
        endpoint_url: CloudWatch's; None for AWS's own.
        pace: Between requests that change something; None for what AWS allows.
        reading: Between those that do not.

    Raises:
        UsageError: boto3 is not installed.
        AwsError: Who is asking cannot be told, as there are no credentials.
    """

    def __init__(
        self,
        region: str,
        endpoint_url: str | None = None,
        pace: Pace | None = None,
        reading: Pace | None = None,
    ) -> None:
        self._pace = pace or Pace()
        self._reading = reading or Pace(READS_PER_SECOND)
        self._clients = {
            name: aws_client(name, region, endpoint_url if name == "cloudwatch" else None)
            for name in ("cloudwatch", "sns", "kms", "sts")
        }
        _, partition, _, _, account, *_ = self._ask("sts", "get_caller_identity")["Arn"].split(":")
        self.place = Place(partition, region, account)

    # -- what is there -----------------------------------------------------------------------------

    def of_service(self, service: str) -> Iterator[Item]:
        """Everything with a name of a service's, by this release or 0.1, whoever made it; without tags."""
        yield from self._keys(service)
        yield from self._topics(service)
        yield from self.alarms(service)
        yield from self._boards(service)

    def tags(self, item: Item) -> dict[str, str]:
        """The tags of an alarm, topic or key; none when it is gone. A board's heading says whose it is."""
        if item.kind == "key":
            found = self._ask("kms", "list_resource_tags", KeyId=self._key_id(item.name))["Tags"]
            return {one["TagKey"]: one["TagValue"] for one in found}
        if item.kind == "topic":
            arn = self.place.topic_arn(item.name)
            found = self._ask("sns", "list_tags_for_resource", ResourceArn=arn)["Tags"]
        else:
            arn = self.place.alarm_arn(item.name)
            answer = self._maybe("cloudwatch", "list_tags_for_resource", ResourceARN=arn)
            found = answer["Tags"] if answer is not None else []
        return {one["Key"]: one["Value"] for one in found}

    def _keys(self, service: str) -> Iterator[Item]:
        for alias in each_name(key_alias(service), old_key_alias(service)):
            found = self._maybe("kms", "describe_key", KeyId=alias)
            if found is None or found["KeyMetadata"]["KeyState"] == "PendingDeletion":
                continue
            key = found["KeyMetadata"]["KeyId"]
            policy = self._ask("kms", "get_key_policy", KeyId=key, PolicyName="default")["Policy"]
            rotates = self._ask("kms", "get_key_rotation_status", KeyId=key)["KeyRotationEnabled"]
            properties = {
                "Description": found["KeyMetadata"].get("Description", ""),
                "KeyPolicy": json.loads(policy),
                "EnableKeyRotation": rotates,
            }
            yield Item("key", alias, properties)

    def _topics(self, service: str) -> Iterator[Item]:
        names = [
            name
            for way in ("page", "ticket")
            for name in each_name(topic_name(service, way), old_topic_name(service, way))
        ]
        for name in names:
            found = self._maybe("sns", "get_topic_attributes", TopicArn=self.place.topic_arn(name))
            if found is not None:
                attributes = found["Attributes"]
                properties = {
                    "DisplayName": attributes.get("DisplayName", ""),
                    "KmsMasterKeyId": attributes.get("KmsMasterKeyId", ""),
                    "Policy": json.loads(attributes["Policy"]),
                }
                yield Item("topic", name, properties)

    def alarms(self, service: str) -> Iterator[Item]:
        """Alarms whose names have a service's part, by this release or 0.1."""
        parts = alarm_parts(service)
        asked: dict[str, Any] = {
            "AlarmNamePrefix": ALERT_PREFIX,
            "AlarmTypes": ["MetricAlarm", "CompositeAlarm"],
        }
        while True:
            page = self._ask("cloudwatch", "describe_alarms", **asked)
            kinds: tuple[tuple[str, Kind], ...] = (
                ("MetricAlarms", "metric alarm"),
                ("CompositeAlarms", "composite alarm"),
            )
            for key, kind in kinds:
                for one in page.get(key, ()):
                    if service_in(one["AlarmName"]) in parts:
                        after = children(one) if kind == "composite alarm" else frozenset()
                        yield Item(kind, one["AlarmName"], one, after=after)
            if not page.get("NextToken"):
                return
            asked["NextToken"] = page["NextToken"]

    def _boards(self, service: str) -> Iterator[Item]:
        for name in each_name(dashboard_name(service, self.place.region), old_board_name(service)):
            found = self._maybe("cloudwatch", "get_dashboard", DashboardName=name)
            if found is not None:
                yield Item("board", name, {"DashboardBody": json.loads(found["DashboardBody"])})

    # -- changes -----------------------------------------------------------------------------------

    def put(self, item: Item, *, new: bool) -> None:
        """
        Make it, or make it as it shall be.

        Args:
            item: What shall be there.
            new: It is not there yet.

        Raises:
            AwsError: AWS refuses, or does not answer.
        """
        properties, tags = item.properties, _pairs(item.tags)
        if item.kind == "key":
            self._put_key(item, new=new)
        elif item.kind == "topic":
            self._put_topic(item, new=new)
        elif item.kind == "board":
            body = json.dumps(properties["DashboardBody"])
            answer = self._ask(
                "cloudwatch", "put_dashboard", DashboardName=item.name, DashboardBody=body
            )
            wrong = [one["Message"] for one in answer.get("DashboardValidationMessages", ())]
            if wrong:
                raise AwsError(
                    f"{item.name}: CloudWatch does not like the board: {'; '.join(wrong)}"
                )
        else:
            call = "put_metric_alarm" if item.kind == "metric alarm" else "put_composite_alarm"
            # the tags of an alarm that is there are not touched by a put
            given = {"Tags": tags} if new else {}
            self._ask("cloudwatch", call, AlarmName=item.name, **properties, **given)
            if not new:
                arn = self.place.alarm_arn(item.name)
                self._ask("cloudwatch", "tag_resource", ResourceARN=arn, Tags=tags)

    def delete(self, item: Item) -> None:
        """
        Remove it; a key goes after a week.

        Raises:
            AwsError: AWS refuses, or does not answer.
        """
        if item.kind == "key":
            key = self._key_id(item.name)
            self._ask(
                "kms", "schedule_key_deletion", KeyId=key, PendingWindowInDays=_KEY_WAITS_DAYS
            )
            self._ask("kms", "delete_alias", AliasName=item.name)
        elif item.kind == "topic":
            self._ask("sns", "delete_topic", TopicArn=self.place.topic_arn(item.name))
        elif item.kind == "board":
            self._ask("cloudwatch", "delete_dashboards", DashboardNames=[item.name])
        else:
            # a composite must be alone in its request
            self._ask("cloudwatch", "delete_alarms", AlarmNames=[item.name])

    def set_alarm(self, name: str, reason: str) -> None:
        """
        Set an alarm's state to ALARM: its topics are notified.

        Raises:
            AwsError: AWS refuses, or does not answer.
        """
        self._ask(
            "cloudwatch", "set_alarm_state", AlarmName=name, StateValue="ALARM", StateReason=reason
        )

    def _put_key(self, item: Item, *, new: bool) -> None:
        policy = json.dumps(item.properties["KeyPolicy"])
        if new:
            made = self._ask(
                "kms",
                "create_key",
                Description=item.properties["Description"],
                Policy=policy,
                Tags=_key_tags(item.tags),
            )
            key = made["KeyMetadata"]["KeyId"]
            self._ask("kms", "create_alias", AliasName=item.name, TargetKeyId=key)
        else:
            key = self._key_id(item.name)
            self._ask("kms", "tag_resource", KeyId=key, Tags=_key_tags(item.tags))
            self._ask("kms", "put_key_policy", KeyId=key, PolicyName="default", Policy=policy)
            self._ask(
                "kms",
                "update_key_description",
                KeyId=key,
                Description=item.properties["Description"],
            )
        if item.properties["EnableKeyRotation"]:
            self._ask("kms", "enable_key_rotation", KeyId=key)

    def _put_topic(self, item: Item, *, new: bool) -> None:
        texts = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in item.properties.items()
        }
        if new:
            self._ask(
                "sns", "create_topic", Name=item.name, Attributes=texts, Tags=_pairs(item.tags)
            )
            return
        arn = self.place.topic_arn(item.name)
        self._ask("sns", "tag_resource", ResourceArn=arn, Tags=_pairs(item.tags))
        for name, value in texts.items():
            self._ask(
                "sns",
                "set_topic_attributes",
                TopicArn=arn,
                AttributeName=name,
                AttributeValue=value,
            )

    def _key_id(self, alias: str) -> str:
        found: str = self._ask("kms", "describe_key", KeyId=alias)["KeyMetadata"]["KeyId"]
        return found

    # -- requests ----------------------------------------------------------------------------------

    def _ask(self, service: str, operation: str, **arguments: Any) -> Any:
        reads = operation.startswith(("describe_", "get_", "list_"))
        (self._reading if reads else self._pace).wait()
        with aws_mistakes(service):
            return getattr(self._clients[service], operation)(**arguments)

    def _maybe(self, service: str, operation: str, **arguments: Any) -> Any | None:
        """The answer, or None when there is no such thing."""
        from botocore.exceptions import ClientError

        self._reading.wait()
        with aws_mistakes(service):
            try:
                return getattr(self._clients[service], operation)(**arguments)
            except ClientError as problem:
                if problem.response.get("Error", {}).get("Code") in _GONE:
                    return None
                raise


def _key_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"TagKey": key, "TagValue": value} for key, value in tags.items()]


def _pairs(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
