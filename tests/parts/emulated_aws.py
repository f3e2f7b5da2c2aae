"""AWS's protocols on the loopback, for what cannot be had here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from parts.processes import start_server, stop_server

REGION = "eu-central-1"


@dataclass(frozen=True)
class Received:
    """A notification as a subscriber has it; ``at`` is when it was taken, Unix seconds; ``raw`` all of it."""

    at: float
    raw: str
    subject: str
    message: str
    attributes: Mapping[str, str]


class Emulator:
    """
    A server that speaks AWS's protocols.

    Args:
        command: That starts it.
        port: Where it listens then.
        ready: Path that answers when it is ready.
        log: Gets its output.
        env: Beside ours.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        ready: str,
        log: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.env: Mapping[str, str] = {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_ENDPOINT_URL": self.url,
        }
        self._command, self._ready, self._log = command, ready, log
        self._own_env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        ready = f"{self.url}{self._ready}"
        self._process = start_server(self._command, self._log, ready, env=self._own_env)

    def stop(self) -> None:
        """Stop it."""
        if self._process is not None:
            stop_server(self._process)

    def client(self, service: str) -> Any:
        """A client of one service."""
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",  # noqa: S106 - any will do
        )


class EmulatedAws(Emulator):
    """
    SNS, SQS and CloudWatch's API by moto.

    Args:
        folder: For the log.
        port: A free port.
    """

    def __init__(self, folder: Path, port: int) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        super().__init__(command, port, "/moto-api/", folder / "moto.log")

    def topic(self, name: str) -> str:
        """Make a topic: its ARN."""
        attributes = {"FifoTopic": "true"} if name.endswith(".fifo") else {}
        arn: str = self.client("sns").create_topic(Name=name, Attributes=attributes)["TopicArn"]
        return arn

    def subscriber(self, topic: str) -> Subscriber:
        """Subscribe to a topic."""
        sqs = self.client("sqs")
        url = sqs.create_queue(QueueName=f"subscriber-of-{topic.rpartition(':')[2]}")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]
        self.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn["QueueArn"])
        return Subscriber(sqs, url)


@dataclass(frozen=True)
class Subscriber:
    """Who is on call: a queue behind a topic."""

    sqs: Any
    url: str

    def receive(self, *, within_s: float) -> Received | None:
        """The next notification, or None."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            answer = self.sqs.receive_message(
                QueueUrl=self.url, MaxNumberOfMessages=1, WaitTimeSeconds=1
            )
            for one in answer.get("Messages", []):
                at = time.time()
                self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=one["ReceiptHandle"])
                body = json.loads(one["Body"])
                attributes = {k: v["Value"] for k, v in body["MessageAttributes"].items()}
                return Received(at, one["Body"], body["Subject"], body["Message"], attributes)
        return None
