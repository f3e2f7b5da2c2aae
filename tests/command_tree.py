"""Every command of opsctl, and what each imports when it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import click

from vllm_opsctl.cli.main import cli, run
from vllm_opsctl.errors import EXIT_USAGE

Arguments = tuple[str, ...]


def every_command() -> list[Arguments]:
    """The words of each command and group, `opsctl` itself first."""
    return list(_below(click.Context(cli, info_name="opsctl"), cli, ()))


def _below(ctx: click.Context, command: click.Command, words: Arguments) -> Iterator[Arguments]:
    yield words
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            assert found is not None
            yield from _below(click.Context(found, ctx, name), found, (*words, name))


def imported_by(runs: Sequence[Arguments]) -> list[set[str]]:
    """Top-level modules beside click, the standard library and ours that each run of opsctl imports."""
    told = subprocess.run(
        [sys.executable, "-P", __file__],
        input=json.dumps(runs),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [set(json.loads(line)) for line in told.stdout.splitlines()]


def _tell_imports() -> None:
    """Run each line of arguments in a fork of this process, which has imported the command line alone."""
    before = set(sys.modules)
    for arguments in json.load(sys.stdin):
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = run(arguments)
            names = {name.partition(".")[0] for name in set(sys.modules) - before}
            found = names - sys.stdlib_module_names - {"click", "vllm_opsctl"}
            os.write(writing, json.dumps(sorted(found)).encode())
            os._exit(code >= EXIT_USAGE)
        os.close(writing)
        assert os.wait()[1] == 0, arguments
        print(os.read(reading, 2**16).decode())


if __name__ == "__main__":
    _tell_imports()
