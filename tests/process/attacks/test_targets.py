"""Targets that turn hostile, seen through a sidecar and a diagnosis: named, bounded, alone in their harm."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from commands import Opsctl, said_url
from fake_vllm import FakeVllm, Reply, Route, as_json, fake_vllm, page
from loopback import http_get, wait_for

MANY_MODELS = "".join(
    f'vllm:num_requests_running{{engine="0",model_name="m{n}"}} 1\n' for n in range(20_000)
)
MANY_SERIES = "".join(
    f'vllm:request_success_total{{engine="0",finished_reason="r{n}",model_name="m"}} 1\n'
    for n in range(100_000)
)
ADDRESSES_KIB = 2 * 2**20
"""A diagnosis of such a page took 1.7 GiB of memory and no end."""


def dripping(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    handler.wfile.flush()
    handler.connection.settimeout(0.2)
    for _ in range(300):
        try:
            if handler.connection.recv(1) == b"":
                return
        except TimeoutError:
            handler.wfile.write(b"a")
        except OSError:
            return


def value(url: str, name: str, target: str) -> float:
    _, text = http_get(f"{url}/metrics", timeout_s=30)
    found = re.search(rf'^{name}{{[^}}]*target="{target}"[^}}]*}} (\S+)$', text, re.MULTILINE)
    assert found is not None, f"no {name} of {target}"
    return float(found[1])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def watched(
    opsctl: Opsctl, folder: Path, timeout_s: int = 2, **targets: FakeVllm
) -> tuple[str, subprocess.Popen[str]]:
    listed = "".join(f"  - {{name: {name}, url: '{one.url}'}}\n" for name, one in targets.items())
    (folder / "opsctl.yaml").write_text(f"exporter: {{timeout: {timeout_s}s}}\ntargets:\n{listed}")
    process = opsctl.start("exporter", "run", "--listen", "127.0.0.1:0", cwd=folder)
    return said_url(process), process


def test_nothing_old_is_said_of_a_target_that_hangs(
    opsctl: Opsctl, tmp_path: Path, stack: ExitStack
) -> None:
    server = stack.enter_context(fake_vllm())
    url, _ = watched(opsctl, tmp_path, turns=server)
    wait_for(
        lambda: value(url, "opsctl_target_reads_total", "turns") >= 8, timeout_s=60, what="reads"
    )
    healthy = opsctl.run("diagnose", "--sidecar", url, "--no-probe", cwd=tmp_path)
    server.routes["/metrics"] = dripping
    wait_for(lambda: value(url, "opsctl_target_up", "turns") == 0, timeout_s=30, what="up = 0")
    wait_for(
        lambda: value(url, "opsctl_target_read_failures_total", "turns") >= 3,
        timeout_s=60,
        what="three failed reads",
    )
    verdict = opsctl.run("diagnose", "--sidecar", url, "--no-probe", "-o", "json", cwd=tmp_path)
    top = opsctl.run("top", "--sidecar", url, "--once", "-o", "json", cwd=tmp_path)
    (target,) = json.loads(verdict.stdout)["targets"]

    assert healthy.returncode == 0
    assert target["verdict"] != "healthy"
    assert verdict.returncode != 0
    assert json.loads(top.stdout)["targets"][0]["verdict"] != "healthy"
    assert http_get(f"{url}/readyz")[0] == 503
    assert "no whole answer within" in http_get(f"{url}/")[1]


def test_a_sidecar_that_reads_no_more_is_not_believed(
    opsctl: Opsctl, tmp_path: Path, stack: ExitStack
) -> None:
    """Its threads stand still, its clock goes on: what it holds is no answer about now."""
    now = time.time()
    recorded = "".join(
        json.dumps({"t": now - 95 + t, "target": "chat-0", "text": page(tokens=100.0 * t)}) + "\n"
        for t in range(30)
    )
    sidecar = stack.enter_context(fake_vllm())
    sidecar.routes["/api/v1/status"] = as_json(
        {"now": now, "targets": [{"target": "chat-0", "url": "http://chat-0.invalid:8000"}]}
    )
    sidecar.routes["/api/v1/recording"] = Reply(recorded.encode())
    found = opsctl.run("diagnose", "--sidecar", sidecar.url, "--no-probe", cwd=tmp_path)

    assert found.returncode == 3
    assert found.stdout.startswith("UNKNOWN chat-0: nothing was read for 6")


def test_one_hostile_target_leaves_the_others_alone(
    opsctl: Opsctl, tmp_path: Path, stack: ExitStack
) -> None:
    odd: Route = Reply(b'{"version": "\\ud800", "data": [{"id": "m\\udfff"}]}')
    deep: Route = Reply(b"[" * 200_000)
    churn = itertools.count()
    hostile: dict[str, dict[str, Route]] = {
        "surrogates": {"version": odd, "v1_models": odd},
        "deep": {"version": deep, "v1_models": deep},
        "drips": {"metrics": dripping},
        "models": {"metrics": Reply((page() + MANY_MODELS).encode())},
        "series": {"metrics": Reply((page() + MANY_SERIES).encode())},
        "churn": {
            "metrics": lambda _: Reply(
                "".join(page(f"m{next(churn)}-{n}") for n in range(200)).encode()
            )
        },
    }
    servers = {name: stack.enter_context(fake_vllm(**routes)) for name, routes in hostile.items()}
    good = stack.enter_context(fake_vllm())
    # slow cores take seconds to read the largest page; the timeout is a part of when data are old
    url, process = watched(opsctl, tmp_path, timeout_s=10, good=good, **servers)
    wait_for(
        lambda: value(url, "opsctl_target_reads_total", "good") >= 15, timeout_s=90, what="reads"
    )

    for name in ("good", "surrogates", "deep", "models", "series", "churn"):
        assert value(url, "opsctl_target_up", name) == 1, name
    assert value(url, "opsctl_target_up", "drips") == 0
    assert value(url, "opsctl_target_left_out", "models") == 19_745
    assert value(url, "opsctl_target_read_failures_total", "drips") >= 1
    assert "opsctl_worker_restarts_total" in http_get(f"{url}/metrics", timeout_s=30)[1]
    assert 'reason="died",service="vllm",worker="poll good"} 0' in _sorted_labels(
        http_get(f"{url}/metrics", timeout_s=30)[1]
    )
    assert process.poll() is None


def _sorted_labels(text: str) -> str:
    """A page whose labels stand in the order of their names."""

    def line(found: re.Match[str]) -> str:
        return "{" + ",".join(sorted(re.findall(r'\w+="[^"]*"', found[1]))) + "}"

    return re.sub(r"{([^}]*)}", line, text)


def test_a_recording_of_large_pages_is_sent_in_little_memory(
    opsctl: Opsctl, tmp_path: Path, stack: ExitStack
) -> None:
    """Large, easily compressed, and never two of the same length: whole chunks of them were unpacked."""
    reads = itertools.count()
    comments = "# " + "x" * 1000 + "\n"
    server = stack.enter_context(
        fake_vllm(
            metrics=lambda _: Reply((page() + comments * (14_000 + next(reads) % 2)).encode())
        )
    )
    url, process = watched(opsctl, tmp_path, large=server)
    wait_for(
        lambda: value(url, "opsctl_target_reads_total", "large") >= 30, timeout_s=180, what="reads"
    )
    status, _ = http_get(f"{url}/api/v1/recording?target=large", timeout_s=120)
    peak_kib = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())

    assert status == 200
    assert peak_kib is not None
    assert int(peak_kib[1]) < 500 * 1024  # 1,149 MiB


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MANY_MODELS, "19,745 engines beyond 256"),
        (MANY_SERIES, "series beyond 50,000"),
    ],
    ids=["20,000 models", "100,000 series"],
)
def test_a_page_that_is_too_much_is_judged_within_bounds(
    opsctl: Opsctl, stack: ExitStack, text: str, said: str
) -> None:
    server = stack.enter_context(fake_vllm(metrics=Reply((page() + text).encode())))
    limited = f'ulimit -v {ADDRESSES_KIB} && exec "$@"'
    found = subprocess.run(
        ["/bin/sh", "-c", limited, "sh", *opsctl.command("diagnose", "--for", "3s", server.url)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert found.returncode in (0, 3), found.stderr
    assert said in " ".join(found.stdout.split())


# -- the API beside the page -----------------------------------------------------------------------

FAILS = Reply(b"\x1b]0;owned\x07 boom", status=500)


def test_a_page_that_is_fine_does_not_hide_an_api_that_is_dead(
    opsctl: Opsctl, stack: ExitStack
) -> None:
    server = stack.enter_context(
        fake_vllm(version=FAILS, v1_models=FAILS, health=FAILS, v1_completions=FAILS)
    )
    found = opsctl.run("diagnose", "--for", "3s", server.url)

    assert found.returncode == 1
    assert "the canary completion failed: HTTP 500: \\x1b]0;owned\\x07 boom" in " ".join(
        found.stdout.split()
    )


def test_a_canary_that_could_not_be_sent_is_said_not_to_have_been(
    opsctl: Opsctl, stack: ExitStack
) -> None:
    nothing = Reply(b"{}")
    server = stack.enter_context(fake_vllm(health=dripping, v1_models=nothing))
    found = opsctl.run("diagnose", "--for", "3s", server.url)

    assert "no canary: GET /health: timeout" in " ".join(found.stdout.split())


def test_a_page_of_a_proxy_is_no_token(opsctl: Opsctl, stack: ExitStack) -> None:
    login = Reply(b"<!DOCTYPE html><title>Log in</title>")
    server = stack.enter_context(fake_vllm(v1_completions=login))
    found = opsctl.run("diagnose", "--for", "3s", server.url)

    assert found.returncode == 1
    assert "HTTP 200, but no completion" in " ".join(found.stdout.split())


@pytest.mark.parametrize(
    "route",
    [Reply(b"[" * 200_000), Reply(b'{"version": "\\ud800", "data": [{"id": "\\udfff"}]}')],
    ids=["deep", "surrogates"],
)
def test_hostile_facts_are_no_fault_of_opsctl(
    opsctl: Opsctl, stack: ExitStack, tmp_path: Path, route: Route
) -> None:
    server = stack.enter_context(fake_vllm(version=route, v1_models=route, load=route))
    bundle = tmp_path / "bundle.tar.gz"
    found = opsctl.run("diagnose", "--for", "3s", "--bundle", str(bundle), server.url)
    again = opsctl.run("diagnose", "--recording", str(bundle))

    assert found.returncode == again.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
