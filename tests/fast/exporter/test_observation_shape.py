"""A line of a recording is an observation of the right shape, or named in one line: exit 64, never 70."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import InProcess
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import RECORDINGS

from vllm_opsctl.errors import BadPage, InputFileError
from vllm_opsctl.exporter import recording
from vllm_opsctl.exporter.limits import MAX_NAME_CHARS
from vllm_opsctl.exporter.observation import KINDS, Observation
from vllm_opsctl.exporter.observation_shape import _SHAPES
from vllm_opsctl.exporter.recording import (
    bounded_lines,
    format_line,
    parse_line,
    parse_lines,
    parse_recording,
    read_recording,
    save_recording,
)
from vllm_opsctl.exporter.sources import sidecar
from vllm_opsctl.exporter.sources.http import Answer

DEEP = json.loads("[" * 70 + "]" * 70)
MANY = [0] * 200_000


def values(*each: Any) -> tuple[Any, ...]:
    """Values of no common type."""
    return each


WRONG: dict[str, list[dict[str, Any]]] = {
    "metrics": [
        *({"text": value} for value in values(5, [], {}, True)),
        *({"text": "", "seconds": value} for value in values("x", None, [], -1, True, 10**400)),
    ],
    "error": [{"reason": 5}, {"detail": []}, {"reason": {"a": 1}}],
    "health": [
        *({"status": value} for value in values("200", 200.5, -1, True, [], 10**400)),
        *({"seconds": value} for value in values("x", None, [], -0.1, 1e300)),
    ],
    "probe": [
        {},
        *({"ok": value} for value in values(None, 1, "yes", [])),
        *({"ok": True, "seconds": value} for value in values("x", None, [1], 10**400)),
        *({"ok": True, name: "x"} for name in ("hit", "cold_seconds", "repeat_seconds")),
        *({"ok": True, name: 5} for name in ("name", "reason", "detail")),
    ],
    "facts": [
        *({"version": value} for value in values(5, None, [], {"version": "x"})),
        *(
            {"models": value}
            for value in values([], "m", 5, {"data": 5}, {"data": {}}, {"data": "x"})
        ),
        *({"models": {"data": [value]}} for value in values(5, "m", None, [])),
        *({"models": {"data": [{"id": value}]}} for value in values(5, [], {}, True)),
        *({"models": {"data": [{"max_model_len": value}]}} for value in values("x", -1, 10**400)),
        *({name: "x"} for name in ("server_load", "is_sleeping", "is_paused", "max_num_seqs")),
        *({"expected_models": value} for value in values("m", 5, [5], {"m": 1})),
        {"expected_max_model_len": None},
        {"models": {"data": [{"parent": {}}]}},
    ],
    "log": [
        *({"counts": value} for value in values([], 5, "x", None)),
        *({"counts": {"oom": value}} for value in values("x", None, [], -1, True, 10**400)),
    ],
    "host": [
        *({name: 1} for name in ("engine_process", "engine_stopped", "gpu_throttled")),
        *({name: "x"} for name in ("oom_kills", "xid_errors", "load_per_core")),
        {"oom_kills": 10**400},
    ],
    "sagemaker": [
        *({name: 5} for name in ("status", "failure", "unit", "instance_type", "working")),
        *({name: "x"} for name in ("current", "desired", "weight", "deploying_s", "starts")),
        *({"events": value} for value in values({}, 5, [5], [{}], [{"t": 1}], [{"what": "x"}])),
        *(
            {"events": [{"t": value, "what": "x"}]}
            for value in values("x", -1, 1e12, None, 10**400)
        ),
        {"events": [{"t": 1, "what": 5}]},
        {"events": [{"t": 1, "what": "x", "failure": "yes"}]},
        *({"metrics": value} for value in values([], 5, {"invocations": "x"}, {"invocations": -1})),
        *({"objectives": value} for value in values([], {"a": 5}, {"a": [1]}, {"a": [1, "x"]})),
        {"objectives": {"a": [-1, 1]}},
        *({"attempts": value} for value in values({}, [5], [[1]], [[1, "x"]], [["x", 1]])),
        *({"not_seen": value} for value in values("x", [5], {})),
    ],
    "header": [{"format": "x"}, {"made_by": 5}],
}
"""By kind: fields that none of its observations has."""

EVERY_WRONG = [(kind, fields) for kind, every in WRONG.items() for fields in every]


def line_of(kind: str, fields: object) -> str:
    head: dict[str, Any] = {"t": 1.0, "target": "chat", "kind": kind}
    return json.dumps(head | fields if isinstance(fields, dict) else fields) + "\n"


def refused(line: str) -> str:
    """What is said of a line that is refused."""
    with pytest.raises(InputFileError) as caught:
        parse_line(line, where="r.jsonl:7", stem="x")
    said = str(caught.value)
    assert said.startswith("r.jsonl:7: ")
    assert said.isprintable()
    assert len(said) < 300
    return said


def test_every_kind_has_a_shape() -> None:
    assert _SHAPES.keys() == set(KINDS) == WRONG.keys()


@pytest.mark.parametrize(
    ("kind", "fields"), EVERY_WRONG, ids=[f"{k}: {f!r}"[:60] for k, f in EVERY_WRONG]
)
def test_a_field_of_a_wrong_type_is_named(kind: str, fields: dict[str, Any]) -> None:
    said = refused(line_of(kind, fields))
    assert any(name in said for name in fields) or "ok" in said


@pytest.mark.parametrize("kind", [*KINDS, "weather"])
@pytest.mark.parametrize("value", [DEEP, MANY, {"a": DEEP}, float("nan"), float("-inf"), "\ud800"])
def test_what_no_field_may_be_is_refused_in_fields_that_nobody_knows_too(
    kind: str, value: object
) -> None:
    """A kind that is not known is skipped, and what stands in it with it."""
    line = line_of(kind, {"text": "", "ok": True, "other": value})
    if kind == "weather" and "NaN" not in line and "Infinity" not in line:
        assert parse_line(line, where="r", stem="x") is None
        return
    assert (
        "nested" in (said := refused(line))
        or "values" in said
        or "number" in said
        or ("surrogate" in said)
    )


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"t": 1, "text": ' + "[" * 100_000,
        '{"t": 1, "kind": "facts", "x": ' + "[" * 900 + "]" * 900 + "}",
        '{"a":' * 50_000,
        '{"t": 1, "text": "", "x": [' + "[]," * 1_100_000 + "0]}",
        '{"t": 1e999, "text": ""}',
        '{"t": 1, "text": "\\ud800"}',
        '{"t": 1, "target": 5, "text": ""}',
        '{"t": 1, "kind": ["metrics"], "text": ""}',
        '{"t": 1, "kind": {"a": 1}, "text": ""}',
        '{"t": ' + "9" * 5000 + ', "text": ""}',
        '{"t": "' + "x" * 5_000_000 + '", "text": ""}',
        '{"t": 1, "target": ["' + "x" * 5_000_000 + '"]}',
        "x" * 5_000_000,
        "\x1b[2J",
        "null",
        "5",
    ],
    ids=lambda line: line[:40],
)
def test_a_line_that_is_none_is_told_in_a_short_one(line: str) -> None:
    refused(line)


def test_names_are_shown_and_cut() -> None:
    evil = parse_line(
        line_of("error", {"target": "\x1b]0;x\x07\u202e", "detail": "a\nb\x1b[2J"}),
        where="r",
        stem="",
    )
    assert evil is not None
    assert evil.target == "\\x1b]0;x\\x07\\u202e"
    assert evil.data["detail"] == "a\\x0ab\\x1b[2J"
    long = parse_line(line_of("error", {"target": "x" * 5_000_000}), where="r", stem="")
    assert long is not None
    assert len(long.target) == MAX_NAME_CHARS


def test_unknown_kinds_are_told_once_each_and_not_without_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = [line_of(f"kind-{n % 20}", {}) for n in range(200)] + [line_of("k" * 5_000_000, {})]
    parse_lines(lines, where="r", stem="")

    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "r:1: unknown kind 'kind-0' skipped"
    assert len(told) == 8


# -- whole files ---------------------------------------------------------------------------------


def test_a_line_without_end_is_refused_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_LINE_BYTES", 1000)

    class Endless(io.RawIOBase):
        """/dev/zero, or a bomb of one line."""

        asked = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            assert size == 1001
            self.asked += 1
            return b"\0" * size

    stream = Endless()
    with pytest.raises(InputFileError, match="r:1: a line of more than 0 MiB"):
        list(bounded_lines(stream, "r"))  # type: ignore[arg-type]
    assert stream.asked == 1


def test_a_bomb_of_lines_is_refused_while_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "MAX_RECORDING_BYTES", 2**20)
    monkeypatch.setattr(recording, "MAX_LINES", 2**30)
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(gzip.compress(b"\n" * 2**22))

    with pytest.raises(InputFileError, match=r"bomb\.jsonl\.gz:\d+: more than 1 MiB unpacked"):
        read_recording(bomb)


def test_so_many_small_observations_are_refused_before_memory_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lines() -> Iterator[str]:
        while True:
            yield '{"t":1,"text":""}\n'

    monkeypatch.setattr(recording, "MAX_OBSERVATIONS", 1000)
    with pytest.raises(InputFileError, match="r:1001: more than 1024 MiB or 1000 observations"):
        parse_recording(lines(), where="r", stem="x")


def test_a_recording_has_so_many_targets() -> None:
    lines = (line_of("error", {"target": f"t{n}"}) for n in range(10**6))
    with pytest.raises(InputFileError, match="r:5001: more than 5000 targets"):
        parse_recording(lines, where="r", stem="x")


def test_a_replay_names_some_of_many_targets(opsctl: InProcess, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("".join(line_of("error", {"target": f"t{n}"}) for n in range(1000)))
    ran = opsctl.run("replay", str(path), "--port", "0")

    assert ran.returncode == 64
    assert "t19 and 980 more; choose one with --target" in ran.stderr


def test_pages_that_are_all_different_are_refused_before_memory_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lines() -> Iterator[str]:
        number = 0
        while True:
            number += 1
            # four bytes a character in memory
            yield json.dumps({"t": number, "text": f"{number} {'😀' * 10_000}"})

    monkeypatch.setattr(recording, "MAX_RECORDING_BYTES", 2**20)
    with pytest.raises(InputFileError, match="r:26: more than 1 MiB"):
        parse_recording(lines(), where="r", stem="x")


def test_a_page_that_comes_again_is_held_once() -> None:
    lines = [json.dumps({"t": n, "text": "x" * 1000}) for n in range(10)]
    pages = {id(o.text) for o in parse_recording(lines, where="r", stem="x")}

    assert len(pages) == 1


@pytest.mark.parametrize("name", ["last.jsonl", "last.jsonl.gz"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("the one before")

    def observations() -> Iterator[Observation]:
        yield Observation(1.0, "chat", "error", {})
        raise OSError(28, "No space left on device")

    with pytest.raises(InputFileError, match="cannot be written"):
        save_recording(path, observations())
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert path.read_text() == "the one before"


def test_what_ends_the_saving_otherwise_leaves_nothing_either(tmp_path: Path) -> None:
    def observations() -> Iterator[Observation]:
        yield Observation(1.0, "chat", "error", {})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_recording(tmp_path / "last.jsonl", observations())
    assert list(tmp_path.iterdir()) == []


def test_half_a_character_of_an_engine_does_not_keep_others_from_being_saved(
    tmp_path: Path,
) -> None:
    path = tmp_path / "last.jsonl"
    save_recording(path, [Observation(1.0, "chat", "facts", {"version": "\ud800"})])

    assert read_recording(path)[0].data["version"] == "?"


# -- anything ------------------------------------------------------------------------------------

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.sampled_from([0, 1, 200, 10**400, 1e300, -1.0]),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["\ud800", "\x1b[2J", "InService", "scaling failed", "canary", "timeout"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["data", "id", "t", "what", "invocations", "model_latency_mean"])
            | st.text(max_size=5),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)

OBSERVED = st.sampled_from(KINDS).flatmap(
    lambda kind: st.tuples(
        st.just(kind),
        st.fixed_dictionaries({}, optional=dict.fromkeys([*_SHAPES[kind], "other"], JSON)),
    )
)


@given(OBSERVED)
@settings(max_examples=300)
def test_whatever_a_line_says_it_is_an_observation_or_refused(
    observed: tuple[str, dict[str, Any]],
) -> None:
    try:
        found = parse_line(line_of(*observed), where="r", stem="x")
    except InputFileError:
        return
    assert found is not None
    assert parse_line(format_line(found), where="r", stem="x") == found


@given(st.text())
def test_whatever_stands_in_a_line_it_is_an_observation_or_refused(line: str) -> None:
    try:
        parse_line(line, where="r", stem="x")
    except InputFileError:
        return


PAGES = [o for o in read_recording(RECORDINGS / "baseline.jsonl.gz") if o.kind == "metrics"][-8:]


@given(st.lists(OBSERVED, min_size=1, max_size=6))
@settings(max_examples=25)
def test_whatever_passes_can_be_diagnosed(observed: list[tuple[str, dict[str, Any]]]) -> None:
    """The edge is where it is refused; behind it nothing is a fault of opsctl itself."""
    at, target = PAGES[-1].t, PAGES[-1].target
    lines = [format_line(page) for page in PAGES]
    for kind, fields in observed:
        line = line_of(kind, {**fields, "t": at, "target": target})
        try:
            if kind != "metrics":
                parse_line(line, where="r", stem="x")
                lines.append(line)
        except InputFileError:
            continue
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.jsonl"
        path.write_text("".join(lines))
        ran = InProcess().run("diagnose", "--recording", str(path))

    assert ran.returncode in (0, 1, 2, 3), ran.stderr
    assert "Traceback" not in ran.stderr


# -- a hostile sidecar ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000 + b"\n",
        b'{"t": 1, "kind": "log", "counts": []}\n',
        b'{"t": 1, "kind": "facts", "models": {"data": 5}}\n',
        b'{"t": 1, "text": "\\ud800"}\n',
        b"\xff\xfe\n\n{}\n",
        b"\0" * 1000 + b"\nx\n",
    ],
    ids=lambda body: repr(body[:30]),
)
def test_what_a_hostile_sidecar_answers_is_no_answer_of_one(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecar, "get", lambda *_, **__: Answer(200, body, 0.1))
    source = sidecar.SidecarSource("http://127.0.0.1:1")

    with pytest.raises(BadPage, match=r"http://127\.0\.0\.1:1:1: "):
        source.observations("chat", end=1.0, start=0.0, full_from=0.0, step_s=1.0)
