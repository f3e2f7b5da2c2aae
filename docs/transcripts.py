"""
Makes the transcripts in README.md and docs/*.md: runs commands and puts what they print between markers.

transcripts.yaml lists them. `make docs` rewrites the blocks, tests compare. Commands run in a folder of
their own, with 80 columns and without the caller's settings: those of opsctl on files within this process,
all others in a shell.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import yaml
from stands import OPSCTL, ROOT, FindPart, Place, needs_servers, ready

from vllm_opsctl.cli.main import run

CUT = "…"
_BLOCK = re.compile(r"(<!-- transcript: (\S+) -->\n```\n)(.*?)(```\n<!-- end -->\n)", re.DOTALL)
_LONGEST_S = 120


class MissingPart(Exception):
    """A real part that is not here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """
    What a person types, and what of its output is shown.

    Args:
        run: The command.
        keep: First and last line of each part that is shown, by texts in them; empty: all of it.
        until: The command is interrupted (Ctrl-C) when a line with this text came; None: it ends by itself.
    """

    run: str
    keep: Sequence[Sequence[str]] = ()
    until: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """
    A block of a document.

    Args:
        id: As in its markers.
        document: Path in the repository.
        stand: Name of what has to stand ready; None: nothing.
        commands: In order.
        live: What differs each time and is not compared: "times", or all "numbers".
    """

    id: str
    document: str
    stand: str | None = None
    commands: Sequence[Command] = ()
    live: Literal["times", "numbers"] | None = None


def _read() -> tuple[dict[str, Transcript], dict[str, Mapping[str, Any]]]:
    data = yaml.safe_load((ROOT / "docs" / "transcripts.yaml").read_text(encoding="utf-8"))
    transcripts = {}
    for id_, spec in data["transcripts"].items():
        typed = [{"run": c} if isinstance(c, str) else c for c in spec.pop("commands", ())]
        commands = [Command(**one) for one in typed]
        transcripts[id_] = Transcript(id=id_, commands=commands, **spec)
    return transcripts, data["stands"]


TRANSCRIPTS, STANDS = _read()


def needs_processes(transcript: Transcript) -> bool:
    """Whether more than this process is needed to make it."""
    if transcript.stand is not None and needs_servers(STANDS[transcript.stand]):
        return True
    return not all(command.run.startswith("opsctl ") for command in transcript.commands)


def blocks(text: str) -> dict[str, str]:
    """The transcripts in a document, by id."""
    return {match[2]: match[3] for match in _BLOCK.finditer(text)}


def written(transcript: Transcript) -> str:
    """What the document has."""
    return blocks((ROOT / transcript.document).read_text(encoding="utf-8"))[transcript.id]


_TIMES = (
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    r"\b[\d.]+ ?(?:ms|s|min)\b",
    # a drill's id, and a server's version
    r"\b(?=[a-f]*\d)[0-9a-f]{8}\b",
    r"\b\d+\.\d+\.\d+(?= at )",
)
_NUMBERS = (*_TIMES, r"\d[\d.,:]*")


def same(transcript: Transcript, one: str, other: str) -> bool:
    """Whether two runs printed the same, but for what differs each time."""
    if transcript.live is None:
        return one == other
    masks = _TIMES if transcript.live == "times" else _NUMBERS
    return _masked(one, masks) == _masked(other, masks)


def _masked(text: str, masks: Sequence[str]) -> str:
    """Also without line breaks: longer numbers break lines elsewhere."""
    for mask in masks:
        text = re.sub(mask, "N", text)
    return " ".join(text.split())


def make(transcripts: Iterable[Transcript], part: FindPart) -> Iterator[tuple[Transcript, str]]:
    """
    Run the commands of transcripts that share a stand, in order.

    Args:
        transcripts: All of one stand.
        part: Where a real part is; raises where it is missing.
    """
    chosen = list(transcripts)
    (name,) = {transcript.stand for transcript in chosen}
    stand = STANDS[name] if name is not None else {}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as logs:
        place = Place(Path(folder), Path(logs))
        (place.folder / "tests").symlink_to(ROOT / "tests")
        with ready(stand, place, part):
            for transcript in chosen:
                lines = [line for one in transcript.commands for line in _shown(one, place, stand)]
                yield transcript, "".join(f"{line}\n" for line in lines)


def _shown(command: Command, place: Place, stand: Mapping[str, Any]) -> list[str]:
    """The command as it is typed, and of its output what is kept."""
    typed = command.run
    for documented, real in place.addresses.items():
        typed = typed.replace(documented, real)
    here = typed.startswith("opsctl ") and not needs_servers(stand)
    output = _within(typed, place) if here else _in_shell(typed, place, command.until)
    for documented, real in place.addresses.items():
        # else lines would break elsewhere
        assert real not in output or len(real) == len(documented), f"{documented}: {real}"
        output = output.replace(real, documented)
    lines = [line.rstrip() for line in output.rstrip().splitlines()]
    return [f"$ {command.run}", *_kept(lines, command)]


def _kept(lines: list[str], command: Command) -> list[str]:
    if not command.keep:
        return lines
    shown: list[str] = []
    position = 0
    for first, last in command.keep:
        begin = _line(lines, first, position, command)
        end = _line(lines, last, begin, command) + 1
        shown += [CUT, *lines[begin:end]] if begin > position else lines[begin:end]
        position = end
    return [*shown, CUT] if position < len(lines) else shown


def _line(lines: Sequence[str], text: str, start: int, command: Command) -> int:
    for number in range(start, len(lines)):
        if text in lines[number]:
            return number
    raise LookupError(f"{command.run}: no line has {text!r}; there is\n" + "\n".join(lines))


def _environment(place: Place) -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("OPSCTL_", "AWS_"))}
    path = f"{OPSCTL.parent}{os.pathsep}{own.get('PATH', '')}"
    return {**own, "PATH": path, "COLUMNS": "80", **place.env}


def _within(typed: str, place: Place) -> str:
    said = io.StringIO()
    with (
        patch.dict(os.environ, _environment(place), clear=True),
        contextlib.chdir(place.folder),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        run(shlex.split(typed)[1:])
    return said.getvalue()


def _in_shell(typed: str, place: Place, until: str | None) -> str:
    with subprocess.Popen(
        ["timeout", str(_LONGEST_S), "bash", "-c", typed],
        cwd=place.folder,
        env=_environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if until is not None and until in line:
                os.killpg(process.pid, signal.SIGINT)
                break
    return said


def by_stand(transcripts: Iterable[Transcript]) -> list[list[Transcript]]:
    """Those that are made together."""
    groups: dict[str, list[Transcript]] = {}
    for transcript in transcripts:
        groups.setdefault(transcript.stand or transcript.id, []).append(transcript)
    return list(groups.values())


def _put(transcript: Transcript, made: str) -> None:
    path = ROOT / transcript.document

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}{made}{match[4]}" if match[2] == transcript.id else match[0]

    path.write_text(_BLOCK.sub(block, path.read_text(encoding="utf-8")), encoding="utf-8")


def _part(name: str) -> Path:
    from parts.inventory import COMMAND, PARTS, find_part

    found = find_part(name)
    if found is None:
        raise MissingPart(f"{PARTS[name].name} is missing; {COMMAND} brings it")
    return found


def main(ids: Sequence[str]) -> None:
    """Rewrite the blocks; those that need a missing part stay as they are, and it is said."""
    chosen = [TRANSCRIPTS[id_] for id_ in ids] or list(TRANSCRIPTS.values())
    for group in by_stand(chosen):
        try:
            for transcript, made in make(group, _part):
                # a new run with other numbers is no change
                if not same(transcript, made, written(transcript)):
                    _put(transcript, made)
        except MissingPart as problem:
            left = ", ".join(transcript.id for transcript in group)
            print(f"left as they are: {left}: {problem}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
