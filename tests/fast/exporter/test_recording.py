"""Recordings: what is written is read back; damage is named by its line."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.observation import Observation, error, metrics
from vllm_opsctl.exporter.plain_text import plain
from vllm_opsctl.exporter.recording import RecordingWriter, format_line, parse_line, read_recording

OBSERVED = [
    metrics(1.0, "chat-0", "page\n"),
    error(2.0, "chat-0", "refused", "connection refused"),
    Observation(3.0, "chat-0", "health", {"status": 200, "seconds": 0.001}),
]


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    with RecordingWriter(tmp_path / name) as writer:
        for observation in OBSERVED:
            writer.write(observation)

    assert read_recording(tmp_path / name) == OBSERVED


@given(st.floats(0, 4e9).map(lambda t: round(t, 3)), st.text(), st.text())
def test_any_page_survives_a_line(t: float, target: str, text: str) -> None:
    """The page to the character; a name as it can be shown."""
    line = format_line(metrics(t, target, text))

    assert parse_line(line, where="here", stem="") == metrics(t, plain(target, 200), text)


def test_a_plain_capture_is_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "chat-7.jsonl"
    path.write_text('{"t": 1, "text": "page\\n"}\n{"t": 2, "text": null, "error": "timed out"}\n')

    assert read_recording(path) == [
        metrics(1.0, "chat-7", "page\n"),
        error(2.0, "chat-7", "timeout", "timed out"),
    ]


def test_a_last_line_that_a_crash_cut_off_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(format_line(OBSERVED[0]) + format_line(OBSERVED[1])[:-20])

    assert read_recording(path) == OBSERVED[:1]
    assert "cut off" in caplog.text


def test_a_gzip_stream_that_was_cut_off_keeps_its_beginning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "r.jsonl.gz"
    with RecordingWriter(path) as writer:
        for index in range(200):
            writer.write(metrics(float(index), "chat-0", f"page {index}\n"))
    path.write_bytes(path.read_bytes()[:-30])

    found = read_recording(path)

    assert 150 < len(found) <= 200
    assert found[0] == metrics(0.0, "chat-0", "page 0\n")
    assert "cut off" in caplog.text


def test_an_unknown_kind_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"t": 1, "kind": "weather"}\n' + format_line(OBSERVED[0]))

    with caplog.at_level(logging.WARNING):
        assert read_recording(path) == OBSERVED[:1]
    assert "weather" in caplog.text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", ":1: not JSON"),
        ("[]", ":1: expected an object"),
        ('{"t": "noon", "text": ""}', ":1: t is 'noon'; expected unix seconds"),
        ('{"t": 1, "target": 5, "text": ""}', ":1: target is 5; expected a name"),
        ('{"t": 1, "text": 5}', ":1: text is 5; expected text"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(line + "\n" + format_line(OBSERVED[0]))

    with pytest.raises(InputFileError) as caught:
        read_recording(path)
    assert said in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "not.gz").write_bytes(b"plain text")
    for name, said in [
        ("none.jsonl", "no such file"),
        ("empty.jsonl", "no observations"),
        ("not.gz", "not JSON"),
        (".", "a directory"),
    ]:
        with pytest.raises(InputFileError) as caught:
            read_recording(tmp_path / name)
        assert said in str(caught.value)


def test_the_first_line_says_what_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl.gz"
    with RecordingWriter(path) as writer:
        writer.write(OBSERVED[0])
    with gzip.open(path, "rt") as stream:
        header = json.loads(stream.readline())

    assert header["kind"] == "header"
    assert header["format"] == 1
