"""Observing many live targets: the pace, and the limits of the process."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from vllm_opsctl.cli.observing import LIVE_INTERVAL_S, allow_open_files, live_interval_s
from vllm_opsctl.runbooks.onset import MIN_SAMPLES


def test_few_targets_are_read_at_the_usual_pace_and_many_less_often() -> None:
    assert live_interval_s(1, 10.0) == live_interval_s(50, 10.0) == LIVE_INTERVAL_S
    assert live_interval_s(200, 10.0) == 1.0


@pytest.mark.parametrize("targets", [200, 1000, 10_000])
def test_however_many_there_are_enough_pages_are_read(targets: int) -> None:
    assert 5.0 / live_interval_s(targets, 5.0) >= MIN_SAMPLES


@pytest.fixture
def few_files() -> Iterator[tuple[int, int]]:
    """A process that may open few files and ask for more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = (256, before[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, few)
    yield few
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_many_targets_may_open_files_enough(few_files: tuple[int, int]) -> None:
    allow_open_files(200)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    assert soft == min(few_files[0] + 600, few_files[1])
    assert hard == few_files[1]
