"""
Rebuilds dashboards/generated, the starter's boards; `make dashboards` runs it, a test compares.

ConfigMaps repeat every board, and nobody reads them here: a build writes them, git does not keep them.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from example_alarms import EXAMPLE, ROOT, STARTER

from vllm_opsctl.dashboards.build import CONFIG_MAPS, FLEET_CONFIG_MAP

GENERATED = ROOT / "dashboards" / "generated"


def build(out: Path) -> int:
    """Build the example: the exit code of `opsctl dashboards build`."""
    from vllm_opsctl.cli.main import run

    os.environ.update(EXAMPLE)
    return run(["--config", str(STARTER), "dashboards", "build", "--out", str(out)])


def kept(folder: Path) -> Mapping[str, str]:
    """The files of a build that git keeps, by name."""
    files = {
        str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return {
        name: path.read_text(encoding="utf-8")
        for name, path in files.items()
        if name not in (CONFIG_MAPS, FLEET_CONFIG_MAP)
    }


def main() -> int:
    """Replace what is kept."""
    with tempfile.TemporaryDirectory() as folder:
        code = build(Path(folder))
        if code == 0:
            files = kept(Path(folder))
            shutil.rmtree(GENERATED)
            for name, text in files.items():
                path = GENERATED / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
