"""The sidecar as a process: what it exposes, what it survives, how it stops."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Opsctl
from loopback import http_get, wait_for
from paths import RECORDINGS
from ports import reserve_port
from prometheus_client.parser import text_string_to_metric_families

from vllm_opsctl.exporter.recording import read_recording

OVERLOAD = RECORDINGS / "queue-overload.jsonl.gz"


def values(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    _, text = http_get(f"{url}/metrics")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def one(url: str, name: str, **labels: str) -> float | None:
    wanted = labels.items()
    found = [v for (n, ls), v in values(url).items() if n == name and wanted <= dict(ls).items()]
    assert len(found) <= 1, f"{name} stands {len(found)} times"
    return found[0] if found else None


def test_the_engine_the_peaks_and_the_slis_are_exposed(opsctl: Opsctl) -> None:
    sidecar = opsctl.start_sidecar(opsctl.start_replay(OVERLOAD, "--speed", "5"))
    wait_for(
        lambda: (one(sidecar, "vllm_engine_requests_waiting") or 0) > 0,
        timeout_s=30,
        what="a queue",
    )

    peak = one(sidecar, "vllm_engine_requests_waiting_peak", window="60s")
    assert peak is not None
    assert peak >= (one(sidecar, "vllm_engine_requests_waiting") or 0)
    assert one(sidecar, "vllm_sli_events_total", objective="ttft", outcome="good") is not None
    assert one(sidecar, "vllm_engine_requests_finished_total", finished_reason="length") is not None


def test_promtool_finds_nothing_to_complain_about(
    opsctl: Opsctl, part: Callable[[str], Path]
) -> None:
    promtool = part("promtool")
    sidecar = opsctl.start_sidecar(opsctl.start_replay(OVERLOAD))
    wait_for(lambda: one(sidecar, "opsctl_target_up") == 1, timeout_s=20, what="the target")
    _, text = http_get(f"{sidecar}/metrics")

    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )

    assert (checked.stdout, checked.stderr, checked.returncode) == ("", "", 0)


def test_a_hanging_and_a_dead_target_delay_nobody(opsctl: Opsctl, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        good = opsctl.start_replay(OVERLOAD)
        (tmp_path / "opsctl.yaml").write_text(
            "targets:\n"
            f"  - {{name: good, url: '{good}'}}\n"
            f"  - {{name: hanging, url: 'http://127.0.0.1:{hanging.getsockname()[1]}'}}\n"
            f"  - {{name: dead, url: 'http://127.0.0.1:{reserve_port()}'}}\n"
            "exporter: {poll_interval: 200ms, timeout: 1s}\n"
        )
        sidecar = opsctl.start_sidecar(cwd=tmp_path)
        wait_for(
            lambda: (one(sidecar, "opsctl_target_read_failures_total", target="hanging") or 0) >= 2,
            timeout_s=20,
            what="two time-outs",
        )

        assert one(sidecar, "opsctl_target_up", target="good") == 1
        assert one(sidecar, "opsctl_target_up", target="hanging") == 0
        assert one(sidecar, "opsctl_target_up", target="dead") == 0
        reads = one(sidecar, "opsctl_target_reads_total", target="good")
        slow = one(sidecar, "opsctl_target_reads_total", target="hanging")
        assert reads is not None
        assert slow is not None
        assert reads > 2 * slow
        assert one(sidecar, "vllm_engine_requests_running", target="dead") is None
        status, text = http_get(f"{sidecar}/readyz")
        assert status == 503
        assert "hanging: no page" in text
        assert http_get(f"{sidecar}/readyz?target=good")[0] == 200


def test_the_flight_recorder_serves_a_recording(opsctl: Opsctl, tmp_path: Path) -> None:
    sidecar = opsctl.start_sidecar(opsctl.start_replay(OVERLOAD))
    wait_for(
        lambda: http_get(f"{sidecar}/api/v1/recording")[1].count("\n") > 4,
        timeout_s=20,
        what="pages",
    )
    status, text = http_get(f"{sidecar}/api/v1/recording")
    path = tmp_path / "flight.jsonl"
    path.write_text(text)
    observed = read_recording(path)

    assert status == 200
    assert {"metrics", "facts"} <= {observation.kind for observation in observed}
    last = max(o.t for o in observed)
    later = http_get(f"{sidecar}/api/v1/recording?start={last + 1e6}")[1]
    assert later == ""
    assert http_get(f"{sidecar}/api/v1/recording?start=noon")[0] == 400
    assert http_get(f"{sidecar}/api/v1/recording?target=nobody")[0] == 404


def test_a_frozen_engine_is_not_ready_although_its_server_answers(opsctl: Opsctl) -> None:
    replay = opsctl.start_replay(RECORDINGS / "engine-hung.jsonl.gz")
    sidecar = opsctl.start_sidecar(replay)
    wait_for(
        lambda: "no progress" in http_get(f"{sidecar}/readyz")[1], timeout_s=45, what="not ready"
    )

    assert http_get(f"{replay}/health")[0] == 200
    assert http_get(f"{sidecar}/livez")[0] == 200


def test_a_restart_is_counted(opsctl: Opsctl) -> None:
    sidecar = opsctl.start_sidecar(
        opsctl.start_replay(RECORDINGS / "process-restart.jsonl.gz", "--speed", "4")
    )
    wait_for(
        lambda: one(sidecar, "opsctl_target_restarts_total") == 1, timeout_s=30, what="the restart"
    )

    failures = values(sidecar)
    assert any(
        name == "opsctl_target_read_failures_total" and ("reason", "refused") in labels
        for name, labels in failures
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_being_told_to_end_takes_two_seconds_and_loses_nothing(
    opsctl: Opsctl, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGHUP: the terminal that it was started in is closed."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        saved = tmp_path / "last.jsonl.gz"
        (tmp_path / "opsctl.yaml").write_text(
            "targets:\n"
            f"  - {{name: good, url: '{opsctl.start_replay(OVERLOAD)}'}}\n"
            f"  - {{name: hanging, url: 'http://127.0.0.1:{hanging.getsockname()[1]}'}}\n"
            f"exporter: {{timeout: 30s, flight_recorder: {{save_to: '{saved}'}}}}\n"
        )
        sidecar = opsctl.start_sidecar(cwd=tmp_path)
        wait_for(
            lambda: (one(sidecar, "opsctl_target_reads_total", target="good") or 0) >= 3,
            timeout_s=20,
            what="reads",
        )
        process = opsctl._running[-1]
        reads = one(sidecar, "opsctl_target_reads_total", target="good")
        started = time.monotonic()
        process.send_signal(number)
        code = process.wait(timeout=10)
        took = time.monotonic() - started

    assert code == 0
    assert took < 2
    kept = [o for o in read_recording(saved) if (o.target, o.kind) == ("good", "metrics")]
    assert reads is not None
    assert len(kept) >= reads


def test_under_nohup_it_goes_on_when_the_terminal_is_closed(opsctl: Opsctl) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        sidecar = opsctl.start_sidecar("http://127.0.0.1:1")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(lambda: http_get(f"{sidecar}/livez")[0] == 200, timeout_s=20, what="the sidecar")
    opsctl._running[-1].send_signal(signal.SIGHUP)

    assert http_get(f"{sidecar}/livez")[0] == 200
    assert opsctl._running[-1].poll() is None


def test_the_status_page_is_readable_without_anything_else(
    opsctl: Opsctl, part: Callable[[str], Path], tmp_path: Path
) -> None:
    chromium = part("chromium")
    sidecar = opsctl.start_sidecar(opsctl.start_replay(OVERLOAD))
    wait_for(lambda: one(sidecar, "opsctl_target_up") == 1, timeout_s=20, what="the target")

    shown = subprocess.run(
        [
            chromium,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={tmp_path}", "--dump-dom", f"{sidecar}/"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout

    assert "tiny / 0" in shown
    assert "ready" in shown
    assert "ttft" in shown
    _, html = http_get(f"{sidecar}/")
    assert "src=" not in html
    assert "https://" not in html


def test_what_is_not_there_says_what_is(opsctl: Opsctl) -> None:
    sidecar = opsctl.start_sidecar(f"http://127.0.0.1:{reserve_port()}")

    assert http_get(f"{sidecar}/nothing")[0] == 404
    assert "/metrics" in http_get(f"{sidecar}/nothing")[1]
    status = json.loads(http_get(f"{sidecar}/api/v1/status")[1])
    assert status["targets"][0]["up"] is False


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_both_text_formats_are_served(opsctl: Opsctl, accept: str) -> None:
    sidecar = opsctl.start_sidecar(opsctl.start_replay(OVERLOAD))
    wait_for(lambda: one(sidecar, "opsctl_target_up") == 1, timeout_s=20, what="the target")
    _, text = http_get(f"{sidecar}/metrics", Accept=accept)

    assert text.endswith("# EOF\n") == bool(accept)


def test_a_port_in_use_is_a_message_not_a_traceback(opsctl: Opsctl) -> None:
    sidecar = opsctl.start_sidecar(f"http://127.0.0.1:{reserve_port()}")
    second = opsctl.run("exporter", "run", "http://127.0.0.1:1", "--listen", sidecar[7:])

    assert second.returncode == 64
    assert "cannot listen on" in second.stderr
    assert "Traceback" not in second.stderr
