"""What the documents say is what the code does. What starts processes is in tests/real."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from generate import pages
from paths import ROOT
from transcripts import TRANSCRIPTS, Transcript, blocks, make, needs_processes, same, written

from vllm_opsctl.cli.main import COMMANDS, cli

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCS = "".join(path.read_text() for path in DOCUMENTS if path.parent.name != "runbooks")

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"(?:^|\| |\$\()(?:[A-Z_]+=\S+ )*opsctl (.*?)(?= +[|>#] |\)\"|$)")


def test_the_generated_pages_are_fresh() -> None:
    stale = [name for name, text in pages().items() if (ROOT / "docs" / name).read_text() != text]

    assert stale == [], "run make docs"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    assert f"opsctl {name}" in DOCS


def test_every_option_of_diagnose_is_documented() -> None:
    command = cli.get_command(click.Context(cli), "diagnose")
    assert command is not None
    options = [o for p in command.params for o in p.opts if o.startswith("--")]

    assert [option for option in options if option not in DOCS] == []


def test_no_placeholder_is_left() -> None:
    assert "@@" not in DOCS


def test_links_to_files_lead_somewhere() -> None:
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def commands_in(text: str) -> Iterator[str]:
    """Every `opsctl …` that is typed in the fenced blocks of a document, without `opsctl`."""
    for language, block in _FENCED.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        typed = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
        for line in typed or ([] if language else lines):
            yield from _COMMAND.findall(line)


def parse(typed: str) -> None:
    """
    Parse a command without running it.

    Raises:
        click.UsageError: There is no such command, option or choice, or an argument is missing.
    """
    command: click.Command | None = cli
    words = shlex.split(typed)
    while isinstance(command, click.Group):
        context = click.Context(command)
        _, rest, _ = command.make_parser(context).parse_args(words)
        if not rest:
            return
        _, command, words = command.resolve_command(context, rest)
    assert command is not None
    context = click.Context(command)
    values, left, _ = command.make_parser(context).parse_args(words)
    for parameter in command.params:
        value = values.get(parameter.name or "")
        if isinstance(parameter.type, click.Choice) and isinstance(value, str):
            parameter.type.convert(value, parameter, context)
        if parameter.required and not value and "--help" not in words:
            raise click.MissingParameter(ctx=context, param=parameter)
    assert left == [], f"too much: {left}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_command_in_a_block_parses(path: Path) -> None:
    for typed in commands_in(path.read_text()):
        try:
            parse(typed)
        except click.UsageError as problem:
            pytest.fail(f"{path.name}: opsctl {typed}: {problem.format_message()}")


@pytest.mark.parametrize(
    "typed",
    ["diagnos", "diagnose --fore 5s", "diagnose -o xml", "replay f.jsonl.gz", "slo explain a b"],
)
def test_a_command_that_is_not_there_does_not_parse(typed: str) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        parse(typed)


def test_commands_are_found_wherever_a_person_types_them() -> None:
    text = """\
```
opsctl top      # live
A_B=1 opsctl config show
opsctl diagnose -o json | opsctl dashboards annotate \\
  --url U   # more
eval "$(opsctl completion bash)"
```
```
$ opsctl top --once
opsctl top  14:05:28 UTC  4 targets, by worst
```
```yaml
opsctl: no
```
"""

    assert [" ".join(found.split()) for found in commands_in(text)] == [
        *("top", "config show", "diagnose -o json", "dashboards annotate --url U"),
        *("completion bash", "top --once"),
    ]


def test_what_a_command_prints_stands_in_a_transcript() -> None:
    found: dict[str, str] = {}
    for path in DOCUMENTS:
        text = path.read_text()
        made = blocks(text)
        found |= {id_: str(path.relative_to(ROOT)) for id_ in made}
        for _, block in _FENCED.findall(text):
            if re.search(r"^\$ ", block, re.MULTILINE):
                assert block in made.values(), f"{path.name} has one without markers:\n{block}"

    assert found == {id_: one.document for id_, one in TRANSCRIPTS.items()}


@pytest.mark.parametrize(
    "transcript",
    [one for one in TRANSCRIPTS.values() if not needs_processes(one)],
    ids=lambda transcript: transcript.id,
)
def test_a_transcript_is_what_its_commands_print(transcript: Transcript) -> None:
    def part(name: str) -> Path:
        raise AssertionError(f"{name} is not wanted for files")

    ((_, made),) = make([transcript], part)

    assert written(transcript) == made, "run make docs"


def test_of_live_transcripts_only_what_differs_each_time_is_not_compared() -> None:
    one = "2026-11-25T13:38:52Z chat-0 degraded, 24 alerts, TTFT 9.73s, drill-3773e5e5"
    later = "2026-12-01T01:02:03Z chat-0 degraded, 24 alerts, TTFT\n  980 ms, drill-ab3c0f1e"
    fixed, times, numbers = (
        Transcript(id="x", document="README.md", live=live) for live in (None, "times", "numbers")
    )

    assert [same(kind, one, later) for kind in (fixed, times, numbers)] == [False, True, True]
    more = later.replace("24", "23")
    assert [same(kind, one, more) for kind in (fixed, times, numbers)] == [False, False, True]
    worse = later.replace("degraded", "critical")
    assert not any(same(kind, one, worse) for kind in (fixed, times, numbers))
