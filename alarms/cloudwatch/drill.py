"""
A drill of CloudWatch's way: the alarms are there and may notify, their topic is heard, and a page arrives.

A real alarm's state is not touched, for one that was set stays so until its metrics change. The drill has an
alarm of its own for a minute, with the same topic; what is looked at in the others is where they lead.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from vllm_opsctl.alarms.burn import Notify
from vllm_opsctl.alarms.cloudwatch.account import Account
from vllm_opsctl.alarms.cloudwatch.ownership import other_maker, owner_tags
from vllm_opsctl.alarms.cloudwatch.wanted import Item
from vllm_opsctl.alarms.drill import Step, arrived, subscribers
from vllm_opsctl.alarms.prometheus.conventions import DRILL_ALERT
from vllm_opsctl.alarms.resource_names import alarm_part
from vllm_opsctl.alarms.sns_topic import Listener, Topic
from vllm_opsctl.errors import AwsError
from vllm_opsctl.exporter.identity import Identity
from vllm_opsctl.exporter.units import format_duration


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudWatchDrill:
    """
    One drill.

    Args:
        way: What is drilled.
        identity: Whose alarms they are.
        shall: What the configuration wants in the account.
        account: Where it is.
        listen: Subscribe a queue for a while, to see the drill arrive.
        timeout_s: How long the delivery may take.
        sns_url: SNS endpoint; None for AWS's own.
    """

    way: Notify
    identity: Identity
    shall: Sequence[Item]
    account: Account
    listen: bool
    timeout_s: float
    sns_url: str | None

    def run(self) -> Iterator[Step]:
        """
        Go the whole way; each link is told when it is known.

        Raises:
            AwsError: AWS refuses what the drill needs.
        """
        expected = [item.name for item in self.shall if self._notifies(item)]
        there = [
            item for item in self.account.alarms(self.identity.service) if item.name in expected
        ]
        other = other_maker(self.account.tags(there[0]), self.identity) if there else ""
        if other:
            # its subscribers would hear of this drill
            yield Step("alarms", "failed", f"{there[0].name} {other}")
            return
        yield from self._alarms(expected, there)
        topics = Counter(arn for item in there for arn in item.properties.get("AlarmActions", ()))
        if not topics:
            yield Step(
                "topic",
                "failed",
                f"no alarm notifies a topic: nobody hears of a {self.way}; opsctl alarms apply, or deploy "
                "the template",
            )
            return
        (arn, most), *others = topics.most_common()
        if others or most < len(there):
            yield Step(
                "topic",
                "failed",
                f"only {most} of {len(there)} alarms notify {arn}; opsctl alarms plan shows the others",
            )
        topic = Topic(arn, self.account.place.region, self.sns_url)
        yield from subscribers(topic)
        yield from self._deliver(topic)
        for text in topic.left_behind:
            yield Step("clean-up", "failed", f"{text}; remove it by hand")

    def _notifies(self, item: Item) -> bool:
        return item.tags.get("opsctl:notify") == self.way and item.kind != "topic"

    def _alarms(self, expected: Sequence[str], there: Sequence[Item]) -> Iterator[Step]:
        missing = sorted({*expected} - {item.name for item in there})
        mute = [item.name for item in there if not item.properties.get("ActionsEnabled", True)]
        if missing:
            yield Step(
                "alarms",
                "failed",
                f"{len(missing)} of {len(expected)} that notify are not there: {', '.join(missing[:3])}"
                f"{', …' if len(missing) > 3 else ''}; opsctl alarms apply, or deploy the template",
            )
        if mute:
            yield Step(
                "alarms",
                "failed",
                f"actions of {', '.join(mute)} are disabled: aws cloudwatch enable-alarm-actions "
                f"--alarm-names '{mute[0]}'",
            )
        if not missing and not mute:
            yield Step("alarms", "ok", f"all {len(expected)} that notify are there and may")
        on = [item.name for item in there if item.properties.get("StateValue") == "ALARM"]
        if on:
            yield Step("alarms", "note", f"on at this moment, and no drill: {', '.join(on)}")

    def _deliver(self, topic: Topic) -> Iterator[Step]:
        drill = secrets.token_hex(4)
        item = Item(
            "composite alarm",
            f"{DRILL_ALERT} {self.way}/{alarm_part(self.identity.service)}/{drill}",
            {
                "AlarmRule": "FALSE",
                "AlarmDescription": "Somebody checks with opsctl alarms test that this way of alarms works. "
                "Nothing needs to be done.",
                "AlarmActions": [topic.arn],
            },
            owner_tags(self.identity),
        )
        with ExitStack() as cleanup:
            listener: Listener | None = None
            if self.listen:
                listener = cleanup.enter_context(topic.listener(f"opsctl-drill-{drill}", {}))
            self.account.put(item, new=True)
            cleanup.callback(self._remove, item, topic)
            began = time.monotonic()
            self.account.set_alarm(item.name, f"DRILL {drill}: nothing is wrong.")
            yield Step("CloudWatch", "ok", f"{item.name} is in ALARM")
            yield from self._arrival(listener, topic, drill, began)

    def _remove(self, item: Item, topic: Topic) -> None:
        """Whatever comes of it, how the drill went is told."""
        try:
            self.account.delete(item)
        except AwsError as problem:
            topic.left_behind.append(f"alarm {item.name} is still there: {problem}")

    def _arrival(
        self, listener: Listener | None, topic: Topic, drill: str, began: float
    ) -> Iterator[Step]:
        if listener is None:
            text = f"not looked at (--no-listen): ask the subscribers of {topic.name}"
            yield Step("delivery", "note", text)
            return
        while time.monotonic() - began < self.timeout_s:
            if (found := arrived(listener, drill)) is not None:
                seconds = time.monotonic() - began
                text = f"a subscriber received it after {format_duration(seconds)}"
                yield Step("delivery", "ok", f'{text}: "{found.subject}"', seconds)
                return
        yield Step(
            "delivery",
            "failed",
            f"nothing arrived within {format_duration(self.timeout_s)}: may cloudwatch.amazonaws.com publish "
            f"to {topic.arn} by its policy, and use its key? The default key alias/aws/sns lets no alarm "
            "through",
        )
