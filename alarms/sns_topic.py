"""An SNS topic as its subscribers see it: who they are, and what arrives."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vllm_opsctl.errors import AwsError
from vllm_opsctl.exporter.aws import aws_client, aws_mistakes

_POLL_S = 2
"""Long polling of the queue, seconds."""

_QUEUE_KEPT_S = 3600
"""How long the queue keeps a message; AWS's shortest is a minute."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """
    Who hears of a topic.

    Args:
        protocol: ``email``, ``sms``, ``https``, ``lambda``, ``sqs``, …
        endpoint: Where it goes.
        confirmed: SNS delivers to it; else its owner has not answered SNS's question yet.
    """

    protocol: str
    endpoint: str
    confirmed: bool


@dataclass(frozen=True, slots=True)
class Notification:
    """
    What a subscriber receives.

    Args:
        subject: Of the message.
        message: Its text.
    """

    subject: str
    message: str


class Topic:
    """
    One topic.

    Args:
        arn: Its ARN.
        region: AWS region that signs.
        endpoint_url: SNS endpoint; None for AWS's own.

    Raises:
        UsageError: boto3 is not installed.
    """

    def __init__(self, arn: str, region: str, endpoint_url: str | None) -> None:
        self.arn = arn
        self._region = region
        self._endpoint_url = endpoint_url
        self._sns = aws_client("sns", region, endpoint_url)
        #: what a listener could not remove, and why
        self.left_behind: list[str] = []

    @property
    def name(self) -> str:
        """The last part of the ARN."""
        return self.arn.rpartition(":")[2]

    def subscriptions(self) -> list[Subscription]:
        """
        Everybody who hears of it.

        Raises:
            AwsError: Not allowed, or no such topic.
        """
        with aws_mistakes("sns"):
            pages = self._sns.get_paginator("list_subscriptions_by_topic").paginate(
                TopicArn=self.arn
            )
            return [
                Subscription(
                    one["Protocol"], one["Endpoint"], one["SubscriptionArn"].startswith("arn:")
                )
                for page in pages
                for one in page["Subscriptions"]
            ]

    @contextmanager
    def listener(self, name: str, only: Mapping[str, str]) -> Iterator[Listener]:
        """
        Subscribe an SQS queue of our own for a while; queue and subscription are removed at the end.

        Args:
            name: Of the queue.
            only: Message attributes of what it hears; none, and it hears everything.

        Raises:
            AwsError: Not allowed; the message names the IAM action.
        """
        fifo = self.arn.endswith(".fifo")
        sqs = aws_client("sqs", self._region)
        with aws_mistakes("sqs"):
            url = sqs.create_queue(
                QueueName=f"{name}.fifo" if fifo else name,
                Attributes={
                    "MessageRetentionPeriod": str(_QUEUE_KEPT_S),
                    **({"FifoQueue": "true"} if fifo else {}),
                },
                tags={"created-by": "opsctl alarms test"},
            )["QueueUrl"]
        subscription = None
        try:
            with aws_mistakes("sqs"):
                arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])[
                    "Attributes"
                ]["QueueArn"]
                sqs.set_queue_attributes(
                    QueueUrl=url, Attributes={"Policy": json.dumps(self._may_send_to(arn))}
                )
            with aws_mistakes("sns"):
                subscription = self._sns.subscribe(
                    TopicArn=self.arn,
                    Protocol="sqs",
                    Endpoint=arn,
                    Attributes=_filter(only),
                    ReturnSubscriptionArn=True,
                )["SubscriptionArn"]
            yield Listener(sqs, url)
        finally:
            # what cannot be removed must not hide how the drill went
            if subscription is not None:
                with self._noting(f"subscription {subscription}"), aws_mistakes("sns"):
                    self._sns.unsubscribe(SubscriptionArn=subscription)
            with self._noting(f"queue {url}"), aws_mistakes("sqs"):
                sqs.delete_queue(QueueUrl=url)

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        except AwsError as problem:
            self.left_behind.append(f"{what} is still there: {problem}")

    def _may_send_to(self, queue_arn: str) -> dict[str, Any]:
        return {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"Service": "sns.amazonaws.com"},
                    "Action": "sqs:SendMessage",
                    "Resource": queue_arn,
                    "Condition": {"ArnEquals": {"aws:SourceArn": self.arn}},
                }
            ],
        }


def _filter(only: Mapping[str, str]) -> dict[str, str]:
    if not only:
        return {}
    return {"FilterPolicy": json.dumps({key: [text] for key, text in only.items()})}


@dataclass(frozen=True, slots=True)
class Listener:
    """
    A queue that is subscribed to a topic.

    Args:
        sqs: Client.
        url: Of the queue.
    """

    sqs: Any
    url: str

    def receive(self) -> list[Notification]:
        """
        What has arrived; waits two seconds for something.

        Raises:
            AwsError: Not allowed.
        """
        with aws_mistakes("sqs"):
            answer = self.sqs.receive_message(
                QueueUrl=self.url, WaitTimeSeconds=_POLL_S, MaxNumberOfMessages=10
            )
        found = []
        for one in answer.get("Messages", []):
            body = json.loads(one["Body"])
            found.append(Notification(body.get("Subject", ""), body.get("Message", "")))
        return found
