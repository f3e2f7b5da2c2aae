"""Names of boards are legal wherever they go, and those of two services differ."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllm_opsctl.alarms.resource_names import (
    FLEET_BOARD,
    FLEET_PATH,
    board_folder,
    board_object_name,
    board_path,
    board_title,
    board_uid,
)
from vllm_opsctl.dashboards.boards import NAMES

BOARDS = ("slo", *NAMES)
SLUGS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}", fullmatch=True)
LONG = "Customer_Support-Assistant.Production:European-Union-12345678"


@given(st.lists(SLUGS, min_size=1, max_size=5, unique=True))
@example(["chat", "chat-incident", "chat-slo", "fleet", "opsctl", "opsctl-fleet"])
@example(["chat.v2", "chat-v2", "chat:v2", "chat_v2", "Chat.v2"])
@example([LONG, LONG.lower(), LONG[:-1], LONG[:24], LONG[:25]])
def test_uids_paths_and_objects_are_legal_and_nobody_elses(services: list[str]) -> None:
    uids = [board_uid(service, board) for service in services for board in BOARDS]
    maps = [board_object_name(service, board) for service in services for board in BOARDS]
    paths = [board_path(service) for service in services]

    for names, other in ((uids, FLEET_BOARD), (maps, FLEET_BOARD), (paths, FLEET_PATH)):
        assert Counter([*names, other]).most_common(1)[0][1] == 1
    # Grafana, pkg/util/shortid_generator.go
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,40}", uid) for uid in uids)
    # RFC 1123
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name) for name in maps)
    assert all(re.fullmatch(r"/var/lib/grafana/dashboards/[A-Za-z0-9_-]+", path) for path in paths)


@given(SLUGS, SLUGS)
def test_titles_and_folders_tell_services_apart(one: str, other: str) -> None:
    same = one == other

    assert (board_title(one, "Incident") == board_title(other, "Incident")) is same
    assert (board_folder(one) == board_folder(other)) is same
    assert "/" not in board_folder(one)


@pytest.mark.parametrize("service", ["chat", "chat-v2", "a1"])
def test_plain_names_are_those_of_0_1(service: str) -> None:
    for board in BOARDS:
        assert board_uid(service, board) == f"opsctl-{service}-{board}"
        assert board_object_name(service, board) == f"opsctl-{service}-{board}"
    assert board_path(service) == f"/var/lib/grafana/dashboards/{service}"
