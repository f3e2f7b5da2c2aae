"""The sidecar's page in a real browser: what stands there, and that it loads nothing from anywhere."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from commands import Opsctl
from loopback import http_get, serving, wait_for
from matplotlib.image import imread
from paths import RECORDINGS

QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # the browser's own errands go nowhere
    *("--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
)

VERMILLION = (0xD5, 0x5E, 0x00)
"""What is wrong, in the palette of Okabe and Ito, which the colour-blind can tell apart too."""


@dataclass(frozen=True)
class Visit:
    """What a browser showed, said and fetched."""

    dom: str
    console: list[str]
    fetched: list[str]
    """What the page made it ask for, beside the page itself."""


@dataclass(frozen=True)
class Browser:
    """Chromium, with a profile of its own for each visit."""

    program: Path
    folder: Path

    def visit(self, url: str, *more: str) -> Visit:
        profile = self.folder / f"profile-{time.monotonic_ns()}"
        log = profile.with_suffix(".json")
        done = subprocess.run(
            [
                str(self.program),
                *QUIET,
                *("--enable-logging=stderr", f"--log-net-log={log}", f"--user-data-dir={profile}"),
                *(*more, "--dump-dom", url),
            ],
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        )
        events = json.loads(log.read_text())["events"]
        asked = [event["params"] for event in events if "url" in event.get("params", {})]
        assert any(one["url"] == url for one in asked)
        return Visit(
            done.stdout,
            re.findall(r"CONSOLE.*", done.stderr),
            # the browser's own requests have no origin
            [one["url"] for one in asked if one.get("initiator", "").startswith("http")],
        )

    def pixels_of(self, colour: tuple[int, int, int], url: str, size: str) -> int:
        """How many pixels of the first screen have a colour."""
        path = self.folder / "screen.png"
        subprocess.run(
            [
                str(self.program),
                *QUIET,
                *(f"--user-data-dir={self.folder / 'profile-of-screen'}", f"--window-size={size}"),
                *(f"--screenshot={path}", url),
            ],
            capture_output=True,
            timeout=90,
            check=True,
        )
        screen = np.asarray(imread(path), dtype=np.float64)[..., :3]
        return int((np.abs(screen - np.array(colour) / 255) < 0.02).all(axis=-1).sum())


@pytest.fixture
def browser(part: Callable[[str], Path], tmp_path: Path) -> Browser:
    """A real browser; without one the test is skipped."""
    return Browser(part("chromium"), tmp_path)


def watching(opsctl: Opsctl, recording: str, wanted: str) -> str:
    """A sidecar that has watched a replay until its page says something: the page's URL."""
    replay = opsctl.start_replay(RECORDINGS / f"{recording}.jsonl.gz")
    page = f"{opsctl.start_sidecar(replay)}/"
    wait_for(lambda: wanted in http_get(page)[1], timeout_s=120, what=f"{wanted} on the page")
    return page


def test_an_incident_is_on_the_page_with_its_root_and_what_burns(
    browser: Browser, opsctl: Opsctl
) -> None:
    """No script runs, nothing is fetched, and the policy lets the page's own style in: its colours show."""
    page = watching(opsctl, "kv-preemption-thrash", "Root cause: <code>kv-preemption-thrash</code>")

    seen = browser.visit(page)

    assert re.search(r"(CRITICAL|DEGRADED)</span> <code>kv-preemption-thrash", seen.dom)
    assert "opsctl diagnose --sidecar" in seen.dom
    assert re.search(
        r'<span class="state bad">burning fast</span></td><td class="text">e2e', seen.dom
    )
    assert "<script" not in seen.dom
    assert seen.console == []
    assert seen.fetched == []
    for size in ("1366,768", "500,844"):
        assert browser.pixels_of(VERMILLION, page, size) > 500


def test_a_healthy_engine_is_on_the_page_without_an_alarming_word(
    browser: Browser, opsctl: Opsctl
) -> None:
    page = watching(opsctl, "baseline", "HEALTHY")

    seen = browser.visit(page)

    assert "no objective burns" in seen.dom
    assert 'class="bad"' not in seen.dom
    assert seen.console == []


def test_what_a_page_fetches_would_be_seen(browser: Browser) -> None:
    """The instrument itself: a page that loads a picture and complains."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(
                b'<img src="http://elsewhere.example/x.png"><script>console.error("oh")</script>'
            )

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)) as url:
        seen = browser.visit(f"{url}/")

    assert "http://elsewhere.example/x.png" in seen.fetched
    assert any("oh" in line for line in seen.console)
