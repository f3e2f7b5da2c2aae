"""
The `opsctl` command: a group whose subcommands are imported only when they run.

This module is the only place that turns errors into messages and exit codes.
"""

from __future__ import annotations

import errno
import gc
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from vllm_opsctl import __version__
from vllm_opsctl.errors import EXIT_INTERNAL, EXIT_USAGE, OpsError
from vllm_opsctl.exporter import credentials
from vllm_opsctl.exporter.plain_text import plain, plain_lines
from vllm_opsctl.exporter.redaction import without_secrets

COMMANDS: dict[str, tuple[str, str]] = {
    "alarms": ("alarms:alarms", "Turn objectives and failure modes into alarms."),
    "autoscale": (
        "autoscale:autoscale",
        "Scale replicas with their load on AWS; try it on a recording.",
    ),
    "cloudwatch": (
        "cloudwatch:cloudwatch",
        "Tell what CloudWatch will cost, and what it has to allow.",
    ),
    "completion": ("completion:completion", "Print the shell completion for bash, zsh or fish."),
    "config": ("config:config", "Write, check and show the configuration."),
    "dashboards": ("dashboards:dashboards", "Draw objectives and engines on boards."),
    "diagnose": ("diagnose:diagnose", "Find the root cause on live, recorded or past data."),
    "explain": (
        "explain:explain_command",
        "Explain a feature, metric, failure mode, alert or objective.",
    ),
    "exporter": ("exporter:exporter", "Run the sidecar exporter."),
    "record": ("record:record", "Record live targets to a file."),
    "replay": ("replay:replay", "Serve a recording as a live vLLM endpoint."),
    "runbook": ("runbook:runbook", "List and show what diagnosis knows."),
    "slo": ("slo:slo", "Budgets and burn now, monthly reports, OpenSLO."),
    "tap": ("tap:tap", "Print the statistics pages that vLLM keeps with the tap."),
    "top": ("top:top", "Watch what every target does, live."),
}
"""Name to (module:attribute, help); help stands here so that `opsctl --help` imports nothing."""


_TELL_HEADERS = ("boto3", "botocore", "opentelemetry", "s3transfer")
"""Libraries whose debug lines have the headers and parameters of requests in them."""


_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""Whatever else is written says so itself; what is left is stdout."""


def _harmless(text: str) -> str:
    return plain_lines(without_secrets(text, credentials.read_so_far(os.environ)))


class LazyGroup(click.Group):
    """A group that imports a subcommand's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"vllm_opsctl.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in --help, without importing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(COMMANDS.items())])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Look a command up; an unknown one is answered with the nearest."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(COMMANDS)}."
            raise click.UsageError(f"No command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


class PlainFormatter(logging.Formatter):
    """Log lines without secrets, in which whatever came from outside is shown, not obeyed."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """A message is one line, whatever is in it."""
        record.message = plain(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """One record; a traceback has lines of its own, and an exception's text may be anybody's."""
        return _harmless(super().format(record))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: opsctl diagnose http://HOST:8000",
)
@click.version_option(__version__, prog_name="opsctl", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", count=True, help="Say what is being done; twice for more.")
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    type=click.Path(),
    help="Configuration [default: $OPSCTL_CONFIG, else ./opsctl.yaml if there].",
)
@click.pass_context
def cli(ctx: click.Context, verbose: int, config_path: str | None) -> None:
    """From the page to the root cause: diagnosis and metrics for vLLM."""
    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("opsctl: %(message)s"))
    logging.basicConfig(level=levels[min(verbose, 2)], handlers=[handler])
    for library in _TELL_HEADERS:
        logging.getLogger(library).setLevel(max(logging.INFO, levels[min(verbose, 2)]))
    if os.environ.get("NO_COLOR"):
        ctx.color = False
    ctx.obj = config_path


def _show(problem: click.ClickException) -> None:
    """What click says of a mistake: what was typed at the wrong place may be a URL with a password."""
    said = io.StringIO()
    problem.show(file=said)
    click.echo(_harmless(said.getvalue()), nl=False, err=True)


def _tell(line: str) -> None:
    click.echo(f"{click.style('Error:', fg='red', bold=True)} {line}", err=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `opsctl` and exit."""
    code = run(arguments)
    # to search all that a verdict made for cycles, once more at the end, takes a tenth of its time
    gc.freeze()
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """
    Run `opsctl`.

    Returns:
        The exit code: the command's own, 64 for usage, configuration and unreadable input, 70 for
        a fault of opsctl.
    """
    kwargs: dict[str, Any] = {"prog_name": "opsctl", "standalone_mode": False}
    try:
        result = cli.main(args=list(arguments) if arguments is not None else None, **kwargs)
    except click.exceptions.Exit as problem:
        return problem.exit_code
    except click.UsageError as problem:
        _show(problem)
        return EXIT_USAGE
    except click.Abort:
        click.echo("stopped", err=True)
        return 130
    except click.ClickException as problem:
        _show(problem)
        return EXIT_USAGE
    except OpsError as problem:
        for line in _harmless(str(problem)).split("\n"):
            _tell(line)
        return problem.exit_code
    except Exception as problem:
        if isinstance(problem, OSError) and problem.errno in _NO_ROOM:
            _tell(
                f"the output cannot be written ({problem.strerror}); make room, or write elsewhere"
            )
            return EXIT_USAGE
        if logging.getLogger().isEnabledFor(logging.INFO):
            click.echo(_harmless(traceback.format_exc()), err=True)
        kind = type(problem).__name__
        _tell(
            f"a fault of opsctl itself ({kind}: {_harmless(str(problem))}); -v shows where, please report it"
        )
        return EXIT_INTERNAL
    return result if isinstance(result, int) else 0
