"""
`make pictures`: draws every board on a real overload with Grafana's own UI packages; an empty panel fails.

It proves queries, units, thresholds, transformations and layout; not Grafana's importer, nor its variables.
The pictures of 1366 pixels go to docs/boards, those of 2560 to build/boards. Rules run on a clock that is
60 times faster, so that the load fills their windows: budgets and bad events are of an hour of it.
"""

from __future__ import annotations

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parts.boards import LOAD_S, Watched, may_be_empty, watched_overload
from parts.engine import find_python
from parts.inventory import find_part

from vllm_opsctl.dashboards.build import draw_boards
from vllm_opsctl.dashboards.grafana import Drawn
from vllm_opsctl.exporter.config import Config

ROOT = Path(__file__).resolve().parents[1]
RENDER = ROOT / "tests" / "render"
BUILT = ROOT / "build" / "render"
PICTURES = ROOT / "docs" / "boards"

WIDTHS = {1366: PICTURES, 2560: ROOT / "build" / "boards"}

SHOWN_S = LOAD_S + 5
WINDOW = "15s"
"""What Grafana would put for $__rate_interval at a scrape a second and so short a range."""

_VIRTUAL_MS = 20_000
"""Chromium's clock runs ahead while it waits for queries."""


def bundle() -> None:
    """Bring Grafana's packages from npm, and put everything that a page needs into build/render."""
    BUILT.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "board.jsx", "index.html"):
        shutil.copy(RENDER / name, BUILT / name)
    # its peers ask for more than a page without a server needs
    install = [
        "npm",
        "install",
        "--legacy-peer-deps",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
    ]
    subprocess.run(install, cwd=BUILT, check=True, capture_output=True)
    loaders = {".svg": "dataurl", ".woff2": "dataurl", ".css": "empty", ".scss": "empty"}
    subprocess.run(
        [
            *("npx", "esbuild", "board.jsx", "--bundle", "--minify", "--outfile=board.js"),
            *('--define:process.env.NODE_ENV="production"', "--define:global=window"),
            "--platform=browser",
            *(f"--loader:{suffix}={loader}" for suffix, loader in loaders.items()),
        ],
        cwd=BUILT,
        check=True,
        capture_output=True,
    )
    shutil.copy(BUILT / "node_modules" / "uplot" / "dist" / "uPlot.min.css", BUILT)


@contextmanager
def served() -> Iterator[str]:
    """The address of build/render."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    handler = functools.partial(Quiet, directory=str(BUILT))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def draw(chromium: Path, page: str, picture: Path, width: int) -> dict[str, Any]:
    """Take a picture of a page: what its panels got."""
    common = [
        *(str(chromium), "--headless=new", "--no-sandbox", "--disable-gpu"),
        f"--virtual-time-budget={_VIRTUAL_MS}",
    ]
    dumped = subprocess.run(
        [*common, "--dump-dom", page], capture_output=True, text=True, check=True, timeout=300
    )
    title = re.search(r"<title>(.*?)</title>", dumped.stdout)
    assert title is not None, f"{page}: it did not finish: {dumped.stderr[-500:]}"
    found: dict[str, Any] = json.loads(html.unescape(title[1]))
    size = f"--window-size={width},{found['height']}"
    subprocess.run(
        [*common, size, f"--screenshot={picture}", page],
        capture_output=True,
        check=True,
        timeout=300,
    )
    return found


def picture_of(board: Drawn, base: str, watched: Watched, chromium: Path) -> list[str]:
    """Draw a board in every width: what is wrong with it, one line each."""
    (BUILT / f"{board.uid}.json").write_text(json.dumps(board.body))
    wrong = []
    for width, folder in WIDTHS.items():
        folder.mkdir(parents=True, exist_ok=True)
        asked = {
            "board": f"{board.uid}.json",
            "prometheus": watched.urls["sidecar"],
            "from": watched.at - SHOWN_S,
            "to": watched.at,
            "step": 1,
            "window": WINDOW,
            "objective": "ttft",
            "width": width,
        }
        name = board.uid.removeprefix(f"opsctl-{Config().service.name}-").removeprefix("opsctl-")
        page = f"{base}/index.html?{urllib.parse.urlencode(asked)}"
        found = draw(chromium, page, folder / f"{name}.png", width)
        for panel in found["report"]:
            excused = all(may_be_empty(panel["title"], legend) for legend in panel["legends"])
            if "error" in panel or (not panel["frames"] and not excused):
                wrong.append(f"{board.uid}: {panel['title']}: {panel.get('error', 'empty')}")
        print(f"{folder / name}.png: {len(found['report'])} panels, {width} wide")
    return list(dict.fromkeys(wrong))


def main() -> int:
    """Draw them all."""
    python = find_python()
    programs = {name: find_part(name) for name in ("prometheus", "chromium")}
    missing = [name for name, program in programs.items() if program is None]
    if python is None or missing or shutil.which("npm") is None:
        print("make real-parts first, and Node.js with npm", file=sys.stderr)
        return 1
    bundle()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder, served() as base:
        program = Path(str(programs["prometheus"]))
        with watched_overload(python, program, ["sidecar"], Path(folder)) as watched:
            for board in draw_boards(Config(), "sidecar"):
                chromium = Path(str(programs["chromium"]))
                wrong += picture_of(board, base, watched, chromium)
    print(f"{LOAD_S:g} s of load, each second told as a minute")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
