"""Times that commands take."""

from __future__ import annotations

import pytest

from vllm_opsctl.cli.options import parse_time
from vllm_opsctl.errors import UsageError


@pytest.mark.parametrize(
    "text",
    [
        *(
            "-5000000000h",
            "-99999999999999h",
            "-1e300s",
            "1e400",
            "nan",
            "inf",
            "-inf",
            "99999999999999",
        ),
        *(
            "0001-01-01",
            "9999-12-31T23:59:59-14:00",
            "0001-01-01T00:00:00+14:00",
            "",
            " ",
            "\x1b[2J",
        ),
    ],
)
def test_what_is_no_time_that_anything_was_recorded_at_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a time") as caught:
        parse_time(text, 1_700_000_000.0)
    assert str(caught.value).isprintable()


def test_a_time_back_from_now_and_one_of_the_clock() -> None:
    assert parse_time("-5m", 1_700_000_000.0) == 1_700_000_000.0 - 300
    assert parse_time("2026-11-23T03:14:00", 0.0) == parse_time("1795403640", 0.0)
