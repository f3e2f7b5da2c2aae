"""Observing many live targets: the pace."""

from __future__ import annotations

import pytest

from vllm_opsctl.cli.observing import LIVE_INTERVAL_S, live_interval_s
from vllm_opsctl.runbooks.onset import MIN_SAMPLES


def test_few_targets_are_read_at_the_usual_pace_and_many_less_often() -> None:
    assert live_interval_s(1, 10.0) == live_interval_s(50, 10.0) == LIVE_INTERVAL_S
    assert live_interval_s(200, 10.0) == 1.0


@pytest.mark.parametrize("targets", [200, 1000, 10_000])
def test_however_many_there_are_enough_pages_are_read(targets: int) -> None:
    assert 5.0 / live_interval_s(targets, 5.0) >= MIN_SAMPLES
