"""Rebuilds dashboards/generated, the starter's boards; `make dashboards` runs it, a test compares."""

from __future__ import annotations

import os
import sys

from example_alarms import EXAMPLE, ROOT, STARTER

GENERATED = ROOT / "dashboards" / "generated"


def build() -> int:
    """Build the example: the exit code of `opsctl dashboards build`."""
    from vllm_opsctl.cli.main import run

    os.environ.update(EXAMPLE)
    return run(["--config", str(STARTER), "dashboards", "build", "--out", str(GENERATED)])


if __name__ == "__main__":
    sys.exit(build())
