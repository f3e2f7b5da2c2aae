"""
SNS topics for pages and tickets, with their key.

CloudWatch cannot publish to a topic under the default key alias/aws/sns: that key's policy allows no service.
So the topics have a key of their own, whose policy lets CloudWatch use it.

Source:
    Amazon SNS developer guide, key management (sns-key-management.html); CloudWatch user guide, notifying of
    alarm changes (Notify_Users_Alarm_Changes.html).
"""

from __future__ import annotations

from typing import Any

from vllm_opsctl.alarms.burn import Notify
from vllm_opsctl.alarms.cloudwatch.resources import Tags, tags_of
from vllm_opsctl.alarms.resource_names import topic_display_name
from vllm_opsctl.exporter.identity import Identity

KEY = "TopicKey"
TOPIC_IDS: dict[Notify, str] = {"page": "PageTopic", "ticket": "TicketTopic"}
_CLOUDWATCH = {"Service": "cloudwatch.amazonaws.com"}


def topic_resources(identity: Identity, ways: tuple[Notify, ...]) -> dict[str, Any]:
    """
    The topics of some ways, their policies and their key.

    Args:
        identity: Whose they are.
        ways: Which topics; none, no key either.
    """
    if not ways:
        return {}
    found = {KEY: _key(tags_of(identity))}
    for way in ways:
        found[TOPIC_IDS[way]] = {
            "Type": "AWS::SNS::Topic",
            "Properties": {
                "DisplayName": topic_display_name(identity.service, way),
                "KmsMasterKeyId": {"Ref": KEY},
                "Tags": tags_of(identity, notify=way),
            },
        }
        found[f"{TOPIC_IDS[way]}Policy"] = _policy(TOPIC_IDS[way])
    return found


def topic_outputs(ways: tuple[Notify, ...]) -> dict[str, Any]:
    """Outputs: what to subscribe to."""
    return {
        f"{TOPIC_IDS[way]}Arn": {
            "Description": f"Topic of every {way}; subscribe whoever hears of it.",
            "Value": topic_ref(way),
        }
        for way in ways
    }


def topic_ref(way: Notify) -> dict[str, str]:
    """The ARN of a topic of the template."""
    return {"Ref": TOPIC_IDS[way]}


def _key(tags: Tags) -> dict[str, Any]:
    account = {"Fn::Sub": "arn:${AWS::Partition}:iam::${AWS::AccountId}:root"}
    return {
        "Type": "AWS::KMS::Key",
        "DeletionPolicy": "Delete",
        "UpdateReplacePolicy": "Delete",
        "Properties": {
            "Description": "Encrypts what alarms of vLLM tell; CloudWatch may use it.",
            "EnableKeyRotation": True,
            "KeyPolicy": {
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Sid": "Account",
                        "Effect": "Allow",
                        "Principal": {"AWS": account},
                        "Action": "kms:*",
                        "Resource": "*",
                    },
                    {
                        "Sid": "CloudWatch",
                        "Effect": "Allow",
                        "Principal": _CLOUDWATCH,
                        "Action": ["kms:Decrypt", "kms:GenerateDataKey*"],
                        "Resource": "*",
                    },
                ],
            },
            "Tags": tags,
        },
    }


def _policy(topic: str) -> dict[str, Any]:
    alarms = "arn:${AWS::Partition}:cloudwatch:${AWS::Region}:${AWS::AccountId}:alarm:*"
    return {
        "Type": "AWS::SNS::TopicPolicy",
        "Properties": {
            "Topics": [{"Ref": topic}],
            "PolicyDocument": {
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Sid": "CloudWatch",
                        "Effect": "Allow",
                        "Principal": _CLOUDWATCH,
                        "Action": "sns:Publish",
                        "Resource": {"Ref": topic},
                        "Condition": {
                            "StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}},
                            "ArnLike": {"aws:SourceArn": {"Fn::Sub": alarms}},
                        },
                    }
                ],
            },
        },
    }
