"""Whether and where the tap writes: the environment variable ``OPSCTL_TAP``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

VARIABLE = "OPSCTL_TAP"
DEFAULT_DIRECTORY = Path("/dev/shm/vllm-opsctl")  # noqa: S108 - a tmpfs, and the pages are 0640

_OFF = frozenset(("0", "off", "no", "false"))
_ON = frozenset(("", "1", "on", "yes", "true"))


def directory_from(environment: Mapping[str, str]) -> Path | None:
    """
    Where pages go: on without the variable, off by it, or the folder that it names.

    Args:
        environment: Environment variables.

    Returns:
        None when the tap is off.

    Raises:
        ValueError: Neither a switch nor an absolute path.
    """
    text = environment.get(VARIABLE, "").strip()
    if text.lower() in _OFF:
        return None
    if text.lower() in _ON:
        return DEFAULT_DIRECTORY
    if not text.startswith("/"):
        raise ValueError(f"{VARIABLE}={text}: neither on, off, nor an absolute path")
    return Path(text)
