"""A page that is damaged, made up or no page at all is left out, in a line, and costs what it weighs."""

from __future__ import annotations

import json
import os
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import InProcess
from hypothesis import given, settings
from hypothesis import strategies as st
from tap.fakes import FACTS, fake_finished, fake_identity, fake_iteration, fake_scheduler

from vllm_opsctl.cli.tap import _json, _lines
from vllm_opsctl.exporter.exposition import read_page
from vllm_opsctl.exporter.limits import MAX_TAP_PAGES
from vllm_opsctl.exporter.plain_text import plain_lines
from vllm_opsctl.exporter.recording import format_line, parse_line
from vllm_opsctl.exporter.sources import tap as tap_source
from vllm_opsctl.exporter.sources.tap import TapFolder, TapServer, harmless
from vllm_opsctl.exporter.sources.tap_text import Bounds
from vllm_opsctl.exporter.tap import layout
from vllm_opsctl.exporter.tap import page as tap_page
from vllm_opsctl.exporter.tap.page import BadTapPage, TapPage, parse
from vllm_opsctl.exporter.tap.writer import PageWriter

T0 = 1_700_000_000.0
GOOD = "99-1000.0.0.tap"
AT_ONCE_S = 1.0
"""More than any page takes to be read or refused, on a busy machine too."""


def page_bytes() -> bytes:
    """A page of a server with some past."""
    t = T0
    with tempfile.TemporaryDirectory() as folder:
        identity = fake_identity(99, started=T0 - 100)
        writer = PageWriter(Path(folder), identity, FACTS, now=lambda: t, monotonic=lambda: t)
        scheduler = fake_scheduler(3, 1, 0.25, queries=64, hits=32)
        scheduler.running_lora_adapters = {"shop": 1}
        for _ in range(5):
            t += 1.0
            step = fake_iteration(ttft=[0.2], itl=[0.02], finished=[fake_finished()], prompt=9)
            writer.record(scheduler, step, None)
        raw = writer.path.read_bytes()
        os.close(writer._fd)
    return raw


PAGE = page_bytes()
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.sampled_from([0, -1, 1, 2**31, 2**32, 10**12]),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from(["\ud800", "\x1b[2J", 'a"} 1\nevil 2\n', "x" * 3000]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=12), inner, max_size=3)
    ),
    max_leaves=6,
)


def with_header(**values: tuple[str, float]) -> bytes:
    """The page with other fields of its header: struct code and value."""
    raw = bytearray(PAGE)
    for name, (code, value) in values.items():
        struct.pack_into(f"<{code}", raw, layout.HEADER_OFFSETS[name], value)
    return bytes(raw)


def with_text(field: str, offset: int, text: bytes) -> bytes:
    """The page with other facts, or another directory."""
    raw = bytearray(with_header(**{f"{field}_size": ("I", len(text))}))
    raw[offset : offset + len(text)] = text
    return bytes(raw[: layout.PAGE_SIZE])


def with_facts(facts: object) -> bytes:
    text = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    return with_text("facts", layout.FACTS_OFFSET, text)


def with_directory(change: Callable[[Any], None]) -> bytes:
    where = json.loads(layout.directory_bytes())
    change(where)
    return with_text("directory", layout.DIRECTORY_OFFSET, json.dumps(where).encode())


def parsed(raw: bytes) -> TapPage:
    return harmless(parse(raw, Path(GOOD), alive=False, torn=False))


def used(raw: bytes) -> TapServer | None:
    """
    All that is ever made of a page; None where it is refused.

    Nothing but a refusal may come out of it, in a time that goes with its size.
    """
    began = time.process_time()
    told = ""
    try:
        page = parsed(raw)
    except BadTapPage as problem:
        told = str(problem)
    if told:
        assert told.isprintable()
        assert len(told) < 200
        return None
    server = TapServer((page,))
    # it may say that it is of another API process of a server that is there
    for one in (server, TapServer((parsed(PAGE), page))):
        text = one.text(Bounds(), 0.0)
        problems = read_page(text, t=T0, target=one.name).problems
        assert all(problem.endswith("left out") for problem in problems)
        past = one.history("chat", Bounds(), start=0.0, full_from=0.0, step_s=1.0)
        for observation in [*past[-3:], one.facts_observation(T0, "chat")]:
            line = format_line(observation)
            assert parse_line(line, where="r", stem="") == observation
    shown = "\n".join([server.name, *_lines(page, 10)])
    assert plain_lines(shown) == shown
    _json(page, 10).encode()
    assert time.process_time() - began < 10 * AT_ONCE_S
    return server


def test_the_page_itself_is_fine() -> None:
    server = used(PAGE)
    assert server is not None
    assert server.name == "fake-llama:8000"


@pytest.mark.parametrize(
    "facts",
    [
        *([], 5, None, "x", True, 1.5),
        *({"models": {"a": 1}}, {"models": 5}, {"models": [5]}, {"models": "m"}),
        *({"kv_config": 5}, {"kv_config": []}, {"kv_config": "x"}),
        *({"port": -5}, {"port": "8000"}, {"port": 70000}, {"port": True}, {"port": 1.5}),
        *({"max_num_seqs": -1}, {"max_num_seqs": "x"}, {"max_model_len": 1e300}),
        *({"vllm_version": 5}, {"vllm_version": ["0.32.0"]}, {"max_loras": {}}),
        *(b"[" * 4000, b"{", b"\xff\xfe", b"", b'{"a":' * 700, b'{"models": [' + b"9" * 4000),
    ],
    ids=lambda facts: repr(facts)[:30],
)
def test_facts_of_wrong_kinds_are_refused(facts: object) -> None:
    assert used(with_facts(facts)) is None


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({}, "unknown"),
        ({"models": []}, "unknown"),
        ({"models": [""]}, "unknown"),
        ({"models": ["\x1b[31m\x1b]0;x\x07"], "port": 1}, "x1b-31m-x1b-0-x-x07:1"),
        ({"models": ["\ud800"]}, "ud800"),
        ({"models": ['a"} 1\nevil 2\n']}, "a-1-x0aevil-2-x0a"),
        ({"models": ["/"]}, "vllm"),
        ({"models": ["m"], "kv_config": {'a"} 1\nevil': "1", "num_gpu_blocks": "x\ny"}}, "m"),
    ],
)
def test_names_on_a_page_are_shown_and_never_obeyed(facts: object, name: str) -> None:
    server = used(with_facts(facts))
    assert server is not None
    assert server.name == name
    assert "\nevil" not in server.text(Bounds(), 0.0)


def test_a_name_on_a_page_is_cut() -> None:
    server = used(with_facts({"models": ["m" * 4000]}))
    assert server is not None
    assert len(server.name) < 300


@pytest.mark.parametrize("field", ["touched", "started", "created"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e300", "1e11"])
def test_times_of_no_clock_are_refused(field: str, value: str) -> None:
    assert used(with_header(**{field: ("d", float(value))})) is None


DIRECTORIES: dict[str, Callable[[Any], None]] = {
    "a ring without end": lambda d: d["ring"].update(count=2 * 10**7, stride=0),
    "a ring of rows within each other": lambda d: d["ring"].update(count=10**5, stride=1),
    "a ring of fewer seconds than none": lambda d: d["ring"].update(count=-5),
    "a ring that lies outside": lambda d: d["ring"].update(offset=2**40),
    "a ring before the page": lambda d: d["ring"].update(offset=-148),
    "a field that fills memory": lambda d: d["ring"].update(fields=[["second", "999999999s"]]),
    "fields of another type": lambda d: d["ring"].update(fields=5),
    "octaves without end": lambda d: d["scales"]["seconds"].update(octaves=10**12),
    "octaves in words": lambda d: d["scales"]["seconds"].update(octaves="999"),
    "a scale that begins nowhere": lambda d: d["scales"]["seconds"].update(lowest_exponent=2**40),
    "counters before the page": lambda d: d["counters"].update(offset=-4),
    "counters without names": lambda d: d["counters"].update(names=None),
    "counters that are called nothing": lambda d: d["counters"].update(names=[[]]),
    "counters with a line of their own": lambda d: d["counters"].update(names=["a\nb"]),
    "adapters without names": lambda d: d["adapters"].update(count=10**8, name_bytes=0),
    "adapters without end": lambda d: d["adapters"].update(count=10**8),
    "names without end": lambda d: d["adapters"].update(name_bytes=2**31),
    "histograms in a list": lambda d: d.update(histograms=[]),
    "no scales": lambda d: d.pop("scales"),
    "true for a number": lambda d: d["ring"].update(count=True, offset=True),
}


@pytest.mark.parametrize("what", DIRECTORIES)
def test_a_directory_that_cannot_be_is_refused(what: str) -> None:
    began = time.process_time()
    used(with_directory(DIRECTORIES[what]))
    assert time.process_time() - began < AT_ONCE_S


def test_a_ring_without_a_known_field_has_no_seconds_to_tell() -> None:
    server = used(with_directory(lambda d: d["ring"].update(fields=[["other", "Q"]])))
    assert server is not None
    assert server.stepped is None


@given(JSON)
@settings(max_examples=150)
def test_whatever_facts_say_the_page_is_read_or_refused(facts: Any) -> None:
    used(with_facts(json.dumps(facts).encode()[: layout.FACTS_CAPACITY]))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: JSON
            for name in ("models", "kv_config", "port", "vllm_version", "max_num_seqs", "max_loras")
        },
    )
)
@settings(max_examples=150)
def test_whatever_known_facts_say_the_page_is_read_or_refused(facts: Any) -> None:
    used(with_facts(json.dumps(facts).encode()[: layout.FACTS_CAPACITY]))


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a tree of objects and lists: the holder, and the key or index within it."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from places(tree[key])


@given(st.integers(min_value=0), JSON)
@settings(max_examples=150)
def test_whatever_the_directory_says_the_page_is_read_or_refused(at: int, value: Any) -> None:
    def change(where: Any) -> None:
        every = list(places(where))
        holder, key = every[at % len(every)]
        holder[key] = value

    used(with_directory(change))


@given(
    st.lists(
        st.tuples(st.integers(0, layout.PAGE_SIZE - 1), st.binary(min_size=1, max_size=64)),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=150)
def test_whatever_bytes_are_damaged_the_page_is_read_or_refused(
    damage: list[tuple[int, bytes]],
) -> None:
    raw = bytearray(PAGE)
    for at, junk in damage:
        raw[at : at + len(junk)] = junk
    used(bytes(raw[: layout.PAGE_SIZE]))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 899))
@settings(max_examples=50)
def test_seconds_far_apart_cost_no_more_than_others(first: int, second: int, slot: int) -> None:
    raw = bytearray(PAGE)
    for number, value in ((slot, first), ((slot + 7) % 900, second)):
        struct.pack_into("<Q", raw, layout.RING_OFFSET + number * layout.SLOT.size, value)
    used(bytes(raw))


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("bit", range(len(layout.COUNTERS)), ids=layout.COUNTERS)
def test_whichever_counters_are_told_the_others_are_not_needed(bit: int, only: bool) -> None:
    raw = bytearray(PAGE)
    ones = struct.pack("<Q", 1) * len(layout.COUNTERS)
    raw[layout.COUNTERS_OFFSET : layout.COUNTERS_OFFSET + len(ones)] = ones
    untold = (2 ** len(layout.COUNTERS) - 1) ^ (1 << bit) if only else 1 << bit
    struct.pack_into("<Q", raw, layout.HEADER_OFFSETS["untold"], untold)

    assert used(bytes(raw)) is not None


# -- in a folder ---------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    # closed right away; what it was bound to stays
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(path.parent, os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(PAGE)
        file.truncate(5 * 2**30)


OTHERS: dict[str, Callable[[Path], object]] = {
    "a FIFO": fifo,
    "a socket": bound_socket,
    "a folder": Path.mkdir,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a page": lambda path: path.symlink_to(GOOD),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a sparse file": sparse,
    "an empty file": Path.touch,
    "a text": lambda path: path.write_text("junk"),
    "a short page": lambda path: path.write_bytes(PAGE[:5000]),
    "a long page": lambda path: path.write_bytes(PAGE + b"x"),
    "facts of a wrong kind": lambda path: path.write_bytes(with_facts([])),
    "deep facts": lambda path: path.write_bytes(with_facts(b"[" * 4000)),
    "a page of another size": lambda path: path.write_bytes(with_header(page_size=("I", 2**31))),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_else_lies_in_the_folder_is_left_out_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    (tmp_path / GOOD).write_bytes(PAGE)
    OTHERS[what](tmp_path / "1-1.0.0.tap")
    folder, began = TapFolder(tmp_path, Bounds()), time.monotonic()

    for _ in range(3):
        assert [server.name for server in folder.servers()] == ["fake-llama:8000"]
    assert time.monotonic() - began < AT_ONCE_S
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{tmp_path / '1-1.0.0.tap'}: ")
    assert line.endswith("; left out")
    assert len(line) < len(str(tmp_path)) + 200


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_page_is_dumped_in_no_way(opsctl: InProcess, tmp_path: Path, what: str) -> None:
    OTHERS[what](tmp_path / "x.tap")
    ran = opsctl.run("tap", "dump", str(tmp_path / "x.tap"))

    assert (ran.returncode, ran.stdout) == (64, "")
    assert "Traceback" not in ran.stderr


def test_a_page_that_was_left_out_and_is_mended_is_read_and_told_of_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, folder = tmp_path / GOOD, TapFolder(tmp_path, Bounds())
    for raw, servers in ((b"", 0), (PAGE, 1), (b"", 0)):
        file.write_bytes(raw)
        assert len(folder.servers()) == servers

    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: no tap page; left out"
    ] * 2


def test_of_too_many_pages_the_newest_are_read_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(MAX_TAP_PAGES + 3):
        file = tmp_path / f"{number}-1.0.0.tap"
        file.touch()
        os.utime(file, (number, number))
    folder = TapFolder(tmp_path, Bounds())
    read = [file.name for file in folder._files()]
    folder._files()

    assert len(read) == MAX_TAP_PAGES
    assert not {"0-1.0.0.tap", "1-1.0.0.tap", "2-1.0.0.tap"} & set(read)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: {MAX_TAP_PAGES + 3} tap pages in it; the {MAX_TAP_PAGES} newest are read"
    ]


def test_writers_that_stand_still_keep_no_other_page_from_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frozen = bytearray(PAGE)
    struct.pack_into("<Q", frozen, layout.HEADER_OFFSETS["sequence"], 7)
    for number in (1, 2):
        (tmp_path / f"{number}-1.0.0.tap").write_bytes(frozen)
    (tmp_path / GOOD).write_bytes(PAGE)
    monkeypatch.setattr(tap_page, "_is_locked", lambda _: True)
    monkeypatch.setattr(tap_source, "PATIENCE_S", 0.05)

    assert [server.key for server in TapFolder(tmp_path, Bounds()).servers()] == [(99, 1000)]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert all("its writer stands still within an update; left out" in line for line in told)


def test_a_page_that_is_whole_is_read_without_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / GOOD).write_bytes(PAGE)
    monkeypatch.setattr(tap_page, "_is_locked", lambda _: True)

    assert tap_page.read_tap_page(tmp_path / GOOD, patience_s=0.0).alive


def test_what_cannot_be_deleted_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that is mounted read-only, or a directory where a file should be."""
    (tmp_path / ".1-2.0.0.tap.new").mkdir()
    (tmp_path / GOOD).write_bytes(PAGE)
    folder = TapFolder(tmp_path, Bounds())
    servers = folder.servers()
    (tmp_path / GOOD).unlink()
    (tmp_path / GOOD).mkdir()
    for _ in range(2):
        folder.remove_unfinished(before=T0 * 2)
        folder.remove_read(servers, {server.key: 0.0 for server in servers}, before=T0)

    told = [record.getMessage() for record in caplog.records]
    assert sum("cannot be deleted" in line for line in told) == 2
    assert not any(line.endswith("; deleted") for line in told)
