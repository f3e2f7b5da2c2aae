"""
Names that are derived from a service, for whatever has rules of its own about names.

A name that is legal stays as it is. Anything else loses what is illegal and gains a hash of the whole, so
that ``chat.v2`` and ``chat-v2`` stay apart.
"""

from __future__ import annotations

import hashlib
import re

_HASH_LENGTH = 8

_UID_LENGTH = 40
"""Of a dashboard's uid, with A-Z a-z 0-9 - and _ (Grafana, pkg/util/shortid_generator.go)."""

_LONGEST_BOARD = len("-incident")

FLEET_BOARD = "opsctl-fleet"
"""The uid of the board of all services."""

FLEET_FOLDER = "vLLM"
"""The Grafana folder of the board of all services."""

_BOARD_FILES = "/var/lib/grafana/dashboards"


def legal_name(text: str, *, illegal: str, longest: int, lower: bool = False) -> str:
    """
    A name that a system accepts, different for different texts.

    Args:
        text: What is to be named.
        illegal: Character class, as in a regular expression, of what the system refuses.
        longest: Characters.
        lower: Only lower case is allowed.

    >>> legal_name("chat", illegal="[^a-z0-9-]", longest=20)
    'chat'
    >>> legal_name("chat.v2", illegal="[^a-z0-9-]", longest=20)
    'chat-v2-f5101bcf'
    """
    name = re.sub(illegal, "-", text.lower() if lower else text)
    if name == text and len(name) <= longest and name[-1:].isalnum():
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]
    return f"{name[: longest - _HASH_LENGTH - 1].rstrip('-_')}-{digest}"


# -- Grafana ---------------------------------------------------------------------------------------


def board_prefix(service: str) -> str:
    """
    What the uids of a service's boards begin with.

    >>> board_prefix("chat")
    'opsctl-chat'
    """
    longest = _UID_LENGTH - len("opsctl-") - _LONGEST_BOARD
    return f"opsctl-{legal_name(service, illegal='[^A-Za-z0-9_-]', longest=longest)}"


def board_uid(service: str, board: str) -> str:
    """
    The uid of one board of a service, at most 40 characters.

    >>> board_uid("chat", "incident")
    'opsctl-chat-incident'
    >>> board_uid("customer-support-assistant-production", "incident")
    'opsctl-customer-suppor-a8d79981-incident'
    """
    return f"{board_prefix(service)}-{board}"


def board_title(service: str, board: str) -> str:
    """The title of a service's board: ``chat / Incident``."""
    return f"{service} / {board}"


def board_folder(service: str) -> str:
    """The Grafana folder of a service's boards."""
    return f"{FLEET_FOLDER} {service}"


def board_path(service: str) -> str:
    """
    Where provisioning finds the JSON files of a service's boards.

    >>> board_path("chat")
    '/var/lib/grafana/dashboards/chat'
    """
    # a service may be called like the folder of the other board
    name = f"{service}/" if service == FLEET_BOARD else service
    return f"{_BOARD_FILES}/{legal_name(name, illegal='[^A-Za-z0-9_-]', longest=64)}"


FLEET_PATH = f"{_BOARD_FILES}/{FLEET_BOARD}"
"""Where provisioning finds the board of all services."""


# -- Kubernetes ------------------------------------------------------------------------------------


def object_name(kind: str, service: str) -> str:
    """
    The name of a Kubernetes object: an RFC 1123 label, at most 63 characters.

    >>> object_name("vllm-slo", "chat"), object_name("vllm-slo", "Chat")
    ('vllm-slo-chat', 'vllm-slo-chat-460b3a7d')
    """
    longest = 63 - len(kind) - 1
    return f"{kind}-{legal_name(service, illegal='[^a-z0-9-]', longest=longest, lower=True)}"


def board_object_name(service: str, board: str) -> str:
    """
    The name of the ConfigMap of one board, at most 63 characters.

    >>> board_object_name("chat", "incident"), board_object_name("Chat", "incident")
    ('opsctl-chat-incident', 'opsctl-chat-460b3a7d-incident')
    """
    longest = 63 - len("opsctl-") - _LONGEST_BOARD
    name = legal_name(service, illegal="[^a-z0-9-]", longest=longest, lower=True)
    return f"opsctl-{name}-{board}"


# -- AWS -------------------------------------------------------------------------------------------


def topic_name(service: str, way: str) -> str:
    """
    The name of a service's SNS topic: ``chat-page``.

    Source:
        CreateTopic, SNS API reference: up to 256 of A-Z a-z 0-9 _ and -.
    """
    return f"{_aws_name(service)}-{way}"


def topic_display_name(service: str, way: str) -> str:
    """What a topic's mails are from; SNS takes 100 characters."""
    return f"{service[: 99 - len(way)]} {way}"


def key_alias(service: str) -> str:
    """
    The alias of the KMS key of a service's topics.

    Source:
        CreateAlias, KMS API reference: A-Z a-z 0-9 / _ and -.
    """
    return f"alias/opsctl-{_aws_name(service)}"


def dashboard_name(service: str, region: str) -> str:
    """
    The name of a service's CloudWatch dashboard; dashboards are global, so it has the region.

    Args:
        service: Name of the service.
        region: Such as ``eu-central-1``, or a reference to it in a template.

    Source:
        PutDashboard, CloudWatch API reference: A-Z a-z 0-9 - and _.
    """
    return f"{_aws_name(service)}-{region}-slo"


def alarm_part(text: str) -> str:
    """
    A service, objective or resource as a part of an alarm's name, which has 255 characters in all.

    A model may take 100, and parts are separated by slashes, which slugs do not have.
    """
    return legal_name(text, illegal=r"[^A-Za-z0-9_.:-]", longest=48)


def scaling_policy_prefix(service: str) -> str:
    """What the names of a service's scaling policies begin with."""
    return f"opsctl-{_aws_name(service)}-"


def _aws_name(service: str) -> str:
    return legal_name(service, illegal="[^A-Za-z0-9_-]", longest=64)


# -- what 0.1 called them --------------------------------------------------------------------------


def old_dashboard_name(service: str) -> str:
    """The CloudWatch dashboard of 0.1, without a region."""
    return f"{service}-slo"
