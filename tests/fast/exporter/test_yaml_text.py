"""The YAML that users give: bounded, without surprises, and one line where it is wrong."""

from __future__ import annotations

import contextlib
import resource
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_opsctl.exporter.limits import MAX_NESTING, MAX_YAML_NODES
from vllm_opsctl.exporter.yaml_text import YamlMistake, read_user_documents, read_user_yaml


def bomb(levels: int, width: int = 10) -> str:
    """A text whose aliases stand for width to the power of levels values."""
    lines = ["a0: &a0 [x]"]
    for level in range(1, levels):
        aliases = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    return "\n".join(lines)


MAPPINGS = "\n".join(
    ["a0: &a0 {k: v}", *(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, 40))]
)
MERGES = "\n".join(
    ["a0: &a0 {k: v}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40))]
)


@pytest.fixture(scope="module")
def largest_s() -> float:
    """What the longest list that is read costs here, CPU seconds: a second on slow cores."""
    began = time.process_time()
    read_user_yaml("- x\n" * (MAX_YAML_NODES - 1))
    return time.process_time() - began


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param(bomb(9), f"more than {MAX_YAML_NODES:,} values", id="bomb"),
        pytest.param(bomb(200, 2), f"more than {MAX_YAML_NODES:,} values", id="narrow bomb"),
        pytest.param(MAPPINGS, f"more than {MAX_YAML_NODES:,} values", id="bomb of mappings"),
        pytest.param(MERGES, f"more than {MAX_YAML_NODES:,} values", id="bomb of merges"),
        pytest.param("- x\n" * 250_000, f"more than {MAX_YAML_NODES:,} values", id="long list"),
        pytest.param("[" * 100_000, "nest", id="deep list"),
        pytest.param("[" * 10_000, "nest", id="deep list, once slow to explain"),
        pytest.param("{a: " * 500, f"nested more than {MAX_NESTING} deep", id="deep mapping"),
        pytest.param(
            "".join(f"{' ' * i}a:\n" for i in range(100)) + " " * 100 + "b",
            f"nested more than {MAX_NESTING} deep",
            id="deep block",
        ),
        pytest.param("&a [*a]", "within what it names", id="recursive list"),
        pytest.param("&a {b: *a}", "within what it names", id="recursive mapping"),
        pytest.param("a: *secret", "an alias (*) without an anchor", id="no anchor"),
        pytest.param("? [a, b]\n: c", "a key is a list or a mapping", id="key is a list"),
        pytest.param("? {a: b}\n: c", "a key is a list or a mapping", id="key is a mapping"),
        pytest.param("- &a [b]\n- {*a : c}", "a key is a list or a mapping", id="key is an alias"),
        pytest.param("a: 1\na: 2", "the key 'a' stands twice", id="twice"),
        pytest.param("&x a: 1\n*x : 2", "the key 'a' stands twice", id="twice by an alias"),
        pytest.param("a: !!binary aGk=", "the tag !!binary is not read", id="binary"),
        pytest.param("a: !!timestamp 2026-01-01", "the tag !!timestamp is not read", id="date"),
        pytest.param("a: !!set {b}", "the tag !!set is not read", id="set"),
        pytest.param("a: !!python/object:os.system x", "a tag (!) is not read", id="python"),
        pytest.param("a: !hunter2", "a tag (!) is not read", id="own tag"),
        pytest.param("a: !hunter2!x b", "undefined tag handle", id="tag handle"),
        pytest.param("- &hunter2 a\n- &hunter2 b", "an anchor (&) stands twice", id="anchor twice"),
        pytest.param("a: [b, c", "expected ',' or ']', but got '<stream end>'", id="open list"),
        pytest.param(f"a: 1{'0' * 5000}", "a number of more than 64 digits", id="huge int"),
        pytest.param(f"a: 0x{'f' * 5000}", "a number of more than 64 digits", id="huge hex"),
        pytest.param(f"a: 1{':59' * 500}", "a number of more than 64 digits", id="base 60"),
        pytest.param(f"a: !!int {'9' * 5000}", "a number of more than 64 digits", id="tagged int"),
        pytest.param("a: !!bool maybe", "a value that cannot be read", id="no bool"),
        pytest.param('a: !!float ""', "a value that cannot be read", id="no float"),
        pytest.param('a: "\\x1b]0;x\\x07"', "control characters", id="escaped control"),
        pytest.param("a: b\0c", "control characters", id="NUL"),
        pytest.param("a: \x1b[2J", "control characters", id="raw control"),
        pytest.param("\ud800", "cannot be read", id="surrogate"),
        pytest.param("a: 1\n--- b", "several documents", id="two documents"),
        pytest.param("\ta: 1", "cannot start any token", id="tab"),
    ],
)
def test_what_is_not_read_is_one_line_at_little_cost(text: str, why: str, largest_s: float) -> None:
    began, before = time.process_time(), peak_mib()
    with pytest.raises(YamlMistake) as caught:
        read_user_yaml(text)

    assert why in caught.value.reason
    assert caught.value.reason.isprintable()
    assert "secret" not in caught.value.reason
    assert "hunter2" not in caught.value.reason
    assert time.process_time() - began < 3 * largest_s
    assert peak_mib() - before < 64


def peak_mib() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("", None),
        ("# nothing", None),
        ("a: 2026-01-01", {"a": "2026-01-01"}),
        ("a: 1.0e+999", {"a": float("inf")}),
        ("base: &b {x: 1}\nmore: {<<: *b, y: 2}", {"base": {"x": 1}, "more": {"x": 1, "y": 2}}),
        ("- &k a\n- {*k : 1}", ["a", {"a": 1}]),
        ("a: !!str 5", {"a": "5"}),
        (f"a: '{'9' * 100}'", {"a": "9" * 100}),
        (f"a: {'x' * 100_000}", {"a": "x" * 100_000}),
    ],
)
def test_what_people_write_is_read(text: str, data: object) -> None:
    assert read_user_yaml(text) == data


def test_a_whole_fleet_is_within_the_bounds() -> None:
    fleet = "\n".join(f"- {{name: t{i}, url: 'http://10.0.0.1:{i}'}}" for i in range(20_000))

    assert len(read_user_yaml(fleet)) == 20_000


def test_documents_are_bounded_together() -> None:
    assert read_user_documents("a: 1\n---\nb: 2\n---\n") == [{"a": 1}, {"b": 2}, None]
    with pytest.raises(YamlMistake, match="more than"):
        read_user_documents("".join("---\n" + "- x\n" * 60_000 for _ in range(4)))


@given(st.text("ab&*!%[]{}:,-?|>#'\"\\\n \t0x<=", max_size=40))
def test_no_text_ends_otherwise(text: str) -> None:
    with contextlib.suppress(YamlMistake):
        read_user_yaml(text)
