"""Names, versions, logs and messages that want to be obeyed: every output shows them and obeys none."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from commands import InProcess
from fake_vllm import page
from markdown_it import MarkdownIt

from vllm_opsctl.cli.text import render_markdown, render_text
from vllm_opsctl.exporter.config import Config, Exporter, Target
from vllm_opsctl.exporter.observation import Observation, error, metrics
from vllm_opsctl.exporter.plain_text import code_span, markdown, plain, styled_lines
from vllm_opsctl.exporter.status import status_page
from vllm_opsctl.exporter.target_state import TargetState
from vllm_opsctl.runbooks.fleet import Question, diagnose_fleet
from vllm_opsctl.runbooks.load import shipped_library
from vllm_opsctl.runbooks.verdict import Verdict

HOSTILE = {
    "escape": "\x1b[2J\x1b[31;1mPWN\x1b[0m",
    "title and clipboard": "\x1b]0;owned\x07\x1b]52;c;ZXZpbA==\x07",
    "8-bit control": "\x9b2J\x90",
    "bidi": "\u202egnp.exe\u202c\u2066\u200f",
    "lines": "a\nHEALTHY chat-0: all is well\rb\x0bc\x85d\u2028e",
    "half a pair": "\ud800",
    "invisible": "\u200b\ufeff\U000e0041\xad",
    "NUL": "\x00",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>&lt;",
    "markdown": "[click](http://evil.example/) ![x](http://evil.example/p.png) `x` **b** # h",
    "table": "a|b|c",
    "link": "http://evil.example/ www.evil.example",
    "shell": "$(id) `id` ; rm -rf / {{ .Values }} ${HOME}",
}
TEXTS = list(HOSTILE.values())


def verdict_on(text: str) -> Verdict:
    """A fleet whose every foreign text is this one."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    pages = [
        metrics(float(t), "chat-0", page(model=f"m{escaped}", tokens=100.0 * t)) for t in range(10)
    ]
    odd = f"replica{text}"
    other = [
        Observation(0.0, plain(odd), "facts", {"version": plain(text)}),
        *(error(float(t), plain(odd), "reset", plain(f"closed {text}")) for t in range(10)),
    ]
    return diagnose_fleet(
        {"chat-0": pages, plain(odd): other}, shipped_library(), Question(source="recording")
    )


def is_harmless(text: str) -> bool:
    without_colour = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return all(c in "\n\t" or c.isprintable() or c == "\u2192" for c in without_colour)


@pytest.mark.parametrize("text", TEXTS, ids=HOSTILE.keys())
def test_a_verdict_is_obeyed_by_no_terminal(text: str) -> None:
    shown = render_text(verdict_on(text), show_features=True)

    assert is_harmless(shown)
    assert not any(line.startswith("HEALTHY chat-0: all is well") for line in shown.splitlines())


@pytest.mark.parametrize("text", TEXTS, ids=HOSTILE.keys())
def test_a_verdict_is_no_markup_in_a_ticket(text: str) -> None:
    shown = render_markdown(verdict_on(text), show_features=True)
    tokens = [
        inner
        for token in MarkdownIt("commonmark").enable("table").parse(shown)
        for inner in (token, *(token.children or ()))
    ]

    assert is_harmless(shown)
    assert {t.type for t in tokens} & {"html_inline", "html_block", "link_open", "image"} == set()
    assert not re.search(r"(?<!\\)(https?|ftp)://|(?<![\w/])www\.(?!\\)", shown.replace("\\:", ""))


@pytest.mark.parametrize("text", TEXTS, ids=HOSTILE.keys())
def test_names_are_no_markup_on_the_sidecars_page(text: str) -> None:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    state = TargetState(Target(name="chat-0", url="http://chat-0:8000"), Exporter(), ())
    state.record(metrics(1.0, "chat-0", page(model=f"m{escaped}")))
    config = Config.model_validate({"targets": ["http://chat-0:8000"]})
    html = status_page(config, [state.snapshot(1.0)], 1.0)

    assert "<script" not in html
    assert "<img src=x" not in html
    assert is_harmless(html)


@pytest.mark.parametrize("text", TEXTS, ids=HOSTILE.keys())
@pytest.mark.parametrize("output", ["text", "json", "markdown"])
def test_a_recording_of_a_hostile_server_is_shown_harmlessly(
    opsctl: InProcess, tmp_path: Path, text: str, output: str
) -> None:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    lines = [
        {"t": 0, "target": f"t{text}", "kind": "facts", "version": text},
        *(
            {"t": t, "target": f"t{text}", "text": page(model=f"m{escaped}", tokens=100.0 * t)}
            for t in range(1, 10)
        ),
        {"t": 10, "target": f"t{text}", "kind": "error", "reason": text, "detail": text},
    ]
    recording = tmp_path / "r.jsonl"
    recording.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = opsctl.run("-vv", "diagnose", "--recording", str(recording), "-o", output)

    # half a character is refused, all else is judged
    expected = (64,) if text == "\ud800" else (1, 2, 3)
    assert found.returncode in expected, found.stderr
    assert is_harmless(found.stdout)
    assert is_harmless(found.stderr)


@pytest.mark.parametrize("text", TEXTS, ids=HOSTILE.keys())
def test_what_was_pasted_is_not_obeyed_when_it_is_shown_again(
    opsctl: InProcess, tmp_path: Path, text: str
) -> None:
    # no argument can hold these two
    argument = text.replace("\x00", "").replace("\ud800", "")
    (tmp_path / "opsctl.yaml").write_text(json.dumps({f"k{argument}": argument}))
    for arguments in (
        ("diagnose", f"http://[{argument}"),
        ("diagnose", argument or "x", "--for", argument),
        (argument or "x",),
        ("diagnose", f"--{argument}"),
        ("config", "check"),
        ("explain", f"no-{argument}"),
        ("runbook", "show", f"no-{argument}"),
    ):
        found = opsctl.run(*arguments, cwd=tmp_path)
        assert found.returncode == 64, (arguments, found.stderr)
        assert is_harmless(found.stderr), arguments
        assert is_harmless(found.stdout), arguments


@pytest.mark.parametrize("text", TEXTS, ids=HOSTILE.keys())
def test_a_log_line_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from vllm_opsctl.cli.main import PlainFormatter

    record = logging.LogRecord("x", logging.ERROR, "", 0, "%s failed", (text,), None)
    try:
        raise ValueError(text)
    except ValueError as problem:
        traced = logging.LogRecord(
            "x", logging.ERROR, "", 0, "failed", (), (type(problem), problem, None)
        )
    formatter = PlainFormatter("opsctl: %(message)s")

    assert formatter.format(record).isprintable()
    assert is_harmless(formatter.format(traced))


@pytest.mark.parametrize("text", TEXTS, ids=HOSTILE.keys())
def test_each_way_of_showing_keeps_its_promise(text: str) -> None:
    assert plain(text).isprintable()
    assert markdown(text).isprintable()
    assert is_harmless(styled_lines(f"\x1b[1m{text}"))
    (inline,) = MarkdownIt("commonmark").parseInline(f"a {code_span(text)} b")
    assert [token.type for token in inline.children or ()] == ["text", "code_inline", "text"]
