"""The documents' transcripts that want processes and servers are what their commands print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transcripts import TRANSCRIPTS, Transcript, by_stand, make, needs_processes, same, written

LIVE = by_stand(one for one in TRANSCRIPTS.values() if needs_processes(one))


@pytest.mark.parametrize("group", LIVE, ids=lambda group: "-".join(one.id for one in group))
def test_transcripts_are_what_their_commands_print(
    group: list[Transcript], part: Callable[[str], Path]
) -> None:
    for transcript, made in make(group, part):
        has = written(transcript)

        assert has == made or same(transcript, has, made), f"{transcript.id}: run make docs"
