"""
The errors that users see: each says what is wrong, where, and what to do about it.

    OpsError
    * UsageError          a flag or argument; exit 64
    * ConfigError         a configuration file or variable; names the key; exit 64
    * InputFileError      a recording or runbook file that cannot be read; names the line; exit 64
      x RunbookError      a failure-mode file
    * SourceError         vLLM (or a sidecar) could not be read
      x Unreachable       refused, no such host, timed out
      x BadPage           it answered, but not with a page of vLLM metrics
    * AwsError            AWS refused or did not answer; exit 3
      x NeverTaken        the same request would be refused again
    * ServeError          the sidecar cannot open its port
    * CommandError        a command to supervise cannot be started; exit 126 or 127
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_USAGE = 64
"""Exit code of usage, configuration and unreadable input (EX_USAGE of BSD sysexits(3))."""


EXIT_INTERNAL = 70
"""Exit code of a fault of opsctl itself (EX_SOFTWARE): never one that reads as a verdict."""


class OpsError(Exception):
    """Base of every error that ends a command with a message instead of a traceback."""

    exit_code = EXIT_USAGE


class UsageError(OpsError):
    """A flag or an argument that cannot be used."""


class ConfigError(OpsError):
    """
    Mistakes in the configuration.

    Args:
        problems: One line each: origin, key path, what is wrong, what would be right.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class InputFileError(OpsError):
    """A file given by the user cannot be used; the message names file and line."""


class RunbookError(InputFileError):
    """A failure-mode file breaks the schema."""


class SourceError(OpsError):
    """
    A target could not be read.

    Args:
        reason: Short machine-readable reason, a label value (``refused``, ``timeout``, …).
        detail: What happened, for people.
    """

    exit_code = 3

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Unreachable(SourceError):
    """Nothing answered: refused, no such host, timed out, reset."""


class BadPage(SourceError):
    """Something answered, but not with a page of vLLM metrics."""


class AwsError(OpsError):
    """AWS refused a call or did not answer; the message names the fix."""

    exit_code = 3


class NeverTaken(AwsError):
    """AWS refused what was asked, not who asked or when: the same request would be refused again."""


class ServeError(OpsError):
    """The sidecar or a replay cannot listen."""


class CommandError(OpsError):
    """
    A command that is to be supervised cannot be started.

    Args:
        exit_code: 127 where there is none of that name, else 126.
        detail: What is wrong, and the fix.
    """

    def __init__(self, exit_code: int, detail: str) -> None:
        super().__init__(detail)
        self.exit_code = exit_code
